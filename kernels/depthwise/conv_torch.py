"""Depthwise convolution by torch's own: on the CPU with the gradients written as convolutions too.

torch's CPU convolution with a large kernel is fast in channels_last and slow in NCHW; its gradient of the weight is
slow in any layout. Here that gradient is a convolution as well, of the image with the output's gradient in the weight's
place. Where they take less time, both are made by Fourier transforms. docs/tuning.md has the figures.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from opbench_kernels.autograd import Context
from opbench_kernels.depthwise import fourier_torch
from opbench_kernels.depthwise.geometry import Kernel

__all__ = ["depthwise", "multiply_adds"]

CHANNELS_LAST = torch.channels_last
LARGE_TAPS = 15 * 15
"""Kernels of at least this many taps are computed in channels_last, whatever the image's layout."""
COMPUTED_IN = {torch.float16: torch.float32}
"""The dtype that computes where the CPU has no fast convolution of its own."""
if not torch.cpu._is_avx512_bf16_supported():
    COMPUTED_IN[torch.bfloat16] = torch.float32


def depthwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernel: Kernel) -> torch.Tensor:
    """The depthwise convolution of one kernel, differentiable; NaN and inf stay where they belong.

    Args:
        x: (N, C, H, W), channels_last or contiguous.
        weight: (C, 1, kernel height, kernel width), in the dtype of `x`.
        bias: (C,), in the dtype of `x`, or None.
        kernel: size and padding.

    Returns:
        (N, C, Ho, Wo) in the dtype of `x`.
    """
    if x.device.type != "cpu":
        return F.conv2d(x, weight, bias, padding=(kernel.pad_h, kernel.pad_w), groups=x.shape[1])
    tensors = (x, weight) if bias is None else (x, weight, bias)
    by_transforms = _transforms_are_faster(multiply_adds, x, kernel)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        result: torch.Tensor
        if by_transforms:
            result, _ = _ByTransforms.apply(x, weight, bias, kernel)
        else:
            result = _Directly.apply(x, weight, bias, kernel)
        return result
    # A Function would look up its modules at every call.
    return _by_transforms(x, weight, bias, kernel)[0] if by_transforms else _directly(x, weight, bias, kernel)


class _Directly(torch.autograd.Function):
    """The convolution with both gradients as convolutions, or by transforms."""

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernel: Kernel) -> torch.Tensor:
        return _directly(x, weight, bias, kernel)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, weight, _, ctx.settings = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _gradients(ctx, grad, None)


class _ByTransforms(torch.autograd.Function):
    """The same by transforms, and the weight's spectrum, which serves the gradients too."""

    @staticmethod
    def forward(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernel: Kernel
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _by_transforms(x, weight, bias, kernel)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, weight, _, ctx.settings = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, output[1])

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _gradients(ctx, grad, ctx.saved_tensors[2])


def _gradients(ctx: Context, grad: torch.Tensor, spectrum: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    x, weight, *_ = ctx.saved_tensors
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3))
    both = all(ctx.needs_input_grad[:2]) and not torch.is_grad_enabled()
    if both and (found := _both_by_transforms(x, weight, grad, ctx.settings, spectrum)):
        return *found, grad_bias, None
    if ctx.needs_input_grad[0]:
        grad_x = depthwise(grad, weight.flip(-2, -1), None, ctx.settings.transposed)
    if ctx.needs_input_grad[1]:
        grad_weight = _weight_grad(x, grad, ctx.settings)
    return grad_x, grad_weight, grad_bias, None


def _by_transforms(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernel: Kernel
) -> tuple[torch.Tensor, torch.Tensor]:
    """The convolution, directly where something is not finite, and the weight's spectrum."""
    wide = _wide(x.dtype)
    spectrum = fourier_torch.weight_spectrum(x, weight.to(wide), kernel)
    found = fourier_torch.convolve(x.to(wide), spectrum, kernel)
    if found is None:
        return _directly(x, weight, bias, kernel), spectrum
    return (found if bias is None else found + bias.to(wide)[:, None, None]).to(x.dtype), spectrum


def _directly(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernel: Kernel) -> torch.Tensor:
    dtype, compute = x.dtype, COMPUTED_IN.get(x.dtype, x.dtype)
    as_it_lies = x.is_contiguous(memory_format=CHANNELS_LAST) or kernel.taps < LARGE_TAPS
    image = x.to(compute) if as_it_lies else x.to(compute, memory_format=CHANNELS_LAST)
    bias = None if bias is None else bias.to(compute)
    out = F.conv2d(image, weight.to(compute), bias, padding=(kernel.pad_h, kernel.pad_w), groups=x.shape[1]).to(dtype)
    return out if as_it_lies else out.contiguous()


def _both_by_transforms(
    x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, kernel: Kernel, spectrum: torch.Tensor | None
) -> tuple[torch.Tensor, ...] | None:
    """The gradients of x and weight where transforms are faster for x's, and so for the weight's, and finite."""
    if not _transforms_are_faster(multiply_adds, grad, kernel.transposed):
        return None
    wide = _wide(x.dtype)
    if spectrum is None:
        spectrum = fourier_torch.weight_spectrum(x, weight.to(wide), kernel)
    found = fourier_torch.gradients(x.to(wide), spectrum, grad.to(wide), kernel)
    return None if found is None else tuple(each.to(x.dtype) for each in found)


def _transforms_are_faster(work: Callable[[torch.Tensor, Kernel], int], x: torch.Tensor, kernel: Kernel) -> bool:
    """Whether they are for a direct computation of so much work; never while torch traces a graph of any size."""
    if kernel.taps < LARGE_TAPS or torch.compiler.is_compiling():
        return False
    return fourier_torch.is_faster(work(x, kernel), x, kernel)


def _weight_grad_work(x: torch.Tensor, kernel: Kernel) -> int:
    """As multiply_adds, of the weight gradient: half as much again, since that convolution is slower."""
    return kernel.taps * math.prod(kernel.output_size(x.shape[2], x.shape[3])) * 3 // 2


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of transforms, and of sums over pixels."""
    return dtype if dtype == torch.float64 else torch.float32


def multiply_adds(x: torch.Tensor, kernel: Kernel) -> int:
    """Of an image and channel, as oneDNN computes them: rows of the kernel in the padding are left out."""
    height, width = x.shape[2:]
    out_height, out_width = kernel.output_size(height, width)
    rows = sum(min(height, y - kernel.pad_h + kernel.height) - max(0, y - kernel.pad_h) for y in range(out_height))
    return rows * kernel.width * out_width


def _weight_grad(x: torch.Tensor, grad: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """(C, 1, kernel height, kernel width): the image convolved with the gradient, an image and channel each, summed.

    The sum over pixels is float32 or better, as the sum over the batch. The image is padded first, since oneDNN has its
    fast convolution only where the padding is smaller than the kernel, which here is as large as the output.
    """
    batch, channels = x.shape[:2]
    if batch == 0:
        return x.new_zeros(channels, 1, kernel.height, kernel.width)
    wide = _wide(x.dtype)
    if _transforms_are_faster(_weight_grad_work, x, kernel):
        found = fourier_torch.weight_grad(x.to(wide), grad.to(wide), kernel)
        if found is not None:
            return found.to(x.dtype)
    # (1, H, W, N * C), channels last
    image = x.to(wide).permute(2, 3, 0, 1).flatten(2).unsqueeze(0)
    image = F.pad(image, (0, 0, kernel.pad_w, kernel.pad_w, kernel.pad_h, kernel.pad_h)).permute(0, 3, 1, 2)
    weight = grad.to(wide).reshape(batch * channels, 1, *grad.shape[2:])
    out = F.conv2d(image, weight, groups=batch * channels)
    return out.view(batch, channels, 1, kernel.height, kernel.width).sum(0).to(x.dtype)
