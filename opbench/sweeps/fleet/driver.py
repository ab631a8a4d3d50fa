"""Drives a sweep over the cards of a fleet; it alone writes the journals."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from opbench.device.identity import gpu_uuid, host_of
from opbench.results.journal import JournalWriter
from opbench.results.measurement import Measurement, Status
from opbench.results.run import Run
from opbench.sweeps.conduct import Conduct
from opbench.sweeps.fleet.fleet import Answer, Fleet, Lost, Stage
from opbench.sweeps.fleet.schedule import Schedule, Task
from opbench.sweeps.progress import FleetProgress, Progress
from opbench.sweeps.run_cells import is_due
from opbench.workload.cell_warning import CellWarning, WarningKind

__all__ = ["Card", "Driver", "Lane"]


@dataclass(frozen=True, slots=True)
class Card:
    """A card of the fleet.

    Attributes:
        name: `card-1` and so on; the same whenever the run goes on.
        origin: as lines of the journal name it.
        environment: of the device.
    """

    name: str
    origin: str
    environment: Mapping[str, Any]

    @property
    def node(self) -> str:
        """The machine, as in the column `host`."""
        return f"node {host_of(self.environment) or 'without a name'}"

    def __str__(self) -> str:
        """`card-1 (node 1f2e3d4c, NVIDIA H200, GPU-…)`."""
        parts = (self.node, str(self.environment["device_name"]), gpu_uuid(self.environment))
        return f"{self.name} ({', '.join(filter(None, parts))})"


class Lane:
    """A run that cards measure, with what is left of it.

    Args:
        run: which.
        journal: of the run, open.
        total: cells and repetitions of all lanes.
        first: number of its first cell among these.
    """

    def __init__(self, run: Run, journal: JournalWriter, total: int = 0, first: int = 1) -> None:
        self.run = run
        self.total = total or len(run.plan()) * int(run.command.get("repeat", 1))
        self._journal = journal
        self._first = first
        self._status = {(line.cell.key, line.repetition): line.status for line in run.measurements()}
        self._homes = {line.cell.key: line.origin for line in run.measurements() if line.origin}

    def schedule(self, repetition: int, conduct: Conduct, cards: Iterable[Card]) -> Schedule:
        """What is left of one repetition; of a later one each cell for the card that measured the one before."""
        plan = self.run.plan()
        tasks = [
            Task(cell, number, repetition)
            for number, cell in enumerate(plan, start=self._first + (repetition - 1) * len(plan))
            if is_due(self._status, cell.key, repetition, conduct.retry)
        ]
        names = {card.origin: card.name for card in cards}
        homes = {key: names.get(origin, "another card") for key, origin in self._homes.items()}
        return Schedule(tasks, homes if repetition > 1 else None)

    def write(self, measurement: Measurement) -> None:
        """Keep a line; it is on the disk when this returns."""
        self._journal.write(measurement)
        self._status[measurement.cell.key, measurement.repetition] = measurement.status
        self._homes[measurement.cell.key] = measurement.origin


class Driver:
    """Calls the cards of a fleet and hears them.

    Args:
        fleet: the cards.
        cards: the same, by their names in the fleet.
        progress: hears of every cell, of each card apart if it is a FleetProgress.
    """

    def __init__(self, fleet: Fleet, cards: Mapping[str, Card], progress: Progress) -> None:
        self._fleet = fleet
        self._cards = cards
        self._progress = progress
        self._of_card = {
            name: progress.card(card.name) if isinstance(progress, FleetProgress) else progress
            for name, card in cards.items()
        }

    @property
    def cards(self) -> dict[str, Card]:
        """Those that are not lost."""
        return {name: self._cards[name] for name in self._fleet.cards}

    def ask(self, method: str, *arguments: Any) -> dict[str, Any]:  # noqa: ANN401
        """Have every card do one thing; what each gave that was not lost over it."""
        given: dict[str, Any] = {}
        waiting = {*self._fleet.cards}
        for name in waiting:
            self._fleet.call(name, method, *arguments)
        while waiting:
            for event in self._fleet.wait():
                if isinstance(event, Stage):
                    self._of_card[event.card].stage(event.name)
                    continue
                waiting.discard(event.card)
                if isinstance(event, Answer):
                    given[event.card] = event.value
                else:
                    self._say_lost(event)
        return given

    def measure(self, lanes: Mapping[str, Lane], schedules: Mapping[str, Schedule]) -> None:
        """Measure until every schedule is empty, or no card that could go on is left.

        Args:
            lanes: of each card by its name in the fleet; cards may share one.
            schedules: likewise.
        """
        doing: dict[str, Task] = {}
        while True:
            for name in self._fleet.cards:
                if name not in doing and (task := schedules[name].next(self._cards[name].name)):
                    doing[name] = task
                    self._of_card[name].started(task.cell, task.number, lanes[name].total)
                    self._fleet.call(name, "run", task.cell.to_json())
            if not doing:
                return
            for event in self._fleet.wait():
                name, lane = event.card, lanes[event.card]
                if isinstance(event, Stage):
                    self._of_card[name].stage(event.name)
                elif isinstance(event, Answer):
                    task = doing.pop(name)
                    measurement = Measurement.from_json(json.loads(event.value))
                    if task.lost:
                        told = CellWarning(WarningKind.CARD_LOST, f"this is the second try; at the first, {task.lost}")
                        measurement = replace(measurement, warnings=(*measurement.warnings, told))
                    self._keep(name, lane, task, measurement)
                else:
                    self._lose(event, doing.pop(name, None), lane, schedules[name])

    def _lose(self, event: Lost, task: Task | None, lane: Lane, schedule: Schedule) -> None:
        """Write down which cell a card that is gone was measuring, for another to try it once more."""
        card = self._cards[event.card]
        why = f"{card.node} lost: {event.why} ({card.name})"
        again = schedule.lose(card.name, task, why)
        self._say_lost(event)
        if task:
            reason = f"{task.lost}; tried again: {why}" if task.lost else why
            self._keep(event.card, lane, task, Measurement(task.cell, Status.ERROR, reason))
        if again and not self.cards:
            self._progress.note("no card is left to try its cell once more")

    def _keep(self, name: str, lane: Lane, task: Task, measurement: Measurement) -> None:
        elsewhere = (CellWarning(WarningKind.RESUMED_ELSEWHERE, text) for text in lane.run.differences)
        kept = replace(
            measurement,
            repetition=task.repetition,
            origin=self._cards[name].origin,
            warnings=(*measurement.warnings, *elsewhere),
        )
        lane.write(kept)
        self._of_card[name].ended(kept)

    def _say_lost(self, event: Lost) -> None:
        left = len(self._fleet.cards)
        self._progress.note(
            f"{self._cards[event.card]} is lost: {event.why}; {left} card{'' if left == 1 else 's'} left"
        )
