"""Which arithmetic float32 matrix products and convolutions may use, set around a cell and restored after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opbench.case import Dtype

__all__ = ["float32_precision", "torch_precision"]

BACKENDS = ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv")


def _backend(name: str) -> Any:  # noqa: ANN401 - torch.backends has no types of its own
    import torch

    backend: Any = torch.backends
    for part in name.split("."):
        backend = getattr(backend, part)
    return backend


def float32_precision() -> dict[str, str]:
    """The setting of each backend: "ieee", "tf32", "bf16" or "none" (torch's default)."""
    return {name: _backend(name).fp32_precision for name in BACKENDS}


@contextmanager
def torch_precision(dtype: Dtype) -> Iterator[None]:
    """Strict float32 for every dtype but tf32; TF32 on CUDA for that one."""
    before = float32_precision()
    try:
        for name in BACKENDS:
            on_cuda = name.startswith("cu")
            _backend(name).fp32_precision = "tf32" if dtype is Dtype.TF32 and on_cuda else "ieee"
        yield
    finally:
        for name, value in before.items():
            _backend(name).fp32_precision = value
