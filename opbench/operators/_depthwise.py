"""What the depthwise operators share: settings, the reference as banded matrix products, convolutions, and costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from opbench.operators import _triton
from opbench.operators._cudnn import autotuned
from opbench.operators._random import normal
from opbench.workload.case import Case
from opbench.workload.operator import Forward, Provider, Tensors, by_direction, compiled

if TYPE_CHECKING:
    import torch
    from opbench_kernels.implementation import Implementation

FFT_FROM = 31
"""Sides of kernels from which a convolution by Fourier transforms is offered."""

Convolve = Callable[["torch.Tensor", Sequence["torch.Tensor"], "torch.Tensor | None"], "torch.Tensor"]
"""From an NCHW image, weights (C, 1, height, width) of odd sizes and a bias: the sum of the convolutions, NCHW."""

Around = Callable[[Case, Tensors, "torch.Tensor", Convolve], Forward]
"""Gives an operator's closure, from an NCHW image of its x and the convolution to use in it."""


def kernel_weight(case: Case, generator: torch.Generator, height: int, width: int, taps: int) -> torch.Tensor:
    """(C, 1, height, width), scaled as one of several kernels with so many `taps` together."""
    return normal(generator, case.shape.channels, 1, height, width) * (1 / math.sqrt(taps))


def even(case: Case, *names: str) -> str | None:
    """Why there is no padding that keeps the image's size, or None: a setting of these names is even."""
    for name in names:
        if case.int_setting(name) % 2 == 0:
            size, flag = case.int_setting(name), f"--set {case.operator}.{name}=N"
            return f"{name} must be odd to keep the image size, got {size} ({flag})"
    return None


def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Depthwise convolution of NHWC x, padded to the same size: a row of the kernel is a banded matrix per channel.

    out[n, y, :, c] = the sum over rows j of x[n, y + j - pad, :, c] @ band, band[u, v] = weight[c, j, u - v + pad]
    """
    import torch
    import torch.nn.functional as F

    height, width = x.shape[1:3]
    rows, columns = weight.shape[2:]
    index = torch.arange(width, device=x.device)
    tap = index[:, None] - index[None, :] + columns // 2
    band = (tap >= 0) & (tap < columns)
    image = x.permute(3, 0, 1, 2)  # (C, N, H, W)
    out = torch.zeros_like(image)
    for j in range(rows):
        shift = j - rows // 2
        first, last = max(0, -shift), min(height, height - shift)  # output rows whose input row exists
        if first < last:
            matrix = torch.where(band, weight[:, 0, j][:, tap.clamp(0, columns - 1)], 0)  # (C, W, W)
            part = image[:, :, first + shift : last + shift].flatten(1, 2) @ matrix
            part = part.unflatten(1, (-1, last - first))
            out = out + F.pad(part, (0, 0, first, height - last))
    return out.permute(1, 2, 3, 0)


def reference_elements(case: Case) -> int:
    """The image, its parts and sums; a channel's band of a row, and with gradients those of all rows."""
    kept = 1 if case.direction == "fwd" else case.int_setting("kernel_size")
    return 6 * case.shape.elements + (1 + 2 * kept) * case.shape.channels * case.shape.width**2


def flop_count(case: Case, taps: int) -> int:
    """2 taps P C, and twice that backward. Taps in the padding count, as they do in the papers."""
    forward = 2 * taps * case.shape.elements
    return by_direction(case, fwd=forward, bwd=2 * forward)


def elements_moved(case: Case, taps: int) -> int:
    """Input, weights and output once; backward reads them with the output gradient and writes two gradients."""
    feature, weight = case.shape.elements, taps * case.shape.channels
    return by_direction(case, fwd=2 * feature + weight, bwd=3 * feature + 2 * weight)


def memory_bytes(case: Case, taps: int) -> int:
    """Input, output and weight, and as much again for a workspace or a copy in another layout."""
    return case.dtype.element_bytes * 2 * (2 * case.shape.elements + taps * case.shape.channels)


def conv2d() -> Convolve:
    """torch's convolution, one kernel after the other."""
    import torch.nn.functional as F

    def one(image: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.conv2d(image, weight, bias, 1, (weight.shape[2] // 2, weight.shape[3] // 2), 1, weight.shape[0])

    def convolve(image: torch.Tensor, weights: Sequence[torch.Tensor], bias: torch.Tensor | None) -> torch.Tensor:
        out = one(image, weights[0], bias)
        for weight in weights[1:]:
            out = out + one(image, weight, None)
        return out

    return convolve


def merging() -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    """A function that makes of kernels one that does what they do together: each in the centre of zeros, and added."""
    import torch.nn.functional as F

    def merged(weights: Sequence[torch.Tensor]) -> torch.Tensor:
        rows, columns = (max(weight.shape[axis] for weight in weights) for axis in (2, 3))
        margins = [((rows - weight.shape[2]) // 2, (columns - weight.shape[3]) // 2) for weight in weights]
        total, *others = (F.pad(weight, (x, x, y, y)) for weight, (y, x) in zip(weights, margins, strict=True))
        for other in others:
            total = total + other
        return total

    return merged


def once(convolve: Convolve) -> Convolve:
    """The sum of convolutions as one, with their kernels merged."""
    merged = merging()

    def convolve_once(image: torch.Tensor, weights: Sequence[torch.Tensor], bias: torch.Tensor | None) -> torch.Tensor:
        return convolve(image, [merged(weights)], bias)

    return convolve_once


def fft() -> Convolve:
    """By real Fourier transforms in float32, which is what they know on every device."""
    import torch

    merged = merging()

    def convolve(image: torch.Tensor, weights: Sequence[torch.Tensor], bias: torch.Tensor | None) -> torch.Tensor:
        height, width = image.shape[2:]
        kernel = merged(weights)[:, 0].flip(-2, -1).float()
        top, left = kernel.shape[1] // 2, kernel.shape[2] // 2
        # What wraps around then ends in the rows and columns that are cut off.
        size = (_fast_length(max(height + top, kernel.shape[1])), _fast_length(max(width + left, kernel.shape[2])))
        spectrum = torch.fft.rfft2(image.float(), s=size) * torch.fft.rfft2(kernel, s=size)
        whole: torch.Tensor = torch.fft.irfft2(spectrum, s=size)
        out = whole[..., top : top + height, left : left + width].to(image.dtype)
        return out if bias is None else out + bias[:, None, None]

    return convolve


def _fast_length(least: int) -> int:
    """The smallest even length of at least `least` with no prime factor above 5."""

    def rest(length: int) -> int:
        for factor in (2, 3, 5):
            while length % factor == 0:
                length //= factor
        return length

    return next(length for length in range(least + least % 2, 4 * least + 4, 2) if rest(length) == 1)


def _ours(implementation: Implementation, form: Callable[[Convolve], Convolve]) -> Convolve:
    """The convolution of opbench_kernels; several kernels are one launch in Triton."""
    from opbench_kernels.depthwise.functional import depthwise_conv2d_sum

    return form(partial(depthwise_conv2d_sum, implementation=implementation))


def _build(
    convolution: Callable[[], Convolve], channels_last: bool, around: Around, case: Case, tensors: Tensors
) -> Forward:
    image = tensors["x"].permute(0, 3, 1, 2)  # a channels_last view of NHWC memory: nothing is copied
    return around(case, tensors, image if channels_last else image.contiguous(), convolution())


def _build_ours(
    implementation: Implementation,
    form: Callable[[Convolve], Convolve],
    around: Around,
    case: Case,
    tensors: Tensors,
) -> Forward:
    if implementation == "triton":
        _triton.tune()
    return _build(partial(_ours, implementation, form), True, around, case, tensors)


def _small_for_fft(case: Case, _device_type: str) -> str | None:
    size = case.int_setting("kernel_size")
    return f"offered for kernels of {FFT_FROM} and more, kernel_size is {size}" if size < FFT_FROM else None


def _same_as_torch(_case: Case, device_type: str) -> str | None:
    return None if device_type == "cpu" else f"differs from torch on the CPU alone, this is {device_type}"


def _one_by_one(convolve: Convolve) -> Convolve:
    return convolve


def _torch_convolution(form: Callable[[Convolve], Convolve]) -> Convolve:
    return form(conv2d())


def torch_provider(around: Around, form: Callable[[Convolve], Convolve] = _one_by_one) -> Provider:
    """torch's convolution on channels_last; arguments as of providers."""
    build = partial(_build, partial(_torch_convolution, form), True, around)
    return Provider("torch", build, "torch's conv2d, channels_last")


def providers(around: Around, form: Callable[[Convolve], Convolve] = _one_by_one) -> tuple[Provider, ...]:
    """The providers of an operator with depthwise convolutions.

    Args:
        around: what the operator does with the convolution.
        form: of the convolution, where there are several kernels: `once`, or a sum.
    """

    torch = torch_provider(around, form)
    nchw = Provider(
        "torch_nchw",
        partial(_build, partial(_torch_convolution, form), False, around),
        "torch's conv2d on NCHW tensors, rearranged before the timing",
        copied=("x",),
    )
    by_fft = Provider(
        "torch_fft",
        partial(_build, fft, False, around),
        "torch's real Fourier transforms in float32, on NCHW",
        copied=("x",),
        not_applicable=_small_for_fft,
    )
    cpu = Provider(
        "opbench_torch",
        partial(_build_ours, "torch", form, around),
        "opbench_kernels in torch: on the CPU gradients as convolutions, or Fourier transforms",
        not_applicable=_same_as_torch,
    )
    triton = Provider(
        "triton",
        partial(_build_ours, "triton", form, around),
        "opbench_kernels in Triton, one launch",
        unavailable=_triton.unavailable,
        needs=_triton.NEEDS,
        configuration=_triton.configuration,
    )
    return triton, torch, nchw, cpu, by_fft, compiled(torch), autotuned(torch)
