"""Depthwise convolution as matrix products: per channel, a row of a kernel is a banded matrix on tensor cores.

out[y, x] = the sum over kernel rows j of image[y + j, :] @ band_j, band_j[u, x] = weight[j, u - x]. A program has
TAPS kernel rows side by side in one product: partial[y, t, x] = the sum over q of image[y + TAPS * q, :] @
band_(TAPS * q + t), so that a row of the image is loaded KH / TAPS times; out[y, x] = the sum over t of
partial[y + t, t, x].

Images are (N, C, H, W) with margins of zeros (gemm_launch.py), so that nothing is masked but the end.
"""

import triton
import triton.language as tl

__all__ = ["depthwise_gemm_kernel", "depthwise_gemm_weight_grad_kernel"]

SHIFTS = tl.constexpr(8)
"""Copies of a kernel's row, each moved by one element, so that every row of a band begins at a vector's place."""
STRIDE_UNIT = tl.constexpr(16)
"""Rows of images are multiples of this many elements: said by the factor, since sizes are not specialised on."""


@triton.constexpr_function
def _table_length(kernel, taps, block_x):
    """Elements of a channel."""
    return kernel[0] * taps * 8 * (kernel[1] - 8 + block_x)


@triton.jit
def _add_product(acc, a, b, UPCAST: tl.constexpr):
    """acc + a @ b in float32; of float32 operands the tensor cores read tf32."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32")


@triton.jit
def _add_products(
    acc, rows, row_stride, table,
    KERNEL: tl.constexpr, TAPS: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_U: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """acc (M, TAPS * BLOCK_X) with the products of one kernel; `rows` (M,) points to what its first tap reads."""
    CHUNKS: tl.constexpr = KERNEL[0]
    WIDTH: tl.constexpr = KERNEL[1]
    LENGTH: tl.constexpr = WIDTH - SHIFTS + BLOCK_X
    u, column = tl.arange(0, BLOCK_U), tl.arange(0, TAPS * BLOCK_X)
    image = rows[:, None] + u[None, :]
    place = (column // BLOCK_X * (SHIFTS * LENGTH) + column % BLOCK_X)[None, :]
    band = table + (u % SHIFTS * LENGTH + u // SHIFTS * SHIFTS)[:, None] + place
    for _ in range(CHUNKS):
        for u0 in tl.static_range(0, WIDTH, BLOCK_U):
            acc = _add_product(acc, tl.load(image + u0), tl.load(band + u0), UPCAST)
        image += TAPS * row_stride
        band += TAPS * SHIFTS * LENGTH
    return acc


@triton.jit
def _add_directly(
    acc, rows, row_stride, table, KERNEL: tl.constexpr, TAPS: tl.constexpr, BLOCK_X: tl.constexpr
):  # fmt: skip
    """acc (M, BLOCK_X) with the products of one kernel, of which none is with a zero of the band."""
    LENGTH: tl.constexpr = KERNEL[1] - SHIFTS + BLOCK_X
    KH: tl.constexpr = KERNEL[4]
    KW: tl.constexpr = KERNEL[5]
    LEAD: tl.constexpr = KERNEL[6]
    image = rows[:, None] + LEAD + (BLOCK_X - 1 - tl.arange(0, BLOCK_X))[None, :]
    for j in range(KH):
        for i in range(KW):
            weight = tl.load(table + j * (SHIFTS * LENGTH) + LEAD + BLOCK_X - 1 + i)
            acc += tl.load(image + j * row_stride + i).to(tl.float32) * weight.to(tl.float32)
    return acc


@triton.jit(do_not_specialize=("rows", "height", "out_height", "out_width", "row_units"))
def depthwise_gemm_kernel(
    x_ptr, table_ptr, bias_ptr, out_ptr, rows, height, out_height, out_width, row_units,
    C: tl.constexpr, KERNELS: tl.constexpr, HAS_BIAS: tl.constexpr, UPCAST: tl.constexpr,
    TAPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_U: tl.constexpr,
):  # fmt: skip
    """out (N, C, Ho, Wo) = the sum over KERNELS, plus the bias.

    KERNELS: each (chunks of TAPS rows; columns of the image under a tile; first row; first column; KH; KW; columns
    before the first that is read). The table has their rows, moved and between zeros: (C, chunks * TAPS, SHIFTS,
    columns) each. `rows` counts those of all images, out_height + TAPS - 1 each. A program makes
    BLOCK_M - TAPS + 1 of them, and BLOCK_X columns, the last of which come first. Where a sum is not finite, all of the
    program's are made again: an inf or NaN times a zero of the band belongs to no sum.
    """
    tiles_x = tl.cdiv(out_width, BLOCK_X)
    tile, c = tl.program_id(0), tl.program_id(1)
    x0 = tile % tiles_x * BLOCK_X
    row_stride = row_units * STRIDE_UNIT
    m = tile // tiles_x * (BLOCK_M - TAPS + 1) + tl.arange(0, BLOCK_M)
    n, y = tl.minimum(m, rows - 1) // (out_height + TAPS - 1), tl.minimum(m, rows - 1) % (out_height + TAPS - 1)
    plane = n.to(tl.int64) * C + c
    lines = x_ptr + (plane * height + y) * row_stride + x0
    acc = tl.zeros((BLOCK_M, TAPS * BLOCK_X), dtype=tl.float32)
    tables = table_ptr
    for kernel in tl.static_range(len(KERNELS)):
        first = lines + KERNELS[kernel][2] * row_stride + KERNELS[kernel][3]
        table = tables + c.to(tl.int64) * _table_length(KERNELS[kernel], TAPS, BLOCK_X)
        if kernel > 0:  # Triton 3.8 for sm_100 fails where a sum goes from one loop of products to the next
            acc = tl.where(rows > 0, acc, 0.0)
        acc = _add_products(acc, first, row_stride, table, KERNELS[kernel], TAPS, BLOCK_X, BLOCK_U, UPCAST)
        tables += C * _table_length(KERNELS[kernel], TAPS, BLOCK_X)
    moved = tl.minimum(tl.arange(0, BLOCK_M)[:, None] + tl.arange(0, TAPS)[None, :], BLOCK_M - 1)
    moved = moved[:, :, None] + tl.zeros((1, 1, BLOCK_X), tl.int32)
    out = tl.sum(tl.gather(acc.reshape(BLOCK_M, TAPS, BLOCK_X), moved, 0), axis=1)
    if tl.max(tl.max((out - out != 0).to(tl.int32), axis=1), axis=0) > 0:
        out = tl.zeros((BLOCK_M, BLOCK_X), dtype=tl.float32)
        tables = table_ptr
        for kernel in tl.static_range(len(KERNELS)):
            first = lines + KERNELS[kernel][2] * row_stride + KERNELS[kernel][3]
            table = tables + c.to(tl.int64) * _table_length(KERNELS[kernel], TAPS, BLOCK_X)
            out = _add_directly(out, first, row_stride, table, KERNELS[kernel], TAPS, BLOCK_X)
            tables += C * _table_length(KERNELS[kernel], TAPS, BLOCK_X)
    if HAS_BIAS:
        out += tl.load(bias_ptr + c).to(tl.float32)
    x = x0 + BLOCK_X - 1 - tl.arange(0, BLOCK_X)
    kept = (tl.arange(0, BLOCK_M) < BLOCK_M - TAPS + 1) & (m < rows) & (y < out_height)
    columns = out_ptr + ((plane * out_height + y) * out_width)[:, None] + x[None, :]
    tl.store(columns, out.to(out_ptr.dtype.element_ty), mask=kept[:, None] & (x < out_width)[None, :])


@triton.jit(do_not_specialize=("rows", "part_rows", "height", "out_height", "out_width", "row_units", "grad_units"))
def depthwise_gemm_weight_grad_kernel(
    x_ptr, grad_ptr, partial_ptr, rows, part_rows, height, out_height, out_width, row_units, grad_units,
    C: tl.constexpr, KERNEL: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """partial[s, j, i, c] = the sum over the s-th `part_rows` rows of all images of x * the output's gradient.

    products[x, u] = the sum over rows y of grad[y, x] * image[y + j, u]; the tap i is the sum of its i-th diagonal.
    KERNEL is (KH, KW). Programs: kernel rows; channels; slices.
    """
    KH: tl.constexpr = KERNEL[0]
    KW: tl.constexpr = KERNEL[1]
    j, c, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    x, u, i = tl.arange(0, BLOCK_X), tl.arange(0, BLOCK_U), tl.arange(0, BLOCK_I)
    row_stride, grad_stride = row_units * STRIDE_UNIT, grad_units * STRIDE_UNIT
    last = tl.minimum((part + 1) * part_rows, rows)
    products = tl.zeros((BLOCK_X, BLOCK_U), dtype=tl.float32)
    for first in range(part * part_rows, last, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        n, y = tl.minimum(m, rows - 1) // out_height, tl.minimum(m, rows - 1) % out_height
        plane = n.to(tl.int64) * C + c
        image = x_ptr + ((plane * height + y + j) * row_stride)[:, None] + u[None, :]
        grad = grad_ptr + ((plane * out_height + y) * grad_stride)[:, None] + x[None, :]
        for x0 in range(0, out_width, BLOCK_X):
            above = tl.load(grad + x0, mask=(m < last)[:, None], other=0.0)
            products = _add_product(products, tl.trans(above), tl.load(image + x0), UPCAST)
    diagonal = tl.minimum(x[:, None] + i[None, :], BLOCK_U - 1)
    taps = tl.sum(tl.gather(products, diagonal, 1), axis=0)
    tl.store(partial_ptr + ((part * KH + j).to(tl.int64) * KW + i) * C + c, taps, mask=i < KW)
