"""The Triton kernels of deformable sampling: forward, and backward, which adds up by atomics.

A row is one (output pixel, group). A program takes BLOCK_ROWS rows; a lane takes a 16-byte vector of a row's channels,
or two of them, which halves what the coordinates cost per channel. docs/tuning.md compares the designs.

A coordinate is kept as the grid's integer start plus a small float, so its rounding does not grow with the image.
Offset and mask are addressed by strides, so one kernel reads DCNv4's packed tensor and DCNv3's two tensors.
"""

import triton
import triton.language as tl
from opbench_kernels.bilinear_triton import (
    add_square,
    cell,
    load_point,
    strict_add,
    weigh_square,
)

__all__ = ["deform_bwd_kernel", "deform_fwd_kernel"]


@triton.jit
def _rows(
    rows, height, width, out_height, out_width,
    G: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Row, whether it exists, output pixel, group, start of the grid and its input pixel; each (BLOCK_ROWS,).

    A row past the end repeats the last one, so that loads need no predicate. The input pixel may lie outside.
    """
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    row = program * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    valid = row < rows
    row = tl.minimum(row, rows - 1)
    pixel = row // G
    line = pixel // out_width
    start_x = (pixel % out_width) * STRIDE_W - PAD_W
    start_y = (line % out_height) * STRIDE_H - PAD_H
    first_line = (line // out_height).to(tl.int64) * height
    return row, valid, pixel, row % G, start_y, start_x, (first_line + start_y) * width + start_x


@triton.jit
def _strict_sum(
    pixels, offset_ptr, mask_ptr, start_y, start_x, height, width, offset_scale, base_y, base_x, in_group,
    K: tl.constexpr, KH: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, CENTER: tl.constexpr,
    STRIDE: tl.constexpr, WIDE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The whole sum by strict_add."""
    acc = tl.zeros((BLOCK_ROWS, BLOCK_D), dtype=tl.float32)
    for point in range(K):
        y, x, strength = load_point(
            offset_ptr, mask_ptr, point, offset_scale, base_y, base_x, KH, DILATION_H, DILATION_W, CENTER
        )
        acc = strict_add(acc, pixels, y, x, strength, start_y, start_x, height, width, in_group, STRIDE, WIDE)
    return acc


# Sizes and strides change from image to image: a kernel specialised on their values would be compiled anew each time.
_SIZES = ("rows", "height", "width", "out_height", "out_width", "stride_op", "stride_og", "stride_mp", "stride_mg")
_GRAD_STRIDES = ("stride_gop", "stride_gog", "stride_gmp", "stride_gmg")


@triton.jit(do_not_specialize=_SIZES)
def deform_fwd_kernel(
    value_ptr, offset_ptr, mask_ptr, out_ptr,
    rows, height, width, out_height, out_width,
    stride_op, stride_og, stride_mp, stride_mg, offset_scale, base_y, base_x,
    G: tl.constexpr, DG: tl.constexpr, K: tl.constexpr, KH: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, CENTER: tl.constexpr,
    VALUE_STRIDE: tl.constexpr, STRICT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    row, valid, pixel, group, start_y, start_x, start_pixel = _rows(
        rows, height, width, out_height, out_width, G, STRIDE_H, STRIDE_W, PAD_H, PAD_W, BLOCK_ROWS, WIDE
    )
    channel = tl.arange(0, BLOCK_D)
    first = (channel < DG)[None, :]
    second = (channel + BLOCK_D < DG)[None, :]
    pixels = value_ptr + (start_pixel * VALUE_STRIDE + group * DG)[:, None] + channel[None, :]
    offset_ptr += pixel.to(tl.int64) * stride_op + group * stride_og
    mask_ptr += pixel.to(tl.int64) * stride_mp + group * stride_mg

    acc = tl.zeros((BLOCK_ROWS, BLOCK_D), dtype=tl.float32)
    acc2 = tl.zeros((BLOCK_ROWS, BLOCK_D), dtype=tl.float32)
    if STRICT:
        doubtful = True
    else:
        first_x, last_x = (-start_x).to(tl.float32), (width - 2 - start_x).to(tl.float32)
        first_y, last_y = (-start_y).to(tl.float32), (height - 2 - start_y).to(tl.float32)
        for point in tl.static_range(K):
            y, x, strength = load_point(
                offset_ptr, mask_ptr, point, offset_scale, base_y, base_x, KH, DILATION_H, DILATION_W, CENTER
            )
            shift, w00, w01, w10, w11 = weigh_square(
                y, x, strength, first_y, last_y, first_x, last_x, width, WIDE, value_ptr.dtype.element_ty
            )
            upper = pixels + (shift * VALUE_STRIDE)[:, None]
            lower = upper + width * VALUE_STRIDE
            acc = add_square(acc, upper, lower, VALUE_STRIDE, w00, w01, w10, w11, first, BLOCK_D > DG, strength)
            if VECTORS == 2:
                acc2 = add_square(
                    acc2, upper + BLOCK_D, lower + BLOCK_D, VALUE_STRIDE, w00, w01, w10, w11, second, 2 * BLOCK_D > DG,
                    strength,
                )  # fmt: skip
        # A weight of 0 times a pixel that is inf or NaN, or times such a mask, gave NaN although the point does not
        # count there; a sample of the largest halves may be rounded up to inf. A finite sum shows that there was none.
        total = tl.sum(acc + acc2)
        doubtful = total - total != 0.0
    if doubtful:
        acc = _strict_sum(
            pixels, offset_ptr, mask_ptr, start_y, start_x, height, width, offset_scale, base_y, base_x, first,
            K, KH, DILATION_H, DILATION_W, CENTER, VALUE_STRIDE, WIDE, BLOCK_ROWS, BLOCK_D,
        )  # fmt: skip
        if VECTORS == 2:
            acc2 = _strict_sum(
                pixels + BLOCK_D, offset_ptr, mask_ptr, start_y, start_x, height, width, offset_scale, base_y, base_x,
                second, K, KH, DILATION_H, DILATION_W, CENTER, VALUE_STRIDE, WIDE, BLOCK_ROWS, BLOCK_D,
            )  # fmt: skip

    out = out_ptr + (row.to(tl.int64) * DG)[:, None] + channel[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=valid[:, None] & first)
    if VECTORS == 2:
        tl.store(out + BLOCK_D, acc2.to(out_ptr.dtype.element_ty), mask=valid[:, None] & second)


@triton.jit
def _load(pointers, in_group, MASKED: tl.constexpr):
    """A tile (BLOCK_ROWS, BLOCK_D) of pixels' channels in float32, as many a lane as the atomics have."""
    pointers = tl.max_contiguous(pointers, [1, 4 if pointers.shape[1] > 4 else pointers.shape[1]])
    if MASKED:
        return tl.load(pointers, mask=in_group, other=0.0).to(tl.float32)
    return tl.load(pointers).to(tl.float32)


@triton.jit
def _load_tiles(pointers, channel, DG: tl.constexpr, MASKED: tl.constexpr, VECTORS: tl.constexpr):
    """VECTORS tiles, each with the channels after those of the one before it."""
    tiles = ()
    for tile in tl.static_range(VECTORS):
        first = tile * channel.shape[1]
        tiles += (_load(pointers + first, channel + first < DG, MASKED),)
    return tiles


@triton.jit
def _dots(grads, upper, lower, channel, step: tl.constexpr, DG: tl.constexpr, MASKED: tl.constexpr):
    """Products of the gradient with the pixels at upper, upper + step, lower and lower + step; each (BLOCK_ROWS,)."""
    d00, d01, d10, d11 = 0.0, 0.0, 0.0, 0.0
    for tile in tl.static_range(len(grads)):
        first = tile * channel.shape[1]
        in_group = channel + first < DG
        d00 += grads[tile] * _load(upper + first, in_group, MASKED)
        d01 += grads[tile] * _load(upper + first + step, in_group, MASKED)
        d10 += grads[tile] * _load(lower + first, in_group, MASKED)
        d11 += grads[tile] * _load(lower + first + step, in_group, MASKED)
    return tl.sum(d00, axis=1), tl.sum(d01, axis=1), tl.sum(d10, axis=1), tl.sum(d11, axis=1)


@triton.jit
def _add_share(
    target, weight, there, grads, channel, unit, unit2,
    DG: tl.constexpr, MASKED: tl.constexpr, FIXED_POINT: tl.constexpr,
):  # fmt: skip
    """The weighted gradient, added to one corner's pixel at target where a row touches it."""
    for tile in tl.static_range(len(grads)):
        first = tile * channel.shape[1]
        share = weight[:, None] * grads[tile]
        if FIXED_POINT:
            share = (share * unit * unit2).to(tl.int64)
        here = there[:, None]
        if MASKED:
            here = here & (channel + first < DG)
        # Any other order fences and empties the L1 cache at each addition; nothing here reads the sums.
        tl.atomic_add(target + first, share, mask=here, sem="relaxed")


@triton.jit(do_not_specialize=(*_SIZES, *_GRAD_STRIDES))
def deform_bwd_kernel(
    value_ptr, offset_ptr, mask_ptr, grad_ptr, grad_value_ptr, grad_offset_ptr, grad_mask_ptr, fixed_point_ptr,
    rows, height, width, out_height, out_width,
    stride_op, stride_og, stride_mp, stride_mg, offset_scale, base_y, base_x,
    stride_gop, stride_gog, stride_gmp, stride_gmg,
    G: tl.constexpr, DG: tl.constexpr, K: tl.constexpr, KH: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, CENTER: tl.constexpr, VALUE_STRIDE: tl.constexpr,
    ROW_STEP: tl.constexpr, COLUMN_STEP: tl.constexpr, FIXED_POINT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    row, valid, pixel, group, start_y, start_x, start_pixel = _rows(
        rows, height, width, out_height, out_width, G, STRIDE_H, STRIDE_W, PAD_H, PAD_W, BLOCK_ROWS, WIDE
    )
    MASKED: tl.constexpr = VECTORS * BLOCK_D > DG
    channel = tl.arange(0, BLOCK_D)[None, :]
    column = (group * DG)[:, None] + channel
    pixels = value_ptr + (start_pixel * VALUE_STRIDE)[:, None] + column
    grad_pixels = grad_value_ptr + (start_pixel * (G * DG))[:, None] + column
    offset_ptr += pixel.to(tl.int64) * stride_op + group * stride_og
    mask_ptr += pixel.to(tl.int64) * stride_mp + group * stride_mg
    grad_offset_ptr += pixel.to(tl.int64) * stride_gop + group * stride_gog
    grad_mask_ptr += pixel.to(tl.int64) * stride_gmp + group * stride_gmg
    grads = _load_tiles(grad_ptr + (row.to(tl.int64) * DG)[:, None] + channel, channel, DG, MASKED, VECTORS)
    unit, unit2 = 1.0, 1.0
    if FIXED_POINT:
        unit, unit2 = tl.load(fixed_point_ptr), tl.load(fixed_point_ptr + 1)
    first_x, last_x = (-start_x).to(tl.float32), (width - 2 - start_x).to(tl.float32)
    first_y, last_y = (-start_y).to(tl.float32), (height - 2 - start_y).to(tl.float32)

    for point in tl.static_range(K):
        y, x, strength = load_point(
            offset_ptr, mask_ptr, point, offset_scale, base_y, base_x, KH, DILATION_H, DILATION_W, CENTER
        )
        top, wy0, wy1, above, below, plain_y = cell(y, first_y, last_y)
        left, wx0, wx1, before, after, plain_x = cell(x, first_x, last_x)
        above &= valid
        below &= valid
        inside = (above | below) & (before | after)
        if ROW_STEP == 0:
            below &= False
        if COLUMN_STEP == 0:
            after &= False
        top = top.to(tl.int64 if WIDE else tl.int32)
        shift = (top * width + left.to(tl.int32))[:, None]
        down = ROW_STEP * width
        # All corners are read before the first addition: the compiler lets no load pass one.
        upper, lower = pixels + shift * VALUE_STRIDE, pixels + (shift + down) * VALUE_STRIDE
        d00, d01, d10, d11 = _dots(grads, upper, lower, channel, COLUMN_STEP * VALUE_STRIDE, DG, MASKED)
        d00, d01 = tl.where(above & before, d00, 0.0), tl.where(above & after, d01, 0.0)
        d10, d11 = tl.where(below & before, d10, 0.0), tl.where(below & after, d11, 0.0)
        line0, line1 = wx0 * d00 + wx1 * d01, wx0 * d10 + wx1 * d11
        grad_mask = wy0 * line0 + wy1 * line1
        scale = tl.where(inside, strength * offset_scale, 0.0)
        grad_y = tl.where(plain_y, scale, -scale) * (line1 - line0)
        grad_x = tl.where(plain_x, scale, -scale) * (wy0 * (d01 - d00) + wy1 * (d11 - d10))
        tl.store(grad_offset_ptr + 2 * point, grad_x.to(grad_offset_ptr.dtype.element_ty), mask=valid)
        tl.store(grad_offset_ptr + 2 * point + 1, grad_y.to(grad_offset_ptr.dtype.element_ty), mask=valid)
        tl.store(grad_mask_ptr + point, grad_mask.to(grad_mask_ptr.dtype.element_ty), mask=valid)

        wy0 *= strength
        wy1 *= strength
        upper, lower = grad_pixels + shift * (G * DG), grad_pixels + (shift + down) * (G * DG)
        for corner in tl.static_range(4):
            target = (lower if corner // 2 == 1 else upper) + corner % 2 * COLUMN_STEP * (G * DG)
            there = (below if corner // 2 == 1 else above) & (after if corner % 2 == 1 else before)
            weight = (wy1 if corner // 2 == 1 else wy0) * (wx1 if corner % 2 == 1 else wx0)
            _add_share(target, weight, there, grads, channel, unit, unit2, DG, MASKED, FIXED_POINT)
