"""The Triton kernels of deformable sampling: forward, and backward, which adds up by atomics.

A row is one (output pixel, group). A program takes BLOCK_ROWS rows; a lane takes a 16-byte vector of a row's channels,
or two of them, which halves what the coordinates cost per channel. docs/tuning.md compares the designs.

A coordinate is kept as the grid's integer start plus a small float, so its rounding does not grow with the image.
Offset and mask are addressed by strides, so one kernel reads DCNv4's packed tensor and DCNv3's two tensors.
"""

import triton
import triton.language as tl
from opbench_kernels.bilinear_grad_triton import load_tiles, square_backward
from opbench_kernels.bilinear_triton import add_square, load_point, strict_add, weigh_square

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
    grads = load_tiles(grad_ptr + (row.to(tl.int64) * DG)[:, None] + channel, channel, DG, MASKED, VECTORS)
    unit, unit2 = 1.0, 1.0
    if FIXED_POINT:
        unit, unit2 = tl.load(fixed_point_ptr), tl.load(fixed_point_ptr + 1)
    first_x, last_x = (-start_x).to(tl.float32), (width - 2 - start_x).to(tl.float32)
    first_y, last_y = (-start_y).to(tl.float32), (height - 2 - start_y).to(tl.float32)

    for point in tl.static_range(K):
        y, x, strength = load_point(
            offset_ptr, mask_ptr, point, offset_scale, base_y, base_x, KH, DILATION_H, DILATION_W, CENTER
        )
        grad_mask, grad_y, grad_x = square_backward(
            grads, pixels, grad_pixels, y, x, strength, offset_scale, offset_scale, first_y, last_y, first_x, last_x,
            width, ROW_STEP, COLUMN_STEP, valid, channel, unit, unit2,
            DG, VALUE_STRIDE, G * DG, MASKED, FIXED_POINT, WIDE,
        )  # fmt: skip
        tl.store(grad_offset_ptr + 2 * point, grad_x.to(grad_offset_ptr.dtype.element_ty), mask=valid)
        tl.store(grad_offset_ptr + 2 * point + 1, grad_y.to(grad_offset_ptr.dtype.element_ty), mask=valid)
        tl.store(grad_mask_ptr + point, grad_mask.to(grad_mask_ptr.dtype.element_ty), mask=valid)
