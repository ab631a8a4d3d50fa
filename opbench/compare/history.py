"""The runs in a folder over time: which can be compared, what each cell took in them, and where it changed.

Reading needs neither torch nor a GPU.
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from opbench.compare.change_points import LEAST_RUNS, change_points, noise_scale
from opbench.compare.readings import Arm, Reading
from opbench.device.identity import GPU_UUID, Identity, measured_revision
from opbench.errors import ResultsError
from opbench.results.journal import JOURNAL
from opbench.results.run import Run
from opbench.stats import median
from opbench.text import one_line
from opbench.workload.case import Cell
from opbench.workload.cell_warning import WarningKind, join_warnings

__all__ = ["History", "Point", "RunEntry", "RunSeries", "Step", "Trend", "read_history"]

SHORT_REVISION = 10


@dataclass(frozen=True, slots=True)
class RunEntry:
    """One run of the folder.

    Attributes:
        name: path of its folder, from the folder that was read.
        run_id: as run.json has it.
        started_at: with a time zone.
        revision: git revision of the project whose operators were measured, possibly with `+dirty`; empty where they
            were not in a checkout.
        opbench_revision: likewise of opbench, which may be the same.
    """

    name: str
    run_id: str
    started_at: datetime
    revision: str
    opbench_revision: str = ""

    @property
    def short_revision(self) -> str:
        """The first digits of the revision, `+` after them for a dirty checkout; `no revision` without one."""
        parts = [revision.partition("+") for revision in self.revision.split(", ")]
        return ", ".join(commit[:SHORT_REVISION] + plus for commit, plus, _ in parts) or "no revision"


_Parts = frozenset[tuple[str, str]]
"""Of an identity, as a key."""

ReadRun = tuple[RunEntry, list[tuple[Cell, Reading]]]
"""A run and what its cells gave."""


@dataclass(frozen=True, slots=True)
class Point:
    """One cell in one run: median and its 95 % interval, milliseconds per launch."""

    run: RunEntry
    latency_ms: float
    low_ms: float
    high_ms: float
    warnings: str = ""


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
        return math.expm1(noise_scale(_logs(self.points))) if len(self.points) > 1 else None

    @cached_property
    def levels(self) -> tuple[tuple[int, int, float], ...]:
        """Index of each level's first point, the one after its last, and the median in ms."""
        return tuple(
            (low, high, median([point.latency_ms for point in self.points[low:high]]))
            for low, high in pairwise((0, *self.starts, len(self.points)))
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The changes from level to level."""
        return tuple(
            Step(start, self.points[start].run, before_ms, after_ms, start - first, end - start)
            for (first, start, before_ms), (_, end, after_ms) in pairwise(self.levels)
        )


@dataclass(frozen=True, slots=True)
class RunSeries:
    """Runs that can be compared.

    Attributes:
        identity: what they share: device, versions, timer, cache.
        runs: in the order of time.
        trends: one per cell, in the order in which the runs planned them first.
    """

    identity: Identity
    runs: tuple[RunEntry, ...]
    trends: tuple[Trend, ...]

    @property
    def steps(self) -> tuple[tuple[Trend, Step], ...]:
        """Every step with its trend, in the order of time, the largest of a run first."""
        found = [(trend, step) for trend in self.trends for step in trend.steps]
        return tuple(sorted(found, key=lambda pair: (pair[1].run.started_at, -abs(math.log1p(pair[1].change)))))


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


def read_history(folder: Path) -> History:
    """Read every run below a folder and look for step changes.

    Runs of different identities (opbench.device.identity, with timer and cache) are different series. Those that do not
    tell the GPU's UUID are in the series of the only card of that identity, or one of their own where there are
    several. A cell that was not measured in a run has no point there.

    Raises:
        ResultsError: no such folder, no run in it that can be read, or none that measured a cell.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no such folder")
    problems: list[str] = []
    notes: list[str] = []
    runs = _read_all(folder, problems, notes)
    if not runs:
        unread = f" that can be read; {problems[0]}" if problems else ""
        raise ResultsError(f"{folder}: no run there{unread}")
    found: defaultdict[_Parts, dict[str, list[Point]]] = defaultdict(dict)
    identities: dict[_Parts, Identity] = {}
    cells: dict[str, Cell] = {}
    cards = _only_cards(reading.identity for _, readings in runs for _, reading in readings)
    elsewhere = 0
    for entry, readings in runs:
        for cell, reading in readings:
            if not (estimate := reading.estimate):
                continue
            if any(warning.kind == WarningKind.RESUMED_ELSEWHERE for warning in reading.warnings):
                elsewhere += 1
                continue
            cells.setdefault(cell.key, cell)
            point = Point(entry, estimate.value, estimate.low, estimate.high, join_warnings(reading.warnings))
            identity = reading.identity.having(cards.get(_bare(reading.identity), {}))
            identities.setdefault(frozenset(identity.parts.items()), identity)
            found[frozenset(identity.parts.items())].setdefault(cell.key, []).append(point)
    if elsewhere:
        notes.append(f"{elsewhere} figures are left out: their runs went on on another set-up than they began on.")
    if not found:
        raise ResultsError(f"{folder}: no cell was measured in the runs there ({len(runs)})")
    series = [
        _series(identities[parts], {cells[key]: by_key[key] for key in cells if key in by_key})
        for parts, by_key in found.items()
    ]
    series.sort(key=lambda one: one.runs[-1].started_at, reverse=True)
    return History(tuple(series), tuple(problems), tuple(notes))


def _read_all(folder: Path, problems: list[str], notes: list[str]) -> list[ReadRun]:
    """The runs in the order of time, each once."""
    runs: dict[str, ReadRun] = {}
    for path in _run_folders(folder, problems):
        try:
            read = _read(path, folder)
        except ResultsError as error:
            problems.append(str(error))
            continue
        known = runs.setdefault(read[0].run_id, read)
        if known is not read:
            notes.append(f"{read[0].name} is the run of {known[0].name} once more, and counts once.")
    return sorted(runs.values(), key=lambda read: (read[0].started_at, read[0].name))


def _run_folders(folder: Path, problems: list[str]) -> Iterator[Path]:
    """Every folder that holds a run or what is left of one; links are not followed."""

    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be read: {error.strerror}")

    for path, folders, files in os.walk(folder, onerror=unreadable):
        folders.sort()
        if {"run.json", JOURNAL} & {*files, *folders}:
            folders.clear()
            yield Path(path)


def _read(path: Path, folder: Path) -> ReadRun:
    run = Run.open(path)
    readings = list(zip(run.plan(), Arm.of_run(run).readings.values(), strict=True))
    text = run.started_at
    try:
        started_at = datetime.fromisoformat(text)
    except ValueError:
        raise ResultsError(f"{path / 'run.json'}: damaged: started_at must be a date, got {text!r:.60}") from None
    if started_at.tzinfo is None:
        started_at = started_at.replace(tzinfo=UTC)
    environment = run.environment
    revision = one_line(measured_revision(environment), 100)
    own = one_line(str(environment.get("git_revision") or ""), 60)
    name = path.relative_to(folder).as_posix() if path != folder else path.resolve().name
    return RunEntry(one_line(name), run.run_id, started_at, revision, own), readings


def _bare(identity: Identity) -> _Parts:
    return frozenset(identity.without(GPU_UUID).parts.items())


def _only_cards(identities: Iterable[Identity]) -> dict[_Parts, dict[str, str]]:
    """The GPU's UUID by what an identity says besides, where all that tell one tell the same."""
    told: defaultdict[_Parts, set[str]] = defaultdict(set)
    for identity in identities:
        if uuid := identity.parts.get(GPU_UUID):
            told[_bare(identity)].add(uuid)
    return {bare: {GPU_UUID: uuid} for bare, uuids in told.items() if len(uuids) == 1 for uuid in uuids}


def _series(identity: Identity, by_cell: dict[Cell, list[Point]]) -> RunSeries:
    identity = Identity({name: one_line(value, 100) for name, value in identity.parts.items()})
    runs = dict.fromkeys(point.run for points in by_cell.values() for point in points)
    ordered = sorted(runs, key=lambda run: (run.started_at, run.name))
    starts = change_points([_logs(points) for points in by_cell.values()])
    trends = (
        Trend(cell, tuple(points), tuple(own)) for (cell, points), own in zip(by_cell.items(), starts, strict=True)
    )
    return RunSeries(identity, tuple(ordered), tuple(trends))


def _logs(points: Iterable[Point]) -> list[float]:
    return [math.log(point.latency_ms) for point in points]
