"""The Triton kernels of DCNv2: samples are made a tile at a time and feed a product; no matrix of them is stored.

A tile is BLOCK_P output pixels by BLOCK_C channels of one point. Channels go in segments, each in one group of the
convolution and one deformable group, so that a tile has one offset and one mask a pixel. Images are channels last;
weight is (groups, K, channels of a group, outputs of a group).
"""

import triton
import triton.language as tl
from opbench_kernels.bilinear_grad_triton import add_shares, place_square, square_dots, square_gradients
from opbench_kernels.bilinear_triton import add_square, strict_add, weigh_square

__all__ = ["dcnv2_bwd_kernel", "dcnv2_fwd_kernel", "dcnv2_weight_grad_kernel"]

TILE = tl.constexpr(8)
"""Channels of a tile of the image's gradient: then four warps take four of 64 pixels a lane, as one addition has."""


@triton.jit
def _pixels(
    block, pixels, height, width, out_height, out_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Output pixel, whether it exists, its image, line and column, start of its grid and that input pixel; (BLOCK_P,).

    A pixel past the end repeats the last one. The input pixel may lie outside.
    """
    pixel = block * BLOCK_P + tl.arange(0, BLOCK_P).to(tl.int64)
    valid = pixel < pixels
    pixel = tl.minimum(pixel, pixels - 1)
    line = pixel // out_width
    column = (pixel % out_width).to(tl.int32)
    image, row = line // out_height, (line % out_height).to(tl.int32)
    start_y, start_x = row * STRIDE_H - PAD_H, column * STRIDE_W - PAD_W
    return pixel, valid, image, row, column, start_y, start_x, (image * height + start_y) * width + start_x


@triton.jit
def _point(
    offset_ptr, mask_ptr, stride_oc, stride_mc, number, point,
    KW: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
):  # fmt: skip
    """Distance from the grid's start in y and x, and mask; each (BLOCK_P,). `number` counts points of all groups."""
    y = tl.load(offset_ptr + 2 * number * stride_oc).to(tl.float32) + point // KW * DILATION_H
    x = tl.load(offset_ptr + (2 * number + 1) * stride_oc).to(tl.float32) + point % KW * DILATION_W
    return y, x, tl.load(mask_ptr + number * stride_mc).to(tl.float32)


@triton.jit
def _samples(
    pixels, y, x, strength, start_y, start_x, height, width, in_segment,
    C: tl.constexpr, STRICT: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The samples of one point times their masks (BLOCK_P, BLOCK_C), of the channels that `pixels` point to."""
    tile = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    if STRICT:
        tile = strict_add(tile, pixels, y, x, strength, start_y, start_x, height, width, in_segment, C, WIDE)
    else:
        first_y, last_y = (-start_y).to(tl.float32), (height - 2 - start_y).to(tl.float32)
        first_x, last_x = (-start_x).to(tl.float32), (width - 2 - start_x).to(tl.float32)
        shift, w00, w01, w10, w11 = weigh_square(
            y, x, strength, first_y, last_y, first_x, last_x, width, WIDE, pixels.dtype.element_ty
        )
        upper = pixels + (shift * C)[:, None]
        tile = add_square(tile, upper, upper + width * C, C, w00, w01, w10, w11, in_segment, MASKED, strength)
    return tile


@triton.jit
def _product(
    pixels, offset_ptr, mask_ptr, weight_ptr, stride_oc, stride_mc, start_y, start_x, height, width, blocks,
    group, in_outputs,
    C: tl.constexpr, GC: tl.constexpr, GO: tl.constexpr, DC: tl.constexpr, SEGMENT: tl.constexpr,
    K: tl.constexpr, KW: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    STRICT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """The output (BLOCK_P, BLOCK_O); weight_ptr is (1, BLOCK_O), at the first channel of the group's first point."""
    acc = tl.zeros((BLOCK_P, BLOCK_O), dtype=tl.float32)
    channel = tl.arange(0, BLOCK_C)
    for segment in range(GC // SEGMENT):
        deform_group = (group * GC + segment * SEGMENT) // DC
        for point in range(K):
            y, x, strength = _point(
                offset_ptr, mask_ptr, stride_oc, stride_mc, deform_group * K + point, point, KW, DILATION_H, DILATION_W
            )
            for block in range(blocks):
                first = block * BLOCK_C
                in_segment = first + channel < SEGMENT
                start = segment * SEGMENT + first
                tile = _samples(
                    pixels + (group * GC + start + channel)[None, :], y, x, strength, start_y, start_x, height, width,
                    in_segment[None, :], C, STRICT, SEGMENT % BLOCK_C != 0, WIDE, BLOCK_P, BLOCK_C,
                )  # fmt: skip
                weights = weight_ptr + (point * GC + start + channel)[:, None] * GO
                weight = tl.load(weights, mask=in_segment[:, None] & in_outputs, other=0.0)
                tile = tile.to(weight.dtype)
                if UPCAST:
                    tile, weight = tile.to(tl.float32), weight.to(tl.float32)
                acc = tl.dot(tile, weight, acc, input_precision=PRECISION)
    return acc


# Sizes and strides change from image to image: a kernel specialised on their values would be compiled anew each time.
# `blocks`, of channels of a segment, is among them so that no compiler unrolls the loop over them.
_SIZES = (
    "pixels", "height", "width", "out_height", "out_width",
    "stride_on", "stride_oc", "stride_oh", "stride_ow", "stride_mn", "stride_mc", "stride_mh", "stride_mw", "blocks",
)  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def dcnv2_fwd_kernel(
    image_ptr, offset_ptr, mask_ptr, weight_ptr, bias_ptr, out_ptr,
    pixels, height, width, out_height, out_width,
    stride_on, stride_oc, stride_oh, stride_ow, stride_mn, stride_mc, stride_mh, stride_mw, blocks,
    C: tl.constexpr, GC: tl.constexpr, GO: tl.constexpr, DC: tl.constexpr, SEGMENT: tl.constexpr,
    OUTPUTS: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    HAS_BIAS: tl.constexpr, STRICT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    pixel, valid, image, row, column, start_y, start_x, start_pixel = _pixels(
        tl.program_id(0), pixels, height, width, out_height, out_width, STRIDE_H, STRIDE_W, PAD_H, PAD_W, BLOCK_P
    )
    output_blocks: tl.constexpr = (GO + BLOCK_O - 1) // BLOCK_O
    group = tl.program_id(1) // output_blocks
    output = tl.program_id(1) % output_blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    in_outputs = (output < GO)[None, :]
    pixel_ptr = image_ptr + (start_pixel * C)[:, None]
    offset_ptr += image * stride_on + row * stride_oh + column * stride_ow
    mask_ptr += image * stride_mn + row * stride_mh + column * stride_mw
    weight_ptr += (group.to(tl.int64) * (K * GC * GO) + output)[None, :]
    if STRICT:
        doubtful = True
        acc = tl.zeros((BLOCK_P, BLOCK_O), dtype=tl.float32)
    else:
        acc = _product(
            pixel_ptr, offset_ptr, mask_ptr, weight_ptr, stride_oc, stride_mc, start_y, start_x, height, width, blocks,
            group, in_outputs, C, GC, GO, DC, SEGMENT, K, KW, DILATION_H, DILATION_W, False, WIDE, PRECISION, UPCAST,
            BLOCK_P, BLOCK_C, BLOCK_O,
        )  # fmt: skip
        # A weight of 0 times a pixel or a mask that is not finite gave NaN although the point does not count there; a
        # sample of the largest halves may be rounded up to inf. A finite sum shows that there was none.
        total = tl.sum(acc)
        doubtful = total - total != 0.0
    if doubtful:
        acc = _product(
            pixel_ptr, offset_ptr, mask_ptr, weight_ptr, stride_oc, stride_mc, start_y, start_x, height, width, blocks,
            group, in_outputs, C, GC, GO, DC, SEGMENT, K, KW, DILATION_H, DILATION_W, True, WIDE, PRECISION, UPCAST,
            BLOCK_P, BLOCK_C, BLOCK_O,
        )  # fmt: skip
    place = group * GO + output
    if HAS_BIAS:
        acc += tl.load(bias_ptr + place, mask=output < GO, other=0.0).to(tl.float32)[None, :]
    out = out_ptr + (pixel * OUTPUTS)[:, None] + place[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=valid[:, None] & in_outputs)


@triton.jit
def _halves(tile):
    """The first and the second half of a tile's columns."""
    return tl.split(tl.trans(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def _grad_of_samples(
    grad_ptr, weight_ptr, valid, in_segment,
    GO: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """The gradient (BLOCK_P, BLOCK_C) of a tile of samples: the output's of its group times the weight.

    grad_ptr and valid are (BLOCK_P, 1), weight_ptr and in_segment (1, BLOCK_C), at the group's first output.
    """
    grad = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for first in range(0, GO, BLOCK_O):
        output = first + tl.arange(0, BLOCK_O)
        grad_out = tl.load(grad_ptr + output[None, :], mask=valid & (output < GO)[None, :], other=0.0)
        weight = tl.load(weight_ptr + output[:, None], mask=in_segment & (output < GO)[:, None], other=0.0)
        if UPCAST:
            grad_out, weight = grad_out.to(tl.float32), weight.to(tl.float32)
        grad = tl.dot(grad_out, weight, grad, input_precision=PRECISION)
    return grad


@triton.jit(do_not_specialize=_SIZES)
def dcnv2_bwd_kernel(
    image_ptr, offset_ptr, mask_ptr, weight_ptr, grad_ptr, grad_image_ptr, grad_offset_ptr, grad_mask_ptr,
    fixed_point_ptr, pixels, height, width, out_height, out_width,
    stride_on, stride_oc, stride_oh, stride_ow, stride_mn, stride_mc, stride_mh, stride_mw, blocks,
    C: tl.constexpr, GC: tl.constexpr, GO: tl.constexpr, DC: tl.constexpr, SEGMENT: tl.constexpr,
    OUTPUTS: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    ROW_STEP: tl.constexpr, COLUMN_STEP: tl.constexpr, FIXED_POINT: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """The gradients of image, offsets and masks. Those of offsets and masks are (pixels, channels), contiguous."""
    pixel, valid, image, row, column, start_y, start_x, start_pixel = _pixels(
        tl.program_id(0), pixels, height, width, out_height, out_width, STRIDE_H, STRIDE_W, PAD_H, PAD_W, BLOCK_P
    )
    deform_group = tl.program_id(1)
    channel = tl.arange(0, BLOCK_C)
    in_tile = tl.arange(0, TILE)[None, :]
    pixels, grad_pixels = image_ptr + (start_pixel * C)[:, None], grad_image_ptr + (start_pixel * C)[:, None]
    first_y, last_y = (-start_y).to(tl.float32), (height - 2 - start_y).to(tl.float32)
    first_x, last_x = (-start_x).to(tl.float32), (width - 2 - start_x).to(tl.float32)
    offset_ptr += image * stride_on + row * stride_oh + column * stride_ow
    mask_ptr += image * stride_mn + row * stride_mh + column * stride_mw
    grad_offset_ptr += pixel * (2 * K * (C // DC))
    grad_mask_ptr += pixel * (K * (C // DC))
    unit, unit2 = 1.0, 1.0
    if FIXED_POINT:
        unit, unit2 = tl.load(fixed_point_ptr), tl.load(fixed_point_ptr + 1)
    for point in range(K):
        number = deform_group * K + point
        y, x, strength = _point(offset_ptr, mask_ptr, stride_oc, stride_mc, number, point, KW, DILATION_H, DILATION_W)
        shift, weights, touched, between = place_square(
            y, x, first_y, last_y, first_x, last_x, width, ROW_STEP, COLUMN_STEP, valid, WIDE
        )
        upper, grad_upper = pixels + shift * C, grad_pixels + shift * C
        lower, grad_lower = upper + ROW_STEP * width * C, grad_upper + ROW_STEP * width * C
        d00 = tl.zeros((BLOCK_P,), dtype=tl.float32)
        d01, d10, d11 = d00, d00, d00
        for block in range(DC // SEGMENT * blocks):
            first = block % blocks * BLOCK_C
            start = deform_group * DC + block // blocks * SEGMENT + first
            in_segment = first + channel < SEGMENT
            group = start // GC
            grad = _grad_of_samples(
                grad_ptr + (pixel * OUTPUTS + group * GO)[:, None],
                weight_ptr + (((group.to(tl.int64) * K + point) * GC + start % GC + channel) * GO)[None, :],
                valid[:, None], in_segment[None, :], GO, PRECISION, UPCAST, BLOCK_P, BLOCK_C, BLOCK_O,
            )  # fmt: skip
            grads = _halves(grad)
            if BLOCK_C > 2 * TILE:
                grads = _halves(grads[0]) + _halves(grads[1])
            more = square_dots(
                grads, upper + (start + in_tile), lower + (start + in_tile), COLUMN_STEP * C, first + in_tile, SEGMENT,
                SEGMENT % BLOCK_C != 0,
            )  # fmt: skip
            d00, d01, d10, d11 = d00 + more[0], d01 + more[1], d10 + more[2], d11 + more[3]
            add_shares(
                grads, grad_upper + (start + in_tile), grad_lower + (start + in_tile), COLUMN_STEP * C, weights,
                touched, strength, first + in_tile, unit, unit2, SEGMENT, SEGMENT % BLOCK_C != 0, FIXED_POINT,
            )  # fmt: skip
        grad_strength, grad_y, grad_x = square_gradients(
            (d00, d01, d10, d11), weights, touched, between, strength, 1.0, 1.0
        )
        tl.store(grad_offset_ptr + 2 * number, grad_y.to(grad_offset_ptr.dtype.element_ty), mask=valid)
        tl.store(grad_offset_ptr + 2 * number + 1, grad_x.to(grad_offset_ptr.dtype.element_ty), mask=valid)
        tl.store(grad_mask_ptr + number, grad_strength.to(grad_mask_ptr.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=_SIZES)
def dcnv2_weight_grad_kernel(
    image_ptr, offset_ptr, mask_ptr, grad_ptr, partial_ptr,
    pixels, height, width, out_height, out_width,
    stride_on, stride_oc, stride_oh, stride_ow, stride_mn, stride_mc, stride_mh, stride_mw, blocks,
    C: tl.constexpr, GC: tl.constexpr, GO: tl.constexpr, DC: tl.constexpr, SEGMENT: tl.constexpr,
    OUTPUTS: tl.constexpr, K: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Sums of the weight's gradient over every SLICES-th block of pixels, SLICES being the programs of axis 2."""
    point = tl.program_id(0) % K
    block = tl.program_id(0) // K
    first = block % blocks * BLOCK_C
    start = block // blocks * SEGMENT + first
    group, deform_group = start // GC, start // DC
    channel = tl.arange(0, BLOCK_C)
    in_segment = first + channel < SEGMENT
    output = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    in_outputs = (output < GO)[None, :]
    acc = tl.zeros((BLOCK_C, BLOCK_O), dtype=tl.float32)
    for pixel_block in range(tl.program_id(2), (pixels + BLOCK_P - 1) // BLOCK_P, tl.num_programs(2)):
        pixel, valid, image, row, column, start_y, start_x, start_pixel = _pixels(
            pixel_block, pixels, height, width, out_height, out_width, STRIDE_H, STRIDE_W, PAD_H, PAD_W, BLOCK_P
        )
        offsets = offset_ptr + image * stride_on + row * stride_oh + column * stride_ow
        masks = mask_ptr + image * stride_mn + row * stride_mh + column * stride_mw
        y, x, strength = _point(
            offsets, masks, stride_oc, stride_mc, deform_group * K + point, point, KW, DILATION_H, DILATION_W
        )
        tile = _samples(
            image_ptr + (start_pixel * C + start)[:, None] + channel[None, :], y, x, strength, start_y, start_x,
            height, width, in_segment[None, :], C, True, True, WIDE, BLOCK_P, BLOCK_C,
        )  # fmt: skip
        grads = grad_ptr + (pixel * OUTPUTS + group * GO)[:, None] + output[None, :]
        grad = tl.load(grads, mask=valid[:, None] & in_outputs, other=0.0)
        tile = tile.to(grad.dtype)
        if UPCAST:
            tile, grad = tile.to(tl.float32), grad.to(tl.float32)
        acc = tl.dot(tl.trans(tile), grad, acc, input_precision=PRECISION)
    rows = (group.to(tl.int64) * K + point) * GC + start % GC + channel
    sums = partial_ptr + tl.program_id(2).to(tl.int64) * (K * GC * OUTPUTS)
    tl.store(sums + (rows * GO)[:, None] + output[None, :], acc, mask=in_segment[:, None] & in_outputs)
