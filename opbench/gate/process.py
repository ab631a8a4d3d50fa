"""Starts the fresh processes of the gate's arms, and reads what they measured."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opbench.case import Cell
from opbench.errors import GateError
from opbench.executor import START_LIMIT_S, cell_limit_s
from opbench.gate import arm as arm_program
from opbench.measurement import Measurement, Status, one_line
from opbench.stats import median

__all__ = ["Arm", "ArmProcess", "Launcher"]


@dataclass(frozen=True, slots=True)
class Arm:
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
        seconds: from start to end, importing included.
        failure: why it ended early; empty where it did not.
        plan: the arm's cells, where the process was asked to make the plan.
        identity: what must be equal to compare, likewise.
        environment: as collect_environment gives it, likewise.
    """

    measurements: Mapping[str, Measurement]
    sentinel: Mapping[str, float]
    seconds: float
    failure: str = ""
    plan: tuple[Cell, ...] = ()
    identity: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def median_ms(self, key: str) -> float | None:
        """A cell's figure; None where it was not measured or failed."""
        measurement = self.measurements.get(key)
        return median(measurement.latencies_ms) if measurement and measurement.status is Status.OK else None


class Launcher:
    """Runs processes of arms, one at a time.

    Args:
        options: what to measure and how, as make_request takes it.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)

    def run(self, arm: Arm, cells: Sequence[Cell] | None) -> ArmProcess:
        """Measure cells in a fresh process of an arm, in the order given; None for all that the arm plans.

        Raises:
            GateError: the arm cannot be measured at all: it does not start, or its opbench is another one.
        """
        count = 500 if cells is None else len(cells)
        limit_s = START_LIMIT_S + count * cell_limit_s(self._options.get("time_budget") or 1.0)
        request = {
            "protocol": arm_program.PROTOCOL,
            "options": self._options,
            "cells": None if cells is None else [cell.to_json() for cell in cells],
            "inject": dict(arm.inject),
        }
        with tempfile.TemporaryDirectory(prefix="opbench-gate-") as folder:
            answer = Path(folder) / "answer.jsonl"
            # -P: neither this program's folder nor the current one may shadow what the arm imports.
            command = [sys.executable, "-P", str(arm_program.__file__), str(answer)]
            started = time.monotonic()
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                cwd=folder,
                env=_environment(arm),
                start_new_session=True,  # Ctrl-C is ours to handle: the process must not die halfway by itself
            )
            try:
                _, errors = process.communicate(json.dumps(request), timeout=limit_s)
                failure = "" if process.returncode == 0 else _last_line(errors, process.returncode)
            except subprocess.TimeoutExpired:
                failure = f"it took longer than {limit_s:.0f} s"
            finally:
                _end(process)
            return _read(answer, failure, time.monotonic() - started, arm, planned=cells is None)


def _environment(arm: Arm) -> dict[str, str]:
    variables = dict(os.environ)
    if arm.place is not None:
        others = [variables["PYTHONPATH"]] if variables.get("PYTHONPATH") else []
        variables["PYTHONPATH"] = os.pathsep.join([str(arm.place), *others])
    variables["PYTHONDONTWRITEBYTECODE"] = "1"
    return variables


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill what is left of a process and of what it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, 9)
    process.wait()
    for pipe in (process.stdin, process.stderr):
        if pipe:
            with suppress(OSError):
                pipe.close()


def _last_line(errors: str, returncode: int) -> str:
    lines = [line for line in errors.splitlines() if line.strip()]
    return f"exit code {returncode}: {one_line(lines[-1]) if lines else 'no message'}"


def _read(answer: Path, failure: str, seconds: float, arm: Arm, *, planned: bool) -> ArmProcess:
    messages: dict[str, Any] = {}
    measurements = {}
    with suppress(FileNotFoundError), answer.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                break  # the process was killed while it wrote
            message = json.loads(line)
            if "measurement" in message:
                measurement = Measurement.from_json(message["measurement"])
                measurements[measurement.cell.key] = measurement
            else:
                messages |= message
    if not failure and not messages.get("end"):
        failure = "it ended without a word"
    if failure and planned and "plan" not in messages:
        raise GateError(f"{arm.label}: cannot be measured: {failure}")
    return ArmProcess(
        measurements=measurements,
        sentinel=messages.get("sentinel", {}),
        seconds=seconds,
        failure=failure,
        plan=tuple(Cell.from_json(cell) for cell in messages.get("plan", ())),
        identity=messages.get("identity", {}),
        environment=messages.get("environment", {}),
    )
