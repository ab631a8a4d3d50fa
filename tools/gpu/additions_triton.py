"""The additions of the deformable backward kernel to value's gradient, and nothing else of it."""

import triton
import triton.language as tl

__all__ = ["additions_kernel"]


@triton.jit(do_not_specialize=("rows", "width"))
def additions_kernel(
    corners_ptr, target_ptr, rows, width,
    G: tl.constexpr, DG: tl.constexpr, K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    """Adds 1 to each channel of each pixel that a point touches, in the order and layout of deform_bwd_kernel.

    corners (rows, K): 16 times a point's upper left pixel, plus a bit for each of its four corners that it touches.
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    valid = row < rows
    channel = tl.arange(0, BLOCK_D)[None, :]
    target_ptr += (row % G * DG)[:, None] + channel
    ones = tl.full((BLOCK_ROWS, BLOCK_D), 1.0, tl.float32)
    for point in tl.static_range(K):
        corners = tl.load(corners_ptr + row * K + point, mask=valid, other=0)
        for corner in tl.static_range(4):
            pixel = (corners >> 4) + corner // 2 * width + corner % 2
            there = ((corners >> corner) & 1 != 0)[:, None]
            target = target_ptr + pixel.to(tl.int64)[:, None] * (G * DG)
            for tile in tl.static_range(VECTORS):
                here = there & (channel + tile * BLOCK_D < DG)
                tl.atomic_add(target + tile * BLOCK_D, ones, mask=here, sem="relaxed")
