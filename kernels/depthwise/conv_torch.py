"""Depthwise convolution by torch's own: on the CPU with the gradients written as convolutions too.

torch's CPU convolution with a large kernel is fast in channels_last and slow in NCHW; its gradient of the weight is
slow in any layout. Here that gradient is a convolution as well, of the image with the output's gradient in the weight's
place, and for the largest kernels a product of Fourier transforms. docs/tuning.md has the figures.
"""

from typing import Any

import torch
import torch.nn.functional as F
from opbench_kernels.autograd import Context
from opbench_kernels.depthwise.geometry import Kernel

__all__ = ["depthwise"]

CHANNELS_LAST = torch.channels_last
LARGE_TAPS = 15 * 15
"""Kernels of at least this many taps are computed in channels_last, whatever the image's layout."""

FFT_TAPS = 31 * 31
"""Kernels of at least this many taps get their gradient by Fourier transforms, whose work does not grow with them."""
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
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        result: torch.Tensor = _OnCpu.apply(x, weight, bias, kernel)
        return result
    return _convolve(x, weight, bias, kernel)  # a Function would look up its modules at every call


class _OnCpu(torch.autograd.Function):
    """The convolution with both gradients as convolutions."""

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernel: Kernel) -> torch.Tensor:
        return _convolve(x, weight, bias, kernel)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, weight, _, ctx.settings = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = depthwise(grad, weight.flip(-2, -1), None, ctx.settings.transposed)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_grad(x, grad, ctx.settings)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None


def _convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernel: Kernel) -> torch.Tensor:
    dtype, compute = x.dtype, COMPUTED_IN.get(x.dtype, x.dtype)
    as_it_lies = x.is_contiguous(memory_format=CHANNELS_LAST) or kernel.taps < LARGE_TAPS
    image = x.to(compute) if as_it_lies else x.to(compute, memory_format=CHANNELS_LAST)
    bias = None if bias is None else bias.to(compute)
    out = F.conv2d(image, weight.to(compute), bias, padding=(kernel.pad_h, kernel.pad_w), groups=x.shape[1]).to(dtype)
    return out if as_it_lies else out.contiguous()


def _weight_grad(x: torch.Tensor, grad: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """(C, 1, kernel height, kernel width): the image convolved with the gradient, an image and channel each, summed.

    The sum over pixels is float32 or better, as the sum over the batch. The image is padded first, since oneDNN has its
    fast convolution only where the padding is smaller than the kernel, which here is as large as the output.
    """
    batch, channels = x.shape[:2]
    if batch == 0:
        return x.new_zeros(channels, 1, kernel.height, kernel.width)
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    if kernel.taps >= FFT_TAPS:
        return _weight_grad_by_fft(x.to(wide), grad.to(wide), kernel).to(x.dtype)
    # (1, H, W, N * C), channels last
    image = x.to(wide).permute(2, 3, 0, 1).flatten(2).unsqueeze(0)
    image = F.pad(image, (0, 0, kernel.pad_w, kernel.pad_w, kernel.pad_h, kernel.pad_h)).permute(0, 3, 1, 2)
    weight = grad.to(wide).reshape(batch * channels, 1, *grad.shape[2:])
    out = F.conv2d(image, weight, groups=batch * channels)
    return out.view(batch, channels, 1, kernel.height, kernel.width).sum(0).to(x.dtype)


def _weight_grad_by_fft(x: torch.Tensor, grad: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """As _weight_grad; a pixel that is not finite reaches all taps of its channel, and not nearly all."""
    pads = (kernel.pad_h, kernel.pad_w)
    sides = (kernel.height, kernel.width)
    # Long enough that what wraps around meets zeros.
    size = [
        _fast_length(max(max(x.shape[axis], grad.shape[axis]) + max(pad, side - 1 - pad), side))
        for axis, pad, side in zip((2, 3), pads, sides, strict=True)
    ]
    spectrum = torch.fft.rfft2(x, s=size) * torch.fft.rfft2(grad, s=size).conj()
    taps = torch.fft.irfft2(spectrum.sum(0), s=size).roll(pads, (1, 2))
    cut: torch.Tensor = taps[:, None, : kernel.height, : kernel.width]
    return cut


def _fast_length(least: int) -> int:
    """The smallest even length of at least `least` with no prime factor above 5."""
    length = least + least % 2
    while _without_small_factors(length) > 1:
        length += 2
    return length


def _without_small_factors(length: int) -> int:
    for factor in (2, 3, 5):
        while length % factor == 0:
            length //= factor
    return length
