"""The Triton kernel of lightweight DCNv4: it predicts offsets and masks from its input, and samples with them.

A program takes BLOCK_P pixels and BLOCK_G groups. For each point, one matrix product of the pixels' channels with the
packed weight gives dx, dy and mask of every (pixel, group) row, in float32. They stay in registers, and the row is
sampled as in sampling_triton.
"""

import triton
import triton.language as tl
from opbench_kernels.bilinear_triton import add_square, place_point, strict_add, weigh_square

__all__ = ["from_input_kernel"]


@triton.jit
def _predict(
    x_rows, channel_valid, weight_ptr, bias_ptr, point, first_group,
    C: tl.constexpr, G: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dx, dy and mask (BLOCK_P * BLOCK_G,) of one point."""
    column = first_group * 4 + tl.arange(0, 4 * BLOCK_G)
    used = column < 4 * G
    acc = tl.zeros((BLOCK_P, 4 * BLOCK_G), dtype=tl.float32)
    for first in tl.range(0, C, BLOCK_C, num_stages=1):  # pipelining it takes more shared memory than there is
        channel = first + tl.arange(0, BLOCK_C)
        x = tl.load(x_rows + channel[None, :], mask=channel_valid & (channel < C)[None, :], other=0.0)
        rows = (point * C + channel)[:, None] * (4 * G)
        weight = tl.load(weight_ptr + rows + column[None, :], mask=(channel < C)[:, None] & used[None, :], other=0.0)
        if UPCAST:
            x, weight = x.to(tl.float32), weight.to(tl.float32)
        acc = tl.dot(x, weight, acc, input_precision=PRECISION)
    acc += tl.load(bias_ptr + point * (4 * G) + column, mask=used, other=0.0).to(tl.float32)[None, :]
    even, odd = tl.split(acc.reshape(BLOCK_P, BLOCK_G, 2, 2))
    dx, strength = tl.split(even)
    dy, _ = tl.split(odd)
    return dx.reshape(BLOCK_P * BLOCK_G), dy.reshape(BLOCK_P * BLOCK_G), strength.reshape(BLOCK_P * BLOCK_G)


@triton.jit
def _predict_group(
    x_rows, weight_ptr, bias_ptr, point, group,
    C: tl.constexpr, G: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx, dy and mask (BLOCK_P,) of one point and group, slowly and in few registers."""
    bias = bias_ptr + point * (4 * G) + group * 4
    dx = tl.zeros((BLOCK_P,), dtype=tl.float32) + tl.load(bias).to(tl.float32)
    dy = tl.zeros((BLOCK_P,), dtype=tl.float32) + tl.load(bias + 1).to(tl.float32)
    strength = tl.zeros((BLOCK_P,), dtype=tl.float32) + tl.load(bias + 2).to(tl.float32)
    for first in tl.range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        used = channel < C
        x = tl.load(x_rows + channel[None, :], mask=used[None, :], other=0.0).to(tl.float32)
        weight = weight_ptr + (point * C + channel) * (4 * G) + group * 4
        dx += tl.sum(x * tl.load(weight, mask=used, other=0.0).to(tl.float32)[None, :], axis=1)
        dy += tl.sum(x * tl.load(weight + 1, mask=used, other=0.0).to(tl.float32)[None, :], axis=1)
        strength += tl.sum(x * tl.load(weight + 2, mask=used, other=0.0).to(tl.float32)[None, :], axis=1)
    return dx, dy, strength


@triton.jit
def _strict_tile(
    x_ptr, weight_ptr, bias_ptr, out_ptr, first_pixel, first_group, pixels, height, width,
    offset_scale, base_y, base_x, C: tl.constexpr, G: tl.constexpr, DG: tl.constexpr, K: tl.constexpr,
    KH: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    CENTER: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program's output by strict_add, one group after the other, so that it takes few registers."""
    tile = first_pixel + tl.arange(0, BLOCK_P)
    tile_valid = (tile < pixels)[:, None]
    channel = tl.arange(0, BLOCK_D)
    in_group = (channel < DG)[None, :]
    x_rows = x_ptr + tl.minimum(tile, pixels - 1).to(tl.int64)[:, None] * C
    pixel = tl.minimum(tile, pixels - 1)
    start_x = pixel % width - PAD_W
    start_y = pixel // width % height - PAD_H
    start_pixel = pixel.to(tl.int64) - PAD_H * width - PAD_W
    for step in tl.range(BLOCK_G):
        group = tl.minimum(first_group + step, G - 1)  # past the end, the last one again
        column = group * DG + channel[None, :]
        values = x_ptr + (start_pixel * C)[:, None] + column
        acc = tl.zeros((BLOCK_P, BLOCK_D), dtype=tl.float32)
        for point in tl.range(K):
            dx, dy, strength = _predict_group(x_rows, weight_ptr, bias_ptr, point, group, C, G, BLOCK_P, BLOCK_C)
            y, x = place_point(dx, dy, point, offset_scale, base_y, base_x, KH, DILATION_H, DILATION_W, CENTER)
            acc = strict_add(acc, values, y, x, strength, start_y, start_x, height, width, in_group, C, WIDE)
        out = out_ptr + (pixel.to(tl.int64) * C)[:, None] + column
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=tile_valid & in_group)


@triton.jit(do_not_specialize=("pixels", "height", "width"))
def from_input_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, pixels, height, width, offset_scale, base_y, base_x,
    C: tl.constexpr, G: tl.constexpr, DG: tl.constexpr, K: tl.constexpr, KH: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    CENTER: tl.constexpr, STRICT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    first_pixel = tl.program_id(0)
    if WIDE:
        first_pixel = first_pixel.to(tl.int64)
    first_pixel *= BLOCK_P
    first_group = tl.program_id(1) * BLOCK_G
    tile = first_pixel + tl.arange(0, BLOCK_P)
    x_rows = x_ptr + tl.minimum(tile, pixels - 1).to(tl.int64)[:, None] * C
    tile_valid = (tile < pixels)[:, None]

    row = tl.arange(0, BLOCK_P * BLOCK_G)
    pixel = first_pixel + row // BLOCK_G
    group = first_group + row % BLOCK_G
    valid = ((pixel < pixels) & (group < G))[:, None]
    pixel = tl.minimum(pixel, pixels - 1)
    group = tl.minimum(group, G - 1)
    start_x = pixel % width - PAD_W
    start_y = pixel // width % height - PAD_H
    channel = tl.arange(0, BLOCK_D)
    in_group = (channel < DG)[None, :]
    start_pixel = pixel.to(tl.int64) - PAD_H * width - PAD_W
    values = x_ptr + (start_pixel * C + group * DG)[:, None] + channel[None, :]

    acc = tl.zeros((BLOCK_P * BLOCK_G, BLOCK_D), dtype=tl.float32)
    if STRICT:
        doubtful = True
    else:
        first_x, last_x = (-start_x).to(tl.float32), (width - 2 - start_x).to(tl.float32)
        first_y, last_y = (-start_y).to(tl.float32), (height - 2 - start_y).to(tl.float32)
        for point in tl.range(K):
            dx, dy, strength = _predict(
                x_rows, tile_valid, weight_ptr, bias_ptr, point, first_group,
                C, G, BLOCK_P, BLOCK_G, BLOCK_C, PRECISION, UPCAST,
            )  # fmt: skip
            y, x = place_point(dx, dy, point, offset_scale, base_y, base_x, KH, DILATION_H, DILATION_W, CENTER)
            shift, w00, w01, w10, w11 = weigh_square(
                y, x, strength, first_y, last_y, first_x, last_x, width, WIDE, x_ptr.dtype.element_ty
            )
            upper = values + (shift * C)[:, None]
            acc = add_square(acc, upper, upper + width * C, C, w00, w01, w10, w11, in_group, BLOCK_D > DG, strength)
        total = tl.sum(acc)
        doubtful = total - total != 0.0
    if doubtful:
        _strict_tile(
            x_ptr, weight_ptr, bias_ptr, out_ptr, first_pixel, first_group, pixels, height, width,
            offset_scale, base_y, base_x, C, G, DG, K, KH, PAD_H, PAD_W, DILATION_H, DILATION_W, CENTER, WIDE,
            BLOCK_P, BLOCK_G, BLOCK_C, BLOCK_D,
        )  # fmt: skip
    else:
        out = out_ptr + (pixel.to(tl.int64) * C + group * DG)[:, None] + channel[None, :]
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=valid & in_group)
