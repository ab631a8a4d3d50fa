"""Partial convolution as a function: Triton on a CUDA device, torch elsewhere."""

import torch
import torch.nn.functional as F
from opbench_kernels.implementation import Implementation, in_autocast_dtype, takes_operator
from opbench_kernels.partial import operators

__all__ = ["partial_conv3x3"]


def partial_conv3x3(x: torch.Tensor, weight: torch.Tensor, *, implementation: Implementation = "auto") -> torch.Tensor:
    """A 3x3 convolution of the first channels, padding 1, without bias; the other channels as they are.

    Args:
        x: (N, C, H, W), float32, float16 or bfloat16 (float64 too in torch). Under autocast, float32 is taken in the
            lower precision, as a convolution does. In channels_last memory Triton reads it in place.
        weight: (D, D, 3, 3) with D from 1 to C, in the dtype of `x` or, under autocast, float32.
        implementation: "auto" takes Triton on a CUDA device, if it is installed, and torch elsewhere.

    Returns:
        (N, C, H, W) in the dtype of `x`: D convolved channels, then channels D to C of `x`. In channels_last memory
        where Triton computes.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Chen et al., Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks, CVPR 2023, section 3.
    """
    if not isinstance(x, torch.Tensor) or x.dim() != 4 or 0 in x.shape[1:]:
        got = f"shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"x must be (N, C, H, W) with C, H and W of at least 1, got {got}")
    x = in_autocast_dtype(x)
    triton = takes_operator("x", x, implementation)
    _check_weight(weight, x)
    weight = weight.to(x.dtype)
    if triton:
        return operators.partial_conv3x3(x, weight)
    convolved, others = x.split([weight.shape[0], x.shape[1] - weight.shape[0]], dim=1)
    return torch.cat((F.conv2d(convolved, weight, padding=1), others), dim=1)


def _check_weight(weight: torch.Tensor, x: torch.Tensor) -> None:
    shape = tuple(weight.shape)
    if len(shape) != 4 or shape[2:] != (3, 3) or shape[0] != shape[1] or not 1 <= shape[0] <= x.shape[1]:
        raise ValueError(f"weight must be (D, D, 3, 3) with D from 1 to the {x.shape[1]} channels of x, got {shape}")
    if weight.device != x.device:
        raise ValueError(f"weight must be on {x.device} as x is, got {weight.device}")
    if weight.dtype != x.dtype and not (weight.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type)):
        raise ValueError(f"weight must be in {x.dtype} as x is, got {weight.dtype}")
