"""The Triton kernels of multi-scale deformable attention: forward, and backward, which adds up by atomics.

A row is one (query, head); a program takes BLOCK_ROWS rows, a lane a 16-byte vector of a row's channels or more. The
levels' sizes are read in the kernel, so that nothing waits for the device.
"""

import triton
import triton.language as tl
from opbench_kernels.bilinear_grad_triton import load_tiles, square_backward
from opbench_kernels.bilinear_triton import add_square, strict_add, weigh_square

__all__ = ["msda_bwd_kernel", "msda_fwd_kernel"]


@triton.jit
def _rows(rows, queries, length, M: tl.constexpr, D: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Row, whether it exists, and its image's and head's first element of value; each (BLOCK_ROWS,).

    A row past the end repeats the last one, so that loads need no predicate.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    valid = row < rows
    row = tl.minimum(row, rows - 1)
    return row, valid, (row // M // queries * length * M + row % M) * D


@triton.jit
def _level(shapes_ptr, starts_ptr, level):
    """Height, width and first pixel of a level."""
    height, width = tl.load(shapes_ptr + 2 * level).to(tl.int32), tl.load(shapes_ptr + 2 * level + 1).to(tl.int32)
    return height, width, tl.load(starts_ptr + level).to(tl.int64)


@triton.jit
def _point(location_ptr, weight_ptr, point, height, width):
    """Coordinates in the level, pixels, and weight; each (BLOCK_ROWS,)."""
    x = tl.load(location_ptr + 2 * point).to(tl.float32) * width - 0.5
    y = tl.load(location_ptr + 2 * point + 1).to(tl.float32) * height - 0.5
    return y, x, tl.load(weight_ptr + point).to(tl.float32)


@triton.jit
def _strict_sum(
    pixels, shapes_ptr, starts_ptr, location_ptr, weight_ptr, in_head,
    L: tl.constexpr, P: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The whole sum by strict_add."""
    acc = tl.zeros((BLOCK_ROWS, BLOCK_D), dtype=tl.float32)
    for point in range(L * P):
        height, width, start = _level(shapes_ptr, starts_ptr, point // P)
        y, x, strength = _point(location_ptr, weight_ptr, point, height, width)
        acc = strict_add(acc, pixels + start * STRIDE, y, x, strength, 0, 0, height, width, in_head, STRIDE, WIDE)
    return acc


_SIZES = ("rows", "queries", "length")


@triton.jit(do_not_specialize=_SIZES)
def msda_fwd_kernel(
    value_ptr, shapes_ptr, starts_ptr, location_ptr, weight_ptr, out_ptr, rows, queries, length,
    M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    row, valid, first = _rows(rows, queries, length, M, D, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_D)
    in_head = (channel < D)[None, :]
    second = (channel + BLOCK_D < D)[None, :]
    pixels = value_ptr + first[:, None] + channel[None, :]
    location_ptr += row * (L * P * 2)
    weight_ptr += row * (L * P)

    smallest = 2
    for level in tl.static_range(L):
        height, width, start = _level(shapes_ptr, starts_ptr, level)
        smallest = tl.minimum(smallest, tl.minimum(height, width))
    acc = tl.zeros((BLOCK_ROWS, BLOCK_D), dtype=tl.float32)
    acc2 = tl.zeros((BLOCK_ROWS, BLOCK_D), dtype=tl.float32)
    # Two neighbours that are both in the level need two rows and two columns.
    doubtful = smallest < 2
    if smallest == 2:
        for level in tl.static_range(L):
            height, width, start = _level(shapes_ptr, starts_ptr, level)
            last_y, last_x = (height - 2).to(tl.float32), (width - 2).to(tl.float32)
            for point in tl.static_range(P):
                y, x, strength = _point(location_ptr, weight_ptr, level * P + point, height, width)
                shift, w00, w01, w10, w11 = weigh_square(
                    y, x, strength, 0.0, last_y, 0.0, last_x, width, WIDE, value_ptr.dtype.element_ty
                )
                upper = pixels + start * (M * D) + (shift * (M * D))[:, None]
                lower = upper + width * (M * D)
                acc = add_square(acc, upper, lower, M * D, w00, w01, w10, w11, in_head, BLOCK_D > D, strength)
                if VECTORS == 2:
                    acc2 = add_square(
                        acc2, upper + BLOCK_D, lower + BLOCK_D, M * D, w00, w01, w10, w11, second, 2 * BLOCK_D > D,
                        strength,
                    )  # fmt: skip
        # A weight of 0 times a pixel that is not finite gave NaN although the point does not count there; a sample of
        # the largest halves may be rounded up to inf. A finite sum shows that there was none.
        total = tl.sum(acc + acc2)
        doubtful = total - total != 0.0
    if doubtful:
        acc = _strict_sum(
            pixels, shapes_ptr, starts_ptr, location_ptr, weight_ptr, in_head, L, P, M * D, WIDE, BLOCK_ROWS, BLOCK_D
        )
        if VECTORS == 2:
            acc2 = _strict_sum(
                pixels + BLOCK_D, shapes_ptr, starts_ptr, location_ptr, weight_ptr, second, L, P, M * D, WIDE,
                BLOCK_ROWS, BLOCK_D,
            )  # fmt: skip
    out = out_ptr + (row * D)[:, None] + channel[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=valid[:, None] & in_head)
    if VECTORS == 2:
        tl.store(out + BLOCK_D, acc2.to(out_ptr.dtype.element_ty), mask=valid[:, None] & second)


@triton.jit(do_not_specialize=_SIZES)
def msda_bwd_kernel(
    value_ptr, shapes_ptr, starts_ptr, location_ptr, weight_ptr, grad_ptr,
    grad_value_ptr, grad_location_ptr, grad_weight_ptr, fixed_point_ptr, rows, queries, length,
    M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, WIDE: tl.constexpr,
    FIXED_POINT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    row, valid, first = _rows(rows, queries, length, M, D, BLOCK_ROWS)
    MASKED: tl.constexpr = VECTORS * BLOCK_D > D
    channel = tl.arange(0, BLOCK_D)[None, :]
    pixels = value_ptr + first[:, None] + channel
    grad_pixels = grad_value_ptr + first[:, None] + channel
    location_ptr += row * (L * P * 2)
    weight_ptr += row * (L * P)
    grad_location_ptr += row * (L * P * 2)
    grad_weight_ptr += row * (L * P)
    grads = load_tiles(grad_ptr + (row * D)[:, None] + channel, channel, D, MASKED, VECTORS)
    unit, unit2 = 1.0, 1.0
    if FIXED_POINT:
        unit, unit2 = tl.load(fixed_point_ptr), tl.load(fixed_point_ptr + 1)

    for level in range(L):
        height, width, start = _level(shapes_ptr, starts_ptr, level)
        last_y, last_x = (height - 2).to(tl.float32), (width - 2).to(tl.float32)
        # From a point's upper left pixel to the others; none where there is no second row or column.
        row_step, column_step = tl.minimum(height - 1, 1), tl.minimum(width - 1, 1)
        shift = start * (M * D)
        for place in tl.static_range(P):
            point = level * P + place
            y, x, strength = _point(location_ptr, weight_ptr, point, height, width)
            grad_strength, grad_y, grad_x = square_backward(
                grads, pixels + shift, grad_pixels + shift, y, x, strength, height.to(tl.float32),
                width.to(tl.float32), 0.0, last_y, 0.0, last_x, width, row_step, column_step, valid, channel,
                unit, unit2, D, M * D, M * D, MASKED, FIXED_POINT, WIDE,
            )  # fmt: skip
            tl.store(grad_location_ptr + 2 * point, grad_x.to(grad_location_ptr.dtype.element_ty), mask=valid)
            tl.store(grad_location_ptr + 2 * point + 1, grad_y.to(grad_location_ptr.dtype.element_ty), mask=valid)
            tl.store(grad_weight_ptr + point, grad_strength.to(grad_weight_ptr.dtype.element_ty), mask=valid)
