"""Deformable sampling in Triton: a forward kernel, and a backward kernel that adds up by atomics.

A row is one (output pixel, group). A program takes BLOCK_ROWS rows; a lane takes a 16-byte vector of a row's channels,
or two of them, which halves what the coordinates cost per channel. docs/tuning.md has the designs compared.

A coordinate is kept as the grid's integer start plus a small float, so its rounding does not grow with the image.
Strides address offset and mask, so the packed tensor of DCNv4 and the two tensors of DCNv3 go through the same code.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from opbench_kernels.bilinear_triton import (
    add_square,
    load_point,
    strict_add,
    strict_corner,
    strict_point,
    weigh_square,
)
from opbench_kernels.geometry import Geometry

__all__ = [
    "Config",
    "Launch",
    "Sampled",
    "backward_launch",
    "forward_config",
    "forward_launch",
    "is_wide",
    "sampled_dcnv3",
    "sampled_dcnv4",
    "unpack",
]

WARP_SIZE = 32
VECTOR_BYTES = 16
MAX_BLOCK_ROWS = 1024
INDEX_LIMIT = 2**31
"""Distances inside an image, and rows, from here on take 64 bits."""
MANY_ROWS = 2**18
"""From here on there are warps enough to give each lane two vectors: 14 warps of 138 registers fill an SM 3 times."""


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
def _deform_fwd_kernel(
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
            shift, w00, w01, w10, w11 = weigh_square(y, x, strength, first_y, last_y, first_x, last_x, width, WIDE)
            upper = pixels + (shift * VALUE_STRIDE)[:, None]
            lower = upper + width * VALUE_STRIDE
            acc = add_square(acc, upper, lower, VALUE_STRIDE, w00, w01, w10, w11, first, BLOCK_D > DG)
            if VECTORS == 2:
                acc2 = add_square(
                    acc2, upper + BLOCK_D, lower + BLOCK_D, VALUE_STRIDE, w00, w01, w10, w11, second, 2 * BLOCK_D > DG
                )
        # A weight of 0 times a pixel that is inf or NaN, or times such a mask, gave NaN although the point does not
        # count there. A finite sum shows that there was none.
        total = tl.sum(acc + acc2)
        doubtful = total != total  # noqa: PLR0124 - NaN
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
def _deform_bwd_kernel(
    value_ptr, offset_ptr, mask_ptr, grad_ptr, grad_value_ptr, grad_offset_ptr, grad_mask_ptr, fixed_point_ptr,
    rows, height, width, out_height, out_width,
    stride_op, stride_og, stride_mp, stride_mg, offset_scale, base_y, base_x,
    stride_gop, stride_gog, stride_gmp, stride_gmg,
    G: tl.constexpr, DG: tl.constexpr, K: tl.constexpr, KH: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, CENTER: tl.constexpr, VALUE_STRIDE: tl.constexpr,
    FIXED_POINT: tl.constexpr, WIDE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, valid, pixel, group, start_y, start_x, start_pixel = _rows(
        rows, height, width, out_height, out_width, G, STRIDE_H, STRIDE_W, PAD_H, PAD_W, BLOCK_ROWS, WIDE
    )
    channel = tl.arange(0, BLOCK_D)
    in_group = (channel < DG)[None, :]
    column = (group * DG)[:, None] + channel[None, :]
    pixels = value_ptr + (start_pixel * VALUE_STRIDE)[:, None] + column
    grad_pixels = grad_value_ptr + (start_pixel * (G * DG))[:, None] + column
    offset_ptr += pixel.to(tl.int64) * stride_op + group * stride_og
    mask_ptr += pixel.to(tl.int64) * stride_mp + group * stride_mg
    grad_offset_ptr += pixel.to(tl.int64) * stride_gop + group * stride_gog
    grad_mask_ptr += pixel.to(tl.int64) * stride_gmp + group * stride_gmg
    grad = tl.load(
        grad_ptr + (row.to(tl.int64) * DG)[:, None] + channel[None, :], mask=valid[:, None] & in_group, other=0.0
    ).to(tl.float32)
    unit, unit2 = 1.0, 1.0
    if FIXED_POINT:
        unit, unit2 = tl.load(fixed_point_ptr), tl.load(fixed_point_ptr + 1)

    for point in tl.static_range(K):
        y, x, strength = load_point(
            offset_ptr, mask_ptr, point, offset_scale, base_y, base_x, KH, DILATION_H, DILATION_W, CENTER
        )
        top, left, down, right, strength, inside = strict_point(y, x, strength, start_y, start_x, height, width)
        grad_mask = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
        grad_y = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
        grad_x = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
        for corner in tl.static_range(4):
            weight_y = down if corner // 2 == 1 else 1.0 - down
            weight_x = right if corner % 2 == 1 else 1.0 - right
            sign_y = 1.0 if corner // 2 == 1 else -1.0
            sign_x = 1.0 if corner % 2 == 1 else -1.0
            shift, there = strict_corner(
                top + corner // 2, left + corner % 2, inside & valid, start_y, start_x, height, width, WIDE
            )
            there = there & in_group
            v = tl.load(pixels + shift * VALUE_STRIDE, mask=there, other=0.0).to(tl.float32)
            dot = tl.sum(grad * v, axis=1)
            grad_mask += weight_y * weight_x * dot
            grad_y += sign_y * weight_x * dot
            grad_x += sign_x * weight_y * dot
            share = (strength * weight_y * weight_x)[:, None] * grad
            if FIXED_POINT:
                share = (share * unit * unit2).to(tl.int64)
            # Any other order fences and empties the L1 cache at each addition; nothing here reads the sums.
            tl.atomic_add(grad_pixels + shift * (G * DG), share, mask=there, sem="relaxed")
        scale = strength * offset_scale
        grad_x = (grad_x * scale).to(grad_offset_ptr.dtype.element_ty)
        grad_y = (grad_y * scale).to(grad_offset_ptr.dtype.element_ty)
        tl.store(grad_offset_ptr + 2 * point, grad_x, mask=valid)
        tl.store(grad_offset_ptr + 2 * point + 1, grad_y, mask=valid)
        grad_mask = tl.where(inside, grad_mask, 0.0)
        tl.store(grad_mask_ptr + point, grad_mask.to(grad_mask_ptr.dtype.element_ty), mask=valid)


class Config(NamedTuple):
    """What may be tuned: none of it changes a value.

    Attributes:
        vectors: 16-byte vectors of a row that one lane takes, 1 or 2. Two halve the coordinates' cost per channel;
            one gives twice the warps.
        num_warps: warps per program.
    """

    vectors: int
    num_warps: int


class Sampled(NamedTuple):
    """What both passes read: pixels in the order of memory at any one stride, the axes inside a pixel contiguous.

    Attributes:
        value: (N * H * W, G, Dg).
        offset: (N * Ho * Wo, G, K, 2).
        mask: (N * Ho * Wo, G, K).
        size: (H, W).
        geometry: sampling grid with K points.
    """

    value: torch.Tensor
    offset: torch.Tensor
    mask: torch.Tensor
    size: tuple[int, int]
    geometry: Geometry

    @property
    def rows(self) -> int:
        """N * Ho * Wo * G."""
        return self.offset.shape[0] * self.offset.shape[1]

    def arguments(self) -> tuple[int | float, ...]:
        """Scalar arguments that both kernels begin with."""
        geometry = self.geometry
        return (
            self.rows, *self.size, *geometry.output_size(*self.size),
            self.offset.stride(0), self.offset.stride(1), self.mask.stride(0), self.mask.stride(1),
            geometry.offset_scale, *(base * (1.0 - geometry.offset_scale) for base in geometry.base),
        )  # fmt: skip

    def constants(self, vectors: int, num_warps: int) -> dict[str, Any]:
        """Constants that both kernels share."""
        geometry, groups, group_channels = self.geometry, *self.value.shape[1:]
        kernel_h, kernel_w = geometry.kernel
        block_d = triton.next_power_of_2(group_channels) // vectors
        lanes = max(1, block_d * self.value.element_size() // VECTOR_BYTES)
        stride = self.value.stride(0)
        return {
            "G": groups,
            "DG": group_channels,
            "K": geometry.points,
            "KH": kernel_h,
            "STRIDE_H": geometry.stride[0],
            "STRIDE_W": geometry.stride[1],
            "PAD_H": geometry.padding[0],
            "PAD_W": geometry.padding[1],
            "DILATION_H": geometry.dilation[0],
            "DILATION_W": geometry.dilation[1],
            # Points from here on are one tap further; none are where the centre is kept.
            "CENTER": kernel_w // 2 * kernel_h + kernel_h // 2 if geometry.remove_center else geometry.points,
            "VALUE_STRIDE": stride,
            # The gradient of value is contiguous, whatever the stride of value.
            "WIDE": is_wide(self.size, geometry, max(stride, groups * group_channels), self.rows),
            "BLOCK_D": block_d,
            "BLOCK_ROWS": max(1, WARP_SIZE // lanes) * num_warps,
        }


def is_wide(size: tuple[int, int], geometry: Geometry, stride: int, rows: int) -> bool:
    """Whether distances from the start of a grid, which may lie in the padding, or numbers of rows take 64 bits."""
    pixels = (size[0] + geometry.padding[0]) * size[1] + geometry.padding[1]
    return max(pixels * stride, rows + MAX_BLOCK_ROWS) >= INDEX_LIMIT


class Launch(NamedTuple):
    """A kernel with everything that it is launched with."""

    kernel: Any
    arguments: tuple[torch.Tensor | int | float, ...]
    constants: dict[str, Any]
    options: dict[str, Any]
    grid: tuple[int]

    @classmethod
    def over_rows(
        cls, kernel: object, arguments: tuple[Any, ...], constants: dict[str, Any], num_warps: int
    ) -> "Launch":
        """A launch whose first scalar argument is the number of rows."""
        rows = next(argument for argument in arguments if isinstance(argument, int))
        # Triton 3.9 warns where enable_fp_fusion is left to the default.
        options = {"num_warps": num_warps, "enable_fp_fusion": True}
        return cls(kernel, arguments, constants, options, (triton.cdiv(rows, constants["BLOCK_ROWS"]),))

    def __call__(self) -> None:
        """Launch on the device of the first tensor."""
        with torch.cuda.device_of(self.arguments[0]):
            self.kernel[self.grid](*self.arguments, **self.constants, **self.options)


def forward_config(sampled: Sampled) -> Config:
    """The configuration that static figures favour: docs/tuning.md."""
    halved_bytes = triton.next_power_of_2(sampled.value.shape[-1]) // 2 * sampled.value.element_size()
    return Config(vectors=2 if sampled.rows >= MANY_ROWS and halved_bytes >= 2 * VECTOR_BYTES else 1, num_warps=2)


def forward_launch(sampled: Sampled, out: torch.Tensor, config: Config | None = None) -> Launch:
    """The forward kernel; out (N, Ho, Wo, C) contiguous."""
    config = config or forward_config(sampled)
    constants = sampled.constants(*config)
    # Two neighbours that are both in the image need two rows and two columns.
    constants |= {"STRICT": min(sampled.size) < 2, "VECTORS": config.vectors}
    tensors = (sampled.value, sampled.offset, sampled.mask, out)
    return Launch.over_rows(_deform_fwd_kernel, (*tensors, *sampled.arguments()), constants, config.num_warps)


def backward_launch(
    sampled: Sampled,
    grad_out: torch.Tensor,
    grad_value: torch.Tensor,
    grad_offset: torch.Tensor,
    grad_mask: torch.Tensor,
    fixed_point: torch.Tensor | None = None,
) -> Launch:
    """The backward kernel; grad_out and grad_value contiguous, grad_offset and grad_mask as offset and mask.

    grad_value holds zeros: float32, or with `fixed_point` int64; the product of its two numbers is the units per 1.0.
    """
    num_warps = 2
    constants = sampled.constants(1, num_warps) | {"FIXED_POINT": fixed_point is not None}
    tensors = (sampled.value, sampled.offset, sampled.mask, grad_out, grad_value, grad_offset, grad_mask)
    unit = grad_value if fixed_point is None else fixed_point
    strides = (grad_offset.stride(0), grad_offset.stride(1), grad_mask.stride(0), grad_mask.stride(1))
    return Launch.over_rows(_deform_bwd_kernel, (*tensors, unit, *sampled.arguments(), *strides), constants, num_warps)


def _flat_pixels(tensor: torch.Tensor, inner: int) -> torch.Tensor:
    """All axes but the last `inner` as one; those are contiguous but for the first of them, whose stride is free.

    A view where the strides allow it, else a copy.
    """
    flat = tensor.reshape(-1, *tensor.shape[-inner:])
    expected = 1
    for axis in range(flat.dim() - 1, 1, -1):
        if flat.shape[axis] > 1 and flat.stride(axis) != expected:
            return flat.contiguous()
        expected *= flat.shape[axis]
    return flat


def sampled_dcnv3(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, groups: int, geometry: Geometry
) -> Sampled:
    """The operands of opbench_kernels.dcnv3, shaped as there."""
    points = geometry.points
    offset = _flat_pixels(offset.unflatten(-1, (groups, points, 2)), 3)
    return _sampled(value, offset, _flat_pixels(mask.unflatten(-1, (groups, points)), 2), groups, geometry)


def sampled_dcnv4(value: torch.Tensor, offset_mask: torch.Tensor, groups: int, geometry: Geometry) -> Sampled:
    """The operands of opbench_kernels.dcnv4, shaped as there."""
    return _sampled(value, *unpack(offset_mask, groups, geometry.points), groups, geometry)


def unpack(offset_mask: torch.Tensor, groups: int, points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Views offset (N * Ho * Wo, G, K, 2) and mask (N * Ho * Wo, G, K) of packed (N, Ho, Wo, M)."""
    used = _flat_pixels(offset_mask[..., : 3 * points * groups].unflatten(-1, (groups, 3 * points)), 2)
    return used[..., : 2 * points].unflatten(-1, (points, 2)), used[..., 2 * points :]


def _sampled(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, groups: int, geometry: Geometry) -> Sampled:
    split = _flat_pixels(value.unflatten(-1, (groups, -1)), 2)
    if groups > 1 and split.stride(1) != split.shape[2]:
        split = split.contiguous()
    return Sampled(split, offset, mask, (value.shape[1], value.shape[2]), geometry)
