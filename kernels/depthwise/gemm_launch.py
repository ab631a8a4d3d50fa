"""Launches of depthwise convolution as matrix products, and the operands that they need: margins, bands."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from opbench_kernels.depthwise.gemm_triton import depthwise_gemm_kernel, depthwise_gemm_weight_grad_kernel
from opbench_kernels.depthwise.geometry import Kernel
from opbench_kernels.depthwise.launch import Config
from opbench_kernels.launch import Launch

__all__ = ["band_width", "forward_gemm_launch", "products_width", "weight_grad_gemm_launch"]

SHIFTS = 8
ROW_UNIT = 16
"""As the kernels have them."""
BLOCK_U = 16
"""Columns of the image in one product: what the tensor cores multiply at least."""
ENOUGH_PROGRAMS = 4096
MIN_PART_ROWS = 256


class _Band(NamedTuple):
    """One kernel's part in a launch: where its product begins in the image with margins, and how far it reaches."""

    chunks: int
    width: int
    down: int
    start: int
    kernel_height: int
    kernel_width: int
    lead: int
    """Columns from `start`, which is a vector's place, to the first that the kernel reads."""


def _bands(kernels: Sequence[Kernel], config: Config) -> list[_Band]:
    above, left = (max(getattr(kernel, name) for kernel in kernels) for name in ("pad_h", "pad_w"))
    bands = []
    for kernel in kernels:
        lead = (left - kernel.pad_w) % SHIFTS
        width = band_width(kernel, config, lead)
        chunks = triton.cdiv(kernel.height, config.taps)
        start = left - kernel.pad_w - lead
        bands.append(_Band(chunks, width, above - kernel.pad_h, start, kernel.height, kernel.width, lead))
    return bands


def band_width(kernel: Kernel, config: Config, lead: int = 0) -> int:
    """Columns of the image that a product reads for a tile's outputs, `lead` of them for nothing."""
    return _up(lead + kernel.width + config.columns - 1, BLOCK_U)


def products_width(kernel: Kernel, config: Config) -> int:
    """The same of the weight gradient, whose product has all of them at once."""
    return max(BLOCK_U, int(triton.next_power_of_2(config.columns + kernel.width - 1)))


def _up(length: int, unit: int) -> int:
    return -(-length // unit) * unit


def _with_margins(x: torch.Tensor, above: int, left: int, height: int, width: int) -> torch.Tensor:
    """(N, C, height, width) with image x (N, H, W, C) at (above, left), and zeros around it; contiguous."""
    whole = x.new_zeros(x.shape[0], x.shape[3], height, width)
    whole[:, :, above : above + x.shape[1], left : left + x.shape[2]] = x.permute(0, 3, 1, 2)
    return whole


def _tables(weight: torch.Tensor, kernels: Sequence[Kernel], bands: Sequence[_Band], config: Config) -> torch.Tensor:
    """The kernels' rows, moved and between zeros, one kernel after the other; weight as forward_gemm_launch has it."""
    tables = []
    for taps, kernel, band in zip(weight.split([each.taps for each in kernels]), kernels, bands, strict=True):
        rows = taps.t().unflatten(1, (kernel.height, kernel.width))
        before = band.lead + config.columns - 1
        after = band.width - band.lead - kernel.width
        rows = F.pad(rows, (before, after, 0, band.chunks * config.taps - kernel.height))
        tables.append(rows.unfold(2, band.width - SHIFTS + config.columns, 1).flatten())
    return torch.cat(tables)


def forward_gemm_launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    kernels: Sequence[Kernel],
    config: Config,
) -> Launch:
    """The launch that writes out = the sum of the kernels' convolutions of x, plus the bias.

    Args:
        x: (N, H, W, C), any strides: what is read is a copy with margins.
        weight: (taps of all kernels, C), as the direct kernel has it.
        bias: (C,), contiguous, or None.
        out: (N, C, Ho, Wo), contiguous.
        kernels: sizes and paddings, all with the same output size.
        config: with gemm=1.
    """
    batch, channels, height, width = out.shape
    bands = _bands(kernels, config)
    tiles_x = triton.cdiv(width, config.columns)
    above, left = (max(getattr(kernel, name) for kernel in kernels) for name in ("pad_h", "pad_w"))
    lines = height + config.taps - 1 + max(band.down + (band.chunks - 1) * config.taps for band in bands)
    columns = (tiles_x - 1) * config.columns + max(band.start + band.width for band in bands)
    whole = _with_margins(
        x, above, left, max(lines, above + x.shape[1]), _up(max(columns, left + x.shape[2]), ROW_UNIT)
    )
    table = _tables(weight.to(x.dtype), kernels, bands, config)
    constants = {
        "C": channels,
        "KERNELS": tuple(map(tuple, bands)),
        "HAS_BIAS": bias is not None,
        "UPCAST": _upcast(x.dtype),
        "TAPS": config.taps,
        "BLOCK_M": config.rows,
        "BLOCK_X": config.columns,
        "BLOCK_U": BLOCK_U,
    }
    rows = batch * (height + config.taps - 1)
    sizes = (rows, whole.shape[2], height, width, whole.shape[3] // ROW_UNIT)
    grid = (triton.cdiv(rows, config.rows - config.taps + 1) * tiles_x, channels)
    tensors = (whole, table, table if bias is None else bias, out)
    return Launch(depthwise_gemm_kernel, (*tensors, *sizes), constants, _options(config), grid)


def _options(config: Config) -> dict[str, object]:
    return {"num_warps": config.num_warps, "enable_fp_fusion": True}


def _upcast(dtype: torch.dtype) -> bool:
    # Triton's interpreter multiplies the bits of bfloat16 as integers.
    return dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1"


def weight_grad_gemm_launch(
    x: torch.Tensor, grad: torch.Tensor, kernel: Kernel, config: Config
) -> tuple[torch.Tensor, Launch]:
    """The launch that writes the weight gradient of each slice of the rows.

    Args:
        x: (N, H, W, C), any strides.
        grad: (N, Ho, Wo, C), any strides.
        kernel: size and padding.
        config: with gemm=1; `rows` are those of a product's sum, `taps` has no meaning.

    Returns:
        What it writes, (slices, taps, C) in float32, and the launch.
    """
    batch, height, width, channels = grad.shape
    block_u = products_width(kernel, config)
    grad_width = _up(width, config.columns)
    line = _up(max(grad_width - config.columns + block_u, kernel.pad_w + x.shape[2]), ROW_UNIT)
    whole = _with_margins(x, kernel.pad_h, kernel.pad_w, x.shape[1] + 2 * kernel.pad_h, line)
    above = _with_margins(grad, 0, 0, height, _up(grad_width, ROW_UNIT))
    rows = batch * height
    slices = min(triton.cdiv(ENOUGH_PROGRAMS, kernel.height * channels), triton.cdiv(rows, MIN_PART_ROWS))
    part_rows = _up(triton.cdiv(rows, slices), config.rows)
    slices = triton.cdiv(rows, part_rows)
    partial = torch.empty(slices, kernel.taps, channels, device=x.device, dtype=torch.float32)
    constants = {
        "C": channels,
        "KERNEL": (kernel.height, kernel.width),
        "UPCAST": _upcast(x.dtype),
        "BLOCK_M": config.rows,
        "BLOCK_X": config.columns,
        "BLOCK_U": block_u,
        "BLOCK_I": triton.next_power_of_2(kernel.width),
    }
    sizes = (rows, part_rows, whole.shape[2], height, width, line // ROW_UNIT, above.shape[3] // ROW_UNIT)
    grid = (kernel.height, channels, slices)
    tensors = (whole, above, partial)
    return partial, Launch(depthwise_gemm_weight_grad_kernel, (*tensors, *sizes), constants, _options(config), grid)
