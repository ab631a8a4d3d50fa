"""Finds the one cell that words name: its whole key, or enough of its parts."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

from opbench.errors import UsageError
from opbench.sweeps.plan import applicability
from opbench.workload.case import Cell, Direction, Dtype, Level
from opbench.workload.operator import Operator

__all__ = ["choose", "parts_of_key", "usual_cell"]

PARTS_OF_A_KEY = 5
"""After the operator, without settings."""
SHOWN = 12
"""Cells that are listed where several are left."""

USUAL: tuple[Callable[[Cell], bool], ...] = (
    lambda cell: cell.case.level is Level.MODULE,
    lambda cell: cell.case.direction is Direction.FWD,
    lambda cell: cell.case.dtype is Dtype.FP32,
)
"""What is taken where words leave it open, as a sweep does."""


def parts_of_key(word: str) -> tuple[str, str, list[str]]:
    """Operator, shape list and settings, as `--ops`, `--shapes` and `--set` take them, of a cell's key.

    A word that is no key is an operator, with an empty shape list.
    """
    operator, *parts = word.rpartition("@")[0].split("/", 6)
    if len(parts) < PARTS_OF_A_KEY:
        return word, "", []
    settings = parts[5].split(";") if len(parts) > PARTS_OF_A_KEY else []
    return operator, parts[2], [f"{operator}.{setting}" for setting in settings]


def choose(words: Sequence[str], cells: Sequence[Cell]) -> list[Cell]:
    """The cells that the words leave: those whose key is the word, else those that have each word as a part.

    Raises:
        UsageError: no cell is left.
    """
    for cell in cells:
        if [cell.key] == [*words]:
            return [cell]
    left = [*cells]
    for word in words:
        named = [cell for cell in left if word in _parts(cell)]
        if not named:
            known = sorted({part for cell in left for part in _parts(cell)})
            near = get_close_matches(word, known, n=3)
            hint = f"; near it: {', '.join(near)}" if near else f"; there are {', '.join(known[:SHOWN])}"
            raise UsageError(f"no cell has the part {word!r}{hint}")
        left = named
    return left


def usual_cell(cells: Sequence[Cell], operators: Mapping[str, Operator], device_type: str) -> Cell:
    """The one of several that a sweep would take: module, forward, fp32, and the first provider that works here.

    Raises:
        UsageError: several are left all the same.
    """
    left = [*cells]
    for usual in USUAL:
        left = [cell for cell in left if usual(cell)] or left
    if len({cell.case for cell in left}) == 1:
        working = [cell for cell in left if _works(cell, operators, device_type)]
        return (working or left)[0]
    keys = [cell.key for cell in left]
    more = f"\n  and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    listed = "".join(f"\n  {key}" for key in keys[:SHOWN])
    raise UsageError(f"{len(keys)} cells have these parts; name one, or more of its parts:{listed}{more}")


def _parts(cell: Cell) -> tuple[str, ...]:
    case = cell.case
    settings = [f"{name}={value}" for name, value in case.settings]
    named = (case.operator, case.level, case.direction, case.shape_list, str(case.shape), case.dtype)
    return (*named, *settings, cell.provider)


def _works(cell: Cell, operators: Mapping[str, Operator], device_type: str) -> bool:
    operator = operators[cell.case.operator]
    return applicability(operator, operator.provider(cell.provider), cell.case, device_type) is None
