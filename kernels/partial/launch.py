"""The launch of the partial convolution: tile sizes from the channels and the dtype."""

import os
from typing import Any, NamedTuple

import torch
import triton
from opbench_kernels.launch import INDEX_LIMIT, Launch
from opbench_kernels.partial.partial_triton import partial_conv3x3_kernel

__all__ = ["CONFIGS", "Config", "partial_conv3x3_launch"]

LINE_BYTES = 128
"""Of a pixel, read per step: a cache line."""
SMALLEST_PRODUCT = 16
"""A matrix product has at least that many rows and columns."""


class Config(NamedTuple):
    """What may be tuned; no value depends on it.

    Attributes:
        pixels: of a program.
        num_warps: warps per program.
    """

    pixels: int
    num_warps: int


CONFIGS = (Config(64, 4), Config(32, 2), Config(32, 4), Config(128, 4), Config(128, 8))
"""The rule's first."""


def partial_conv3x3_launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    *,
    allow_tf32: bool = False,
    config: Config = CONFIGS[0],
) -> Launch:
    """The launch that writes `out`; arguments are taken as checked.

    Args:
        x, out: (N, H, W, C), contiguous.
        weight: (9, D, D), contiguous: tap (row by row), input channel, output channel.
        allow_tf32: whether float32 products may be rounded to tf32.
        config: of CONFIGS.
    """
    batch, height, width, channels = x.shape
    convolved = weight.shape[1]
    pixels = batch * height * width
    block_d = max(SMALLEST_PRODUCT, triton.next_power_of_2(convolved))
    strict = x.dtype == torch.float32 and not allow_tf32
    constants: dict[str, Any] = {
        "C": channels,
        "D": convolved,
        "PRECISION": "tf32" if allow_tf32 else "ieee",
        # Triton's interpreter multiplies the bits of bfloat16 as integers.
        "UPCAST": x.dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1",
        "WIDE": (pixels + config.pixels) * channels >= INDEX_LIMIT,
        "BLOCK_P": config.pixels,
        # Without tensor cores a product is multiply-adds in registers, which more channels at a time would spill.
        "BLOCK_K": min(SMALLEST_PRODUCT if strict else LINE_BYTES // x.element_size(), block_d),
        "BLOCK_D": block_d,
        "BLOCK_C": LINE_BYTES // x.element_size(),
    }
    arguments = (x, weight, out, pixels, height, width)
    options = {"num_warps": config.num_warps, "enable_fp_fusion": True}
    return Launch(partial_conv3x3_kernel, arguments, constants, options, (triton.cdiv(pixels, config.pixels),))
