"""Runs rounds: a fresh process of each arm, which measure cell by cell in turns."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from opbench.gate.changes import Choice, choose, group_of
from opbench.gate.cooling import Cooling
from opbench.gate.process import ArmProcess, GateArm, OpenProcess
from opbench.sweeps.isolation.executor import START_LIMIT_S, cell_limit_s
from opbench.workload.case import Cell

__all__ = ["Launcher", "Planned"]


@dataclass(frozen=True, slots=True)
class Planned:
    """The plans of both arms, and what of them is measured.

    Attributes:
        processes: that made the plans, by arm; they measured nothing.
        choices: of the cells that both plan, by key.
    """

    processes: Mapping[str, ArmProcess]
    choices: Mapping[str, Choice]

    @property
    def measured(self) -> list[Cell]:
        """The cells to measure, in the order of the base's plan."""
        chosen = {key for key, choice in self.choices.items() if choice.measured}
        return [cell for cell in self.processes["base"].plan if cell.key in chosen]

    def lines(self) -> list[str]:
        """How it was decided: a line for each reason, with the operators and providers that it holds for."""
        groups: dict[Choice, Counter[str]] = {}
        for cell in self.processes["base"].plan:
            if choice := self.choices.get(cell.key):
                groups.setdefault(choice, Counter())[group_of(cell)] += 1
        return [
            f"{'measured' if choice.measured else 'unchanged'}, {choice.reason}: "
            + ", ".join(f"{name} ({count})" for name, count in counts.items())
            for choice, counts in groups.items()
        ]


class Launcher:
    """Runs rounds, one at a time.

    Both processes of a round live at once and take turns: the same cell in one, then at once in the other, the first
    of them alternating from cell to cell. What the machine does within seconds so falls on both alike.

    Args:
        options: what to measure and how, as make_request takes it.
        cooling: what to do where the device slows itself; replaced in tests.
    """

    def __init__(self, options: Mapping[str, Any], cooling: Cooling | None = None) -> None:
        self._options = dict(options)
        self._cooling = cooling or Cooling()
        self._cell_s = cell_limit_s(self._options.get("time_budget") or 1.0)

    def run(self, arms: Mapping[str, GateArm], cells: Sequence[Cell] | None, first: str) -> dict[str, ArmProcess]:
        """One round.

        Args:
            arms: by name.
            cells: in the order of measuring; None for all that each arm plans, in the order of its plan.
            first: name of the arm that measures the first cell first.

        Raises:
            GateError: an arm does not start.
            NotComparableError: its opbench and this one have no protocol in common.
        """
        started = time.monotonic()
        names = sorted(arms, key=lambda name: name != first)
        with self._started(arms, names) as processes:
            if cells is None:
                for process in processes.values():
                    process.make_plan()
                every = [cell for name in names for cell in processes[name].plan]
                cells = list({cell.key: cell for cell in every}.values())
            cooling = self._cooling
            cooling.able = all(process.conditions() for process in processes.values())
            steps: list[Cell | None] = [None, *cells, None]
            for number, step in enumerate(steps):
                for name in names if number % 2 == 0 else reversed(names):
                    processes[name].measure(step, self._cell_s, cooling)
                cooling.next_cell()
            each_s = (time.monotonic() - started) / len(names)
            return {name: process.result(each_s) for name, process in processes.items()}

    def plan(self, arms: Mapping[str, GateArm]) -> Planned:
        """The plans of both arms, and by their code which cells to measure; nothing is measured here.

        Raises:
            GateError, NotComparableError: as run.
        """
        started = time.monotonic()
        with self._started(arms, ("base", "head")) as processes:
            for process in processes.values():
                process.make_plan()
            sources = {name: process.further("sources", START_LIMIT_S) for name, process in processes.items()}
            both = {cell.key for cell in processes["base"].plan} & {cell.key for cell in processes["head"].plan}

            def kernels(key: str) -> dict[str, dict[str, Any]]:
                return {name: process.further("kernels", self._cell_s, key=key) for name, process in processes.items()}

            choices = choose([cell for cell in processes["base"].plan if cell.key in both], sources, kernels)
            each_s = (time.monotonic() - started) / len(processes)
            return Planned({name: process.result(each_s) for name, process in processes.items()}, choices)

    @contextmanager
    def _started(self, arms: Mapping[str, GateArm], names: Sequence[str]) -> Iterator[dict[str, OpenProcess]]:
        """A process of each arm, in the order of the names, that can be asked."""
        with ExitStack() as stack:
            processes = {name: stack.enter_context(OpenProcess(arms[name], self._options)) for name in names}
            for process in processes.values():
                process.ready()
            yield processes
