"""sentinels.jsonl: the cell that every card of a fleet measured before and after its own, to tell the cards apart."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from opbench.errors import ResultsError
from opbench.files import storage_errors
from opbench.results.measurement import Measurement
from opbench.text import one_line

__all__ = ["AFTER", "BEFORE", "SENTINELS", "Sentinel", "add_sentinels", "read_sentinels"]

SENTINELS = "sentinels.jsonl"
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, slots=True)
class Sentinel:
    """The cell on one card.

    Attributes:
        when: `before` or `after` the card's cells.
        measurement: with the card's origin.
    """

    when: str
    measurement: Measurement


def add_sentinels(folder: Path, found: Iterable[Sentinel]) -> None:
    """Append to the file of a run.

    Raises:
        StorageError: it cannot be written.
    """
    lines = "".join(
        f'{{"when": {json.dumps(one.when)}, "measurement": {one.measurement.to_json_line()}}}\n' for one in found
    )
    with storage_errors(folder / SENTINELS), (folder / SENTINELS).open("a", encoding="utf-8") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def read_sentinels(folder: Path) -> list[Sentinel]:
    """Those of a run; none where it has no fleet. A last line that a kill cut short is left out.

    Raises:
        ResultsError: the file cannot be read, or a line of it is none.
    """
    path = folder / SENTINELS
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: cannot be read: {one_line(str(error), 80)}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            data = json.loads(line)
            when = data["when"]
            if when not in (BEFORE, AFTER):
                raise ValueError(f"when must be {BEFORE} or {AFTER}, got {when!r:.40}")
            found.append(Sentinel(when, Measurement.from_json(data["measurement"])))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ResultsError(f"{path}:{number}: damaged line: {one_line(repr(error))}") from None
    return found
