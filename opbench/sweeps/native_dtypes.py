"""Which dtypes a sweep takes where none are named: those that the device computes in natively."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from opbench.device.ceilings import NATIVE_SHARE
from opbench.workload.case import Dtype

__all__ = ["DefaultDtypes", "default_dtypes", "matmul_rates"]

SIZE = 256
"""Of the square matrices: 0.5 ms in fp32 on one core, and some 50 ms where every element is converted alone."""

PROBE_S = 0.05
LEAST_LAUNCHES = 3


@dataclass(frozen=True, slots=True)
class DefaultDtypes:
    """What a sweep takes, and one line about what it leaves out; empty where that is nothing."""

    dtypes: tuple[Dtype, ...]
    note: str = ""


@cache
def default_dtypes(device_type: str) -> DefaultDtypes:
    """fp32, and beside it fp16 on CUDA, or on the CPU the first of bf16 and fp16 that is native.

    Every GPU that PyTorch supports today computes in fp16; a CPU is asked by a product of small matrices.
    """
    if device_type == "cuda":
        return DefaultDtypes((Dtype.FP32, Dtype.FP16))
    return choose(matmul_rates((Dtype.FP32, Dtype.BF16, Dtype.FP16)))


def choose(rates: Mapping[Dtype, float]) -> DefaultDtypes:
    """The default dtypes of a CPU with these rates of matrix products, FLOP/s."""
    shares = {dtype: rate / rates[Dtype.FP32] for dtype, rate in rates.items() if dtype is not Dtype.FP32}
    for dtype, share in shares.items():
        if share >= NATIVE_SHARE:
            return DefaultDtypes((Dtype.FP32, dtype))
    slow = " and ".join(f"at {share:.2g} of it in {dtype}" for dtype, share in shares.items())
    return DefaultDtypes(
        (Dtype.FP32,),
        f"fp32 only: against fp32's rate this processor multiplies matrices {slow}; --dtypes fp32,bf16 measures both",
    )


def matmul_rates(dtypes: tuple[Dtype, ...], clock: Callable[[], float] = time.perf_counter) -> dict[Dtype, float]:
    """The best rate of a small matrix product on one core of this CPU, in each dtype, FLOP/s; takes some 0.2 s.

    One thread: beside other processes two wait for each other, and every dtype would look alike.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return {dtype: 2 * SIZE**3 / _best_seconds(dtype, clock) for dtype in dtypes}
    finally:
        torch.set_num_threads(threads)


def _best_seconds(dtype: Dtype, clock: Callable[[], float]) -> float:
    """The shortest of the launches that fit in PROBE_S, and of at least LEAST_LAUNCHES."""
    import torch

    a, b = (torch.full((SIZE, SIZE), 0.5, dtype=getattr(torch, dtype.torch_name)) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)  # what is set up at a first launch
    best, began, launches = float("inf"), clock(), 0
    while launches < LEAST_LAUNCHES or clock() - began < PROBE_S:
        start = clock()
        torch.mm(a, b, out=out)
        best = min(best, clock() - start)
        launches += 1
    return best
