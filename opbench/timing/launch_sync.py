"""Timing on a CUDA device as the published scripts do it: launch, wait for the device, launch again."""

import time
from collections.abc import Callable

import torch

from opbench.timing.timer import Launch
from opbench.workload.cell_warning import CellWarning

__all__ = ["LaunchSyncTimer"]

WARM_UP_LAUNCHES = 100
MAX_WARM_UP_S = 10.0
"""A warm-up of launches that are so long that 100 of them take more than this ends here."""


class LaunchSyncTimer:
    """The host's clock around each launch and the wait for the device after it, with a warm cache.

    A latency contains what the host needs to queue the launch and to notice its end. The published scripts put one
    pair of events around all launches, each followed by such a wait, and divide by their number. The mean of the
    samples is that figure without the host's time between two samples.

    Source: DCNv4_op/scripts/test_dcnv4.py of OpenGVLab/DCNv4.

    Args:
        device: "cuda:N".
        clock: returns seconds; replaced in tests.
    """

    name = "launch-sync"
    cache = "warm"
    launches_per_sample = 1
    resolution_ms = 0.0  # nanoseconds, of microseconds
    warnings: tuple[CellWarning, ...] = ()

    def __init__(self, device: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device = torch.device(device)
        self._clock = clock

    def now(self) -> float:
        """Seconds on the clock."""
        return self._clock()

    def prepare(self, launch: Launch, seconds: float) -> None:
        """Launch 100 times, or until 10 s have passed; as long as that takes, whatever `seconds` says."""
        torch.cuda.synchronize(self._device)
        end = self._clock() + MAX_WARM_UP_S
        for _ in range(WARM_UP_LAUNCHES):
            self._milliseconds(launch)
            if self._clock() >= end:
                break

    def sample(self, launch: Launch, count: int) -> list[float]:
        """`count` latencies in milliseconds, each of one launch and the wait after it."""
        return [self._milliseconds(launch) for _ in range(count)]

    def _milliseconds(self, launch: Launch) -> float:
        start = self._clock()
        launch()
        torch.cuda.synchronize(self._device)
        return (self._clock() - start) * 1e3
