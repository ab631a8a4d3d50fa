"""Which arithmetic float32 matrix products and convolutions may use, set around a cell and restored after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opbench.workload.case import Dtype

__all__ = ["float32_precision", "torch_precision"]

BACKENDS = ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv")
SET = (*BACKENDS, "cudnn.rnn")
"""No operator here has a recurrent layer, but cuDNN's older setting covers both and may not disagree with either."""


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
    before = {name: _backend(name).fp32_precision for name in SET}
    older_before = _older_settings()
    tf32 = dtype is Dtype.TF32
    try:
        # torch has older settings for the same. Reading them raises where the two disagree, and compilers read them.
        _set_older("high" if tf32 else "highest", tf32)
        for name in SET:
            _backend(name).fp32_precision = "tf32" if tf32 and name.startswith("cu") else "ieee"
        yield
    finally:
        _set_older(*older_before)
        for name, value in before.items():
            _backend(name).fp32_precision = value


def _older_settings() -> tuple[str, bool]:
    """For matrix products and for cuDNN; torch's defaults where the two ways to set them disagree already."""
    import torch

    try:
        products = torch.get_float32_matmul_precision()
    except RuntimeError:
        products = "highest"
    try:
        cudnn = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        cudnn = True
    return products, cudnn


def _set_older(products: str, cudnn: bool) -> None:
    import torch

    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = cudnn
