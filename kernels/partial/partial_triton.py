"""The Triton kernel of partial convolution: one pass that convolves the first channels and copies the others.

A program takes BLOCK_P pixels. The convolution is nine matrix products, of the pixels' neighbours with the weight of
that tap; a neighbour outside the image is read as zero. Then the program copies its pixels' other channels.
"""

import triton
import triton.language as tl

__all__ = ["partial_conv3x3_kernel"]


@triton.jit
def _convolved(
    x_ptr, weight_ptr, pixel, row, column, height, width,
    C: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """(BLOCK_P, BLOCK_D) sums in float32."""
    out_channel = tl.arange(0, BLOCK_D)
    acc = tl.zeros((BLOCK_P, BLOCK_D), dtype=tl.float32)
    for step in range(9 * STEPS):
        tap, channel = step // STEPS, step % STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
        tap_row, tap_column = row + (tap // 3 - 1), column + (tap % 3 - 1)
        inside = (tap_row >= 0) & (tap_row < height) & (tap_column >= 0) & (tap_column < width)
        neighbour = x_ptr + (pixel + (tap // 3 - 1) * width + (tap % 3 - 1))[:, None] * C
        x = tl.load(neighbour + channel[None, :], mask=inside[:, None] & (channel < D)[None, :], other=0.0)
        rows = (tap * D + channel)[:, None] * D
        used = (channel < D)[:, None] & (out_channel < D)[None, :]
        weight = tl.load(weight_ptr + rows + out_channel[None, :], mask=used, other=0.0)
        if UPCAST:
            x, weight = x.to(tl.float32), weight.to(tl.float32)
        acc = tl.dot(x, weight, acc, input_precision=PRECISION)
    return acc


# Sizes and strides change from image to image: a kernel specialised on their values would be compiled anew each time.
@triton.jit(do_not_specialize=("pixels", "height", "width"))
def partial_conv3x3_kernel(
    x_ptr, weight_ptr, out_ptr, pixels, height, width,
    C: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    pixel = program * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = (pixel < pixels)[:, None]
    pixel = tl.minimum(pixel, pixels - 1)  # past the end, the last one again
    acc = _convolved(
        x_ptr, weight_ptr, pixel, pixel // width % height, pixel % width, height, width,
        C, D, PRECISION, UPCAST, BLOCK_P, BLOCK_K, BLOCK_D, (D + BLOCK_K - 1) // BLOCK_K,
    )  # fmt: skip
    out_channel = tl.arange(0, BLOCK_D)
    out_rows = out_ptr + pixel[:, None] * C
    tl.store(out_rows + out_channel[None, :], acc.to(out_ptr.dtype.element_ty), mask=valid & (out_channel < D)[None, :])

    x_rows = x_ptr + pixel[:, None] * C
    # From a multiple of BLOCK_C, so that its loads are as wide as where no channel is left out.
    for first in tl.static_range(D // BLOCK_C * BLOCK_C, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        used = valid & ((channel >= D) & (channel < C))[None, :]
        tl.store(out_rows + channel[None, :], tl.load(x_rows + channel[None, :], mask=used), mask=used)
