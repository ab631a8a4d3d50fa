"""What hears how a sweep goes on."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from opbench.results.measurement import Measurement
from opbench.workload.case import Cell

__all__ = ["NULL_PROGRESS", "FleetProgress", "NullProgress", "OnStage", "Progress"]

OnStage = Callable[[str], None]
"""Progress.stage, for what runs cells and nothing else."""


class Progress(Protocol):
    """Hears how a sweep goes on."""

    def started(self, cell: Cell, number: int, total: int) -> None:
        """A cell begins; `number` counts from 1."""

    def stage(self, name: str) -> None:
        """The cell is at set-up, check, build, timing or check again; outside a cell, what the sweep is doing."""

    def note(self, text: str) -> None:
        """Something to know about the sweep."""

    def ended(self, measurement: Measurement) -> None:
        """The cell's line is in the journal."""


@runtime_checkable
class FleetProgress(Progress, Protocol):
    """Progress that tells the cards of a fleet apart."""

    def card(self, name: str) -> Progress:
        """What hears of one card, whose cells go on beside those of the others."""
        ...


class NullProgress:
    """Progress that nobody hears."""

    def started(self, cell: Cell, number: int, total: int) -> None:
        """Say nothing."""

    def stage(self, name: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def ended(self, measurement: Measurement) -> None:
        """Say nothing."""


NULL_PROGRESS = NullProgress()
