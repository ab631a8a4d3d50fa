"""How a provider times the launches that it may choose among: as its cell is timed afterwards.

A provider that chooses, such as one with a tile size, asks for current_trials when it builds or at a first launch. So
every choice of a cell is made with one clock, cache state and time budget, whoever wrote the kernel.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Trials", "current_trials", "trials_of_cell"]


@dataclass(frozen=True, slots=True)
class Trials:
    """A way to time candidates.

    Attributes:
        cache: "cold" or "warm", as the cell is timed.
        measure: from launches, each of which works, to milliseconds of each: a list of samples for each launch, in the
            same order. They take turns, so that what changes meanwhile hits all alike.
    """

    cache: str
    measure: Callable[[Sequence[Callable[[], object]]], list[list[float]]]


# Not a ContextVar: autograd runs a backward pass, which may be the first launch, in a thread of its own.
_current: list[Trials] = []


def current_trials() -> Trials | None:
    """Those of the cell that this process is measuring; None outside of a cell."""
    return _current[-1] if _current else None


@contextmanager
def trials_of_cell(trials: Trials) -> Iterator[None]:
    """Let current_trials give these within the block."""
    _current.append(trials)
    try:
        yield
    finally:
        _current.pop()
