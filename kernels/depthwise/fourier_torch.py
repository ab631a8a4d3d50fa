"""Depthwise convolution and its weight gradient by real Fourier transforms, whose work does not grow with the kernel.

An error is relative to the channel's largest numbers, and a number that is not finite reaches the whole channel: where
a result is not finite there is none, and the caller computes directly. Images are transformed one by one, since a
spectrum takes more memory than its image.
"""

from collections.abc import Sequence

import torch
from opbench_kernels.depthwise.geometry import Kernel

__all__ = ["convolve", "gradients", "is_faster", "weight_grad", "weight_spectrum"]

VALUE_COST = {"AVX512": 130}
"""Multiply-adds of a direct convolution in the time that one value takes to be transformed; by torch's name for what
the CPU can do. docs/tuning.md has what it was measured on."""
OTHER_VALUE_COST = 60
"""The same with AVX2: multiply-adds are half as fast, transforms nearly as fast."""


def is_faster(multiply_adds: int, x: torch.Tensor, kernel: Kernel) -> bool:
    """Whether transforms are expected to take less time than `multiply_adds` for each image and channel of x.

    Never for a tensor without values, such as a FakeTensor: they decide whether there is a result.

    Args:
        multiply_adds: of the direct computation.
        x: (N, C, H, W), the image.
        kernel: size and padding.
    """
    if type(x) not in (torch.Tensor, torch.nn.Parameter) or not len(x):
        return False
    height, width = _transformed_size(x, kernel)
    transforms = 2 + 1 / len(x)  # there and back, and of the weight once
    cost = VALUE_COST.get(torch.backends.cpu.get_cpu_capability(), OTHER_VALUE_COST)
    return multiply_adds > cost * transforms * height * width


def weight_spectrum(x: torch.Tensor, weight: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """What convolve and gradients take of a weight: one transform serves forward and backward.

    Args:
        x: (N, C, H, W), the image.
        weight: (C, 1, kernel height, kernel width), float32 or float64.
        kernel: size and padding.

    Returns:
        (C, rows, columns), complex; as many as the image needs.
    """
    return _transform(weight[:, 0].flip(-2, -1), _transformed_size(x, kernel))


def convolve(x: torch.Tensor, spectrum: torch.Tensor, kernel: Kernel) -> torch.Tensor | None:
    """The convolution; None where not all of it is finite.

    Args:
        x: (N, C, H, W), float32 or float64.
        spectrum: weight_spectrum of x and a weight in its dtype.
        kernel: size and padding.

    Returns:
        (N, C, Ho, Wo) in the memory format of `x`.
    """
    size = _transformed_size(x, kernel)
    length = kernel.output_size(x.shape[2], x.shape[3])
    first = (kernel.height - 1 - kernel.pad_h, kernel.width - 1 - kernel.pad_w)
    out = _empty_like(x, length)
    for image, result in zip(x, out, strict=True):
        result.copy_(_inverse(_spectrum(image, size).mul_(spectrum), size, first, length))
    return out if out.sum().isfinite() else None


def weight_grad(x: torch.Tensor, grad: torch.Tensor, kernel: Kernel) -> torch.Tensor | None:
    """The weight gradient, differentiable; None where not all of it is finite.

    Args:
        x: (N, C, H, W), float32 or float64.
        grad: (N, C, Ho, Wo), the output's gradient, in the dtype of `x`.
        kernel: size and padding.

    Returns:
        (C, 1, kernel height, kernel width).
    """
    size = _transformed_size(x, kernel)
    spectra = (_spectrum(a, size) * _spectrum(b, size).conj() for a, b in zip(x, grad, strict=True))
    taps = _taps(sum(spectra, torch.zeros(())), size, kernel)
    return taps if taps.sum().isfinite() else None


def gradients(
    x: torch.Tensor, spectrum: torch.Tensor, grad: torch.Tensor, kernel: Kernel
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Both gradients from one transform of the output's, not differentiable; None where not all of them is finite.

    Args:
        x, spectrum, kernel: as convolve takes them.
        grad: as weight_grad takes it.

    Returns:
        (N, C, H, W) in the memory format of `grad`, and (C, 1, kernel height, kernel width).
    """
    size = _transformed_size(x, kernel)
    grad_x, total = _empty_like(grad, x.shape[2:]), None
    # A correlation with what the forward convolved with: a convolution with the weight as it is, from its last tap on.
    first = (kernel.pad_h - kernel.height + 1, kernel.pad_w - kernel.width + 1)
    for image, above, result in zip(x, grad, grad_x, strict=True):
        of_grad = _spectrum(above, size)
        result.copy_(_inverse(of_grad * spectrum.conj(), size, first, x.shape[2:]))
        correlation = _spectrum(image, size).mul_(of_grad.conj())  # in place: a new buffer costs as much as the product
        total = correlation if total is None else total.add_(correlation)
    assert total is not None  # noqa: S101 - x has images
    taps = _taps(total, size, kernel)
    return (grad_x, taps) if (grad_x.sum() + taps.sum()).isfinite() else None


def _empty_like(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Images of another size, in the memory format of x."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=layout)


def _taps(spectrum: torch.Tensor, size: tuple[int, int], kernel: Kernel) -> torch.Tensor:
    """(C, 1, kernel height, kernel width) of image and output gradient, correlated."""
    return _inverse(spectrum, size, (-kernel.pad_h, -kernel.pad_w), (kernel.height, kernel.width)).unsqueeze(1)


def _spectrum(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Of an image (C, H, W), filled up with zeros to `size`."""
    # A matrix is transposed in half the time that channels_last takes to become contiguous.
    planes = image.flatten(1).contiguous().unflatten(1, image.shape[1:])
    return _transform(planes, size)


def _transform(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """torch.fft.rfft2 to `size`, without transforming the rows of zeros."""
    spectrum: torch.Tensor = torch.fft.fft(torch.fft.rfft(planes, n=size[1]), n=size[0], dim=-2)
    return spectrum


def _inverse(
    spectrum: torch.Tensor, size: tuple[int, int], first: tuple[int, int], length: Sequence[int]
) -> torch.Tensor:
    """`length` rows and columns of the image of a spectrum, from `first` on; what comes before 0 lies at its end."""
    rows = _cut(torch.fft.ifft(spectrum, dim=-2), -2, first[0], length[0])  # the others need no second transform
    return _cut(torch.fft.irfft(rows, n=size[1]), -1, first[1], length[1])


def _cut(x: torch.Tensor, dim: int, first: int, length: int) -> torch.Tensor:
    if first >= 0 or first + length <= 0:
        return x.narrow(dim, first, length)
    return torch.cat([x.narrow(dim, first, -first), x.narrow(dim, 0, length + first)], dim)


def _transformed_size(x: torch.Tensor, kernel: Kernel) -> tuple[int, int]:
    """So long that what wraps around meets zeros, or what is cut off; of kernel and transposed kernel the same."""
    return (
        _fast_length(max(x.shape[2] + kernel.pad_h, kernel.height)),
        _fast_length(max(x.shape[3] + kernel.pad_w, kernel.width)),
    )


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
