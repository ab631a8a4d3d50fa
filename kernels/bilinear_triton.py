"""Bilinear samples inside Triton kernels: what the kernels of deform/ and msda/ share.

Two ways to add a point: `add_square` reads two neighbours in each direction that are always in the image and needs no
comparison; `strict_add` compares each corner with the borders and reads no pixel that does not count.
"""

import os

import triton
import triton.language as tl

__all__ = ["add_square", "load_point", "neighbours", "place_point", "strict_add", "weigh_square"]

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""In Triton 3.6's interpreter the minimum of a number and NaN is NaN; compiled, it is the number."""


@triton.jit
def place_point(
    dx, dy, point, offset_scale, base_y, base_x,
    KH: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, CENTER: tl.constexpr,
):  # fmt: skip
    """Distance from the grid's start in y and x of a point with offsets dx and dy; each (BLOCK_ROWS,)."""
    tap = point + (point >= CENTER)
    x = dx * offset_scale + (base_x + (tap // KH * DILATION_W) * offset_scale)
    y = dy * offset_scale + (base_y + (tap % KH * DILATION_H) * offset_scale)
    return y, x


@triton.jit
def load_point(
    offset_ptr, mask_ptr, point, offset_scale, base_y, base_x,
    KH: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, CENTER: tl.constexpr,
):  # fmt: skip
    """place_point of a point whose offsets are in memory, and its mask."""
    dx = tl.load(offset_ptr + 2 * point).to(tl.float32)
    dy = tl.load(offset_ptr + 2 * point + 1).to(tl.float32)
    y, x = place_point(dx, dy, point, offset_scale, base_y, base_x, KH, DILATION_H, DILATION_W, CENTER)
    return y, x, tl.load(mask_ptr + point).to(tl.float32)


@triton.jit
def neighbours(t, first, last):
    """The lower of two neighbouring pixels that are in the image, and the weights of both; relative to the start.

    A pixel at distance z weighs max(0, 1 - |z|), which is 0 for a point that is outside: no comparison is needed.
    """
    if INTERPRETED:  # NaN becomes a point outside, whose weights are those that it has when compiled
        t = tl.where(t == t, t, first - 2.0)  # noqa: PLR0124 - NaN
    low = tl.maximum(tl.minimum(tl.floor(t), last), first)  # where t is NaN, one of the others
    z = t - low
    return low, tl.clamp(1.0 - tl.abs(z), 0.0, 1.0), tl.clamp(1.0 - tl.abs(z - 1.0), 0.0, 1.0)


@triton.jit
def _round(x, DTYPE: tl.constexpr):
    """x in DTYPE, rounded to nearest."""
    if INTERPRETED and DTYPE == tl.bfloat16:  # noqa: SIM300 - which the interpreter would cut off
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & -0x10000).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def weigh_square(
    y, x, strength, first_y, last_y, first_x, last_x, width, WIDE: tl.constexpr, DTYPE: tl.constexpr = tl.float32
):
    """Pixels from the start to the upper left one of a point's four, and their weights; each (BLOCK_ROWS,).

    In float32 they have the strength in them. In a DTYPE of 16 bits, for add_square in packed arithmetic, they have
    not: it may be too small or too large for that.
    """
    left, wx0, wx1 = neighbours(x, first_x, last_x)
    top, wy0, wy1 = neighbours(y, first_y, last_y)
    if DTYPE == tl.float32:  # noqa: SIM300 - a constant of the compiler
        wy0 *= strength
        wy1 *= strength
    top = top.to(tl.int64 if WIDE else tl.int32)
    w00, w01 = _round(wy0 * wx0, DTYPE), _round(wy0 * wx1, DTYPE)
    w10, w11 = _round(wy1 * wx0, DTYPE), _round(wy1 * wx1, DTYPE)
    return top * width + left.to(tl.int32), w00, w01, w10, w11


@triton.jit
def _fma(weight, v, acc):
    """weight * v + acc of tiles in v's dtype of 16 bits, rounded once: two channels take one instruction."""
    weight = weight[:, None].broadcast_to(v.shape)
    if INTERPRETED:  # where float16 is rounded twice, and the bits of bfloat16 are multiplied as integers
        return _round(weight.to(tl.float32) * v.to(tl.float32) + acc.to(tl.float32), v.dtype)
    return tl.fma(weight, v, acc)


@triton.jit
def add_square(acc, top, bottom, step: tl.constexpr, w00, w01, w10, w11, in_group, MASKED: tl.constexpr, strength=1.0):
    """acc (BLOCK_ROWS, BLOCK_D) plus the weighted pixels at top, top + step, bottom and bottom + step.

    With weights of 16 bits they are interpolated in those, and multiplied by strength (BLOCK_ROWS,) in float32.
    """
    if MASKED:
        v00 = tl.load(top, mask=in_group, other=0.0)
        v01 = tl.load(top + step, mask=in_group, other=0.0)
        v10 = tl.load(bottom, mask=in_group, other=0.0)
        v11 = tl.load(bottom + step, mask=in_group, other=0.0)
    else:
        v00, v01 = tl.load(top), tl.load(top + step)
        v10, v11 = tl.load(bottom), tl.load(bottom + step)
    if w00.dtype == tl.float32:
        acc += w00[:, None] * v00.to(tl.float32)
        acc += w01[:, None] * v01.to(tl.float32)
        acc += w10[:, None] * v10.to(tl.float32)
        acc += w11[:, None] * v11.to(tl.float32)
    else:
        sample = _fma(w11, v11, _fma(w10, v10, _fma(w01, v01, _fma(w00, v00, tl.zeros_like(v00)))))
        acc += strength[:, None] * sample.to(tl.float32)
    return acc


@triton.jit
def _strict_point(y, x, strength, start_y, start_x, height, width):
    """Floors, fractions, mask and whether the point counts; each (BLOCK_ROWS,).

    A point outside moves to the start with mask 0, so that NaN and inf never reach an address or a sum.
    """
    inside = (x > -1 - start_x) & (x < width - start_x) & (y > -1 - start_y) & (y < height - start_y)
    x = tl.where(inside, x, 0.0)
    y = tl.where(inside, y, 0.0)
    top, left = tl.floor(y), tl.floor(x)
    return top.to(tl.int32), left.to(tl.int32), y - top, x - left, tl.where(inside, strength, 0.0), inside


@triton.jit
def _strict_corner(top, left, inside, start_y, start_x, height, width, WIDE: tl.constexpr):
    """Pixels from the start to the one at (top, left) from it, and whether that is in the image; (BLOCK_ROWS, 1)."""
    there = inside & (top >= -start_y) & (top < height - start_y) & (left >= -start_x) & (left < width - start_x)
    if WIDE:
        top = top.to(tl.int64)
    return (top * width + left)[:, None], there[:, None]


@triton.jit
def strict_add(
    acc, pixels, y, x, strength, start_y, start_x, height, width, in_group, STRIDE: tl.constexpr, WIDE: tl.constexpr
):
    """acc (BLOCK_ROWS, BLOCK_D) plus one point, each corner compared with the borders: no other pixel is read."""
    top, left, down, right, strength, inside = _strict_point(y, x, strength, start_y, start_x, height, width)
    for corner in tl.static_range(4):
        weight_y = down if corner // 2 == 1 else 1.0 - down
        weight_x = right if corner % 2 == 1 else 1.0 - right
        shift, there = _strict_corner(
            top + corner // 2, left + corner % 2, inside, start_y, start_x, height, width, WIDE
        )
        v = tl.load(pixels + shift * STRIDE, mask=there & in_group, other=0.0).to(tl.float32)
        acc += (strength * weight_y * weight_x)[:, None] * v
    return acc
