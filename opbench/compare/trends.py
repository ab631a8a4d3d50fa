"""Cells over the runs of a folder: points, levels, steps, and the series of runs that they are in. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from opbench.compare.change_points import LEAST_RUNS, noise_scale
from opbench.compare.run_figures import RunEntry
from opbench.device.identity import HOST, VERSIONS, Identity
from opbench.stats import median
from opbench.workload.case import Cell

__all__ = ["History", "Point", "RunSeries", "SetUpChange", "Step", "Trend", "logarithms"]


class Point(NamedTuple):
    """One cell in one run: median and its 95 % interval, milliseconds per launch; a tuple, as there are 100,000s."""

    run: RunEntry
    latency_ms: float
    low_ms: float
    high_ms: float
    warnings: str = ""
    source: str = ""
    """Hash of operator and kernel source; empty where unknown."""


@dataclass(frozen=True, slots=True)
class Step:
    """A change of level.

    Attributes:
        index: of the trend's point at which the new level begins.
        run: the one of that point.
        before_ms, after_ms: medians of the levels' points.
        runs_before, runs_after: points of the two levels.
    """

    index: int
    run: RunEntry
    before_ms: float
    after_ms: float
    runs_before: int
    runs_after: int

    @property
    def change(self) -> float:
        """Relative: 0.05 is 5 % slower."""
        return self.after_ms / self.before_ms - 1


@dataclass(frozen=True)
class Trend:
    """One cell over the runs of a series that measured it.

    Attributes:
        cell: as the first of the runs planned it.
        points: in the order of time.
        starts: indices of the points at which a new level begins.
    """

    cell: Cell
    points: tuple[Point, ...]
    starts: tuple[int, ...] = ()

    @property
    def is_long_enough(self) -> bool:
        """Whether a step could be found at all."""
        return len(self.points) >= LEAST_RUNS

    @property
    def noise(self) -> float | None:
        """Relative standard deviation from run to run, as change_points takes it; None below two points."""
        return math.expm1(noise_scale(logarithms(self.points))) if len(self.points) > 1 else None

    @cached_property
    def levels(self) -> tuple[tuple[int, int, float], ...]:
        """Index of each level's first point, the one after its last, and the median in ms."""
        return tuple(
            (low, high, median([point.latency_ms for point in self.points[low:high]]))
            for low, high in pairwise((0, *self.starts, len(self.points)))
        )

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The changes from level to level."""
        return tuple(
            Step(start, self.points[start].run, before_ms, after_ms, start - first, end - start)
            for (first, start, before_ms), (_, end, after_ms) in pairwise(self.levels)
        )


@dataclass(frozen=True, slots=True)
class SetUpChange:
    """A run from which on a series has other versions, or another host.

    Attributes:
        index: of the series' first run with them.
        parts: old and new value of each part that changed.
    """

    index: int
    parts: dict[str, tuple[str, str]]

    @property
    def is_of_versions(self) -> bool:
        """Whether anything but the host changed."""
        return any(name in VERSIONS for name in self.parts)

    def __str__(self) -> str:
        return ", ".join(f"{name} {old} → {new}" for name, (old, new) in self.parts.items())


@dataclass(frozen=True)
class RunSeries:
    """Runs on one device, in one way of timing.

    Attributes:
        identity: of the last run, with its host where that is known: device, versions, timer, cache.
        runs: in the order of time.
        trends: one per cell, in the order in which the runs planned them first.
        set_ups: versions and host of each run, what is not known left out; one for all runs where there is one.
    """

    identity: Identity
    runs: tuple[RunEntry, ...]
    trends: tuple[Trend, ...]
    set_ups: tuple[Identity, ...] = ()

    @cached_property
    def steps(self) -> tuple[tuple[Trend, Step], ...]:
        """Every step with its trend, in the order of time, the largest of a run first."""
        found = [(trend, step) for trend in self.trends for step in trend.steps]
        return tuple(sorted(found, key=lambda pair: (pair[1].run.started_at, -abs(math.log1p(pair[1].change)))))

    @cached_property
    def set_up_changes(self) -> tuple[SetUpChange, ...]:
        """Where versions or host changed, as far as both runs tell them."""
        changes = []
        for index, (old, new) in enumerate(pairwise(self.set_ups), start=1):
            names = [name for name in (*VERSIONS, HOST) if name in old.parts and name in new.parts]
            parts = {name: (old.parts[name], new.parts[name]) for name in names if old.parts[name] != new.parts[name]}
            if parts:
                changes.append(SetUpChange(index, parts))
        return tuple(changes)


@dataclass(frozen=True, slots=True)
class History:
    """What a folder holds.

    Attributes:
        series: the one with the latest run first.
        problems: one line per run that could not be read; its figures are in no series.
        notes: lines that a reader must see: what was left out on purpose.
    """

    series: tuple[RunSeries, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def logarithms(points: Iterable[Point]) -> list[float]:
    """Of the latencies."""
    return [math.log(point.latency_ms) for point in points]
