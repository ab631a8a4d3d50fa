"""The Triton kernel as a torch.library operator with derivatives; importing opbench_kernels registers it."""

from __future__ import annotations

from typing import Any

import torch
from opbench_kernels.autograd import Context

__all__ = ["partial_conv3x3"]


@torch.library.custom_op("opbench_kernels::partial_conv3x3", mutates_args=())
def _partial_conv3x3(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    from opbench_kernels.partial.configs import choose
    from opbench_kernels.partial.launch import partial_conv3x3_launch

    image = x.permute(0, 2, 3, 1).contiguous()  # of a tensor in channels_last memory a view, of any other a copy
    out = torch.empty_like(x, memory_format=torch.channels_last)
    if out.numel():
        taps = weight.permute(2, 3, 1, 0).reshape(9, weight.shape[1], weight.shape[0]).contiguous()
        backend: Any = torch.backends.cudnn  # torch has no types for `conv`
        allow_tf32 = backend.conv.fp32_precision == "tf32"
        last = out.permute(0, 2, 3, 1)
        config = choose(image, taps, last, allow_tf32=allow_tf32)
        partial_conv3x3_launch(image, taps, last, allow_tf32=allow_tf32, config=config)()
    return out


@_partial_conv3x3.register_fake
def _fake(x: torch.Tensor, _weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _save(ctx: Context, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Context, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """For the input the same operator with the weight turned around; for the weight torch's convolution."""
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = partial_conv3x3(grad_out, weight.flip(2, 3).transpose(0, 1))
    if ctx.needs_input_grad[1]:
        first = slice(weight.shape[0])
        grad_weight = torch.ops.aten.convolution_backward(
            grad_out[:, first], x[:, first], weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
            [False, True, False],
        )[1]  # fmt: skip
    return grad_x, grad_weight


_partial_conv3x3.register_autograd(_differentiate, setup_context=_save)


def partial_conv3x3(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As opbench_kernels.partial_conv3x3, by Triton, without checks of the arguments; differentiable.

    Args:
        x: (N, C, H, W), float32, float16 or bfloat16, on a CUDA device (or on the CPU under Triton's interpreter).
            In channels_last memory it is read in place, otherwise it is copied first.
        weight: (D, D, 3, 3), D at most C.

    Returns:
        (N, C, H, W) in channels_last memory and the dtype of `x`; sums are accumulated in float32.
    """
    result: torch.Tensor = _partial_conv3x3(x, weight)
    return result
