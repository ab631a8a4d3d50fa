"""Runs depthwise convolution by the kernel that a rule or the tuner chooses: direct, or matrix products.

Matrix products multiply zeros too, and need copies of the image, but tensor cores do some ten times as many
multiply-adds. They are taken in half precision, and in float32 where convolutions may round to tf32: without tensor
cores they would only add zeros to the direct kernel's work.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import triton
from opbench_kernels import tuning
from opbench_kernels.depthwise.gemm_launch import (
    band_width,
    forward_gemm_launch,
    products_width,
    weight_grad_gemm_launch,
)
from opbench_kernels.depthwise.geometry import Kernel
from opbench_kernels.depthwise.launch import (
    Config,
    forward_launch,
    tile,
    weight_grad_launch,
    weight_grad_slices,
    weight_grad_tile,
)

__all__ = [
    "FORWARD",
    "GEMM_CONFIGS",
    "GEMM_WEIGHT_GRAD_CONFIGS",
    "WEIGHT_GRAD",
    "convolve",
    "forward_rule",
    "weight_grad",
    "weight_grad_rule",
]

FORWARD = "depthwise forward"
WEIGHT_GRAD = "depthwise backward"
SOURCES = tuple(
    f"opbench_kernels.{name}"
    for name in (
        "launch",
        *(f"depthwise.{file}" for file in ("launch", "depthwise_triton", "gemm_launch", "gemm_triton")),
    )
)
GEMM_CONFIGS = (Config(1, 128, 16, 4, 4), Config(1, 128, 16, 8, 4), Config(1, 64, 16, 4, 4))
GEMM_WEIGHT_GRAD_CONFIGS = (Config(1, 64, 32, 0, 4), Config(1, 32, 32, 0, 4))
COPIES = 63
"""What the copies of image and output cost, in multiply-adds of the direct kernel for each output: predicted."""
PRODUCT_COLUMN, WEIGHT_GRAD_COLUMN = 0.10, 0.18
"""The same of a kernel row and a column of the image in a product: predicted (docs/tuning.md)."""


def forward_rule(x: torch.Tensor, kernels: Sequence[Kernel]) -> tuple[Config, ...]:
    """Configurations for x (N, H, W, C), the one that is expected to be fastest first."""
    height, width = kernels[0].output_size(*x.shape[1:3])
    direct = tile(height, width, x.shape[3], x.dtype)
    smaller = direct._replace(columns=max(4, direct.columns // 2))
    candidates = tuple(dict.fromkeys((direct, smaller, direct._replace(rows=min(4, direct.rows)))))
    if not _has_tensor_cores(x.dtype):
        return candidates
    gemm = GEMM_CONFIGS[0]
    whole_tiles = (1 + (gemm.taps - 1) / height) * triton.cdiv(width, gemm.columns) * gemm.columns / width
    columns = sum(kernel.height * band_width(kernel, gemm) for kernel in kernels)
    # Of 64 rows sm_80 keeps 8 bytes of a float32 program on the stack.
    products = GEMM_CONFIGS[:2] if x.dtype == torch.float32 else GEMM_CONFIGS
    return _ordered(candidates, products, kernels, PRODUCT_COLUMN * columns * whole_tiles)


def weight_grad_rule(x: torch.Tensor, kernel: Kernel) -> tuple[Config, ...]:
    """The same for the weight gradient."""
    width = kernel.output_size(*x.shape[1:3])[1]
    direct = weight_grad_tile(kernel, width, x.shape[3], x.dtype)
    candidates = tuple(dict.fromkeys((direct, direct._replace(columns=max(4, direct.columns // 2)))))
    if not _has_tensor_cores(x.dtype):
        return candidates
    gemm = GEMM_WEIGHT_GRAD_CONFIGS[0]
    whole_tiles = triton.cdiv(width, gemm.columns) * gemm.columns / width
    work = WEIGHT_GRAD_COLUMN * kernel.height * products_width(kernel, gemm) * whole_tiles
    return _ordered(candidates, GEMM_WEIGHT_GRAD_CONFIGS, [kernel], work)


def _ordered(
    direct: tuple[Config, ...], gemm: tuple[Config, ...], kernels: Sequence[Kernel], work: float
) -> tuple[Config, ...]:
    faster = COPIES + work < sum(kernel.taps for kernel in kernels)
    return gemm + direct if faster else direct + gemm


def _has_tensor_cores(dtype: torch.dtype) -> bool:
    backend: Any = torch.backends.cudnn  # whose conv has no type
    return dtype != torch.float32 or backend.conv.fp32_precision == "tf32"


def convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernels: Sequence[Kernel]
) -> torch.Tensor:
    """(N, Ho, Wo, C), contiguous: the sum of the kernels' convolutions of x, plus the bias.

    Args:
        x: (N, H, W, C), contiguous.
        weight: (taps of all kernels, C), float32, contiguous.
        bias: (C,), contiguous, or None.
        kernels: sizes and paddings.
    """

    def launch_of(config: Config) -> Callable[[], torch.Tensor]:
        return partial(_forward, x, weight, bias, kernels, config)

    return launch_of(_choose(FORWARD, x, kernels, forward_rule(x, kernels), launch_of))()


def weight_grad(x: torch.Tensor, grad: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """(taps, C), float32.

    Args:
        x: (N, H, W, C), contiguous.
        grad: (N, Ho, Wo, C), contiguous.
        kernel: size and padding.
    """

    def launch_of(config: Config) -> Callable[[], torch.Tensor]:
        return partial(_weight_grad, x, grad, kernel, config)

    return launch_of(_choose(WEIGHT_GRAD, x, [kernel], weight_grad_rule(x, kernel), launch_of))()


def _choose(
    name: str,
    x: torch.Tensor,
    kernels: Sequence[Kernel],
    candidates: tuple[Config, ...],
    launch_of: Callable[[Config], tuning.Trial],
) -> Config:
    facts = (x.dtype, *x.shape[1:], (x.shape[0] - 1).bit_length(), *kernels, len(candidates))
    return tuning.choose(tuning.Key(name, x.device, facts, SOURCES), candidates, launch_of)


def _forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernels: Sequence[Kernel], config: Config
) -> torch.Tensor:
    size = kernels[0].output_size(*x.shape[1:3])
    if config.gemm:
        out = x.new_empty(x.shape[0], x.shape[3], *size)
        forward_gemm_launch(x, weight, bias, out, kernels, config)()
        return out.permute(0, 2, 3, 1).contiguous()
    out = x.new_empty(x.shape[0], *size, x.shape[3])
    forward_launch(x, weight, bias, out, kernels, config)()
    return out


def _weight_grad(x: torch.Tensor, grad: torch.Tensor, kernel: Kernel, config: Config) -> torch.Tensor:
    if config.gemm:
        partials, launch = weight_grad_gemm_launch(x, grad, kernel, config)
    else:
        shape = (weight_grad_slices(x, grad, kernel, config), kernel.taps, x.shape[-1])
        partials = torch.empty(shape, device=x.device, dtype=torch.float32)
        launch = weight_grad_launch(x, grad, partials, kernel, config)
    launch()
    return partials.sum(0)
