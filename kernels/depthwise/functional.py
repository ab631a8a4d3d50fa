"""Depthwise convolution as a function: Triton on a CUDA device, torch elsewhere."""

from collections.abc import Sequence
from typing import Literal

import torch
from opbench_kernels.depthwise import conv_torch, operators
from opbench_kernels.depthwise.geometry import Kernel
from opbench_kernels.implementation import Implementation, in_autocast_dtype, takes_operator
from opbench_kernels.sizes import Size, pair

__all__ = ["depthwise_conv2d", "depthwise_conv2d_sum"]

Padding = Size | Literal["same"]


def depthwise_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    padding: Padding = "same",
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """Depthwise convolution at stride 1, as torch.nn.functional.conv2d with groups=C; made for large kernels.

    Args:
        x: (N, C, H, W), float32, float16 or bfloat16 (float64 too in torch). channels_last memory is read in place; in
            any other layout Triton works on a copy. Under autocast, float32 is taken in the lower precision.
        weight: (C, 1, kernel height, kernel width), taken in the dtype of `x`.
        bias: (C,) or None.
        padding: zeros on each side, an integer or (height, width) smaller than the kernel; "same", for odd kernels,
            keeps the image's size.
        implementation: "auto" takes Triton on a CUDA device, if it is installed, and torch elsewhere.

    Returns:
        (N, C, Ho, Wo) in the dtype and the memory format of `x`.

    Raises:
        ValueError: an argument that does not fit; the message names it.
    """
    return _convolve(x, [weight], bias, [_kernel("weight", weight, padding)], implementation)


def depthwise_conv2d_sum(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    bias: torch.Tensor | None = None,
    *,
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """The sum of depthwise convolutions of one image, each with padding "same"; Triton makes it in one kernel.

    Args:
        x, bias, implementation: as depthwise_conv2d.
        weights: (C, 1, kernel height, kernel width) each, odd sizes, such as SLaK's 51x5, 5x51 and 5x5.

    Returns:
        (N, C, H, W) in the dtype and the memory format of `x`.

    Raises:
        ValueError: an argument that does not fit; the message names it.
    """
    if not isinstance(weights, Sequence) or not weights:
        raise ValueError(f"weights must be a sequence of at least one tensor, got {type(weights).__name__}")
    kernels = [_kernel(f"weights[{index}]", weight, "same") for index, weight in enumerate(weights)]
    return _convolve(x, weights, bias, kernels, implementation)


def _kernel(name: str, weight: torch.Tensor, padding: Padding) -> Kernel:
    if not isinstance(weight, torch.Tensor) or weight.dim() != 4 or weight.shape[1] != 1 or 0 in weight.shape:
        got = tuple(weight.shape) if isinstance(weight, torch.Tensor) else type(weight).__name__
        raise ValueError(f"{name} must be (C, 1, kernel height, kernel width), got {got}")
    height, width = weight.shape[2:]
    if padding == "same":
        if height % 2 == 0 or width % 2 == 0:
            raise ValueError(f"padding 'same' needs odd kernels, got {name} of {height}x{width}")
        return Kernel(height, width, height // 2, width // 2)
    pad_h, pad_w = pair(padding, "padding", 0)
    if pad_h >= height or pad_w >= width:
        raise ValueError(f"padding must be smaller than the kernel of {height}x{width}, got {padding!r}")
    return Kernel(height, width, pad_h, pad_w)


def _convolve(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    bias: torch.Tensor | None,
    kernels: Sequence[Kernel],
    implementation: Implementation,
) -> torch.Tensor:
    if not isinstance(x, torch.Tensor) or x.dim() != 4 or 0 in x.shape[1:]:
        got = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"x must be (N, C, H, W) with C, H and W of at least 1, got {got}")
    x = in_autocast_dtype(x)
    triton = takes_operator("x", x, implementation)
    channels = x.shape[1]
    for tensor, kernel in zip(weights, kernels, strict=True):
        _check_companion("weight", tensor, x, (channels, 1, kernel.height, kernel.width))
        if min(kernel.output_size(*x.shape[2:])) < 1:
            raise ValueError(f"weight of {kernel.height}x{kernel.width} is larger than x of {tuple(x.shape)}, padded")
    if bias is not None:
        _check_companion("bias", bias, x, (channels,))
    if triton:
        return _by_triton(x, weights, bias, kernels)
    bias = None if bias is None else bias.to(x.dtype)
    out = conv_torch.depthwise(x, weights[0].to(x.dtype), bias, kernels[0])
    for weight, kernel in zip(weights[1:], kernels[1:], strict=True):
        out = out + conv_torch.depthwise(x, weight.to(x.dtype), None, kernel)
    return out


def _check_companion(name: str, tensor: torch.Tensor, x: torch.Tensor, shape: tuple[int, ...]) -> None:
    """ValueError unless `tensor` is floating, of that shape and on x's device."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or tuple(tensor.shape) != shape:
        got = f"{tuple(tensor.shape)} in {tensor.dtype}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise ValueError(f"{name} must be a floating tensor of shape {shape}, got {got}")
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on {x.device} as x is, got {tensor.device}")


def _by_triton(
    x: torch.Tensor, weights: Sequence[torch.Tensor], bias: torch.Tensor | None, kernels: Sequence[Kernel]
) -> torch.Tensor:
    # The weights count as torch's: rounded to the dtype of x.
    weights = [weight.to(x.dtype) for weight in weights]
    out = operators.depthwise(x.permute(0, 2, 3, 1), weights, bias, kernels).permute(0, 3, 1, 2)
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return out.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
