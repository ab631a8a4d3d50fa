"""DCNv3 and DCNv4 as functions: Triton on a CUDA device, vectorised torch elsewhere."""

import math

import torch
from opbench_kernels.deform import operators, sampling_torch
from opbench_kernels.deform.geometry import Geometry, padded_offset_mask_channels
from opbench_kernels.implementation import Implementation, in_autocast_dtype, takes_operator
from opbench_kernels.sizes import Size, pair

__all__ = ["dcnv3", "dcnv4"]


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
        value: (N, H, W, C), channels last, float32, float16 or bfloat16 (float64 too in torch); C a multiple of
            `groups`. Under autocast, float32 is taken in the lower precision, as a convolution does.
        offset_mask: (N, Ho, Wo, M) with M = 3 * K * groups rounded up to a multiple of 8; group g starts at
            3 * K * g with K interleaved (x, y) offsets in pixels, then K masks. The tail is ignored. Any floating
            dtype: coordinates and sums are float32.
        groups: number of channel groups, each with offsets and masks of its own.
        kernel_size, stride, padding, dilation: an integer or (height, width).
        offset_scale: factor on offsets and on the sampling grid.
        remove_center: leave the centre point out, so K = kernel height * width - 1.
        implementation: "auto" takes Triton on a CUDA device, if it is installed, and torch elsewhere.

    Returns:
        (N, Ho, Wo, C) in the dtype of `value`.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Xiong et al., Efficient Deformable ConvNets, CVPR 2024, section 3.
    """
    geometry = _geometry(kernel_size, stride, padding, dilation, offset_scale, remove_center)
    value, whole = _checked_value(value, groups, geometry, implementation)
    points = geometry.points
    packed = padded_offset_mask_channels(groups, points)
    _check_companion("offset_mask", offset_mask, value, geometry, packed, f"3 * K * groups, K = {points}, padded to 8")
    if whole:
        return operators.dcnv4(value, offset_mask, groups, geometry)
    pixels = offset_mask.shape[:3]
    used = offset_mask[..., : 3 * points * groups].view(*pixels, groups, 3 * points)
    offset = used[..., : 2 * points].view(*pixels, groups, points, 2)
    split = value.view(*value.shape[:3], groups, value.shape[-1] // groups)
    result = sampling_torch.deformable_sample(split, offset, used[..., 2 * points :], geometry)
    return result.view(*pixels, value.shape[-1])


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
    value, whole = _checked_value(value, groups, geometry, implementation)
    points = geometry.points
    _check_companion("offset", offset, value, geometry, groups * points * 2, f"groups * K * 2, K = {points}")
    _check_companion("mask", mask, value, geometry, groups * points, f"groups * K, K = {points}")
    if whole:
        return operators.dcnv3(value, offset, mask, groups, geometry)
    pixels = mask.shape[:3]
    split = value.view(*value.shape[:3], groups, value.shape[-1] // groups)
    offset, mask = offset.view(*pixels, groups, points, 2), mask.view(*pixels, groups, points)
    return sampling_torch.deformable_sample(split, offset, mask, geometry).view(*pixels, value.shape[-1])


def _geometry(
    kernel_size: Size, stride: Size, padding: Size, dilation: Size, offset_scale: float, remove_center: bool
) -> Geometry:
    is_number = isinstance(offset_scale, int | float) and not isinstance(offset_scale, bool)
    # Comparisons, because torch.compile cannot trace math.isfinite of a number that it does not know.
    if not is_number or not -math.inf < offset_scale < math.inf:
        raise ValueError(f"offset_scale must be a finite number, got {offset_scale!r}")
    if remove_center not in (False, True):
        raise ValueError(f"remove_center must be True or False, got {remove_center!r}")
    geometry = Geometry(
        kernel=pair(kernel_size, "kernel_size", 1),
        stride=pair(stride, "stride", 1),
        padding=pair(padding, "padding", 0),
        dilation=pair(dilation, "dilation", 1),
        offset_scale=float(offset_scale),
        remove_center=bool(remove_center),
    )
    if remove_center and (geometry.points < 1 or any(size % 2 == 0 for size in geometry.kernel)):
        raise ValueError(f"remove_center needs an odd kernel_size above 1, got {kernel_size!r}")
    return geometry


def _checked_value(
    value: torch.Tensor, groups: int, geometry: Geometry, implementation: Implementation
) -> tuple[torch.Tensor, bool]:
    """`value` in autocast's dtype where that is on, and whether an operator computes instead of torch."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"value must be a tensor, got {type(value).__name__}")
    if value.dim() != 4 or 0 in value.shape[1:]:
        raise ValueError(f"value must be (N, H, W, C) with H, W and C of at least 1, got shape {tuple(value.shape)}")
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or value.shape[-1] % groups:
        raise ValueError(f"groups must divide the {value.shape[-1]} channels of value, got {groups!r}")
    geometry.output_size(value.shape[1], value.shape[2])
    value = in_autocast_dtype(value)
    return value, takes_operator("value", value, implementation, in_onnx_since=19)


def _check_companion(
    name: str, tensor: torch.Tensor, value: torch.Tensor, geometry: Geometry, channels: int, meaning: str
) -> None:
    """ValueError unless `tensor` is floating, on value's device, and has one vector of `channels` per output pixel."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise ValueError(f"{name} must be a floating tensor, got {got}")
    if tensor.device != value.device:
        raise ValueError(f"{name} must be on {value.device} as value is, got {tensor.device}")
    expected = (value.shape[0], *geometry.output_size(value.shape[1], value.shape[2]), channels)
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {expected} (N, Ho, Wo, {meaning}), got {tuple(tensor.shape)}")
