"""The Triton kernels as torch.library operators: autograd, shapes for tracing, and a deterministic backward pass.

Importing opbench_kernels registers the operators, since exported programs name them. Triton is imported at the first
launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from opbench_kernels.deform.geometry import Geometry, geometry_of
from opbench_kernels.fixed_point import from_fixed_point, units

if TYPE_CHECKING:
    from opbench_kernels.deform.launch import Sampled
    from torch._library.custom_ops import CustomOpDef

__all__ = ["dcnv3", "dcnv4"]


def _forward(sampled: Sampled, out_shape: tuple[int, ...]) -> torch.Tensor:
    from opbench_kernels.deform.configs import choose_forward
    from opbench_kernels.deform.launch import forward_launch

    out = torch.empty(out_shape, device=sampled.value.device, dtype=sampled.value.dtype)
    if out.numel():
        forward_launch(sampled, out, choose_forward(sampled, out))()
    return out


def _backward(
    sampled: Sampled, grad_out: torch.Tensor, grad_offset: torch.Tensor, grad_mask: torch.Tensor, shape: torch.Size
) -> torch.Tensor:
    """Writes the gradients of offset and mask; returns that of value, contiguous, in value's dtype."""
    from opbench_kernels.deform.configs import choose_backward
    from opbench_kernels.deform.launch import backward_launch

    fixed_point = _fixed_point(sampled, grad_out) if torch.are_deterministic_algorithms_enabled() else None
    # Many points add to one pixel, so the sum is kept in 32 bits or more whatever the storage.
    sum_dtype = torch.float32 if fixed_point is None else torch.int64
    grad_value = torch.zeros(shape, device=grad_out.device, dtype=sum_dtype)
    if grad_out.numel():
        gradients = (grad_out.contiguous(), grad_value, grad_offset, grad_mask, fixed_point)
        backward_launch(sampled, *gradients, config=choose_backward(sampled, *gradients))()
    if fixed_point is not None:
        grad_value = from_fixed_point(grad_value, fixed_point)
    return grad_value.to(sampled.value.dtype)


def _fixed_point(sampled: Sampled, grad_out: torch.Tensor) -> torch.Tensor:
    """Integer units per 1.0 of the gradient of value."""
    out_pixels = sampled.geometry.output_size(*sampled.size)
    return units(out_pixels[0] * out_pixels[1] * sampled.geometry.points, grad_out, sampled.mask)


@torch.library.custom_op("opbench_kernels::dcnv3", mutates_args=())
def _dcnv3(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, groups: int, kernel: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], offset_scale: float, remove_center: bool,
) -> torch.Tensor:  # fmt: skip
    from opbench_kernels.deform.launch import sampled_dcnv3

    geometry = geometry_of(kernel, stride, padding, dilation, offset_scale, remove_center)
    return _forward(sampled_dcnv3(value, offset, mask, groups, geometry), (*offset.shape[:3], value.shape[-1]))


@torch.library.custom_op("opbench_kernels::dcnv3_backward", mutates_args=())
def _dcnv3_backward(
    grad_out: torch.Tensor, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, groups: int,
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    offset_scale: float, remove_center: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    from opbench_kernels.deform.launch import sampled_dcnv3

    geometry = geometry_of(kernel, stride, padding, dilation, offset_scale, remove_center)
    grad_offset = torch.empty(offset.shape, device=offset.device, dtype=offset.dtype)
    grad_mask = torch.empty(mask.shape, device=mask.device, dtype=mask.dtype)
    by_point = grad_offset.view(-1, groups, geometry.points, 2), grad_mask.view(-1, groups, geometry.points)
    sampled = sampled_dcnv3(value, offset, mask, groups, geometry)
    return _backward(sampled, grad_out, *by_point, value.shape), grad_offset, grad_mask


@torch.library.custom_op("opbench_kernels::dcnv4", mutates_args=())
def _dcnv4(
    value: torch.Tensor, offset_mask: torch.Tensor, groups: int, kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], offset_scale: float, remove_center: bool,
) -> torch.Tensor:  # fmt: skip
    from opbench_kernels.deform.launch import sampled_dcnv4

    geometry = geometry_of(kernel, stride, padding, dilation, offset_scale, remove_center)
    sampled = sampled_dcnv4(value, offset_mask, groups, geometry)
    return _forward(sampled, (*offset_mask.shape[:3], value.shape[-1]))


@torch.library.custom_op("opbench_kernels::dcnv4_backward", mutates_args=())
def _dcnv4_backward(
    grad_out: torch.Tensor, value: torch.Tensor, offset_mask: torch.Tensor, groups: int, kernel: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], offset_scale: float, remove_center: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    from opbench_kernels.deform.launch import sampled_dcnv4, unpack

    geometry = geometry_of(kernel, stride, padding, dilation, offset_scale, remove_center)
    grad_packed = torch.empty(offset_mask.shape, device=offset_mask.device, dtype=offset_mask.dtype)
    grad_packed[..., 3 * geometry.points * groups :] = 0
    sampled = sampled_dcnv4(value, offset_mask, groups, geometry)
    grads = unpack(grad_packed, groups, geometry.points)
    return _backward(sampled, grad_out, *grads, value.shape), grad_packed


@_dcnv3.register_fake
@_dcnv4.register_fake
def _forward_fake(value: torch.Tensor, offset: torch.Tensor, *_: object) -> torch.Tensor:
    return value.new_empty((*offset.shape[:3], value.shape[-1]))


@_dcnv3_backward.register_fake
@_dcnv4_backward.register_fake
def _backward_fake(_grad_out: torch.Tensor, *inputs: object) -> tuple[torch.Tensor, ...]:
    tensors = [tensor for tensor in inputs if isinstance(tensor, torch.Tensor)]
    return tuple(torch.empty(t.shape, device=t.device, dtype=t.dtype) for t in tensors)


class _Context(Protocol):
    """What autograd keeps from an operator's forward for its backward."""

    saved_tensors: tuple[torch.Tensor, ...]
    settings: tuple[Any, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None: ...


def _register_autograd(forward: CustomOpDef, backward: CustomOpDef, tensors: int) -> None:
    """Derivatives for the first `tensors` arguments of a forward operator by its backward operator."""

    def save(ctx: _Context, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.settings = inputs[tensors:]

    def differentiate(ctx: _Context, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *backward(grad_out, *ctx.saved_tensors, *ctx.settings), *(None for _ in ctx.settings)

    def refuse(_ctx: _Context, *_grads: torch.Tensor) -> None:
        raise NotImplementedError(f"{forward._qualname} has no second derivative: differentiate it once")

    forward.register_autograd(differentiate, setup_context=save)
    backward.register_autograd(refuse)


_register_autograd(_dcnv3, _dcnv3_backward, tensors=3)
_register_autograd(_dcnv4, _dcnv4_backward, tensors=2)


def _settings(groups: int, geometry: Geometry) -> tuple[Any, ...]:
    pairs = (geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)
    return groups, *map(list, pairs), geometry.offset_scale, geometry.remove_center


def dcnv3(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, groups: int, geometry: Geometry
) -> torch.Tensor:
    """As opbench_kernels.dcnv3, by Triton, without checks of the arguments; differentiable once.

    Args:
        value: (N, H, W, C), float32, float16 or bfloat16, on a CUDA device (or on the CPU under Triton's interpreter).
        offset: (N, Ho, Wo, G * K * 2), pixels, (x, y) pairs.
        mask: (N, Ho, Wo, G * K).
        groups: G.
        geometry: sampling grid with K points.

    A tensor whose pixels follow each other at one stride is read in place, any other is copied first.

    Returns:
        (N, Ho, Wo, C) in the dtype of `value`. A sample is interpolated in that dtype; sums of samples are accumulated
        in float32.
    """
    result: torch.Tensor = _dcnv3(value, offset, mask, *_settings(groups, geometry))
    return result


def dcnv4(value: torch.Tensor, offset_mask: torch.Tensor, groups: int, geometry: Geometry) -> torch.Tensor:
    """As opbench_kernels.dcnv4, by Triton; like dcnv3 here, with offset_mask (N, Ho, Wo, M) packed."""
    result: torch.Tensor = _dcnv4(value, offset_mask, *_settings(groups, geometry))
    return result
