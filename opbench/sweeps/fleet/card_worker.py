"""What runs beside a card, in a process of its own: it plans, and hosts the worker processes that run the card's cells.

Arguments and values are JSON, so that nodes with different versions of opbench come as far as saying so.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from opbench.errors import OpbenchError

__all__ = ["CardWorker"]

THREADS = "OMP_NUM_THREADS"


class CardWorker:
    """Serves the driver; each method is one call, and only `stage` may come during another."""

    def __init__(self) -> None:
        _undo_threads()
        self._stage = "start-up"
        self._environment: dict[str, Any] = {}

    def stage(self) -> str:
        """What it is doing."""
        return self._stage

    def prepare(self, options: dict[str, Any], command: dict[str, Any] | None, folder: str) -> dict[str, Any]:
        """What the options of a sweep stand for on this card: opbench.sweeps.start.Prepared, as JSON.

        Where they cannot be followed, {"refused": why}.

        Args:
            options: as `opbench.sweep` takes them.
            command: of the run to go on with.
            folder: where files that the options name lie, if the node has it.
        """
        from opbench.registry.places import resolve_ops
        from opbench.sweeps.start import prepare

        self._stage = "loading PyTorch"
        with suppress(OSError):
            os.chdir(folder)
        try:
            options, self._operators = resolve_ops(options)
            prepared = prepare(options, self._operators, command)
        except OpbenchError as error:
            return {"refused": str(error)}
        self._environment = dict(prepared.environment)
        return prepared.to_json()

    def open(self, command: dict[str, Any], providers: list[str]) -> None:
        """Have worker processes ready for cells.

        Args:
            command: of the run.
            providers: of its cells.
        """
        from opbench.sweeps.isolation.worker_process import Workers
        from opbench.sweeps.run_cells import worker_executor

        self._workers = Workers()
        self._executor = worker_executor(
            command, providers, self._operators, self._workers, command.get("cell_timeout_s")
        )
        self._workers.launch()

    def ceilings(self, budget_s: float | None) -> dict[str, Any] | str:
        """The card's ceilings, as Ceilings.to_json gives them; a text says why there are none."""
        from opbench.sweeps.ceiling_step import ceilings_for, default_budget_s

        self._stage = "measuring ceilings"
        budget_s = default_budget_s(self._environment["device"]) if budget_s is None else budget_s
        found = ceilings_for(self._environment, self._workers, budget_s)
        return found if isinstance(found, str) else found.to_json()

    def sentinel(self, when: str) -> str:
        """Measure the cell that every card measures, before or after the others; a line as of a journal."""
        from opbench.sweeps.fleet.sentinel import sentinel_cell

        return self._run(sentinel_cell(str(self._environment["device"]).partition(":")[0], self._operators, when))

    def run(self, cell: dict[str, Any]) -> str:
        """Measure a cell; a line as of a journal."""
        from opbench.workload.case import Cell

        return self._run(Cell.from_json(cell))

    def renew(self) -> None:
        """Have the next cells run in processes that share nothing with those before."""
        self._executor.renew()

    def _run(self, cell: Any) -> str:  # noqa: ANN401 - a Cell
        measurement = self._executor.run(cell, self._enter)
        self._stage = ""
        return measurement.to_json_line()

    def _enter(self, stage: str) -> None:
        self._stage = stage


def _undo_threads(initial: Path = Path("/proc/self/environ")) -> None:
    """Take back the number of threads that Ray sets for an actor, where the node's own environment has none.

    torch then chooses for the machine, as it does in a sweep without a fleet.
    """
    try:
        given = initial.read_bytes()
    except OSError:
        return
    if f"\0{THREADS}=".encode() not in b"\0" + given:
        os.environ.pop(THREADS, None)
