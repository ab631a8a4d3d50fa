"""Wall-clock timing, calibrated so that a sample is far above the clock's resolution."""

import time
from collections.abc import Callable

from opbench.timing.timer import Launch
from opbench.workload.cell_warning import CellWarning

__all__ = ["WallClockTimer"]

MIN_SAMPLE_RESOLUTIONS = 1000
"""A sample lasts at least this many steps of the clock, so that a step is 0.1 % of it."""

MIN_SAMPLE_S = 100e-6
"""And at least this long: reading the clock and looping take some 0.1 us, 0.1 % of it."""


class WallClockTimer:
    """Times on the host.

    Args:
        clock: returns seconds; replaced in tests.
        synchronize: waits for the device, inside the timing; None on the CPU.
    """

    name = "wall-clock"
    cache = "warm"
    resolution_ms = 0.0  # a sample has MIN_SAMPLE_RESOLUTIONS steps
    warnings: tuple[CellWarning, ...] = ()

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, synchronize: Callable[[], None] | None = None
    ) -> None:
        self.launches_per_sample = 1
        self._clock = clock
        self._synchronize = synchronize

    def now(self) -> float:
        """Seconds on the clock."""
        return self._clock()

    def prepare(self, launch: Launch, seconds: float) -> None:
        """Warm up, then find how many launches make a sample long enough."""
        end = self._clock() + seconds
        while True:
            self._seconds(launch, 1)
            if self._clock() >= end:
                break
        shortest = max(MIN_SAMPLE_S, MIN_SAMPLE_RESOLUTIONS * self._resolution())
        count = 1
        while (taken := self._seconds(launch, count)) < shortest:
            # Grow towards the target, at most tenfold at a time: a first reading may be far off.
            growth = min(10, 1.2 * shortest / taken) if taken > 0 else 10
            count = max(count + 1, int(count * growth))
        self.launches_per_sample = count

    def sample(self, launch: Launch, count: int) -> list[float]:
        """`count` latencies in milliseconds, each the mean of launches_per_sample launches."""
        per_sample = self.launches_per_sample
        return [self._seconds(launch, per_sample) * 1e3 / per_sample for _ in range(count)]

    def _seconds(self, launch: Launch, count: int) -> float:
        if self._synchronize:
            self._synchronize()
        start = self._clock()
        for _ in range(count):
            launch()
        if self._synchronize:
            self._synchronize()
        return self._clock() - start

    def _resolution(self) -> float:
        """The smallest step seen between two readings of the clock, seconds."""
        smallest = float("inf")
        for _ in range(20):
            start = self._clock()
            for _ in range(1000):  # a clock that stands still (a fake one) has no step to find
                if (step := self._clock() - start) > 0:
                    smallest = min(smallest, step)
                    break
        return smallest if smallest < float("inf") else 0.0
