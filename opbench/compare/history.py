"""The runs in a folder over time: which can be compared, what each cell took in them, and where it changed.

Reading needs neither torch nor a GPU.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from opbench.compare.change_points import change_points
from opbench.compare.history_index import read_runs
from opbench.compare.run_figures import RunFigures
from opbench.compare.trends import History, Point, RunSeries, Trend, logarithms
from opbench.device.identity import GPU_UUID, HOST, VERSIONS, Identity
from opbench.errors import ResultsError
from opbench.results.journal import JOURNAL
from opbench.results.run_json import RUN
from opbench.workload.case import Cell

__all__ = ["read_history"]

Parts = frozenset[tuple[str, str]]
"""Of an identity, as a key."""

Portion = tuple[int, RunFigures, int]
"""Of a run what was timed in one way: the run's place in time, the run, and Figure.set_up."""


def read_history(folder: Path) -> History:
    """Read every run below a folder and look for step changes.

    A series is of one device, timer and cache (opbench.device.identity). Runs that do not tell the GPU's UUID are in
    the series of the only card of that identity, or one of their own where there are several. Where versions or the
    host change once, the series goes on; where they take turns, each is a series of its own. A cell that was not
    measured in a run has no point there.

    Raises:
        ResultsError: no such folder, no run in it that can be read, or none that measured a cell.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no such folder")
    problems: list[str] = []
    notes: list[str] = []
    places = {_name(path, folder): path for path in _run_folders(folder, problems)}
    runs = _once(read_runs(folder, places, problems), notes)
    if not runs:
        unread = f" that can be read; {problems[0]}" if problems else ""
        raise ResultsError(f"{folder}: no run there{unread}")
    if elsewhere := sum(run.elsewhere for run in runs):
        notes.append(f"{elsewhere} figures are left out: their runs went on on another set-up than they began on.")
    if not any(run.figures for run in runs):
        raise ResultsError(f"{folder}: no cell was measured in the runs there ({len(runs)})")
    cards = _only_cards(Identity(parts) for run in runs for parts in run.set_ups)
    devices: defaultdict[Parts, dict[Parts, list[Portion]]] = defaultdict(dict)
    identities: dict[Parts, Identity] = {}
    for place, run in enumerate(runs):
        for number, parts in enumerate(run.set_ups):
            identity = Identity(parts)
            identity = identity.having(cards.get(_bare(identity), {}))
            identities.setdefault(_parts(identity), identity)
            device = _parts(identity.without(*VERSIONS, HOST))
            devices[device].setdefault(_parts(identity), []).append((place, run, number))
    series = [
        _series([(portion, identities[parts]) for parts in chain for portion in portions[parts]])
        for portions in devices.values()
        for chain in _chains(portions)
    ]
    series.sort(key=lambda one: one.runs[-1].started_at, reverse=True)
    return History(tuple(series), tuple(problems), tuple(notes))


def _run_folders(folder: Path, problems: list[str]) -> Iterator[Path]:
    """Every folder that holds a run or what is left of one; links are not followed."""

    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be read: {error.strerror}")

    for path, folders, files in os.walk(folder, onerror=unreadable):
        folders.sort()
        if {RUN, JOURNAL} & {*files, *folders}:
            folders.clear()
            yield Path(path)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path != folder else path.resolve().name


def _once(read: Iterable[RunFigures], notes: list[str]) -> list[RunFigures]:
    """The runs in the order of time, each once."""
    runs: dict[str, RunFigures] = {}
    for run in read:
        known = runs.setdefault(run.entry.run_id, run)
        if known is not run:
            notes.append(f"{run.entry.name} is the run of {known.entry.name} once more, and counts once.")
    return sorted(runs.values(), key=lambda run: (run.entry.started_at, run.entry.name))


def _parts(identity: Identity) -> Parts:
    return frozenset(identity.parts.items())


def _bare(identity: Identity) -> Parts:
    """What it says besides the card, of any host, timer and cache."""
    return _parts(identity.without(GPU_UUID, HOST, "timer", "cache"))


def _only_cards(identities: Iterable[Identity]) -> dict[Parts, dict[str, str]]:
    """The GPU's UUID by what an identity says besides, where all that tell one tell the same."""
    told: defaultdict[Parts, set[str]] = defaultdict(set)
    for identity in identities:
        if uuid := identity.parts.get(GPU_UUID):
            told[_bare(identity)].add(uuid)
    return {bare: {GPU_UUID: uuid} for bare, uuids in told.items() if len(uuids) == 1 for uuid in uuids}


def _chains(portions: dict[Parts, list[Portion]]) -> list[list[Parts]]:
    """Which identities of a device follow each other in time, so that they make one series.

    One that begins after all runs of others goes on with the one that differs least from it, the latest of several.
    """
    chains: list[list[Parts]] = []
    for parts, (first, *_) in portions.items():  # in the order of their first runs
        ended = [chain for chain in chains if portions[chain[-1]][-1][0] < first[0]]
        if ended:
            nearest = min(ended, key=lambda chain: (len(chain[-1] ^ parts), -portions[chain[-1]][-1][0]))
            nearest.append(parts)
        else:
            chains.append([parts])
    return chains


def _series(portions: Sequence[tuple[Portion, Identity]]) -> RunSeries:
    cells: dict[str, Cell] = {}
    points: dict[str, list[Point]] = {}
    keys: dict[int, list[str]] = {}  # of the cells of a plan, which many runs share
    for (_, run, set_up), _ in portions:
        own = keys.setdefault(id(run.cells), [cell.key for cell in run.cells])
        for figure in run.figures:
            if figure.set_up == set_up:
                key = own[figure.cell]
                if key not in cells:
                    cells[key], points[key] = run.cells[figure.cell], []
                source = run.sources[figure.source]
                points[key].append(
                    Point(run.entry, figure.median_ms, figure.low_ms, figure.high_ms, figure.warnings, source)
                )
    starts = change_points([logarithms(own) for own in points.values()])
    trends = (
        Trend(cell, tuple(own), tuple(begins))
        for cell, own, begins in zip(cells.values(), points.values(), starts, strict=True)
    )
    entries = tuple(run.entry for (_, run, _), _ in portions)
    return RunSeries(portions[-1][1], entries, tuple(trends), tuple(identity for _, identity in portions))
