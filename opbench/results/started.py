"""started.json: the cell that a sweep measures in its own process at this moment.

A process that a cell ends leaves the file behind: whoever goes on with the run then knows the cell, and leaves it out.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from opbench.files import storage_errors
from opbench.workload.case import Cell

__all__ = ["STARTED", "LeftCell", "forget_left_cell", "left_cell", "noted"]

STARTED = "started.json"


class LeftCell(NamedTuple):
    """A cell without an end: its key, and the stage at which it was seen last."""

    key: str
    stage: str


@contextmanager
def noted(folder: Path, cell: Cell) -> Iterator[Callable[[str], None]]:
    """Keep the file while a cell runs; whatever ends it without ending the process removes the file.

    Yields:
        What notes the cell's stage.

    Raises:
        StorageError: the file cannot be written.
    """
    path = folder / STARTED

    def note(stage: str) -> None:
        with storage_errors(path):
            path.write_text(json.dumps(LeftCell(cell.key, stage)._asdict()) + "\n", encoding="utf-8")

    note("set-up")
    try:
        yield note
    finally:
        forget_left_cell(folder)


def left_cell(folder: Path) -> LeftCell | None:
    """The cell that ended the process before; None where there was none, or where the file says nothing."""
    try:
        found = json.loads((folder / STARTED).read_text(encoding="utf-8"))
        return LeftCell(str(found["key"]), str(found["stage"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_left_cell(folder: Path) -> None:
    """Remove the file, once its cell has a row.

    Raises:
        StorageError: it cannot be removed.
    """
    path = folder / STARTED
    with storage_errors(path):
        path.unlink(missing_ok=True)
