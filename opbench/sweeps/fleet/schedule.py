"""Which card measures which cell next. Pure."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from opbench.workload.case import Cell

__all__ = ["Schedule", "Task"]


@dataclass(frozen=True, slots=True)
class Task:
    """A cell to measure.

    Attributes:
        cell: which.
        number: its place among all that the sweep measures, from 1.
        repetition: as of Measurement.
        lost: the card that was lost while it measured the cell, with the node, in words; empty at the first try.
        lost_on: that card.
    """

    cell: Cell
    number: int
    repetition: int = 1
    lost: str = ""
    lost_on: str = ""

    @property
    def group(self) -> tuple[str, str]:
        """What stays on one card, so that it is compiled once: the operator and the shape."""
        return self.cell.case.operator, str(self.cell.case.shape)


class Schedule:
    """Hands out cells, each once; a cell whose card is lost once more, to another card.

    A card gets a whole group before it gets the next, the largest first, so that all end at about the same time.

    Args:
        tasks: what is to be measured.
        homes: by the key of a cell the card that measured it before, in another process; no other repeats it.
    """

    def __init__(self, tasks: Iterable[Task], homes: Mapping[str, str] | None = None) -> None:
        groups: dict[tuple[str, tuple[str, str]], deque[Task]] = {}
        for task in tasks:
            home = (homes or {}).get(task.cell.key, "")
            groups.setdefault((home, task.group), deque()).append(task)
        self._groups = sorted(((home, left) for (home, _), left in groups.items()), key=lambda pair: -len(pair[1]))
        self._own: dict[str, deque[Task]] = {}
        self._again: list[Task] = []

    def next(self, card: str) -> Task | None:
        """What a card that is free measures next; None where there is nothing for it now."""
        if own := self._own.get(card):
            return own.popleft()
        for task in self._again:
            if task.lost_on != card:
                self._again.remove(task)
                return task
        place = next((n for n, (home, _) in enumerate(self._groups) if home in ("", card)), None)
        if place is None:
            return None
        self._own[card] = self._groups.pop(place)[1]
        return self._own[card].popleft()

    def lose(self, card: str, task: Task | None, why: str) -> bool:
        """A card is gone: what it had not begun goes to others, and the cell that it was measuring once more.

        Args:
            card: which.
            task: the cell that it was measuring, if it was.
            why: how it was lost, in words.

        Returns:
            Whether the cell is tried again.
        """
        if own := self._own.pop(card, None):
            self._groups.insert(0, ("", own))
        if task is None or task.lost or task.repetition > 1:  # a repetition belongs on its own card
            return False
        self._again.append(replace(task, lost=why, lost_on=card))
        return True

    @property
    def left(self) -> list[Task]:
        """What was handed to nobody."""
        return [*self._again, *(task for own in self._own.values() for task in own), *(
            task for _, group in self._groups for task in group
        )]  # fmt: skip
