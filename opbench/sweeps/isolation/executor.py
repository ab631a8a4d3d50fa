"""Where cells run: in a worker process that may crash or be killed, or in this one."""

import os
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Protocol

from opbench.host.system import says_out_of_memory
from opbench.results.measurement import Measurement, Status
from opbench.sweeps.isolation.supervisor import can_fork
from opbench.sweeps.isolation.worker_process import SupervisorLost, WorkerDied, Workers
from opbench.sweeps.progress import OnStage
from opbench.workload.case import Cell

__all__ = ["Executor", "InProcessExecutor", "WorkerExecutor", "cell_limit_s"]

ENERGY_S = 30.0
"""What a cell's limit allows for its energy: at most one window of LONGEST_WINDOW_S, and what is before it."""
ENERGY = "energy"
"""The stage, and the option."""
START_LIMIT_S = 300.0
"""Most that importing torch may take, from a cold disk over a network."""


def cell_limit_s(time_budget_s: float, *, energy: bool = False) -> float:
    """Seconds after which a cell is a timeout: room to import, compile and check, and ten times its budget."""
    return 120 + 10 * time_budget_s + (ENERGY_S if energy else 0)


class Executor(Protocol):
    """Runs one cell after another."""

    def run(self, cell: Cell, on_stage: OnStage) -> Measurement:
        """Measure one cell; on_stage hears "set-up", "check", "build", "timing", "energy" and "check again"."""
        ...

    def renew(self) -> None:
        """Run the next cell in a process that shares nothing with those before."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


class InProcessExecutor:
    """Runs cells here: for debugging, for operators that are objects of this process, and for tests.

    Args:
        run_cell: as CellRunner.run.
    """

    def __init__(self, run_cell: Callable[[Cell, OnStage], Measurement]) -> None:
        self._run_cell = run_cell
        self._pid = os.getpid()

    def run(self, cell: Cell, on_stage: OnStage) -> Measurement:
        """Measure one cell in this process."""
        measurement = self._run_cell(cell, on_stage)
        if os.getpid() != self._pid:
            os._exit(0)  # the cell forked; its child must not go on with the sweep
        return measurement

    def renew(self) -> None:
        """This process is the only one."""

    def close(self) -> None:
        """Nothing to release."""


class WorkerExecutor:
    """Runs the cells of each operator and shape in a worker process of their own.

    A worker that dies or hangs costs its cell, and another one runs the next. Where it was measuring the cell's energy,
    another one measures the cell without.

    Args:
        options: as RunOptions.to_json gives them.
        limit_s: seconds after which a cell is killed and recorded as a timeout.
        workers: where they come from; a supervisor that was launched before is ready sooner.
        alone: (operator, provider) of those whose cells share no worker with other providers.
    """

    def __init__(
        self,
        options: dict[str, Any],
        limit_s: float,
        workers: Workers | None = None,
        alone: Collection[tuple[str, str]] = (),
    ) -> None:
        self._alone = alone
        self._options = options
        self._limit_s = limit_s
        self._workers = workers or Workers()
        self._group: tuple[object, ...] | None = None

    def run(self, cell: Cell, on_stage: OnStage) -> Measurement:
        """Measure one cell in the group's worker."""
        stage, started, limit_s = "start-up", time.monotonic(), START_LIMIT_S
        try:
            self._enter_group(cell)
            limit_s, started = self._limit_s, time.monotonic()
            self._workers.send(cell.to_json())
            while True:
                message = self._workers.receive(started + limit_s)
                if "stage" in message:
                    stage = str(message["stage"])
                    on_stage(stage)
                    continue
                measurement = Measurement.from_json(message["measurement"])
                if message["must_restart"]:
                    self._leave_group()
                return measurement
        except WorkerDied as death:
            self._group = None
            # Python may have had none left to handle the error with.
            no_memory = death.returncode == -signal.SIGKILL or says_out_of_memory(str(death))
            no_memory = no_memory or MemoryError.__name__ in str(death)
            status = Status.OUT_OF_MEMORY if no_memory else Status.ERROR
            reason = f"the worker process died in {stage}: {death}"
        except SupervisorLost as loss:
            self._group = None
            status, reason = Status.ERROR, f"the worker process was lost in {stage}: {loss}"
        except TimeoutError:
            self._leave_group()
            status, reason = Status.TIMEOUT, f"no result after {limit_s:g} s, in {stage}"
        except (ValueError, KeyError, TypeError) as error:
            self._leave_group()  # the cell wrote among the answers
            status, reason = Status.ERROR, f"the worker process answered nonsense in {stage}: {error!r:.200}"
        if stage == ENERGY:
            return self._without_energy(cell, on_stage, reason)
        return Measurement(cell, status, reason, seconds=time.monotonic() - started)

    def renew(self) -> None:
        """End the worker and the supervisor: workers forked from one supervisor have its memory layout in common."""
        self._leave_group()
        self._workers.close()

    def close(self) -> None:
        """Kill the worker, if there is one, and everything that it started."""
        self._group = None
        self._workers.close()

    def _without_energy(self, cell: Cell, on_stage: OnStage, reason: str) -> Measurement:
        """Measure a cell again that ended its worker in the last part of it, which is to cost no timing."""
        asked, self._options = self._options, {**self._options, ENERGY: False}
        try:
            measurement = self.run(cell, on_stage)
        finally:
            self._options = asked
            self._leave_group()
        return replace(measurement, reason="; ".join(filter(None, (measurement.reason, f"no energy: {reason}"))))

    def _enter_group(self, cell: Cell) -> None:
        """Have a worker that ran no other operator or shape, and where the provider needs it no other provider."""
        case = cell.case
        # Where each worker has to import torch anew, one serves until a cell ends it or leaves it changed.
        group: tuple[object, ...] = (case.operator, case.shape_list, case.shape) if can_fork() else ("every cell",)
        if (case.operator, cell.provider) in self._alone:
            group = (case.operator, case.shape_list, case.shape, cell.provider)
        if self._group == group:
            return
        if self._group:
            self._leave_group()
        self._workers.start()
        self._workers.send(self._options)
        self._workers.receive(time.monotonic() + START_LIMIT_S)
        self._group = group

    def _leave_group(self) -> None:
        self._group = None
        self._workers.kill()
