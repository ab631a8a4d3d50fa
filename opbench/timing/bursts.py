"""Samples in short bursts with rests between, for a card that slows itself when it is kept busy."""

import time
from collections.abc import Callable

from opbench.timing.timer import Launch, Timer
from opbench.workload.cell_warning import CellWarning

__all__ = ["BURST_S", "REST_S", "BurstTimer"]

BURST_S = 0.05
"""The device works for about so long, then it rests."""
REST_S = 0.2
WAKING_SAMPLES = 3
"""At the head of each burst, not counted: a device that rests lowers its clocks."""


class BurstTimer:
    """Another timer, whose samples are taken in bursts. The rests are no part of the time budget.

    Args:
        timer: takes the samples.
        rest: waits for so many seconds; replaced in tests.
    """

    def __init__(self, timer: Timer, rest: Callable[[float], None] = time.sleep) -> None:
        self.name, self.cache = timer.name, timer.cache
        self.launches_per_sample = timer.launches_per_sample
        self._timer = timer
        self._rest = rest
        self._rested_s = 0.0
        self._sample_s = 0.0

    @property
    def resolution_ms(self) -> float:
        """The timer's."""
        return self._timer.resolution_ms

    @property
    def warnings(self) -> tuple[CellWarning, ...]:
        """The timer's."""
        return self._timer.warnings

    def now(self) -> float:
        """Seconds on the timer's clock, without the rests."""
        return self._timer.now() - self._rested_s

    def prepare(self, launch: Launch, seconds: float) -> None:
        """As the timer does, with a burst's length of warm-up at most."""
        self._timer.prepare(launch, min(seconds, BURST_S))
        self.launches_per_sample = self._timer.launches_per_sample

    def sample(self, launch: Launch, count: int) -> list[float]:
        """`count` latencies in milliseconds per launch; the first burst is of one sample, which says how many fit."""
        taken: list[float] = []
        while len(taken) < count:
            self._rest_now()
            self._timer.sample(launch, WAKING_SAMPLES)
            fitting = int(BURST_S / self._sample_s) if self._sample_s > 0 else 1
            size = max(1, min(fitting, count - len(taken)))
            started = self._timer.now()
            taken += self._timer.sample(launch, size)
            self._sample_s = (self._timer.now() - started) / size
        return taken

    def _rest_now(self) -> None:
        started = self._timer.now()
        self._rest(REST_S)
        self._rested_s += self._timer.now() - started
