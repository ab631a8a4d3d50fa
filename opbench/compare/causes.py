"""What made a level change, as far as the runs tell: other versions, the machine, or the code. Pure."""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise

from opbench.compare.change_points import MIN_SEGMENT
from opbench.compare.run_figures import RunEntry
from opbench.compare.trends import RunSeries, Step, Trend, logarithms
from opbench.stats import median

__all__ = ["Cause", "Shift", "shifts"]

NEAR = 1
"""Runs by which noise may move a step from the run that made it."""
MOST_CELLS = 0.75
"""Share of the cells that have moved alike where the machine is the cause. Not all: noise hides the move of some."""
LEAST_COMPARED, MOST_COMPARED = MIN_SEGMENT - 1, 2 * MIN_SEGMENT
"""Runs before and after a place whose medians say whether a cell moved there; a large step shows in three runs."""


class Cause(StrEnum):
    """Of a step; the first that applies."""

    ENVIRONMENT = "environment"
    """Versions changed with it."""
    MACHINE = "machine"
    """The host changed with it, or most cells moved alike, of several operators or providers."""
    CODE = "code"
    """The source of its operator changed with it, or the revision did and one provider of one operator moved alone."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Shift:
    """Steps that have one cause: of the environment and of the machine all that it made, of other causes one each.

    Attributes:
        cause: which.
        why: what tells it; empty where it is unknown.
        steps: each with its trend, in the order of RunSeries.steps.
    """

    cause: Cause
    why: str
    steps: tuple[tuple[Trend, Step], ...]


@dataclass(frozen=True, eq=False)
class _Step:
    """A step, and the place of its run in the series."""

    trend: Trend
    step: Step
    place: int

    @property
    def is_slower(self) -> bool:
        return self.step.change > 0

    def is_near(self, place: int) -> bool:
        """Whether a run there may have made it."""
        return abs(self.place - place) <= NEAR


class _Places:
    """Where the runs of a series are, and how far its cells moved there."""

    def __init__(self, series: RunSeries) -> None:
        self._of = {id(run): place for place, run in enumerate(series.runs)}  # a hash of each would take seconds
        self._series = series

    def of(self, run: RunEntry) -> int:
        """Where a run of the series is."""
        return self._of[id(run)]

    @cached_property
    def _logs(self) -> list[tuple[list[int], list[float]]]:
        return [([self.of(point.run) for point in own.points], logarithms(own.points)) for own in self._series.trends]

    def moves(self, place: int) -> list[float]:
        """Of the cells with enough runs on both sides of a place: the difference of their logarithms there."""
        found = []
        for places, logs in self._logs:
            index = bisect_left(places, place)
            before, after = logs[max(0, index - MOST_COMPARED) : index], logs[index : index + MOST_COMPARED]
            if min(len(before), len(after)) >= LEAST_COMPARED:
                found.append(median(after) - median(before))
        return found


def shifts(series: RunSeries) -> list[Shift]:
    """The steps of a series with their causes, in the order of time."""
    places = _Places(series)
    left = [_Step(trend, step, places.of(step.run)) for trend, step in series.steps]
    found: list[tuple[Cause, str, list[_Step]]] = []
    for change in series.set_up_changes:
        with_it = [step for step in left if step.is_near(change.index)]
        found.append((Cause.ENVIRONMENT if change.is_of_versions else Cause.MACHINE, str(change), with_it))
        left = [step for step in left if step not in with_it]
    for why, alike in _moved_alike(places, left):
        found.append((Cause.MACHINE, why, alike))
        left = [step for step in left if step not in alike]
    for step in left:
        why = _code(series, step, left)
        found.append((Cause.CODE if why else Cause.UNKNOWN, why, [step]))
    found = sorted((one for one in found if one[2]), key=lambda one: one[2][0].place)
    return [Shift(cause, why, tuple((step.trend, step.step) for step in steps)) for cause, why, steps in found]


def _group(trend: Trend) -> tuple[str, str]:
    return trend.cell.case.operator, trend.cell.provider


def _moved_alike(places: _Places, steps: Sequence[_Step]) -> Iterator[tuple[str, list[_Step]]]:
    """The steps near a run at which most cells moved in one direction, by half the steps' size at least."""
    left = [*steps]
    for place, slower in [key for key, _ in Counter((step.place, step.is_slower) for step in steps).most_common()]:
        near = [step for step in left if step.is_near(place) and step.is_slower == slower]
        if len({_group(step.trend) for step in near}) < 2:
            continue
        size = median([math.log1p(step.step.change) for step in near])
        moves = places.moves(place)
        moved = [move for move in moves if move / size >= 1 / 2]
        if moves and len(moved) >= MOST_CELLS * len(moves):
            yield f"{len(moved)} of {len(moves)} cells", near
            left = [step for step in left if step not in near]


def _code(series: RunSeries, step: _Step, others: Iterable[_Step]) -> str:
    """What says that the code made a step; empty where nothing does."""
    points, index = step.trend.points, step.step.index
    near = [point.source for point in points[max(0, index - NEAR - 1) : index + NEAR + 1]]
    if any(old and new and old != new for old, new in pairwise(near)):
        return "source changed"
    revisions = [run.revision for run in series.runs[max(0, step.place - NEAR - 1) : step.place + NEAR + 1]]
    if not any(old and new and old != new for old, new in pairwise(revisions)):
        return ""
    moved = {_group(other.trend) for other in others if other.is_near(step.place)}
    if len(moved) > 1 or len({_group(trend) for trend in series.trends}) == 1:
        return ""
    return "moved alone"
