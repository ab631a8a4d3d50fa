"""The Triton kernels as torch.library operators: autograd, and shapes for tracing.

Importing opbench_kernels registers the operators, since exported programs name them. Triton is imported at the first
launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from opbench_kernels.autograd import Context, refuse_second_derivative
from opbench_kernels.depthwise.geometry import Kernel

__all__ = ["depthwise"]


@torch.library.custom_op("opbench_kernels::depthwise", mutates_args=())
def _depthwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernels: Sequence[int]
) -> torch.Tensor:
    from opbench_kernels.depthwise.configs import convolve

    if not x.shape[0]:
        return x.new_empty(_output_shape(x, kernels))
    bias = None if bias is None else bias.contiguous()
    return convolve(x.contiguous(), weight.contiguous(), bias, Kernel.unflatten(kernels))


@_depthwise.register_fake
def _depthwise_fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernels: Sequence[int]
) -> torch.Tensor:
    return x.new_empty(_output_shape(x, kernels))


def _output_shape(x: torch.Tensor, kernels: Sequence[int]) -> tuple[int, ...]:
    return x.shape[0], *Kernel.unflatten(kernels)[0].output_size(x.shape[1], x.shape[2]), x.shape[3]


@torch.library.custom_op("opbench_kernels::depthwise_weight_grad", mutates_args=())
def _weight_grad(x: torch.Tensor, grad: torch.Tensor, kernels: Sequence[int]) -> torch.Tensor:
    from opbench_kernels.depthwise.configs import weight_grad

    x, grad = x.contiguous(), grad.contiguous()
    if not grad.numel():
        return x.new_zeros(_weight_shape(x, kernels), dtype=torch.float32)
    return torch.cat([weight_grad(x, grad, kernel) for kernel in Kernel.unflatten(kernels)])


@_weight_grad.register_fake
def _weight_grad_fake(x: torch.Tensor, grad: torch.Tensor, kernels: Sequence[int]) -> torch.Tensor:
    return x.new_empty(_weight_shape(x, kernels), dtype=torch.float32)


def _weight_shape(x: torch.Tensor, kernels: Sequence[int]) -> tuple[int, int]:
    return sum(kernel.taps for kernel in Kernel.unflatten(kernels)), x.shape[-1]


def _save(ctx: Context, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, _, ctx.settings = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        kernels = Kernel.unflatten(ctx.settings)
        flipped = torch.cat([each.flip(0) for each in weight.split([kernel.taps for kernel in kernels])])
        grad_x = _depthwise(grad, flipped, None, _flatten(kernel.transposed for kernel in kernels))
    if ctx.needs_input_grad[1]:
        grad_weight = _weight_grad(x, grad, ctx.settings)
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 1, 2))
    return grad_x, grad_weight, grad_bias, None


_depthwise.register_autograd(_differentiate, setup_context=_save)
_weight_grad.register_autograd(refuse_second_derivative(_depthwise._qualname))


def _flatten(kernels: Iterable[Kernel]) -> list[int]:
    return [number for kernel in kernels for number in kernel]


def depthwise(
    x: torch.Tensor, weights: Sequence[torch.Tensor], bias: torch.Tensor | None, kernels: Sequence[Kernel]
) -> torch.Tensor:
    """The sum of several kernels' depthwise convolutions in one launch, by Triton; differentiable once.

    Args:
        x: (N, H, W, C), float32, float16 or bfloat16, on a CUDA device (or on the CPU under Triton's interpreter); any
            strides, but copied unless contiguous.
        weights: (C, 1, kernel height, kernel width) each, any floating dtype.
        bias: (C,) or None.
        kernels: size and padding of each; all with the same output size.

    Returns:
        (N, Ho, Wo, C) in the dtype of `x`; products and sums are float32.
    """
    from opbench_kernels.depthwise.launch import vector

    # Taps first: a lane reads the weights of its channels by one load.
    packed = torch.cat([weight.flatten(1) for weight in weights], 1).t().to(torch.float32)
    channels = x.shape[-1]
    if lacking := -channels % vector(x.dtype):
        # Without whole vectors of channels each would be loaded by itself, which costs more than the copies.
        x, packed = F.pad(x, (0, lacking)), F.pad(packed, (0, lacking))
        bias = None if bias is None else F.pad(bias, (0, lacking))
    out: torch.Tensor = _depthwise(x, packed, bias, _flatten(kernels))
    return out[..., :channels]
