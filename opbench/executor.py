"""Where cells run: in a worker process that may crash or be killed, or in this one."""

import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Protocol

from opbench.case import Cell
from opbench.measurement import Measurement, Status

__all__ = ["Executor", "InProcessExecutor", "WorkerExecutor", "cell_limit_s"]

OnStage = Callable[[str], None]


def cell_limit_s(time_budget_s: float) -> float:
    """Seconds after which a cell is a timeout: room to import, compile and check, and ten times its budget."""
    return 120 + 10 * time_budget_s


class Executor(Protocol):
    """Runs one cell after another."""

    def run(self, cell: Cell, on_stage: OnStage) -> Measurement:
        """Measure one cell; on_stage hears "set-up", "check", "build" and "timing"."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


class InProcessExecutor:
    """Runs cells here: for operators that are objects of this process, and for tests.

    Args:
        run_cell: as CellRunner.run.
    """

    def __init__(self, run_cell: Callable[[Cell, OnStage], Measurement]) -> None:
        self._run_cell = run_cell

    def run(self, cell: Cell, on_stage: OnStage) -> Measurement:
        """Measure one cell in this process."""
        return self._run_cell(cell, on_stage)

    def close(self) -> None:
        """Nothing to release."""


class WorkerExecutor:
    """Runs cells in `python -m opbench.worker`, started when needed and replaced when it dies or hangs.

    Args:
        options: as RunOptions.to_json gives them.
        limit_s: seconds after which a cell is killed and recorded as a timeout.
        command: the worker; replaced in tests.
    """

    def __init__(self, options: dict[str, Any], limit_s: float, command: tuple[str, ...] = ()) -> None:
        # -P keeps the current folder off the path: a stray torch.py there must not be imported.
        self._command = command or (sys.executable, "-P", "-m", "opbench.worker")
        self._options = options
        self._limit_s = limit_s
        self._worker: _Worker | None = None

    def run(self, cell: Cell, on_stage: OnStage) -> Measurement:
        """Measure one cell in the worker."""
        started = time.monotonic()
        deadline = started + self._limit_s
        stage = "start-up"
        try:
            worker = self._ready_worker(deadline)
            worker.send(cell.to_json())
            while True:
                message = worker.receive(deadline)
                if "stage" in message:
                    stage = message["stage"]
                    on_stage(stage)
                elif "measurement" in message:
                    if message["device_broken"]:
                        self.close()
                    return Measurement.from_json(message["measurement"])
        except _WorkerDied as death:
            self.close()
            status = Status.OUT_OF_MEMORY if death.killed else Status.ERROR
            return Measurement(
                cell,
                status,
                f"the worker process died in {stage}: {death}",
                seconds=time.monotonic() - started,
            )
        except TimeoutError:
            self.close()
            return Measurement(
                cell,
                Status.TIMEOUT,
                f"no result after {self._limit_s:g} s, in {stage}",
                seconds=self._limit_s,
            )

    def close(self) -> None:
        """Kill the worker, if there is one."""
        if self._worker:
            self._worker.kill()
            self._worker = None

    def _ready_worker(self, deadline: float) -> "_Worker":
        if self._worker is None:
            self._worker = _Worker(self._command)
            self._worker.send(self._options)
            self._worker.receive(deadline)
        return self._worker


class _WorkerDied(Exception):  # noqa: N818 - an event, not an error of the caller
    """The worker ended without an answer.

    Attributes:
        killed: by SIGKILL, which is what the kernel sends when memory runs out.
    """

    def __init__(self, returncode: int, last_words: str) -> None:
        self.killed = returncode == -signal.SIGKILL
        how = f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"
        hint = ", which the system sends when memory runs out" if self.killed else ""
        super().__init__(f"{how}{hint}" + (f" ({last_words})" if last_words else ""))


class _Worker:
    """One worker process with its pipes."""

    def __init__(self, command: tuple[str, ...]) -> None:
        # The worker lives as long as this object, which kill() ends.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C reaches only the sweep, which then ends the worker
        )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert self._process.stdout is not None  # noqa: S101 - follows from PIPE, for the type checker
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def send(self, message: dict[str, Any]) -> None:
        """Write one line to the worker."""
        assert self._process.stdin is not None  # noqa: S101
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next line from the worker; TimeoutError after the deadline."""
        try:
            line = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None
        if not line:
            raise self._death()
        message: dict[str, Any] = json.loads(line)
        return message

    def kill(self) -> None:
        """End the process at once and release its pipes."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe:
                with suppress(BrokenPipeError):  # a dead worker never read what was sent last
                    pipe.close()

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            self._answers.put(line)
        self._answers.put("")

    def _death(self) -> _WorkerDied:
        returncode = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return _WorkerDied(returncode, lines[-1][:300] if lines else "")
