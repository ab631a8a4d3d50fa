"""Operators that are really slower, for the gate's self-test."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from opbench.workload.operator import Operator

__all__ = ["slowed"]

REPETITIONS = 20
"""Of a launch, to know what it takes."""
LEAD_FACTOR = 2
"""The device waits for so many times what the host needs to queue a launch."""


def slowed(operator: Operator, fraction: float) -> Operator:
    """An operator whose forward passes really take longer by `fraction`.

    On the CPU each launch waits, busily, for `fraction` of the time that it has just taken; on CUDA a kernel that
    spins for that part of the median follows each launch.
    """

    def slow(build: Callable[..., Callable[[], Any]]) -> Callable[..., Callable[[], Any]]:
        def build_slowed(case: Any, tensors: Any) -> Callable[[], Any]:  # noqa: ANN401
            forward = build(case, tensors)
            on_cuda = any(tensor.is_cuda for tensor in tensors.values())
            return _spin_on_cuda(forward, fraction) if on_cuda else _spin_on_cpu(forward, fraction)

        return build_slowed

    return replace(
        operator, providers=tuple(replace(provider, build=slow(provider.build)) for provider in operator.providers)
    )


def _spin_on_cpu(forward: Callable[[], Any], fraction: float) -> Callable[[], Any]:
    clock = time.perf_counter

    def launch() -> Any:  # noqa: ANN401
        start = clock()
        out = forward()
        end = clock()
        until = end + fraction * (end - start)
        while clock() < until:
            pass
        return out

    return launch


def _spin_on_cuda(forward: Callable[[], Any], fraction: float) -> Callable[[], Any]:
    import torch

    spin: Callable[[int], None] = torch.cuda._sleep

    def times_ms(launch: Callable[[], Any], lead_cycles: int) -> tuple[float, float]:
        """Medians of a launch on the device, and of the host's time to queue one."""
        device, host = [], []
        for _ in range(REPETITIONS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            spin(lead_cycles)  # the device is busy while the host queues, so that no wait for the host is counted
            queued = time.perf_counter()
            start.record()
            launch()
            end.record()
            host.append((time.perf_counter() - queued) * 1e3)
            end.synchronize()
            device.append(start.elapsed_time(end))
        return float(statistics.median(device)), float(statistics.median(host))

    cycles = 1_000_000
    per_ms = cycles / times_ms(lambda: spin(cycles), cycles)[0]
    _, host_ms = times_ms(forward, 0)  # warms up, too
    extra = int(per_ms * fraction * times_ms(forward, int(LEAD_FACTOR * host_ms * per_ms))[0])

    def launch() -> Any:  # noqa: ANN401
        out = forward()
        spin(extra)
        return out

    return launch
