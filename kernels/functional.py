"""DCNv3 and DCNv4 as functions: Triton on a CUDA device, vectorised torch elsewhere."""

import os
from collections.abc import Callable
from typing import Literal

import torch
from opbench_kernels import deform_torch
from opbench_kernels.geometry import Geometry, padded_offset_mask_channels, pair

__all__ = ["dcnv3", "dcnv4"]

Implementation = Literal["auto", "triton", "torch"]
Size = int | tuple[int, int]


def dcnv4(
    value: torch.Tensor,
    offset_mask: torch.Tensor,
    *,
    groups: int,
    kernel_size: Size = 3,
    stride: Size = 1,
    padding: Size = 1,
    dilation: Size = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """Deformable convolution v4: a sum of bilinear samples with unbounded weights, per group of channels.

    Args:
        value: (N, H, W, C), channels last; C a multiple of `groups`.
        offset_mask: (N, Ho, Wo, M) with M = 3 * K * groups rounded up to a multiple of 8; group g starts at
            3 * K * g with K interleaved (x, y) offsets in pixels, then K masks. The tail is ignored.
        groups: number of channel groups, each with offsets and masks of its own.
        kernel_size, stride, padding, dilation: an integer or (height, width).
        offset_scale: factor on offsets and on the sampling grid.
        remove_center: leave the centre point out, so K = kernel height * width - 1.
        implementation: "auto" takes Triton on a CUDA device and torch elsewhere.

    Returns:
        (N, Ho, Wo, C) in the dtype of `value`.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Xiong et al., Efficient Deformable ConvNets, CVPR 2024, section 3.
    """
    geometry = _geometry(kernel_size, stride, padding, dilation, offset_scale, remove_center)
    split = _split_channels(value, groups)
    n, out_height, out_width = _expected_pixels(value, geometry)
    points = geometry.points
    _check_shape("offset_mask", offset_mask, (n, out_height, out_width, padded_offset_mask_channels(groups, points)))
    used = offset_mask[..., : 3 * points * groups].unflatten(-1, (groups, 3 * points))
    offset = used[..., : 2 * points].unflatten(-1, (points, 2))
    sample = _implementation(implementation, value)
    return sample(split, offset, used[..., 2 * points :], geometry).flatten(-2)


def dcnv3(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    *,
    groups: int,
    kernel_size: Size = 3,
    stride: Size = 1,
    padding: Size = 1,
    dilation: Size = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """Deformable convolution v3: as dcnv4 with offsets and masks in tensors of their own.

    The softmax that DCNv3 puts on its masks belongs to the module, not to this function.

    Args:
        value: (N, H, W, C), channels last; C a multiple of `groups`.
        offset: (N, Ho, Wo, groups * K * 2), interleaved (x, y) offsets in pixels.
        mask: (N, Ho, Wo, groups * K).
        groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, implementation: as dcnv4.

    Returns:
        (N, Ho, Wo, C) in the dtype of `value`.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Wang et al., InternImage, CVPR 2023, equation 2.
    """
    geometry = _geometry(kernel_size, stride, padding, dilation, offset_scale, remove_center)
    split = _split_channels(value, groups)
    pixels = _expected_pixels(value, geometry)
    points = geometry.points
    _check_shape("offset", offset, (*pixels, groups * points * 2))
    _check_shape("mask", mask, (*pixels, groups * points))
    sample = _implementation(implementation, value)
    return sample(
        split, offset.unflatten(-1, (groups, points, 2)), mask.unflatten(-1, (groups, points)), geometry
    ).flatten(-2)


def _geometry(
    kernel_size: Size, stride: Size, padding: Size, dilation: Size, offset_scale: float, remove_center: bool
) -> Geometry:
    geometry = Geometry(
        kernel=pair(kernel_size, "kernel_size", 1),
        stride=pair(stride, "stride", 1),
        padding=pair(padding, "padding", 0),
        dilation=pair(dilation, "dilation", 1),
        offset_scale=float(offset_scale),
        remove_center=remove_center,
    )
    if remove_center and (geometry.points < 1 or any(size % 2 == 0 for size in geometry.kernel)):
        raise ValueError(f"remove_center needs an odd kernel_size above 1, got {kernel_size!r}")
    return geometry


def _split_channels(value: torch.Tensor, groups: int) -> torch.Tensor:
    """`value` as (N, H, W, G, Dg)."""
    if value.dim() != 4:
        raise ValueError(f"value must be (N, H, W, C), got shape {tuple(value.shape)}")
    if not isinstance(groups, int) or groups < 1 or value.shape[-1] % groups:
        raise ValueError(f"groups must divide the {value.shape[-1]} channels of value, got {groups!r}")
    return value.unflatten(-1, (groups, -1))


def _expected_pixels(value: torch.Tensor, geometry: Geometry) -> tuple[int, int, int]:
    return value.shape[0], *geometry.output_size(value.shape[1], value.shape[2])


def _check_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")


def _implementation(name: Implementation, value: torch.Tensor) -> Callable[..., torch.Tensor]:
    if name == "torch" or (name == "auto" and value.device.type != "cuda"):
        return deform_torch.deformable_sample
    if name not in ("auto", "triton"):
        raise ValueError(f"implementation must be 'auto', 'triton' or 'torch', got {name!r}")
    if value.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"implementation 'triton' needs a CUDA tensor, got one on {value.device}")
    from opbench_kernels import deform_triton

    return deform_triton.deformable_sample
