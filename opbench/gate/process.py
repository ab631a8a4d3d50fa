"""A process of an arm: how it is started and asked, and what it measured."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Self, cast

from opbench.device.snapshots import GATE_VARIABLE
from opbench.errors import GateError, NotComparableError
from opbench.gate import arm as arm_program
from opbench.gate.cooling import Cooling, Pauses
from opbench.results.measurement import Measurement, Status
from opbench.stats import median
from opbench.sweeps.isolation.executor import START_LIMIT_S
from opbench.text import one_line
from opbench.workload.case import Cell

__all__ = ["ArmProcess", "GateArm", "OpenProcess", "ProcessRecord"]

CONDITIONS_LIMIT_S = 30.0
LAST_WORDS_S = 10.0
"""Most that may pass between the end of a process's answers and its death."""


@dataclass(frozen=True, slots=True)
class GateArm:
    """One side of a gate.

    Attributes:
        label: a revision or a folder, as it was given.
        place: folder that the revision is installed in; None for the opbench that runs.
        inject: operators that are slowed on purpose, with the fraction.
    """

    label: str
    place: Path | None = None
    inject: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ArmProcess:
    """What one process measured.

    Attributes:
        measurements: by cell key, in the order in which they were measured.
        sentinel: milliseconds by name; empty where the process ended early.
        seconds: its share of the round, importing included.
        failure: why it ended early; empty where it did not.
        plan: the arm's cells, where the process was asked to make the plan.
        identity: what must be equal to compare, likewise.
        environment: as collect_environment gives it, likewise.
        pauses: for a GPU that slowed itself.
    """

    measurements: Mapping[str, Measurement]
    sentinel: Mapping[str, float]
    seconds: float
    failure: str = ""
    plan: tuple[Cell, ...] = ()
    identity: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    pauses: Pauses = field(default_factory=Pauses)

    def median_ms(self, key: str) -> float | None:
        """A cell's figure; None where it was not measured or failed."""
        measurement = self.measurements.get(key)
        return median(measurement.latencies_ms) if measurement and measurement.status is Status.OK else None


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process of a session, as processes.jsonl keeps it."""

    stage: str
    """plan (of `--changed-only`, which measures nothing then), setup, screen or confirm."""
    round: int
    arm: str
    """base or head."""
    process: ArmProcess

    def to_json_line(self) -> str:
        """One line of JSON: raw latencies in milliseconds, none rounded, the order of the cells kept."""
        process = self.process
        cells = {
            key: {
                "status": str(measurement.status),
                "reason": measurement.reason,
                "source": measurement.kernel_source_hash,
                "warnings": [*map(str, measurement.warnings)],
                "latencies_ms": list(measurement.latencies_ms),
            }
            for key, measurement in process.measurements.items()
        }
        return json.dumps(
            {
                "stage": self.stage, "round": self.round, "arm": self.arm, "seconds": round(process.seconds, 3),
                "failure": process.failure, "sentinel": process.sentinel, "cells": cells,
                **({"pauses": asdict(process.pauses)} if process.pauses != Pauses() else {}),
            },
            ensure_ascii=False,
        )  # fmt: skip


class OpenProcess:
    """One process of an arm, from its start to its end."""

    def __init__(self, arm: GateArm, options: Mapping[str, Any]) -> None:
        self.failure = ""
        self.cells: dict[str, Cell] | None = None
        """What it plans, by key, where it was asked for that."""
        self._heard: dict[str, Any] = {}
        self._first = {"options": dict(options), "inject": dict(arm.inject)}
        self._arm = arm
        self._measurements: dict[str, Measurement] = {}
        self._sentinel: dict[str, list[float]] = {}
        self._unread = b""
        self._pauses = Pauses()

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="opbench-gate-")
        self._answers, theirs = os.pipe()
        self._errors = Path(self._folder.name) / "errors"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                # -P: neither this program's folder nor the current one may shadow what the arm imports.
                [sys.executable, "-P", str(arm_program.__file__), str(theirs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=self._folder.name,
                env=_environment(self._arm),
                pass_fds=(theirs,),
                start_new_session=True,  # Ctrl-C is ours to handle: the process must not die halfway by itself
            )
        os.close(theirs)
        self._send(self._first)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(OSError):
            cast(IO[bytes], self._process.stdin).close()
        os.close(self._answers)
        self._folder.cleanup()

    @property
    def plan(self) -> tuple[Cell, ...]:
        """What it said that it plans."""
        return tuple((self.cells or {}).values())

    def ready(self) -> None:
        """Wait until it can be asked.

        Raises:
            NotComparableError: its opbench and this one have no protocol in common.
        """
        answer = self.ask(None, START_LIMIT_S)
        if "not_comparable" in answer:
            raise NotComparableError(f"{self._arm.label}: {answer['not_comparable']}")

    def make_plan(self) -> None:
        """Have it say what it plans.

        Raises:
            GateError: it does not.
        """
        self.ask({"do": "plan"}, START_LIMIT_S)
        if self.cells is None:
            raise GateError(f"{self._arm.label}: cannot be measured: {self.failure}")

    def further(self, method: str, limit_s: float, **arguments: str) -> dict[str, Any]:
        """What a method of Served gives that its opbench may lack: nothing then."""
        return self.ask({"do": method, "with": arguments}, limit_s)

    def conditions(self) -> dict[str, Any]:
        """Of its GPU, now; nothing on the CPU, or where its opbench cannot tell or could not take samples in bursts."""
        return self.further("conditions", CONDITIONS_LIMIT_S)

    def measure(self, cell: Cell | None, limit_s: float, cooling: Cooling) -> None:
        """Measure a cell, or the sentinel; nothing where the process has failed, or plans no such cell.

        Args:
            cell: which; None for the sentinel.
            limit_s: seconds for the answer.
            cooling: says whether to wait first, and to take the samples in bursts; hears of what was measured.
        """
        cooling.wait(self.conditions, self._pauses)
        if cell is None:
            for name, taken in self.ask({"do": "sentinel"}, limit_s).get("sentinel", {}).items():
                self._sentinel.setdefault(name, []).extend(taken)
        elif self.cells is None or cell.key in self.cells:  # by key: what a cell costs may be counted otherwise there
            answer = self.ask({"do": "cell", "key": cell.key, "bursts": cooling.in_bursts}, limit_s)
            self._pauses.cells_in_bursts += cooling.in_bursts
            if "measurement" in answer:
                with self._reading():
                    measurement = Measurement.from_json(answer["measurement"])
                    self._measurements[cell.key] = measurement
                    cooling.look(measurement)

    def ask(self, request: Mapping[str, Any] | None, limit_s: float) -> dict[str, Any]:
        """What the process answers; {} where it has failed. None waits for the answer to what was sent first."""
        if self.failure:
            return {}
        if request is not None:
            self._send(request)
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._unread:
            wait_s = deadline - time.monotonic()
            if wait_s <= 0 or not select.select([self._answers], [], [], wait_s)[0]:
                self.failure = f"no answer within {limit_s:.0f} s"
                return {}
            data = os.read(self._answers, 2**16)
            if not data:
                self.failure = self._last_words()
                return {}
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "plan" in answer:
            with self._reading():
                self.cells = {cell.key: cell for cell in map(Cell.from_json, answer["plan"])}
            self._heard = answer
        return answer

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Around what reads an answer of the arm's opbench, which may be a newer one."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NotComparableError(
                f"{self._arm.label}: this opbench cannot read what that one answers: {one_line(repr(error))}"
            ) from None

    def result(self, seconds: float) -> ArmProcess:
        """What it measured."""
        return ArmProcess(
            measurements=self._measurements,
            sentinel={name: median(taken) for name, taken in self._sentinel.items()} if not self.failure else {},
            seconds=seconds,
            failure=self.failure,
            plan=self.plan,
            identity=self._heard.get("identity", {}),
            environment=self._heard.get("environment", {}),
            pauses=self._pauses,
        )

    def _send(self, request: Mapping[str, Any]) -> None:
        stdin = cast(IO[bytes], self._process.stdin)
        with suppress(BrokenPipeError):  # why it ended shows when its answer is read
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()

    def _last_words(self) -> str:
        try:
            returncode = self._process.wait(timeout=LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            return "it closed its answers"
        lines = [line for line in self._errors.read_text(errors="replace").splitlines() if line.strip()]
        return f"exit code {returncode}: {one_line(lines[-1]) if lines else 'no message'}"


def _environment(arm: GateArm) -> dict[str, str]:
    variables = dict(os.environ)
    if arm.place is not None:
        others = [variables["PYTHONPATH"]] if variables.get("PYTHONPATH") else []
        variables["PYTHONPATH"] = os.pathsep.join([str(arm.place), *others])
    variables["PYTHONDONTWRITEBYTECODE"] = "1"
    variables[GATE_VARIABLE] = str(os.getpid())
    return variables
