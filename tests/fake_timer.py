"""A timer with a clock that moves only when told: drives the runner and the stopping rule without a device."""

from collections.abc import Iterable, Iterator
from itertools import cycle

from opbench.timing.timer import Launch
from opbench.workload.cell_warning import CellWarning

__all__ = ["FakeTimer"]


class FakeTimer:
    """Gives scripted latencies, round and round, and advances its clock by them.

    Args:
        latencies_ms: what the launches take, in turn.
    """

    name = "fake"
    cache = "warm"
    launches_per_sample = 1
    resolution_ms = 0.0
    warnings: tuple[CellWarning, ...] = ()

    def __init__(self, latencies_ms: Iterable[float]) -> None:
        self._latencies: Iterator[float] = cycle(latencies_ms)
        self._seconds = 0.0

    def now(self) -> float:
        """Seconds that the scripted launches have taken."""
        return self._seconds

    def prepare(self, launch: Launch, seconds: float) -> None:
        """Launch once; the clock does not move."""
        launch()

    def sample(self, launch: Launch, count: int) -> list[float]:
        """Launch `count` times; the next `count` scripted latencies."""
        for _ in range(count):
            launch()
        taken = [next(self._latencies) for _ in range(count)]
        self._seconds += sum(taken) / 1e3
        return taken
