"""sentinels.jsonl, a journal of its own: the cell that every card of a fleet measures before and after all others."""

from collections.abc import Iterable
from pathlib import Path

from opbench.results.journal import JournalReader, JournalWriter, open_journal
from opbench.results.measurement import Measurement

__all__ = ["AFTER", "BEFORE", "SENTINELS", "add_sentinels", "read_sentinels"]

SENTINELS = "sentinels.jsonl"
BEFORE, AFTER = "before", "after"
"""Shape lists of the cell, which tell the two apart."""


def add_sentinels(folder: Path, measured: Iterable[Measurement]) -> None:
    """Append lines, each with the card's origin, while the run's own journal is held.

    Raises:
        ResultsError: what is there is damaged.
        StorageError: it cannot be written.
    """
    path = folder / SENTINELS
    with open_journal(path) as file:
        journal = JournalWriter(file, path, whole=JournalReader(path).read().whole_bytes)
        for measurement in measured:
            journal.write(measurement)


def read_sentinels(folder: Path) -> tuple[Measurement, ...]:
    """Those of a run; none where it had no fleet. A last line that a kill cut short is left out.

    Raises:
        ResultsError: the file cannot be read, or a line of it is none.
    """
    path = folder / SENTINELS
    return JournalReader(path).read().measurements if path.exists() else ()
