"""Launches of the DCNv2 kernels: tiles from channels, groups and the dtype."""

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
from opbench_kernels.deform.dcnv2_triton import dcnv2_bwd_kernel, dcnv2_fwd_kernel, dcnv2_weight_grad_kernel
from opbench_kernels.deform.geometry import Geometry
from opbench_kernels.launch import INDEX_LIMIT, Launch

__all__ = [
    "Config",
    "Convolved",
    "backward_launch",
    "backward_rule",
    "forward_launch",
    "rule",
    "weight_grad_launch",
    "weight_grad_slices",
]

SMALLEST_PRODUCT = 16
"""A matrix product has at least that many rows and columns."""
SLICED_PIXELS = 4096
"""Output pixels of a slice of the weight's gradient: then a GPU has enough programs, and the sums are few."""
MOST_SLICES = 64
DEFAULT_STAGES = 3


class Config(NamedTuple):
    """What may be tuned: none of it changes a value, but for the order in which float32 is summed.

    Attributes:
        pixels: output pixels of a program, or of one step of the weight's gradient.
        outputs: output channels of a product, at most; without tensor cores more would spill.
        num_warps: warps per program.
    """

    pixels: int
    outputs: int
    num_warps: int


class Convolved(NamedTuple):
    """The operands of all passes.

    Attributes:
        image: (N, H, W, Ci), contiguous.
        offset: (N, 2 * K * Dg, Ho, Wo), of any strides.
        mask: (N, K * Dg, Ho, Wo), of any strides.
        weight: (groups, K, Ci / groups, Co / groups), contiguous.
        geometry: sampling grid with K points, of which the rows are outer here.
        deform_groups: Dg.
        allow_tf32: whether float32 products may be rounded to tf32.
    """

    image: torch.Tensor
    offset: torch.Tensor
    mask: torch.Tensor
    weight: torch.Tensor
    geometry: Geometry
    deform_groups: int
    allow_tf32: bool = False

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """(N, Ho, Wo, Co)."""
        return self.image.shape[0], *self.mask.shape[2:], self.weight.shape[0] * self.weight.shape[3]

    @property
    def is_plain(self) -> bool:
        """Whether products are made without tensor cores."""
        return self.image.dtype == torch.float32 and not self.allow_tf32

    @property
    def is_wide(self) -> bool:
        """Whether distances in an image need 64 bits; a grid may start in the padding."""
        _, height, width, channels = self.image.shape
        pad_h, pad_w = self.geometry.padding
        return ((height + pad_h) * width + pad_w) * channels >= INDEX_LIMIT

    @property
    def pixels(self) -> int:
        """Output pixels of all images."""
        return math.prod(self.out_shape[:3])

    def sizes(self, constants: Mapping[str, Any]) -> tuple[int, ...]:
        """The scalar arguments of all kernels."""
        _, out_height, out_width, _ = self.out_shape
        size = (*self.image.shape[1:3], out_height, out_width)
        blocks = -(-int(constants["SEGMENT"]) // int(constants["BLOCK_C"]))
        return self.pixels, *size, *self.offset.stride(), *self.mask.stride(), blocks

    def constants(self, config: Config) -> dict[str, Any]:
        """The compile-time constants of all kernels."""
        channels = self.image.shape[3]
        groups, points, group_channels, group_outputs = self.weight.shape
        geometry, dtype = self.geometry, self.image.dtype
        deform_channels = channels // self.deform_groups
        segment = math.gcd(group_channels, deform_channels)
        # Without tensor cores a product is multiply-adds in registers, which more channels at a time would spill.
        most_channels = 16 if self.is_plain else 32
        return {
            "C": channels,
            "GC": group_channels,
            "GO": group_outputs,
            "DC": deform_channels,
            "SEGMENT": segment,
            "OUTPUTS": groups * group_outputs,
            "K": points,
            "KW": geometry.kernel[1],
            "STRIDE_H": geometry.stride[0],
            "STRIDE_W": geometry.stride[1],
            "PAD_H": geometry.padding[0],
            "PAD_W": geometry.padding[1],
            "DILATION_H": geometry.dilation[0],
            "DILATION_W": geometry.dilation[1],
            "WIDE": self.is_wide,
            "PRECISION": "tf32" if self.allow_tf32 else "ieee",
            # Triton's interpreter multiplies the bits of bfloat16 as integers.
            "UPCAST": dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1",
            "BLOCK_P": config.pixels,
            # As many as divide a segment, so that no load has a predicate.
            "BLOCK_C": max(SMALLEST_PRODUCT, min(most_channels, segment & -segment)),
            "BLOCK_O": max(SMALLEST_PRODUCT, min(config.outputs, triton.next_power_of_2(group_outputs))),
        }


def rule(convolved: Convolved) -> Config:
    """The configuration of every kernel that spills nothing, with as many outputs as it may have then."""
    if convolved.image.dtype != torch.float32:
        return Config(pixels=64, outputs=128, num_warps=4)
    return Config(pixels=64, outputs=32 if convolved.is_plain else 64, num_warps=4)


def backward_rule(convolved: Convolved) -> Config:
    """That of the backward kernel, which has more to keep: without tensor cores a product of 32 outputs may spill."""
    first = rule(convolved)
    if convolved.image.dtype != torch.float32:
        return first
    return first._replace(outputs=SMALLEST_PRODUCT if convolved.is_plain else 2 * SMALLEST_PRODUCT)


def _launch(
    kernel: object,
    tensors: tuple[torch.Tensor, ...],
    convolved: Convolved,
    constants: dict[str, Any],
    config: Config,
    *grid: int,
    stages: int = DEFAULT_STAGES,
) -> Launch:
    """With products in so many stages; in tf32 with one, because what is loaded ahead is of 4 bytes on sm_90."""
    options = {"num_warps": config.num_warps, "num_stages": 1 if convolved.allow_tf32 else stages}
    options["enable_fp_fusion"] = True
    return Launch(kernel, (*tensors, *convolved.sizes(constants)), constants, options, grid)


def forward_launch(
    convolved: Convolved, bias: torch.Tensor | None, out: torch.Tensor, config: Config | None = None
) -> Launch:
    """The launch that writes `out` (N, Ho, Wo, Co), contiguous, in the dtype of the image."""
    config = config or rule(convolved)
    constants = convolved.constants(config)
    # Two neighbours that are both in the image need two rows and two columns.
    constants |= {"HAS_BIAS": bias is not None, "STRICT": min(convolved.image.shape[1:3]) < 2}
    tensors = (*convolved[:4], convolved.weight if bias is None else bias, out)
    groups, outputs = convolved.weight.shape[0], triton.cdiv(constants["GO"], constants["BLOCK_O"])
    blocks = triton.cdiv(convolved.pixels, config.pixels)
    return _launch(dcnv2_fwd_kernel, tensors, convolved, constants, config, blocks, groups * outputs)


def backward_launch(
    convolved: Convolved,
    grad_out: torch.Tensor,
    grad_image: torch.Tensor,
    grad_offset: torch.Tensor,
    grad_mask: torch.Tensor,
    fixed_point: torch.Tensor | None = None,
    config: Config | None = None,
) -> Launch:
    """The launch for the gradients of image, offset and mask.

    Args:
        convolved: the operands of the forward pass.
        grad_out: (N, Ho, Wo, Co), contiguous.
        grad_image: as image, zeros; float32, or int64 with `fixed_point`. Shares are added to it.
        grad_offset, grad_mask: (N, Ho, Wo, channels), contiguous; written.
        fixed_point: two numbers whose product is the integer units per 1.0 of grad_image.
        config: backward_rule's by default.
    """
    config = config or backward_rule(convolved)
    unit = grad_image if fixed_point is None else fixed_point
    height, width = convolved.image.shape[1:3]
    # From a point's upper left pixel to the others; none where there is no second row or column.
    steps = {"ROW_STEP": int(height > 1), "COLUMN_STEP": int(width > 1)}
    constants = convolved.constants(config) | steps | {"FIXED_POINT": fixed_point is not None}
    tensors = (*convolved[:4], grad_out, grad_image, grad_offset, grad_mask, unit)
    blocks = triton.cdiv(convolved.pixels, config.pixels)
    grid = (blocks, convolved.deform_groups)
    stages = DEFAULT_STAGES if convolved.is_plain else 2  # a third spills on sm_80
    return _launch(dcnv2_bwd_kernel, tensors, convolved, constants, config, *grid, stages=stages)


def weight_grad_slices(convolved: Convolved) -> int:
    """In how many parts the pixels are summed."""
    return min(MOST_SLICES, -(-convolved.pixels // SLICED_PIXELS))


def weight_grad_launch(
    convolved: Convolved, grad_out: torch.Tensor, partial: torch.Tensor, config: Config | None = None
) -> Launch:
    """The launch that writes the sums of the weight's gradient over each slice of the pixels.

    Args:
        convolved: the operands of the forward pass.
        grad_out: (N, Ho, Wo, Co), contiguous.
        partial: (slices, groups, K, Ci / groups, Co / groups), float32.
        config: the rule's by default.
    """
    config = config or rule(convolved)
    constants = convolved.constants(config)
    segments = constants["C"] // constants["SEGMENT"]
    blocks = constants["K"] * segments * triton.cdiv(constants["SEGMENT"], constants["BLOCK_C"])
    outputs = triton.cdiv(constants["GO"], constants["BLOCK_O"])
    tensors = (*convolved[:3], grad_out, partial)
    grid = (blocks, outputs, partial.shape[0])
    stages = 1 if convolved.is_plain else DEFAULT_STAGES  # what is loaded ahead would spill
    return _launch(dcnv2_weight_grad_kernel, tensors, convolved, constants, config, *grid, stages=stages)
