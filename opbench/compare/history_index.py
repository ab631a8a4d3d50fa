"""Reads the runs of a folder, on several cores, and keeps what it read: a run is read again once its files change.

The index is derived from the runs. It lies in the user's cache folder, and may be deleted at any time.
"""

import gc
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import NamedTuple, Self

from opbench.compare.run_figures import RunFigures
from opbench.errors import ResultsError, StorageError
from opbench.files import write_whole
from opbench.host.user_cache import user_cache_folder
from opbench.results.journal import JOURNAL
from opbench.results.run_json import RUN
from opbench.workload.case import Cell

__all__ = ["index_path", "read_runs"]

HEAD = json.dumps({"opbench history": 3})
"""First line of an index. The number changes with its lines, and with what RunFigures.of makes of a run."""

KEPT_FROM_BYTES = 2**24
"""Of the runs' files. Less is read again in a second or two, and no index is written."""

PARALLEL_FROM_BYTES = 2**26
"""Of the files to read. Below, starting processes costs more than they save."""

State = list[list[int]]
"""Of a run's files: size, and what else differs once one of them was replaced or written to."""


class _Entry(NamedTuple):
    """A run in the index: its line, and what that says."""

    line: str
    state: State
    plan: str
    run: RunFigures


@dataclass(slots=True)
class _Index:
    """The lines of an index.

    Attributes:
        plans: the line and the cells of each plan, by its digest.
        entries: of the runs, by their names.
    """

    plans: dict[str, tuple[str, tuple[Cell, ...]]] = field(default_factory=dict)
    entries: dict[str, _Entry] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The index in a file; an empty one where there is none, or one that cannot be used."""
        index = cls()
        try:
            head, *lines = path.read_text(encoding="utf-8").splitlines()
            if head == HEAD:
                for line in lines:
                    index.add(line)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls()
        return index

    def add(self, line: str) -> None:
        """Take a line; a plan comes before the runs that have it."""
        data = json.loads(line)
        if "cells" not in data:
            run = RunFigures.from_json(data, self.plans[data["plan"]][1])
            self.entries[data["name"]] = _Entry(line, data["state"], data["plan"], run)
        elif data["plan"] not in self.plans:
            self.plans[data["plan"]] = line, tuple(map(Cell.from_json, data["cells"]))

    def save(self, path: Path) -> None:
        """Write the file, where the cache can be written; without an index the runs are read again."""
        used = dict.fromkeys(entry.plan for entry in self.entries.values())
        lines = [HEAD, *(self.plans[plan][0] for plan in used), *(entry.line for entry in self.entries.values())]
        with suppress(OSError, StorageError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, "".join(f"{line}\n" for line in lines))


def index_path(folder: Path) -> Path:
    """Where the index of a folder is kept."""
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return user_cache_folder() / "opbench" / f"history-{digest}.jsonl"


def read_runs(folder: Path, places: Mapping[str, Path], problems: list[str]) -> list[RunFigures]:
    """What the cells of runs gave, in the order of `places`.

    Args:
        folder: the one that holds the runs.
        places: the runs' own folders by their names.
        problems: gets a line for each run that cannot be read; such a run is tried again each time.
    """
    known = _Index.load(index_path(folder))
    states = {name: _state(path) for name, path in places.items()}
    kept = {name: entry for name, entry in known.entries.items() if states.get(name) == entry.state}
    index = _Index(known.plans, kept)
    missing = [name for name in places if name not in kept]
    for lines, problem in _read_all([(name, places[name], states[name]) for name in missing]):
        problems += [problem] if problem else []
        for line in lines:
            index.add(line)
    if (missing or len(kept) < len(known.entries)) and sum(map(_bytes, states.values())) >= KEPT_FROM_BYTES:
        index.save(index_path(folder))
    return [index.entries[name].run for name in places if name in index.entries]


Task = tuple[str, Path, State]
"""A run to read: name, folder, and the state of its files before."""


def _read_all(tasks: Sequence[Task]) -> Iterator[tuple[list[str], str]]:
    """For each run the lines of the index, or the problem."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or sum(_bytes(state) for _, _, state in tasks) < PARALLEL_FROM_BYTES:
        yield from map(_read, tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of numpy's libraries half
    with ProcessPoolExecutor(min(cores, len(tasks)), context, initializer=_prepare) as pool:
        try:
            yield from pool.map(_read, tasks)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare() -> None:
    """Of a process that reads: Ctrl-C is for the one that waits for it, with which it ends in any case."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    gc.disable()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _read(task: Task) -> tuple[list[str], str]:
    name, path, state = task
    try:
        run = RunFigures.of(path, name)
    except ResultsError as error:
        return [], str(error)
    cells = json.dumps([cell.to_json() for cell in run.cells])
    plan = hashlib.sha256(cells.encode()).hexdigest()[:16]
    line = json.dumps({"name": name, "state": state, "plan": plan, **run.to_json()})
    return [f'{{"plan": "{plan}", "cells": {cells}}}', line], ""


def _state(path: Path) -> State:
    """Of the files that hold a run; taken before they are read, so that what is added meanwhile is read next time."""
    state: State = []
    for name in (RUN, JOURNAL):
        with suppress(OSError):
            found = (path / name).stat()
            state.append([found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns])
    return state


def _bytes(state: State) -> int:
    return sum(size for size, *_ in state)
