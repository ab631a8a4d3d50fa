"""Convolutions with the algorithm that cuDNN finds fastest by timing, beside the one that its heuristic names.

Which of them a framework runs is a switch (`torch.backends.cudnn.benchmark`), off by default. A comparison needs both,
since a slow choice of the heuristic would flatter what stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from opbench.workload.operator import Provider

__all__ = ["autotuned", "benchmark_mode"]


def autotuned(provider: Provider, name: str = "torch_autotuned") -> Provider:
    """`provider` with cuDNN's switch on while it is built, checked and timed; cuDNN tries at the first launch.

    PyTorch keeps one plan for each convolution in a process, whoever asked for it first, with the switch on or off. So
    the cells have a process of their own: elsewhere each would run what another provider had chosen.
    """
    return replace(
        provider,
        name=name,
        summary=f"{provider.name} with the convolution algorithms that cuDNN finds fastest",
        unavailable=partial(_unavailable, provider),
        needs="; ".join(filter(None, (provider.needs, "a CUDA device, and processes of its own"))),
        around=benchmark_mode,
        own_process=True,
    )


@contextmanager
def benchmark_mode() -> Iterator[None]:
    """Have cuDNN time all of its algorithms within the block; afterwards the switches are what they were."""
    import torch

    cudnn = torch.backends.cudnn
    names = [name for name in ("benchmark", "benchmark_limit") if getattr(cudnn, name, None) is not None]
    before = {name: getattr(cudnn, name) for name in names}
    try:
        for name, value in {"benchmark": True, "benchmark_limit": 0}.items():  # 0: all, and not the first ten
            if name in before:
                setattr(cudnn, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(cudnn, name, value)


def _unavailable(provider: Provider, device_type: str) -> str | None:
    if reason := provider.unavailable(device_type):
        return reason
    return None if device_type == "cuda" else f"cuDNN chooses algorithms on a CUDA device, this is {device_type}"
