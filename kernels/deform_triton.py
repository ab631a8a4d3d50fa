"""Deformable sampling in Triton: one straightforward forward kernel and one backward kernel with atomics.

A program takes BLOCK_ROWS (pixel, group) rows and all channels of the group. offset and mask are addressed by
strides, so the packed tensor of DCNv4 and the two tensors of DCNv3 go through the same code.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from opbench_kernels.geometry import Geometry

__all__ = ["deformable_sample"]


@triton.jit
def _rows(
    height, width, out_height, out_width, base_y, base_x,
    G: tl.constexpr, DG: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """The (pixel, group) rows of this program, the start of their image, and their first tap; each (BLOCK_ROWS,)."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    pixel = row // G
    ox = pixel % out_width
    oy = (pixel // out_width) % out_height
    # int64 from the first factor on; a size of 1 is a constant here, which has no type to convert.
    image = (pixel // out_width // out_height) * height * width * (G * DG)
    start_y = (oy * STRIDE_H).to(tl.float32) + base_y
    start_x = (ox * STRIDE_W).to(tl.float32) + base_x
    return row, pixel, row % G, image, start_y, start_x


@triton.jit
def _sampling_point(
    offset_ptr, mask_ptr, offset_rows, mask_rows, start_y, start_x, valid, height, width, offset_scale,
    POINT: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
):  # fmt: skip
    """Top-left corner, fractions, mask and whether the point counts; each (BLOCK_ROWS,)."""
    dx = tl.load(offset_ptr + offset_rows + 2 * POINT, mask=valid, other=0.0).to(tl.float32)
    dy = tl.load(offset_ptr + offset_rows + 2 * POINT + 1, mask=valid, other=0.0).to(tl.float32)
    strength = tl.load(mask_ptr + mask_rows + POINT, mask=valid, other=0.0).to(tl.float32)
    x = start_x + (COLUMN * DILATION_W + dx) * offset_scale
    y = start_y + (ROW * DILATION_H + dy) * offset_scale
    inside = valid & (x > -1) & (x < width) & (y > -1) & (y < height)
    # A point outside moves to the origin, so that NaN and inf never reach an address.
    x = tl.where(inside, x, 0.0)
    y = tl.where(inside, y, 0.0)
    top = tl.floor(y)
    left = tl.floor(x)
    return top.to(tl.int32), left.to(tl.int32), y - top, x - left, tl.where(inside, strength, 0.0), inside


@triton.jit
def _corner(ptr, image, top, left, inside, height, width, columns, in_group, row_stride, pixel_stride):
    """Addresses and mask, both (BLOCK_ROWS, BLOCK_D), of one corner of every row."""
    there = inside & (top >= 0) & (top < height) & (left >= 0) & (left < width)
    address = ptr + (image + (top * row_stride + left * pixel_stride)[:, None]) + columns
    return address, there[:, None] & in_group


@triton.jit
def _deform_fwd_kernel(
    value_ptr, offset_ptr, mask_ptr, out_ptr,
    rows, height, width, out_height, out_width,
    stride_op, stride_og, stride_mp, stride_mg, offset_scale, base_y, base_x,
    G: tl.constexpr, DG: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    CENTER: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, pixel, group, image, start_y, start_x = _rows(
        height, width, out_height, out_width, base_y, base_x, G, DG, STRIDE_H, STRIDE_W, BLOCK_ROWS
    )
    valid = row < rows
    channel = tl.arange(0, BLOCK_D)
    in_group = (channel < DG)[None, :]
    columns = group[:, None] * DG + channel[None, :]
    offset_rows = pixel * stride_op + group * stride_og
    mask_rows = pixel * stride_mp + group * stride_mg

    acc = tl.zeros((BLOCK_ROWS, BLOCK_D), dtype=tl.float32)
    for tap in tl.static_range(KH * KW):
        if tap != CENTER:
            top, left, down, right, strength, inside = _sampling_point(
                offset_ptr, mask_ptr, offset_rows, mask_rows, start_y, start_x, valid, height, width, offset_scale,
                tap - (1 if CENTER >= 0 and tap > CENTER else 0), tap % KH, tap // KH, DILATION_H, DILATION_W,
            )  # fmt: skip
            for corner in tl.static_range(4):
                weight_y = down if corner // 2 == 1 else 1.0 - down
                weight_x = right if corner % 2 == 1 else 1.0 - right
                address, there = _corner(
                    value_ptr, image[:, None], top + corner // 2, left + corner % 2, inside,
                    height, width, columns, in_group, width * (G * DG), G * DG,
                )  # fmt: skip
                pixels = tl.load(address, mask=there, other=0.0).to(tl.float32)
                acc += (strength * weight_y * weight_x)[:, None] * pixels

    out = out_ptr + row[:, None] * DG + channel[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=valid[:, None] & in_group)


@triton.jit
def _deform_bwd_kernel(
    value_ptr, offset_ptr, mask_ptr, grad_ptr, grad_value_ptr, grad_offset_ptr, grad_mask_ptr,
    rows, height, width, out_height, out_width,
    stride_op, stride_og, stride_mp, stride_mg, offset_scale, base_y, base_x,
    G: tl.constexpr, DG: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    CENTER: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, pixel, group, image, start_y, start_x = _rows(
        height, width, out_height, out_width, base_y, base_x, G, DG, STRIDE_H, STRIDE_W, BLOCK_ROWS
    )
    valid = row < rows
    channel = tl.arange(0, BLOCK_D)
    in_group = (channel < DG)[None, :]
    columns = group[:, None] * DG + channel[None, :]
    offset_rows = pixel * stride_op + group * stride_og
    mask_rows = pixel * stride_mp + group * stride_mg
    grad = tl.load(grad_ptr + row[:, None] * DG + channel[None, :], mask=valid[:, None] & in_group, other=0.0).to(
        tl.float32
    )

    for tap in tl.static_range(KH * KW):
        if tap != CENTER:
            top, left, down, right, strength, inside = _sampling_point(
                offset_ptr, mask_ptr, offset_rows, mask_rows, start_y, start_x, valid, height, width, offset_scale,
                tap - (1 if CENTER >= 0 and tap > CENTER else 0), tap % KH, tap // KH, DILATION_H, DILATION_W,
            )  # fmt: skip
            grad_mask = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
            grad_y = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
            grad_x = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
            for corner in tl.static_range(4):
                weight_y = down if corner // 2 == 1 else 1.0 - down
                weight_x = right if corner % 2 == 1 else 1.0 - right
                sign_y = 1.0 if corner // 2 == 1 else -1.0
                sign_x = 1.0 if corner % 2 == 1 else -1.0
                address, there = _corner(
                    value_ptr, image[:, None], top + corner // 2, left + corner % 2, inside,
                    height, width, columns, in_group, width * (G * DG), G * DG,
                )  # fmt: skip
                pixels = tl.load(address, mask=there, other=0.0).to(tl.float32)
                dot = tl.sum(grad * pixels, axis=1)
                grad_mask += weight_y * weight_x * dot
                grad_y += sign_y * weight_x * dot
                grad_x += sign_x * weight_y * dot
                address, there = _corner(
                    grad_value_ptr, image[:, None], top + corner // 2, left + corner % 2, inside,
                    height, width, columns, in_group, width * (G * DG), G * DG,
                )  # fmt: skip
                tl.atomic_add(address, (strength * weight_y * weight_x)[:, None] * grad, mask=there)
            zero = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
            scale = strength * offset_scale
            element = grad_offset_ptr.dtype.element_ty
            point_offsets = offset_rows + 2 * (tap - (1 if CENTER >= 0 and tap > CENTER else 0))
            point_masks = mask_rows + tap - (1 if CENTER >= 0 and tap > CENTER else 0)
            tl.store(grad_offset_ptr + point_offsets, (grad_x * scale).to(element), mask=valid)
            tl.store(grad_offset_ptr + point_offsets + 1, (grad_y * scale).to(element), mask=valid)
            tl.store(grad_mask_ptr + point_masks, tl.where(inside, grad_mask, zero).to(element), mask=valid)


def _launch_arguments(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: Geometry
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[int]]:
    """Scalar arguments, constants and grid that both kernels share."""
    _, height, width, groups, group_channels = value.shape
    batch, out_height, out_width = offset.shape[:3]
    if height * width * groups * group_channels >= 2**31:
        raise ValueError(f"one image must have fewer than 2**31 elements, got {tuple(value.shape[1:])}")
    rows = batch * out_height * out_width * groups
    block_d = triton.next_power_of_2(group_channels)
    block_rows = max(1, min(512 // block_d, 32))
    scalars = (
        rows, height, width, out_height, out_width,
        offset.stride(2), offset.stride(3), mask.stride(2), mask.stride(3), geometry.offset_scale,
        geometry.base[0] * (1.0 - geometry.offset_scale) - geometry.padding[0],
        geometry.base[1] * (1.0 - geometry.offset_scale) - geometry.padding[1],
    )  # fmt: skip
    kernel_h, kernel_w = geometry.kernel
    constants = {
        "G": groups,
        "DG": group_channels,
        "KH": kernel_h,
        "KW": kernel_w,
        "STRIDE_H": geometry.stride[0],
        "STRIDE_W": geometry.stride[1],
        "DILATION_H": geometry.dilation[0],
        "DILATION_W": geometry.dilation[1],
        "CENTER": kernel_w // 2 * kernel_h + kernel_h // 2 if geometry.remove_center else -1,
        "BLOCK_ROWS": block_rows,
        "BLOCK_D": block_d,
        # Eight sums a thread: with sixteen, float32 spills on sm_90 (144 bytes of stack).
        "num_warps": max(1, min(4, block_rows * block_d // 256)),
        "enable_fp_fusion": True,  # Triton 3.9 warns where it is left to the default
    }
    return scalars, constants, (triton.cdiv(rows, block_rows),)


def _pixel_major(tensor: torch.Tensor, inner: tuple[int, ...]) -> torch.Tensor:
    """`tensor` itself if pixels follow each other at one stride and its inner axes lie as `inner`, else a copy."""
    _, height, width = tensor.shape[:3]
    step = tensor.stride(2)
    regular = tensor.stride(1) == width * step and tensor.stride(0) == height * width * step
    return tensor if regular and tensor.stride()[4:] == inner else tensor.contiguous()


@torch.library.custom_op("opbench_kernels::deformable_sample", mutates_args=())
def _forward(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_scale: float,
    remove_center: bool,
) -> torch.Tensor:
    geometry = _geometry(kernel, stride, padding, dilation, offset_scale, remove_center)
    value = value.contiguous()
    offset, mask = _pixel_major(offset, (2, 1)), _pixel_major(mask, (1,))
    out = torch.empty((*offset.shape[:4], value.shape[-1]), device=value.device, dtype=value.dtype)
    scalars, constants, grid = _launch_arguments(value, offset, mask, geometry)
    if out.numel():
        with torch.cuda.device_of(value):
            _deform_fwd_kernel[grid](value, offset, mask, out, *scalars, **constants)
    return out


@_forward.register_fake
def _forward_fake(value, offset, mask, *_geometry: object) -> torch.Tensor:
    return value.new_empty((*offset.shape[:4], value.shape[-1]))


@torch.library.custom_op("opbench_kernels::deformable_sample_backward", mutates_args=())
def _backward(
    grad_out: torch.Tensor,
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_scale: float,
    remove_center: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    geometry = _geometry(kernel, stride, padding, dilation, offset_scale, remove_center)
    value, offset, mask = value.contiguous(), offset.contiguous(), mask.contiguous()
    # Many points add to one pixel, so the sum is kept in float32 whatever the storage.
    grad_value = torch.zeros_like(value, dtype=torch.float32)
    grad_offset = torch.empty_like(offset)
    grad_mask = torch.empty_like(mask)
    scalars, constants, grid = _launch_arguments(value, offset, mask, geometry)
    if grad_out.numel():
        with torch.cuda.device_of(value):
            _deform_bwd_kernel[grid](
                value, offset, mask, grad_out.contiguous(), grad_value, grad_offset, grad_mask, *scalars, **constants
            )
    return grad_value.to(value.dtype), grad_offset, grad_mask


@_backward.register_fake
def _backward_fake(
    grad_out, value, offset, mask, *_geometry: object
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(
        torch.empty(tensor.shape, device=tensor.device, dtype=tensor.dtype) for tensor in (value, offset, mask)
    )


def _save_for_backward(ctx, inputs, output) -> None:
    value, offset, mask, *ctx.geometry = inputs
    ctx.save_for_backward(value, offset, mask)


def _differentiate(ctx, grad_out) -> tuple[torch.Tensor | None, ...]:
    return *_backward(grad_out, *ctx.saved_tensors, *ctx.geometry), None, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save_for_backward)


def _geometry(
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_scale: float,
    remove_center: bool,
) -> Geometry:
    pairs = ((first, second) for first, second in (kernel, stride, padding, dilation))
    return Geometry(*pairs, offset_scale=offset_scale, remove_center=remove_center)


def deformable_sample(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: Geometry
) -> torch.Tensor:
    """As opbench_kernels.reference.deformable_sample, by Triton, differentiable once.

    Args:
        value: (N, H, W, G, Dg), float32, float16 or bfloat16, on a CUDA device (or on the CPU under Triton's
            interpreter); copied if it is not contiguous.
        offset: (N, Ho, Wo, G, K, 2), pixels, (x, y) pairs; a strided view is read in place.
        mask: (N, Ho, Wo, G, K); likewise.
        geometry: sampling grid with K points.

    Returns:
        (N, Ho, Wo, G, Dg) in the dtype of `value`; sums are accumulated in float32.

    Raises:
        ValueError: one image has 2**31 elements or more.
    """
    result: torch.Tensor = _forward(
        value,
        offset,
        mask,
        list(geometry.kernel),
        list(geometry.stride),
        list(geometry.padding),
        list(geometry.dilation),
        geometry.offset_scale,
        geometry.remove_center,
    )
    return result
