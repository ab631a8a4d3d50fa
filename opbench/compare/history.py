"""The runs in a folder over time: which can be compared, what each cell took in them, and where it changed.

Reading needs neither torch nor a GPU.
"""

import gc
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from opbench.compare.change_points import change_points
from opbench.compare.history_index import read_runs
from opbench.compare.run_figures import RunFigures
from opbench.compare.trends import History, Point, RunSeries, Trend, logarithms
from opbench.device.identity import GPU_UUID, HOST, VERSIONS, Identity
from opbench.errors import ResultsError
from opbench.results.journal import JOURNAL
from opbench.results.run_json import RUN
from opbench.workload.case import Cell

__all__ = ["each_once", "history_of", "read_history", "run_folders"]

Parts = frozenset[tuple[str, str]]
"""Of an identity, as a key."""


class _Portion(NamedTuple):
    """Of a run what was timed in one way on one device: the run's place in time, Figure.set_up, and the identity."""

    place: int
    run: RunFigures
    set_up: int
    identity: Identity


@contextmanager
def _no_collections() -> Iterator[None]:
    """Without garbage collection, which would look at all the figures read so far, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collections()
def read_history(folder: Path) -> History:
    """Read every run below a folder and look for step changes, as history_of says.

    Raises:
        ResultsError: no such folder, no run in it that can be read, or none that measured a cell.
    """
    problems: list[str] = []
    notes: list[str] = []
    runs = each_once(read_runs(folder, run_folders(folder, problems), problems), notes)
    if not runs:
        unread = f" that can be read; {problems[0]}" if problems else ""
        raise ResultsError(f"{folder}: no run there{unread}")
    if not any(run.figures for run in runs):
        raise ResultsError(f"{folder}: no cell was measured in the runs there ({len(runs)})")
    return history_of(runs, problems, notes)


def history_of(runs: Sequence[RunFigures], problems: Iterable[str] = (), notes: Iterable[str] = ()) -> History:
    """Look for step changes in runs that were read, each once and in the order of time.

    A series is of one device, timer and cache (opbench.device.identity). Runs that do not tell the GPU's UUID are in
    the series of the only card of that identity, or one of their own where there are several. Where versions or the
    host change once, the series goes on; where they take turns, each is a series of its own. A cell that was not
    measured in a run has no point there.
    """
    notes = [*notes]
    if elsewhere := sum(run.elsewhere for run in runs):
        notes.append(f"{elsewhere} figures are left out: their runs went on on another set-up than they began on.")
    cards = _only_cards(Identity(parts) for run in runs for parts in run.set_ups)
    devices: defaultdict[Parts, list[_Portion]] = defaultdict(list)
    for place, run in enumerate(runs):
        for number, parts in enumerate(run.set_ups):
            identity = Identity(parts)
            identity = identity.having(cards.get(_bare(identity), {}))
            devices[_parts(identity.without(*VERSIONS, HOST))].append(_Portion(place, run, number, identity))
    series = [
        _series(portions)
        for of_device in devices.values()
        for of_host in _chains(of_device, (HOST,))
        for portions in _chains(of_host, VERSIONS)
    ]
    series.sort(key=lambda one: one.runs[-1].started_at, reverse=True)
    return History(tuple(series), tuple(problems), tuple(notes))


def run_folders(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Every folder at or below one that holds a run or what is left of one, by its path from there.

    Links are not followed; `problems` gets a line for each folder that cannot be read.

    Raises:
        ResultsError: no such folder.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no such folder")

    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be read: {error.strerror}")

    found = {}
    for path, folders, files in os.walk(folder, onerror=unreadable):
        folders.sort()
        if {RUN, JOURNAL} & {*files, *folders}:
            folders.clear()
            found[_name(Path(path), folder)] = Path(path)
    return found


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path != folder else path.resolve().name


def each_once(read: Sequence[RunFigures], notes: list[str]) -> list[RunFigures]:
    """The runs in the order of time, each once: also of those that a merged run was made of none."""
    runs: dict[str, RunFigures] = {}
    merged = {origin: run.entry.name for run in read for origin in run.origins}
    for run in read:
        if run.entry.run_id in merged:
            notes.append(f"{run.entry.name} is part of {merged[run.entry.run_id]}, and counts once.")
            continue
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


def _chains(portions: Iterable[_Portion], names: Sequence[str]) -> list[list[_Portion]]:
    """Which portions of a device make one series, as far as parts of the identity with these names tell.

    Those with equal parts do. Where they begin after all of others, they go on with those that differ least from them,
    the latest of several.
    """
    equal: dict[Parts, list[_Portion]] = {}
    for portion in portions:
        named = {name: portion.identity.parts[name] for name in names if name in portion.identity.parts}
        equal.setdefault(_parts(Identity(named)), []).append(portion)
    chains: list[tuple[Parts, list[_Portion]]] = []
    for parts, own in equal.items():  # in the order of their first runs
        ended = [number for number, (_, chain) in enumerate(chains) if chain[-1].place < own[0].place]
        if ended:
            nearest = min(ended, key=lambda number: (len(chains[number][0] ^ parts), -chains[number][1][-1].place))
            chains[nearest] = parts, [*chains[nearest][1], *own]
        else:
            chains.append((parts, own))
    return [chain for _, chain in chains]


def _series(portions: Sequence[_Portion]) -> RunSeries:
    cells: dict[str, Cell] = {}
    points: dict[str, list[Point]] = {}
    keys: dict[int, list[str]] = {}  # of the cells of a plan, which many runs share
    for _, run, set_up, _ in portions:
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
    entries = tuple(portion.run.entry for portion in portions)
    return RunSeries(portions[-1].identity, entries, tuple(trends), tuple(portion.identity for portion in portions))
