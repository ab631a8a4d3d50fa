"""Which device a request means, and why torch cannot use a GPU that is here."""

import os
import re
import sys
from functools import cache
from pathlib import Path

from opbench.device.nvml import nvml_of
from opbench.errors import UsageError

__all__ = ["resolve_device", "unusable_gpu"]

DEVICE_FILE = Path("/dev/nvidia0")
"""There where a driver is loaded and has a GPU, on Linux."""


def resolve_device(requested: str) -> str:
    """The torch device that a request means: `cpu` or `cuda:N`.

    Args:
        requested: auto (the first GPU, else the CPU), cpu, cuda (the current GPU) or cuda:N. Where auto is the CPU
            although a GPU is here, one line on standard error says why.

    Raises:
        UsageError: no such device; says what is available, and why CUDA is not.
    """
    import torch

    if requested == "cpu":
        return "cpu"
    count = _cuda_count()
    if requested == "auto":
        if not count and (reason := unusable_gpu()):
            _say_unusable(reason)
        return "cuda:0" if count else "cpu"
    if not re.fullmatch(r"cuda(:[0-9]{1,4})?", requested):
        raise UsageError(f"device must be auto, cpu, cuda or cuda:N, got {requested!r}")
    if not count:
        raise UsageError(f"device {requested} is not available: {_cuda_problem()}; available: cpu")
    index = torch.cuda.current_device() if requested == "cuda" else int(requested.removeprefix("cuda:"))
    if index >= count:
        available = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
        raise UsageError(f"device {requested} does not exist; available: {available}")
    return f"cuda:{index}"


def _cuda_count() -> int:
    """How many GPUs torch can use."""
    import warnings

    import torch

    with warnings.catch_warnings(action="ignore"):  # a driver that is too old warns; _cuda_problem says so
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def unusable_gpu() -> str | None:
    """Why torch cannot use a GPU that is here; None where it can, where there is none, or where it was hidden."""
    if _cuda_count() or _hidden():
        return None
    with nvml_of("cpu") as nvml:
        here = bool(nvml.ask("nvmlDeviceGetCount")) or DEVICE_FILE.exists()
    return _cuda_problem() if here else None


@cache
def _say_unusable(reason: str) -> None:
    """Once per process: several parts of a command ask for the device."""
    print(
        f"opbench: a GPU is here, but PyTorch cannot use it ({reason}): going on with the CPU; install a PyTorch that "
        "fits the driver, or update the driver (--device cpu: the CPU is meant)",
        file=sys.stderr,
    )


def _hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")


def _cuda_problem() -> str:
    """Why torch sees no CUDA device."""
    import torch

    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if _hidden():
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return re.split(r"\.\s|\n", str(error))[0]
    return "PyTorch finds no CUDA device"
