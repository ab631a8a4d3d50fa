"""The protocol that every timer follows."""

from collections.abc import Callable
from typing import Protocol

__all__ = ["Launch", "Timer"]

Launch = Callable[[], object]


class Timer(Protocol):
    """Measures launches of a closure.

    Attributes:
        name: as in `--timer`.
        cache: "cold" (last-level cache flushed before every launch) or "warm".
        launches_per_sample: launches that one sample averages over; known after prepare.
    """

    name: str
    cache: str
    launches_per_sample: int

    def now(self) -> float:
        """Seconds on the timer's own clock; the time budget is counted on it."""
        ...

    def prepare(self, launch: Launch, seconds: float) -> None:
        """Warm up for at least `seconds` (and one launch), then calibrate or capture."""
        ...

    def sample(self, launch: Launch, count: int) -> list[float]:
        """`count` latencies in milliseconds per launch."""
        ...
