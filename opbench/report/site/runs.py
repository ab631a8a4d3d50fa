"""The runs of a site: found, read and named, with what their pages say of them together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, count, pairwise
from pathlib import Path
from typing import NamedTuple, Self

from opbench.compare.history import each_once, history_of, run_folders
from opbench.compare.noise import known_noise
from opbench.compare.readings import Arm
from opbench.compare.run_figures import RunEntry, RunFigures
from opbench.compare.runs import compare_runs
from opbench.compare.trends import History
from opbench.compare.verdicts import Comparison
from opbench.device.identity import VERSIONS
from opbench.errors import ResultsError
from opbench.files import free_stem
from opbench.report.cell_text import cell_text
from opbench.results.published import PublishedRun, open_run
from opbench.results.row import Row
from opbench.workload.case import Cell

__all__ = ["CellName", "Problem", "SiteRun", "SiteRuns", "read_runs"]


class CellName(NamedTuple):
    """What a cell is searched by; Row's columns of these names."""

    operator: str
    provider: str
    level: str
    direction: str
    shape_list: str
    shape: str
    dtype: str
    settings: str

    @classmethod
    def of(cls, cell: Cell) -> Self:
        """Of a planned cell."""
        return cls(provider=cell.provider, **cell.case.labels())


@dataclass(frozen=True, slots=True)
class SiteRun:
    """One run of a site.

    Attributes:
        path: its folder.
        figures: for the history.
        arm: for comparisons.
        device: its name.
        date: when it began; of the published figures the year.
        cells: each row's name and what a table shows of it, in the order of the page's rows.
        statuses: how many rows have each.
    """

    path: Path
    figures: RunFigures
    arm: Arm
    device: str
    date: str
    cells: tuple[tuple[CellName, str], ...]
    statuses: Counter[str]

    @property
    def entry(self) -> RunEntry:
        """Name, date and revision."""
        return self.figures.entry


class Problem(NamedTuple):
    """Why a run cannot be read, with its path for who calls, and with its name for who reads the site."""

    told: str
    shown: str


@dataclass(frozen=True, slots=True)
class SiteRuns:
    """What a site shows.

    Attributes:
        runs: in the order of time, each once.
        stems: names of their pages' files, without the suffix, by run_id.
        history: of them all.
        comparisons: by run_id of the head, with the run that it is compared with.
        problems: a line for each run that cannot be read.
    """

    runs: tuple[SiteRun, ...]
    stems: dict[str, str]
    history: History
    comparisons: dict[str, tuple[SiteRun, Comparison]]
    problems: tuple[Problem, ...]


def read_runs(paths: Sequence[Path]) -> SiteRuns:
    """Read runs, folders that hold some at any depth, and `published`, the paper's figures.

    A run is compared with the latest one before it in its series (opbench.compare.history) that measured one of its
    cells, or more. Torch, Triton, CUDA and the driver may differ, as in a series; the comparison says so.

    Raises:
        ResultsError: there is no run in one of them, or none at all that can be read.
    """
    unlisted: list[str] = []
    problems: list[Problem] = []
    read: dict[int, SiteRun] = {}
    for name, path in _places(paths, unlisted).items():
        try:
            run = _read(path, name)
        except ResultsError as error:
            problems.append(Problem(str(error), str(error).replace(str(path), name)))
        else:
            read[id(run.figures)] = run
    problems += [Problem(text, text) for text in unlisted]
    if not read:
        raise ResultsError(f"no run that can be read; {problems[0].told}")
    notes: list[str] = []
    runs = [read[id(figures)] for figures in each_once([run.figures for run in read.values()], notes)]
    history = history_of([run.figures for run in runs], notes=notes)
    taken: set[str] = set()
    stems = {run.entry.run_id: free_stem(run.entry.name, taken) for run in runs}
    return SiteRuns(tuple(runs), stems, history, _comparisons(runs, history), tuple(problems))


def _places(paths: Sequence[Path], problems: list[str]) -> dict[str, Path]:
    """Each run's folder once, by a name of its own: the path from the folder that was named."""
    places: dict[str, Path] = {}
    known: set[Path] = set()
    for path in paths:
        found = run_folders(path, problems) if path.is_dir() or path.name != "published" else {}
        if not found and path.name == "published":
            found = {"published": path}
        elif not found:
            raise ResultsError(f"{path}: no run there{f'; {problems[-1]}' if problems else ''}")
        for name, place in found.items():
            if place.resolve() in known:
                continue
            known.add(place.resolve())
            wished = chain((name, f"{path.resolve().name}/{name}"), (f"{name} ({number})" for number in count(2)))
            places[next(own for own in wished if own not in places)] = place
    return places


def _read(path: Path, name: str) -> SiteRun:
    run = open_run(path)
    rows = run.rows()
    return SiteRun(
        path=path,
        figures=_published(name) if isinstance(run, PublishedRun) else RunFigures.of_run(run, name),
        arm=Arm.of_run(run, name),
        device=run.device_name,
        date=run.started_at[:10],
        cells=tuple((_name(row), cell_text(row)) for row in rows),
        statuses=Counter(str(row.status) for row in rows),
    )


def _name(row: Row) -> CellName:
    return CellName(*(str(getattr(row, column)) for column in CellName._fields))


def _published(name: str) -> RunFigures:
    """No figures for a history: the paper's are of one day and another project."""
    return RunFigures(RunEntry(name, name, datetime(2023, 1, 1, tzinfo=UTC), ""), (), (), (), ())


def _comparisons(runs: Sequence[SiteRun], history: History) -> dict[str, tuple[SiteRun, Comparison]]:
    by_id = {run.entry.run_id: run for run in runs}
    before: dict[str, str] = {}
    for series in history.series:
        for trend in series.trends:
            ids = [point.run.run_id for point in trend.points]
            for base, head in pairwise(ids):
                known = before.setdefault(head, base)
                if by_id[base].entry.started_at > by_id[known].entry.started_at:
                    before[head] = base
    return {head: (by_id[base], _compare(by_id[base], by_id[head])) for head, base in before.items() if head in by_id}


def _compare(base: SiteRun, head: SiteRun) -> Comparison:
    return compare_runs(base.arm, head.arm, allow=VERSIONS, noise=known_noise(head.arm.environment))
