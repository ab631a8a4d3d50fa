"""The gradients of bilinear samples inside Triton kernels: what the backward kernels of deform/ and msda/ share.

A row is what one point's coordinates are computed for. Its gradient is a tuple of tiles (BLOCK_ROWS, BLOCK_D), each
with the channels after those of the one before it. Tiles have four channels for each lane of a program, as many as one
addition in float32 has, so that loads and additions have one layout; a further tile costs no coordinates.

As in the forward pass, two neighbours in each direction that are always in the image are loaded without a predicate.
Those that a point does not touch are left out by predicates of the additions, and of the products by selects, so that
no number that is not finite reaches a gradient that it does not belong to.
"""

import triton
import triton.language as tl
from opbench_kernels.bilinear_triton import neighbours

__all__ = ["add_shares", "load_tiles", "place_square", "square_backward", "square_dots", "square_gradients"]


@triton.jit
def _load(pointers, in_group, MASKED: tl.constexpr):
    """A tile of channels in float32, as many a lane as the additions have."""
    if MASKED:
        return tl.load(pointers, mask=in_group, other=0.0).to(tl.float32)
    return tl.load(pointers).to(tl.float32)


@triton.jit
def load_tiles(pointers, channel, D: tl.constexpr, MASKED: tl.constexpr, VECTORS: tl.constexpr):
    """VECTORS tiles of a row of D channels; `channel` is (1, BLOCK_D), and MASKED where they have more than D."""
    tiles = ()
    for tile in tl.static_range(VECTORS):
        first = tile * channel.shape[1]
        tiles += (_load(pointers + first, channel + first < D, MASKED),)
    return tiles


@triton.jit
def _cell(t, first, last):
    """The lower of two neighbours, both weights, whether a point touches the one and the other, and lies between them.

    A point at a pixel touches the next one too, with a weight of 0 and a gradient that is not. One between the border
    and the outside touches a single pixel, whose weight falls where that of a point between the two rises.
    """
    low, weight, weight1 = neighbours(t, first, last)
    floor = tl.floor(t)
    return low, weight, weight1, (floor <= low) & (t > first - 1.0), (floor >= low) & (t < last + 2.0), floor == low


@triton.jit
def place_square(y, x, first_y, last_y, first_x, last_x, width, row_step, column_step, valid, WIDE: tl.constexpr):
    """Where the four pixels of a point lie, and what its gradients take; each (BLOCK_ROWS,).

    Args:
        y, x: from the start, pixels.
        first_y, last_y, first_x, last_x: the first and the last but one row and column of the image, from the start.
        row_step, column_step: 1, or 0 where the image has no second row or column.
        valid: whether the row exists.

    Returns:
        Pixels from the start to the upper left one, (BLOCK_ROWS, 1); the weights of both rows and columns; whether the
        point touches each; whether it lies between the rows, and between the columns.
    """
    top, wy0, wy1, above, below, plain_y = _cell(y, first_y, last_y)
    left, wx0, wx1, before, after, plain_x = _cell(x, first_x, last_x)
    touched = above & valid, below & valid & (row_step > 0), before, after & (column_step > 0)
    shift = top.to(tl.int64 if WIDE else tl.int32) * width + left.to(tl.int32)
    return shift[:, None], (wy0, wy1, wx0, wx1), touched, (plain_y, plain_x)


@triton.jit
def square_dots(grads, upper, lower, step, channel, D: tl.constexpr, MASKED: tl.constexpr):
    """Products of the gradient with the pixels at upper, upper + step, lower and lower + step; each (BLOCK_ROWS,)."""
    d00, d01, d10, d11 = 0.0, 0.0, 0.0, 0.0
    for tile in tl.static_range(len(grads)):
        first = tile * channel.shape[1]
        in_group = channel + first < D
        d00 += grads[tile] * _load(upper + first, in_group, MASKED)
        d01 += grads[tile] * _load(upper + first + step, in_group, MASKED)
        d10 += grads[tile] * _load(lower + first, in_group, MASKED)
        d11 += grads[tile] * _load(lower + first + step, in_group, MASKED)
    return tl.sum(d00, axis=1), tl.sum(d01, axis=1), tl.sum(d10, axis=1), tl.sum(d11, axis=1)


@triton.jit
def square_gradients(dots, weights, touched, between, strength, scale_y, scale_x):
    """The gradients of strength, y and x, the latter two times their scales; each (BLOCK_ROWS,).

    `dots` are the sums of square_dots over all channels, the others what place_square returned.
    """
    wy0, wy1, wx0, wx1 = weights
    above, below, before, after = touched
    d00, d01 = tl.where(above & before, dots[0], 0.0), tl.where(above & after, dots[1], 0.0)
    d10, d11 = tl.where(below & before, dots[2], 0.0), tl.where(below & after, dots[3], 0.0)
    line0, line1 = wx0 * d00 + wx1 * d01, wx0 * d10 + wx1 * d11
    inside = (above | below) & (before | after)
    scale_y = tl.where(inside, strength * scale_y, 0.0)
    scale_x = tl.where(inside, strength * scale_x, 0.0)
    grad_y = tl.where(between[0], scale_y, -scale_y) * (line1 - line0)
    grad_x = tl.where(between[1], scale_x, -scale_x) * (wy0 * (d01 - d00) + wy1 * (d11 - d10))
    return wy0 * line0 + wy1 * line1, grad_y, grad_x


@triton.jit
def add_shares(
    grads, upper, lower, step, weights, touched, strength, channel, unit, unit2,
    D: tl.constexpr, MASKED: tl.constexpr, FIXED_POINT: tl.constexpr,
):  # fmt: skip
    """Adds the weighted gradient to the pixels that a point touches; at the places of square_dots in their gradient.

    With FIXED_POINT as integers, of which 1.0 has unit * unit2. Load all corners first: no load passes an addition.
    """
    wy0, wy1, wx0, wx1 = weights
    above, below, before, after = touched
    wy0 *= strength
    wy1 *= strength
    for corner in tl.static_range(4):
        target = (lower if corner // 2 == 1 else upper) + corner % 2 * step
        there = ((below if corner // 2 == 1 else above) & (after if corner % 2 == 1 else before))[:, None]
        weight = (wy1 if corner // 2 == 1 else wy0) * (wx1 if corner % 2 == 1 else wx0)
        for tile in tl.static_range(len(grads)):
            first = tile * channel.shape[1]
            share = weight[:, None] * grads[tile]
            if FIXED_POINT:
                share = (share * unit * unit2).to(tl.int64)
            here = there
            if MASKED:
                here = here & (channel + first < D)
            # Any other order fences and empties the L1 cache at each addition; nothing here reads the sums.
            tl.atomic_add(target + first, share, mask=here, sem="relaxed")


@triton.jit
def square_backward(
    grads, pixels, grad_pixels, y, x, strength, scale_y, scale_x, first_y, last_y, first_x, last_x, width,
    row_step, column_step, valid, channel, unit, unit2,
    D: tl.constexpr, STRIDE: tl.constexpr, GRAD_STRIDE: tl.constexpr, MASKED: tl.constexpr,
    FIXED_POINT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """All gradients of one point: those of strength, y and x are returned as by square_gradients, pixels' are added."""
    shift, weights, touched, between = place_square(
        y, x, first_y, last_y, first_x, last_x, width, row_step, column_step, valid, WIDE
    )
    below = shift + row_step * width
    dots = square_dots(
        grads, pixels + shift * STRIDE, pixels + below * STRIDE, column_step * STRIDE, channel, D, MASKED
    )
    gradients = square_gradients(dots, weights, touched, between, strength, scale_y, scale_x)
    add_shares(
        grads, grad_pixels + shift * GRAD_STRIDE, grad_pixels + below * GRAD_STRIDE, column_step * GRAD_STRIDE,
        weights, touched, strength, channel, unit, unit2, D, MASKED, FIXED_POINT,
    )  # fmt: skip
    return gradients
