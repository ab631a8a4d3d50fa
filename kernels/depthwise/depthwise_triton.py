"""The Triton kernels of depthwise convolution: forward, also the input gradient with flipped weights; weight gradient.

Images are (N, H, W, C), contiguous; a lane takes a vector of channels of one column. A program has ROWS output rows in
registers, and a window of the input rows under them: a row that is loaded is multiplied ROWS times, and a weight too.
Rows and columns of a kernel that lie in the padding for a whole tile are left out. docs/tuning.md compares the designs.

Rows are kept as tuples of (BLOCK_W, BLOCK_C) tensors: Triton has no registers that a loop could index.
"""

import triton
import triton.language as tl

__all__ = ["depthwise_fwd_kernel", "depthwise_weight_grad_kernel"]


@triton.jit
def _zeros(COUNT: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr):
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (tl.zeros((BLOCK_W, BLOCK_C), dtype=tl.float32),)
    return rows


@triton.jit
def _append_rows(rows, columns, y, height, inside, COUNT: tl.constexpr, STRIDE: tl.constexpr):
    """`rows` and COUNT more of an image, from row `y` on, in float32; zero outside. `columns` points to row 0."""
    for step in tl.static_range(COUNT):
        line = y + step
        row = tl.load(columns + line * STRIDE, mask=inside & (line >= 0) & (line < height), other=0.0)
        rows = rows + (row.to(tl.float32),)
    return rows


@triton.jit
def _columns(image, x, width, channel, C: tl.constexpr):
    """Pointers to row 0 of the columns `x` of an image, and which of them exist; each (BLOCK_W, BLOCK_C)."""
    inside = ((x >= 0) & (x < width))[:, None] & (channel < C)[None, :]
    return image + (x * C)[:, None] + channel[None, :], inside


@triton.jit
def _add_taps(acc, rows, weights, in_block, TAPS: tl.constexpr, TAP_STRIDE: tl.constexpr):
    """acc[t] + the sum over TAPS kernel rows j of rows[t + j] * weight[j]."""
    for tap in tl.static_range(TAPS):
        weight = tl.load(weights + tap * TAP_STRIDE, mask=in_block, other=0.0)
        total = ()
        for t in tl.static_range(len(acc)):
            total = total + (acc[t] + rows[t + tap] * weight,)
        acc = total
    return acc


@triton.jit
def _add_kernel(
    acc, image, weight_ptr, y0, x0, height, width, channel, ROW_STRIDE,
    C: tl.constexpr, KERNEL: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """`acc`, output rows from (y0, x0) on, with the products of one kernel added; its weights are (KH, KW, C)."""
    KH: tl.constexpr = KERNEL[0]
    KW: tl.constexpr = KERNEL[1]
    ROWS: tl.constexpr = len(acc)
    CHUNKS: tl.constexpr = KH // ROWS
    TAP_STRIDE: tl.constexpr = KW * C
    top, left = y0 - KERNEL[2], x0 - KERNEL[3]
    in_block = (channel < C)[None, :]
    # A chunk is ROWS rows of the kernel, over 2 * ROWS - 1 rows of the image. These meet it:
    first = tl.minimum(tl.maximum(-top - ROWS + 1, 0) // ROWS, CHUNKS)
    last = tl.minimum(tl.maximum(height - top + ROWS - 1, 0) // ROWS, CHUNKS)
    for i in range(tl.maximum(1 - BLOCK_W - left, 0), tl.minimum(width - left, KW)):
        columns, inside = _columns(image, left + i + tl.arange(0, BLOCK_W), width, channel, C)
        weights = (weight_ptr + i * C + channel)[None, :] + tl.zeros((BLOCK_W, 1), tl.int32)
        rows = _append_rows((), columns, top + first * ROWS, height, inside, ROWS - 1, ROW_STRIDE)
        for chunk in range(first, last):
            y = top + chunk * ROWS + ROWS - 1
            rows = _append_rows(rows, columns, y, height, inside, ROWS, ROW_STRIDE)
            acc = _add_taps(acc, rows, weights + chunk * ROWS * TAP_STRIDE, in_block, ROWS, TAP_STRIDE)
            rows = rows[ROWS:]
        if KH % ROWS > 0:  # noqa: SIM102 - the outer one is decided by the compiler
            if last == CHUNKS:
                y = top + CHUNKS * ROWS + ROWS - 1
                rest = _append_rows(rows, columns, y, height, inside, KH % ROWS, ROW_STRIDE)
                acc = _add_taps(acc, rest, weights + CHUNKS * ROWS * TAP_STRIDE, in_block, KH % ROWS, TAP_STRIDE)
    return acc


# Sizes change from image to image: a kernel specialised on their values would be compiled anew each time.
_SIZES = ("height", "width", "out_height", "out_width")


@triton.jit(do_not_specialize=_SIZES)
def depthwise_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, height, width, out_height, out_width,
    C: tl.constexpr, KERNELS: tl.constexpr, HAS_BIAS: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = the sum over KERNELS, each (KH, KW, padding above, padding to the left), plus the bias.

    Weights are float32, the kernels' (KH, KW, C) one after the other. Programs: tiles of an image, left to right
    and downwards, images one after the other; blocks of channels.
    """
    tiles_x, tiles_y = tl.cdiv(out_width, BLOCK_W), tl.cdiv(out_height, ROWS)
    tile = tl.program_id(0)
    n = (tile // (tiles_x * tiles_y)).to(tl.int64)
    y0, x0 = tile // tiles_x % tiles_y * ROWS, tile % tiles_x * BLOCK_W
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image, row_stride, out_stride = x_ptr + n * height * width * C, width * C, out_width * C
    if WIDE:
        row_stride, out_stride = row_stride.to(tl.int64), out_stride.to(tl.int64)
    acc = _zeros(ROWS, BLOCK_W, BLOCK_C)
    for kernel in tl.static_range(len(KERNELS)):
        acc = _add_kernel(
            acc, image, weight_ptr, y0, x0, height, width, channel, row_stride, C, KERNELS[kernel], BLOCK_W
        )
        weight_ptr += KERNELS[kernel][0] * KERNELS[kernel][1] * C
    columns, inside = _columns(
        out_ptr + n * out_height * out_width * C, x0 + tl.arange(0, BLOCK_W), out_width, channel, C
    )
    bias = tl.zeros((BLOCK_C,), dtype=tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    for t in tl.static_range(ROWS):
        row = (acc[t] + bias[None, :]).to(out_ptr.dtype.element_ty)
        tl.store(columns + (y0 + t) * out_stride, row, mask=inside & (y0 + t < out_height))


@triton.jit
def _outer(acc, rows, grads):
    """acc[j] + the sum over t of rows[t + j] * grads[t]."""
    for t in tl.static_range(len(grads)):
        total = ()
        for j in tl.static_range(len(acc)):
            total = total + (acc[j] + rows[t + j] * grads[t],)
        acc = total
    return acc


@triton.jit(do_not_specialize=("batch", "images", *_SIZES))
def depthwise_weight_grad_kernel(
    x_ptr, grad_ptr, partial_ptr, batch, images, height, width, out_height, out_width,
    C: tl.constexpr, KERNEL: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial[s, j, i, c] = the sum over `images` images and their output pixels of x * the output's gradient.

    Programs: (kernel column, ROWS kernel rows); blocks of channels; slices s of the batch. Here the gradient's rows
    are to the kernel's rows what weights are to output rows in the forward pass.
    """
    KH: tl.constexpr = KERNEL[0]
    KW: tl.constexpr = KERNEL[1]
    i, j0 = tl.program_id(0) % KW, tl.program_id(0) // KW * ROWS
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.program_id(2)
    up, left = j0 - KERNEL[2], i - KERNEL[3]  # from an output pixel to the first row, and to the column, that it reads
    row_stride, grad_stride = width * C, out_width * C
    if WIDE:
        row_stride, grad_stride = row_stride.to(tl.int64), grad_stride.to(tl.int64)
    # Chunks of ROWS output rows that read the image at all.
    first = tl.maximum(-up - ROWS + 1, 0) // ROWS
    last = tl.cdiv(tl.maximum(tl.minimum(out_height, height - up), 0), ROWS)
    acc = _zeros(ROWS, BLOCK_W, BLOCK_C)
    for n in range(part * images, tl.minimum((part + 1) * images, batch)):
        image = x_ptr + tl.cast(n, tl.int64) * height * width * C
        grad = grad_ptr + tl.cast(n, tl.int64) * out_height * out_width * C
        for x0 in range(tl.maximum(-left, 0) // BLOCK_W * BLOCK_W, tl.minimum(out_width, width - left), BLOCK_W):
            x = x0 + tl.arange(0, BLOCK_W)
            columns, inside = _columns(image, x + left, width, channel, C)
            grad_columns, has_grad = _columns(grad, x, out_width, channel, C)
            rows = _append_rows((), columns, first * ROWS + up, height, inside & has_grad, ROWS - 1, row_stride)
            for chunk in range(first, last):
                y = chunk * ROWS
                rows = _append_rows(rows, columns, y + up + ROWS - 1, height, inside & has_grad, ROWS, row_stride)
                grads = _append_rows((), grad_columns, y, out_height, has_grad & inside, ROWS, grad_stride)
                acc = _outer(acc, rows, grads)
                rows = rows[ROWS:]
    partial_ptr += part.to(tl.int64) * (KH * KW * C) + (j0 * KW + i) * C + channel
    for j in tl.static_range(ROWS):
        tl.store(partial_ptr + j * (KW * C), tl.sum(acc[j], axis=0), mask=(channel < C) & (j0 + j < KH))
