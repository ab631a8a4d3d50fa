"""The protocol that every timer follows."""

from collections.abc import Callable
from typing import Protocol

from opbench.workload.cell_warning import CellWarning

__all__ = ["Launch", "SpoiledProcessError", "Timer"]

Launch = Callable[[], object]


class SpoiledProcessError(RuntimeError):
    """A measurement that failed so that nothing else can be measured in this process."""


class Timer(Protocol):
    """Measures launches of a closure.

    Attributes:
        name: as in `--timer`.
        cache: "cold" (last-level cache flushed before every launch) or "warm".
        launches_per_sample: launches that one sample averages over; known after prepare.
        resolution_ms: the step of one launch's latency; the true latency may be half a step away. Known after prepare,
            0 for a timer whose step is far below what it measures.
        warnings: what is wrong with the samples that were taken.
    """

    name: str
    cache: str
    launches_per_sample: int

    @property
    def resolution_ms(self) -> float:
        """As in the attributes."""
        ...

    @property
    def warnings(self) -> tuple[CellWarning, ...]:
        """As in the attributes."""
        ...

    def now(self) -> float:
        """Seconds on the timer's own clock; the time budget is counted on it."""
        ...

    def prepare(self, launch: Launch, seconds: float) -> None:
        """Warm up, for at least `seconds` (and one launch) or by the timer's own count; then calibrate or capture."""
        ...

    def sample(self, launch: Launch, count: int) -> list[float]:
        """`count` latencies in milliseconds per launch."""
        ...
