"""Which implementation computes: Triton on a CUDA device, torch elsewhere, or the one that a caller names."""

import os
from importlib.util import find_spec
from typing import Literal, get_args

import torch

__all__ = ["HALF_OR_SINGLE", "Implementation", "check_implementation", "in_autocast_dtype", "takes_triton"]

Implementation = Literal["auto", "triton", "torch"]

HAS_TRITON = find_spec("triton") is not None
"""Triton is not on every system that has CUDA."""
HALF_OR_SINGLE = (torch.float32, torch.float16, torch.bfloat16)
"""What the Triton kernels take; torch takes float64 too."""


def check_implementation(implementation: Implementation) -> None:
    """ValueError unless it is one of Implementation."""
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation must be 'auto', 'triton' or 'torch', got {implementation!r}")


def in_autocast_dtype(tensor: torch.Tensor) -> torch.Tensor:
    """A float32 tensor in the lower precision where autocast is on for its device, as a convolution takes it."""
    kind = tensor.device.type
    if tensor.dtype == torch.float32 and kind != "meta" and torch.is_autocast_enabled(kind):
        return tensor.to(torch.get_autocast_dtype(kind))
    return tensor


def takes_triton(name: str, tensor: torch.Tensor, implementation: Implementation) -> bool:
    """Whether the Triton kernels compute with this tensor.

    Args:
        name: of the argument, for messages.
        tensor: the operand whose device and dtype decide.
        implementation: "auto" takes Triton for a CUDA tensor in a dtype of HALF_OR_SINGLE, if it is installed.

    Raises:
        ValueError: an unknown implementation, Triton for a tensor that is not on a CUDA device, or a dtype that the
            implementation does not take.
    """
    check_implementation(implementation)
    kind = tensor.device.type
    on_gpu = kind == "cuda" and tensor.dtype in HALF_OR_SINGLE
    triton = implementation == "triton" or (implementation == "auto" and on_gpu and HAS_TRITON)
    if triton and kind != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"implementation 'triton' needs a CUDA tensor, got one on {tensor.device}")
    allowed = HALF_OR_SINGLE if triton else (*HALF_OR_SINGLE, torch.float64)
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{name} must be one of {names}, got {str(tensor.dtype).removeprefix('torch.')}")
    return triton
