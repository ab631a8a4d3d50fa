"""The Triton kernels as torch.library operators with derivatives; importing opbench_kernels registers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from opbench_kernels.autograd import Context, refuse_second_derivative
from opbench_kernels.fixed_point import from_fixed_point, units

if TYPE_CHECKING:
    from opbench_kernels.msda.launch import Attended

__all__ = ["attend"]


def _attended(*tensors: torch.Tensor) -> Attended:
    from opbench_kernels.msda.launch import Attended

    return Attended(*(tensor.contiguous() for tensor in tensors))


@torch.library.custom_op("opbench_kernels::ms_deform_attn", mutates_args=())
def _attend(
    value: torch.Tensor, shapes: torch.Tensor, starts: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    from opbench_kernels.msda.configs import choose_forward
    from opbench_kernels.msda.launch import forward_launch

    out = value.new_empty((*weights.shape[:2], value.shape[2] * value.shape[3]))
    if out.numel():
        attended = _attended(value, shapes, starts, locations, weights)
        forward_launch(attended, out, choose_forward(attended, out))()
    return out


@torch.library.custom_op("opbench_kernels::ms_deform_attn_backward", mutates_args=())
def _attend_backward(
    grad_out: torch.Tensor,
    value: torch.Tensor,
    shapes: torch.Tensor,
    starts: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from opbench_kernels.msda.configs import choose_backward
    from opbench_kernels.msda.launch import backward_launch

    per_one = None
    if torch.are_deterministic_algorithms_enabled():
        per_one = units(weights.shape[1] * weights.shape[3] * weights.shape[4], grad_out, weights)
    # Many points add to one pixel, so the sum is kept in 32 bits or more whatever the storage.
    sum_dtype = torch.float32 if per_one is None else torch.int64
    grad_value = torch.zeros(value.shape, device=value.device, dtype=sum_dtype)
    grad_locations = torch.empty(locations.shape, device=value.device, dtype=locations.dtype)
    grad_weights = torch.empty(weights.shape, device=value.device, dtype=weights.dtype)
    if grad_out.numel():
        attended = _attended(value, shapes, starts, locations, weights)
        gradients = (grad_out.contiguous(), grad_value, grad_locations, grad_weights, per_one)
        backward_launch(attended, *gradients, config=choose_backward(attended, *gradients))()
    if per_one is not None:
        grad_value = from_fixed_point(grad_value, per_one)
    return grad_value.to(value.dtype), grad_locations, grad_weights


@_attend.register_fake
def _attend_fake(value: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    weights = others[-1]
    return value.new_empty((*weights.shape[:2], value.shape[2] * value.shape[3]))


@_attend_backward.register_fake
def _backward_fake(_grad_out: torch.Tensor, value: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty(t.shape, device=t.device, dtype=t.dtype) for t in (value, *others[-2:]))


def _save(ctx: Context, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Context, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    grad_value, grad_locations, grad_weights = _attend_backward(grad_out, *ctx.saved_tensors)
    return grad_value, None, None, grad_locations, grad_weights


_attend.register_autograd(_differentiate, setup_context=_save)
_attend_backward.register_autograd(refuse_second_derivative(_attend._qualname))


def attend(
    value: torch.Tensor, shapes: torch.Tensor, starts: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """As opbench_kernels.ms_deform_attn, by Triton, without checks of the arguments; differentiable once.

    Tensors that are not contiguous are copied first. A sample is interpolated in value's dtype; sums of samples are
    accumulated in float32.
    """
    result: torch.Tensor = _attend(value, shapes, starts, locations, weights)
    return result
