"""Launches of the deformable kernels: operands from tensors of any strides, and tile sizes."""

from typing import Any, NamedTuple

import torch
from opbench_kernels.bilinear_launch import GRADIENT_VECTOR, Config, backward_rule, forward_rule, tile
from opbench_kernels.deform.geometry import Geometry
from opbench_kernels.deform.sampling_triton import deform_bwd_kernel, deform_fwd_kernel
from opbench_kernels.launch import INDEX_LIMIT, VECTOR_BYTES, Launch

__all__ = [
    "Sampled",
    "backward_config",
    "backward_launch",
    "forward_config",
    "forward_launch",
    "is_wide",
    "sampled_dcnv3",
    "sampled_dcnv4",
    "unpack",
]

MAX_BLOCK_ROWS = 1024


class Sampled(NamedTuple):
    """The operands of both passes. Pixels follow each other at any one stride; the axes inside one are contiguous.

    Attributes:
        value: (N * H * W, G, Dg).
        offset: (N * Ho * Wo, G, K, 2), pixels, (x, y) pairs.
        mask: (N * Ho * Wo, G, K).
        size: (H, W) of the image.
        geometry: sampling grid with K points.
    """

    value: torch.Tensor
    offset: torch.Tensor
    mask: torch.Tensor
    size: tuple[int, int]
    geometry: Geometry

    @property
    def rows(self) -> int:
        """N * Ho * Wo * G, one for each output pixel and group."""
        return self.offset.shape[0] * self.offset.shape[1]

    def arguments(self) -> tuple[int | float, ...]:
        """The scalar arguments that both kernels take first."""
        geometry = self.geometry
        return (
            self.rows, *self.size, *geometry.output_size(*self.size),
            self.offset.stride(0), self.offset.stride(1), self.mask.stride(0), self.mask.stride(1),
            geometry.offset_scale, *(base * (1.0 - geometry.offset_scale) for base in geometry.base),
        )  # fmt: skip

    def constants(self, config: Config, vector_elements: int) -> dict[str, Any]:
        """The compile-time constants that both kernels share, for vectors of that many channels."""
        geometry, groups, group_channels = self.geometry, *self.value.shape[1:]
        stride = self.value.stride(0)
        return {
            "G": groups,
            "DG": group_channels,
            **geometry.constants,
            "STRIDE_H": geometry.stride[0],
            "STRIDE_W": geometry.stride[1],
            "VALUE_STRIDE": stride,
            # The gradient of value is contiguous, whatever the stride of value.
            "WIDE": is_wide(self.size, geometry, max(stride, groups * group_channels), self.rows),
            **tile(config, group_channels, vector_elements),
        }


def is_wide(size: tuple[int, int], geometry: Geometry, stride: int, rows: int) -> bool:
    """Whether distances from the start of a grid, which may lie in the padding, or counts of rows need 64 bits."""
    pixels = (size[0] + geometry.padding[0]) * size[1] + geometry.padding[1]
    return max(pixels * stride, rows + MAX_BLOCK_ROWS) >= INDEX_LIMIT


def forward_config(sampled: Sampled) -> Config:
    """The rule's."""
    return forward_rule(sampled.rows, sampled.value.shape[-1], sampled.value.element_size())


def forward_launch(sampled: Sampled, out: torch.Tensor, config: Config | None = None) -> Launch:
    """The launch of the forward kernel, which writes `out` (N, Ho, Wo, C), contiguous, in the dtype of the value."""
    config = config or forward_config(sampled)
    # Two neighbours that are both in the image need two rows and two columns.
    constants = sampled.constants(config, VECTOR_BYTES // sampled.value.element_size())
    constants |= {"STRICT": min(sampled.size) < 2}
    tensors = (sampled.value, sampled.offset, sampled.mask, out)
    return Launch.over_rows(deform_fwd_kernel, (*tensors, *sampled.arguments()), constants, config.num_warps)


def backward_config(sampled: Sampled) -> Config:
    """The rule's."""
    return backward_rule(sampled.value.shape[-1])


def backward_launch(
    sampled: Sampled,
    grad_out: torch.Tensor,
    grad_value: torch.Tensor,
    grad_offset: torch.Tensor,
    grad_mask: torch.Tensor,
    fixed_point: torch.Tensor | None = None,
    config: Config | None = None,
) -> Launch:
    """The launch of the backward kernel.

    Args:
        sampled: the operands of the forward pass.
        grad_out: (N, Ho, Wo, C), contiguous.
        grad_value: (N, H, W, C), contiguous, zeros; float32, or int64 with `fixed_point`. Shares are added to it.
        grad_offset, grad_mask: shaped as `sampled.offset` and `sampled.mask`; written.
        fixed_point: two numbers whose product is the integer units per 1.0 of grad_value.
        config: backward_config by default.
    """
    config = config or backward_config(sampled)
    height, width = sampled.size
    constants = sampled.constants(config, GRADIENT_VECTOR)
    # From a point's upper left pixel to the others; none where there is no second row or column.
    constants |= {"ROW_STEP": int(height > 1), "COLUMN_STEP": int(width > 1), "FIXED_POINT": fixed_point is not None}
    tensors = (sampled.value, sampled.offset, sampled.mask, grad_out, grad_value, grad_offset, grad_mask)
    unit = grad_value if fixed_point is None else fixed_point
    strides = (grad_offset.stride(0), grad_offset.stride(1), grad_mask.stride(0), grad_mask.stride(1))
    return Launch.over_rows(deform_bwd_kernel, (*tensors, unit, *sampled.arguments(), *strides), constants,
                            config.num_warps)  # fmt: skip


def _flat_pixels(tensor: torch.Tensor, inner: int) -> torch.Tensor:
    """`tensor` with all axes but the last `inner` merged into one; a view where the strides allow it, else a copy.

    The inner axes are contiguous in the result, but for the first of them, whose stride is free.
    """
    flat = tensor.reshape(-1, *tensor.shape[-inner:])
    expected = 1
    for axis in range(flat.dim() - 1, 1, -1):
        if flat.shape[axis] > 1 and flat.stride(axis) != expected:
            return flat.contiguous()
        expected *= flat.shape[axis]
    return flat


def sampled_dcnv3(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, groups: int, geometry: Geometry
) -> Sampled:
    """The operands of opbench_kernels.dcnv3; tensors are shaped as there."""
    points = geometry.points
    offset = _flat_pixels(offset.unflatten(-1, (groups, points, 2)), 3)
    return _sampled(value, offset, _flat_pixels(mask.unflatten(-1, (groups, points)), 2), groups, geometry)


def sampled_dcnv4(value: torch.Tensor, offset_mask: torch.Tensor, groups: int, geometry: Geometry) -> Sampled:
    """The operands of opbench_kernels.dcnv4; tensors are shaped as there."""
    return _sampled(value, *unpack(offset_mask, groups, geometry.points), groups, geometry)


def unpack(offset_mask: torch.Tensor, groups: int, points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Views offset (N * Ho * Wo, G, K, 2) and mask (N * Ho * Wo, G, K) of packed (N, Ho, Wo, M)."""
    used = _flat_pixels(offset_mask[..., : 3 * points * groups].unflatten(-1, (groups, 3 * points)), 2)
    return used[..., : 2 * points].unflatten(-1, (points, 2)), used[..., 2 * points :]


def _sampled(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, groups: int, geometry: Geometry) -> Sampled:
    split = _flat_pixels(value.unflatten(-1, (groups, -1)), 2)
    if groups > 1 and split.stride(1) != split.shape[2]:
        split = split.contiguous()
    return Sampled(split, offset, mask, (value.shape[1], value.shape[2]), geometry)
