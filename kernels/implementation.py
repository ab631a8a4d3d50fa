"""Which implementation computes: Triton on a CUDA device, torch elsewhere, or the one that a caller names."""

import os
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Literal, get_args

import torch

__all__ = [
    "HALF_OR_SINGLE",
    "Implementation",
    "check_implementation",
    "in_autocast_dtype",
    "onnx_opset",
    "takes_operator",
]

Implementation = Literal["auto", "triton", "torch"]

HAS_TRITON = find_spec("triton") is not None
"""Triton is not on every system that has CUDA."""
HALF_OR_SINGLE = (torch.float32, torch.float16, torch.bfloat16)
"""What the Triton kernels take; torch takes float64 too."""

onnx_opset: ContextVar[int | None] = ContextVar("onnx_opset", default=None)
"""The opset that this call is traced for, None for none: opbench_kernels.export sets it."""


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


def takes_operator(
    name: str, tensor: torch.Tensor, implementation: Implementation, *, in_onnx_since: int | None = None
) -> bool:
    """Whether a torch.library operator computes with this tensor: the Triton kernels, or what ONNX has for it.

    Args:
        name: of the argument, for messages.
        tensor: the operand whose device and dtype decide.
        implementation: "auto" takes Triton for a CUDA tensor in a dtype of HALF_OR_SINGLE, if it is installed.
        in_onnx_since: the first opset of ONNX for which opbench_kernels.onnx_translation has the operator. In what is
            traced for ONNX no Triton kernel runs, whatever the implementation.

    Raises:
        ValueError: an unknown implementation, Triton for a tensor that is not on a CUDA device, or a dtype that the
            implementation does not take.
    """
    check_implementation(implementation)
    opset = onnx_opset.get()
    if opset is not None:
        return in_onnx_since is not None and opset >= in_onnx_since
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
