"""Launches of the direct kernels: tile sizes, and slices of the batch for the weight gradient."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from opbench_kernels.depthwise.depthwise_triton import depthwise_fwd_kernel, depthwise_weight_grad_kernel
from opbench_kernels.depthwise.geometry import Kernel
from opbench_kernels.launch import INDEX_LIMIT, VECTOR_BYTES, WARP_SIZE, Launch

__all__ = [
    "Config",
    "forward_launch",
    "tile",
    "vector",
    "weight_grad_launch",
    "weight_grad_slices",
    "weight_grad_tile",
]

NUM_WARPS = 2
MAX_ROWS = 8
"""Rows of a tile: 9 leave too few registers for half precision (docs/tuning.md)."""
BLOCK_LANES = 8
"""Lanes along the channels: 8 vectors of 16 bytes are a line of L1, the other lanes take other columns."""
ENOUGH_PROGRAMS = 4096
"""Of the weight gradient: 8 resident ones on each of some 130 SMs, four times."""


class Config(NamedTuple):
    """What may be chosen of a launch; no value depends on it but for the order of sums, and tf32 where that is allowed.

    Attributes:
        gemm: 1 for matrix products on tensor cores (gemm_launch.py), 0 for the direct kernels.
        rows: direct, of a tile: output rows, or the kernel's for the weight gradient. gemm: of a product.
        columns: of a tile.
        taps: kernel rows side by side in one product; 0 for the direct kernels.
        num_warps: of a program.
    """

    gemm: int
    rows: int
    columns: int
    taps: int
    num_warps: int


def vector(dtype: torch.dtype) -> int:
    """Channels of a 16-byte load, of which C must be a multiple for loads that wide."""
    return VECTOR_BYTES // dtype.itemsize


def tile(rows: int, width: int, channels: int, dtype: torch.dtype, most_rows: int = MAX_ROWS) -> Config:
    """The rule for the direct kernels.

    Args:
        rows: what a tile's rows are taken of: output rows, or the kernel's for the weight gradient. Few tiles are best,
            and rows of tiles past the end are lost; a tile costs as much as its rows, and two more.
        width: of the output, pixels. The warps share a tile's columns and channels, one vector each.
        channels: C.
        dtype: of the image.
        most_rows: of a tile.
    """
    best = min(range(1, most_rows + 1), key=lambda count: (triton.cdiv(rows, count) * (count + 2), -count))
    lanes = min(BLOCK_LANES, triton.next_power_of_2(triton.cdiv(channels, vector(dtype))))
    # A narrow image has no use for many columns: its lanes go to further channels.
    columns = min(NUM_WARPS * WARP_SIZE // lanes, max(4, triton.next_power_of_2(width)))
    return Config(0, best, columns, 0, NUM_WARPS)


def weight_grad_tile(kernel: Kernel, width: int, channels: int, dtype: torch.dtype) -> Config:
    """The rule for the weight gradient: in float32 sm_100 keeps some of a tile of 8 rows on the stack, of 7 nothing."""
    return tile(kernel.height, width, channels, dtype, 7 if dtype == torch.float32 else MAX_ROWS)


def _constants(config: Config, dtype: torch.dtype) -> dict[str, int]:
    channels = config.num_warps * WARP_SIZE // config.columns * vector(dtype)
    return {"ROWS": config.rows, "BLOCK_W": config.columns, "BLOCK_C": channels}


def _options(config: Config) -> dict[str, Any]:
    # Triton 3.9 warns where enable_fp_fusion is left to the default.
    return {"num_warps": config.num_warps, "enable_fp_fusion": True}


def _is_wide(*images: torch.Tensor) -> bool:
    """Whether distances inside one of these (N, H, W, C) images, or its padding, need 64 bits."""
    return any((x.shape[1] + 2 * MAX_ROWS) * x.shape[2] * x.shape[3] >= INDEX_LIMIT for x in images)


def forward_launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    kernels: Sequence[Kernel],
    config: Config | None = None,
) -> Launch:
    """The launch that writes out = the sum of the kernels' convolutions of x, plus the bias.

    Args:
        x: (N, H, W, C), contiguous.
        weight: (taps of all kernels, C), float32, contiguous: a kernel's rows, then columns; kernel by kernel.
        bias: (C,), contiguous, or None.
        out: (N, Ho, Wo, C), contiguous; the same size for all kernels.
        kernels: sizes and paddings.
        config: of the direct kernel; without it the rule's.
    """
    batch, height, width, channels = out.shape
    config = config or tile(height, width, channels, x.dtype)
    constants = {
        "C": channels,
        "KERNELS": tuple(map(tuple, kernels)),
        "HAS_BIAS": bias is not None,
        "WIDE": _is_wide(x, out),
        **_constants(config, x.dtype),
    }
    tiles = triton.cdiv(height, constants["ROWS"]) * triton.cdiv(width, constants["BLOCK_W"])
    tensors = (x, weight, weight if bias is None else bias, out)
    grid = (batch * tiles, triton.cdiv(channels, constants["BLOCK_C"]))
    return Launch(depthwise_fwd_kernel, (*tensors, *x.shape[1:3], height, width), constants, _options(config), grid)


def _weight_grad_grid(channels: int, kernel: Kernel, constants: dict[str, Any]) -> tuple[int, int]:
    return kernel.width * triton.cdiv(kernel.height, constants["ROWS"]), triton.cdiv(channels, constants["BLOCK_C"])


def weight_grad_slices(x: torch.Tensor, grad: torch.Tensor, kernel: Kernel, config: Config | None = None) -> int:
    """Parts of the batch that are summed apart: as many as fill the GPU, one at least and one an image at most."""
    batch, _, width, channels = grad.shape
    config = config or weight_grad_tile(kernel, width, channels, x.dtype)
    columns, blocks = _weight_grad_grid(channels, kernel, _constants(config, x.dtype))
    images = triton.cdiv(batch, min(batch, triton.cdiv(ENOUGH_PROGRAMS, columns * blocks)))
    return int(triton.cdiv(batch, images))


def weight_grad_launch(
    x: torch.Tensor, grad: torch.Tensor, partial: torch.Tensor, kernel: Kernel, config: Config | None = None
) -> Launch:
    """The launch that writes the weight gradient of each slice of the batch.

    Args:
        x: (N, H, W, C), contiguous.
        grad: (N, Ho, Wo, C), contiguous.
        partial: (weight_grad_slices, kernel height, kernel width, C), float32, contiguous.
        kernel: size and padding.
        config: of the direct kernel; without it the rule's.
    """
    batch, height, width, channels = grad.shape
    config = config or weight_grad_tile(kernel, width, channels, x.dtype)
    constants = {
        "C": channels,
        "KERNEL": tuple(kernel),
        "WIDE": _is_wide(x, grad),
        **_constants(config, x.dtype),
    }
    slices = partial.shape[0]
    sizes = (batch, triton.cdiv(batch, slices), *x.shape[1:3], height, width)
    grid = (*_weight_grad_grid(channels, kernel, constants), slices)
    return Launch(depthwise_weight_grad_kernel, (x, grad, partial, *sizes), constants, _options(config), grid)
