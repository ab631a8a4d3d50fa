"""Lightweight DCNv4 for inference: one kernel predicts offsets and masks and samples with them.

A program takes BLOCK_P pixels and BLOCK_G groups. Per point, one matrix product of the pixels' channels gives dx, dy
and mask of every (pixel, group) row, in float32 and without a trip through memory; then the row is sampled as in
opbench_kernels.deform_triton.
"""

import os
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from opbench_kernels.bilinear_triton import add_square, place_point, strict_add, weigh_square
from opbench_kernels.deform_triton import Launch, is_wide
from opbench_kernels.geometry import Geometry

__all__ = ["dcnv4_from_input", "from_input_launch", "pack_offset_mask"]

COLUMNS = 4
"""Of one point and group in the packed weight: dx, dy, mask, and one of zeros, so that halving twice separates them."""
NUM_WARPS = 4
MAX_REGISTERS = 168
"""Three programs of 128 threads per SM. Left to itself, the compiler spills a few registers for a fourth."""


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
def _from_input_kernel(
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
            shift, w00, w01, w10, w11 = weigh_square(y, x, strength, first_y, last_y, first_x, last_x, width, WIDE)
            upper = values + (shift * C)[:, None]
            acc = add_square(acc, upper, upper + width * C, C, w00, w01, w10, w11, in_group, BLOCK_D > DG)
        total = tl.sum(acc)
        doubtful = total != total  # noqa: PLR0124 - NaN
    if doubtful:
        _strict_tile(
            x_ptr, weight_ptr, bias_ptr, out_ptr, first_pixel, first_group, pixels, height, width,
            offset_scale, base_y, base_x, C, G, DG, K, KH, PAD_H, PAD_W, DILATION_H, DILATION_W, CENTER, WIDE,
            BLOCK_P, BLOCK_G, BLOCK_C, BLOCK_D,
        )  # fmt: skip
    else:
        out = out_ptr + (pixel.to(tl.int64) * C + group * DG)[:, None] + channel[None, :]
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=valid & in_group)


def pack_offset_mask(
    weight: torch.Tensor, bias: torch.Tensor, groups: int, points: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The offset_mask Linear in the order that dcnv4_from_input reads it.

    Args:
        weight: (M, C), rows as DCNv4 packs offset_mask.
        bias: (M,).
        groups: G.
        points: K.

    Returns:
        Weight (K, C, G * 4) and bias (K, G * 4); the four of a point and group are dx, dy, mask and zeros.
    """

    def pack(parameter: torch.Tensor) -> torch.Tensor:
        used = parameter[: 3 * points * groups].unflatten(0, (groups, 3 * points))
        offset = used[:, : 2 * points].unflatten(1, (points, 2))
        mask = used[:, 2 * points :].unsqueeze(2)
        four = torch.cat([offset, mask, torch.zeros_like(mask)], dim=2)  # (G, K, 4, ...)
        return four.transpose(0, 1).flatten(1, 2)  # (K, G * 4, ...)

    return pack(weight).transpose(1, 2).contiguous(), pack(bias).contiguous()


def from_input_launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    groups: int,
    geometry: Geometry,
    *,
    allow_tf32: bool,
) -> Launch:
    """The launch of dcnv4_from_input on contiguous tensors."""
    batch, height, width, channels = x.shape
    group_channels = channels // groups
    kernel_h, kernel_w = geometry.kernel
    pixels = batch * height * width
    # A matrix product has at least 16 columns; with 32, float32 spills.
    block_g = max(4, min(8 if x.element_size() == 2 else 4, triton.next_power_of_2(groups)))
    block_d = triton.next_power_of_2(group_channels)
    block_p = max(16, min(64, 2048 // (block_g * block_d)))
    # With 64, half precision takes a stack frame on sm_100: docs/tuning.md.
    block_c = max(16, min(32 if x.element_size() == 2 else 64, triton.next_power_of_2(channels)))
    constants = {
        "C": channels,
        "G": groups,
        "DG": group_channels,
        "K": geometry.points,
        "KH": kernel_h,
        "PAD_H": geometry.padding[0],
        "PAD_W": geometry.padding[1],
        "DILATION_H": geometry.dilation[0],
        "DILATION_W": geometry.dilation[1],
        "CENTER": kernel_w // 2 * kernel_h + kernel_h // 2 if geometry.remove_center else geometry.points,
        "STRICT": min(height, width) < 2,
        "WIDE": is_wide((height, width), geometry, channels, pixels),
        "PRECISION": "tf32" if allow_tf32 else "ieee",
        # Triton's interpreter multiplies the bits of bfloat16 as integers.
        "UPCAST": x.dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1",
        "BLOCK_P": block_p,
        "BLOCK_G": block_g,
        "BLOCK_C": block_c,
        "BLOCK_D": block_d,
    }
    bases = (base * (1.0 - geometry.offset_scale) for base in geometry.base)
    arguments = (x, weight, bias, out, pixels, height, width, geometry.offset_scale, *bases)
    options = {"num_warps": NUM_WARPS, "enable_fp_fusion": True}
    if torch.version.hip is None:  # AMD's compiler has no such option
        options["maxnreg"] = MAX_REGISTERS
    grid = (triton.cdiv(pixels, block_p), triton.cdiv(groups, block_g))
    return Launch(_from_input_kernel, arguments, constants, options, grid)


def dcnv4_from_input(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, groups: int, geometry: Geometry
) -> torch.Tensor:
    """dcnv4(x, linear(x)) in one kernel; not differentiable. Autocast does not reach it.

    Args:
        x: (N, H, W, C), float32, float16 or bfloat16, on a CUDA device (or on the CPU under Triton's interpreter).
        weight, bias: from pack_offset_mask, (K, C, G * 4) and (K, G * 4), in the dtype of `x`.
        groups: G, a divisor of C.
        geometry: stride 1 and a padding that keeps the image's size.

    Returns:
        (N, H, W, C). Offsets and masks are not rounded to the dtype of `x` on the way.

    Raises:
        ValueError: an argument that does not fit, a geometry that changes the image's size, or gradients are wanted.
    """
    if x.dim() != 4 or x.shape[-1] % groups or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"x must be (N, H, W, C), C a multiple of {groups} groups, in float32, float16 or bfloat16, "
                         f"got shape {tuple(x.shape)} in {x.dtype}")  # fmt: skip
    if geometry.output_size(*x.shape[1:3]) != tuple(x.shape[1:3]) or geometry.stride != (1, 1):
        raise ValueError(f"geometry must keep the image's size {tuple(x.shape[1:3])}, got {geometry}")
    columns = COLUMNS * groups
    shapes = {"weight": (geometry.points, x.shape[-1], columns), "bias": (geometry.points, columns)}
    for (name, shape), tensor in zip(shapes.items(), (weight, bias), strict=True):
        if (tensor.shape, tensor.dtype, tensor.device) != (shape, x.dtype, x.device):
            raise ValueError(f"{name} must be {shape} in {x.dtype} on {x.device}, as pack_offset_mask makes it, "
                             f"got {tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}")  # fmt: skip
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, weight, bias)):
        raise ValueError("dcnv4_from_input has no gradient: call it under torch.no_grad(), or use dcnv4")
    sizes = list(geometry.kernel), list(geometry.padding), list(geometry.dilation)
    result: torch.Tensor = _from_input(x, weight, bias, groups, *sizes, geometry.offset_scale, geometry.remove_center)
    return result


@torch.library.custom_op("opbench_kernels::dcnv4_from_input", mutates_args=())
def _from_input(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, kernel: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], offset_scale: float, remove_center: bool,
) -> torch.Tensor:  # fmt: skip
    (kernel_h, kernel_w), (pad_h, pad_w), (dilation_h, dilation_w) = kernel, padding, dilation
    geometry = Geometry((kernel_h, kernel_w), (1, 1), (pad_h, pad_w), (dilation_h, dilation_w), offset_scale,
                        remove_center)  # fmt: skip
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        allow_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        from_input_launch(x, weight, bias, out, groups, geometry, allow_tf32=allow_tf32)()
    return out


@_from_input.register_fake
def _from_input_fake(x: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
