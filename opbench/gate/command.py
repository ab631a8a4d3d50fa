"""What `opbench gate` does: installs the arms, runs a session, keeps its data, and says what it found."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from opbench.compare.estimate import Estimate
from opbench.compare.verdicts import Comparison, Doubt
from opbench.device.ceiling_cache import device_cache_path
from opbench.device.environment import collect_environment
from opbench.device.resolve import resolve_device
from opbench.errors import ResultsError, StorageError, UsageError
from opbench.files import storage_errors, write_whole
from opbench.gate.cooling import cooling_notes
from opbench.gate.launcher import Launcher, Planned
from opbench.gate.process import GateArm, ProcessRecord
from opbench.gate.progress import GateProgress
from opbench.gate.revision import ProjectSource, find_source, installed, other_requirements, require_clean
from opbench.gate.selftest import SelfTest, SessionOutcome, run_sessions, summarise
from opbench.gate.session import Session, SessionSettings, run_session
from opbench.registry.families import are_networks
from opbench.registry.registry import registered
from opbench.results.run_json import free_run_path
from opbench.sweeps.native_dtypes import default_dtypes
from opbench.sweeps.option_fields import read_options
from opbench.sweeps.request import NETWORK_SHAPES, RunOptions
from opbench.sweeps.start import RESULTS

__all__ = ["GateRequest", "run_gate", "run_selftest", "with_defaults"]

GATE = "gate.json"
PROCESSES = "processes.jsonl"
SELFTEST = "selftest.json"
SHAPES = {"cuda": ("standard", "high_resolution"), "cpu": ("smoke",)}
"""Shape lists where none are named, by device type."""


@dataclass(frozen=True, slots=True)
class GateRequest:
    """What was asked of the gate.

    Attributes:
        options: of the sweep in each process, as make_request takes them.
        settings: of the session.
        changed_only: measure those cells alone whose code differs, or may.
        out: folder of the data, which must not hold a gate yet; None for a new one under results/.
        quiet, no_color: of the progress on standard error.
    """

    options: Mapping[str, Any]
    settings: SessionSettings
    changed_only: bool = False
    out: Path | None = None
    quiet: bool = False
    no_color: bool = False


class _Keeper(GateProgress):
    """Progress that also keeps every process, as it ends, in processes.jsonl."""

    def __init__(self, file: IO[str], path: Path, *, quiet: bool, no_color: bool) -> None:
        super().__init__(quiet=quiet, no_color=no_color)
        self._file = file
        self._path = path

    def process_ended(self, record: ProcessRecord) -> None:
        """Keep it."""
        super().process_ended(record)
        with storage_errors(self._path):
            self._file.write(record.to_json_line() + "\n")
            self._file.flush()


def with_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a sweep with the defaults that a revision, or a probe of the machine, could choose otherwise.

    Both arms then measure the same cells. On the CPU they are small: a gate runs dozens of processes.

    Raises:
        UsageError: no such device, or threads that cannot be.
    """
    read_options(RunOptions, {"threads": options.get("threads")})  # refused as by a sweep
    device_type = resolve_device(options.get("device", "auto")).partition(":")[0]
    dtypes = {} if "dtypes" in options else {"dtypes": [str(dtype) for dtype in default_dtypes(device_type).dtypes]}
    shapes = NETWORK_SHAPES if are_networks(options.get("ops") or (), registered()) else SHAPES
    return {"shapes": list(shapes[device_type]), **dtypes, **options}


def run_gate(base: str, head: str, request: GateRequest) -> tuple[Comparison, Path]:
    """Install both revisions, measure them in turns, and keep the data in a folder; gives the folder too.

    Args:
        base, head: each a revision of the repository of the current folder, or a project's folder.
        request: how.

    Raises:
        UsageError: a revision or folder that is none, or changes that are not committed.
        GateError: a revision cannot be installed or measured.
        StorageError: the data cannot be kept.
    """
    sources = {"base": find_source(base, Path.cwd()), "head": find_source(head, Path.cwd())}
    require_clean(sources["head"])
    out = _new_folder(request.out)
    path = out / PROCESSES
    with tempfile.TemporaryDirectory(prefix="opbench-gate-") as work, ExitStack() as stack:
        with storage_errors(path):
            file = stack.enter_context(path.open("x", encoding="utf-8"))
        keeper = stack.enter_context(_Keeper(file, path, quiet=request.quiet, no_color=request.no_color))
        keeper.say(f"installing {sources['base'].described} and {sources['head'].described}")
        places = stack.enter_context(installed(sources, Path(work)))
        requirements = other_requirements(places)
        arms = {name: GateArm(source.described, places[name]) for name, source in sources.items()}
        launcher = Launcher(request.options)
        planned = launcher.plan(arms) if request.changed_only else None
        for line in planned.lines() if planned else ():
            keeper.say(line)
        session = run_session(arms["base"], arms["head"], launcher.run, request.settings, keeper, planned)
    environment = session.records[0].process.environment
    notes = [*_notes(session), *_requirement_notes(requirements)]
    processes = [(record.process.pauses, record.process.measurements.values()) for record in session.records]
    notes += cooling_notes(processes)
    if any(record.process.measurements for record in session.records):
        notes += _selftest_notes(session, request.settings, environment)
    comparison = replace(session.comparison, notes=(*session.comparison.notes, *notes))
    _write_gate(out, request, sources, environment, comparison, planned)
    return comparison, out


def run_selftest(
    inject: Sequence[float], sessions: int, request: GateRequest
) -> tuple[SelfTest, list[SessionOutcome], Path]:
    """Sessions with a known truth on this machine; what they show is kept for the warnings of later gates.

    Args:
        inject: fractions by which an operator is slowed.
        sessions: of A/A and of each fraction.
        request: how; its folder may hold sessions of the same self-test, which are not run again.

    Raises:
        UsageError: the folder's sessions were run otherwise.
        GateError, StorageError: as run_gate.
    """
    out = request.out or free_run_path(RESULTS, "selftest")
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    launcher = Launcher(request.options)
    asked = {"options": dict(request.options), "settings": request.settings.to_json()}
    _require_same_selftest(out / SELFTEST, asked)
    if not (out / SELFTEST).exists():  # sessions that another call adds must be of the same kind
        write_whole(out / SELFTEST, json.dumps(asked, indent=1, ensure_ascii=False) + "\n")
    with GateProgress(quiet=request.quiet, no_color=request.no_color) as progress:

        def on_session(number: int, fraction: float, operator: str) -> GateProgress:
            what = f"{operator} {fraction:+.0%}" if operator else "A/A"
            progress.heading = f"session {number + 1} of {sessions}, {what}: "
            return progress

        outcomes = run_sessions(launcher.run, inject, sessions, request.settings, out, on_session)
    result = summarise(outcomes, request.settings.rules)
    environment = collect_environment(request.options.get("device"), request.options.get("threads"))
    kept = {**asked, "environment": environment, "result": result.to_json()}
    text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
    write_whole(out / SELFTEST, text)
    path = device_cache_path("selftest", environment)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except (OSError, StorageError):
        pass  # a cache that cannot be written is no reason to fail
    return result, outcomes, out


def _new_folder(out: Path | None) -> Path:
    if out is None:
        return free_run_path(RESULTS, "gate")
    if (out / PROCESSES).exists() or (out / GATE).exists():
        raise ResultsError(f"{out}: a gate was run there already; choose another --out")
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


def _write_gate(
    out: Path,
    request: GateRequest,
    sources: Mapping[str, ProjectSource],
    environment: Mapping[str, Any],
    comparison: Comparison,
    planned: Planned | None,
) -> None:
    kept = {
        "schema_version": 1,
        "arms": {name: {"label": source.label, "commit": source.commit} for name, source in sources.items()},
        "options": dict(request.options),
        "settings": request.settings.to_json(),
        **({"choices": {key: asdict(choice) for key, choice in planned.choices.items()}} if planned else {}),
        "environment": environment,
        "verdict": comparison.verdict,
        "reason": comparison.reason,
        "notes": comparison.notes,
        "cells": [
            {
                "cell": row.cell.key, "verdict": row.verdict, "reason": row.reason, "base_ms": row.base_ms,
                "head_ms": row.head_ms, "change": _ratio(row.change) if row.change else None,
                "base_source": row.base_source, "head_source": row.head_source, "warnings": [*map(str, row.warnings)],
                **({"doubt": _doubt(row.doubt)} if row.doubt else {}),
            }
            for row in comparison.cells
        ],
    }  # fmt: skip
    write_whole(out / GATE, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def _doubt(doubt: Doubt) -> dict[str, float | None]:
    """Without the samples, which processes.jsonl has."""
    return {name: getattr(doubt, name) for name in ("spread", "rounds", "more_rounds", "more_s")}


def _ratio(change: Estimate) -> dict[str, float]:
    return {"ratio": change.value, "low": change.low, "high": change.high}


def _notes(session: Session) -> list[str]:
    if not any(record.process.measurements for record in session.records):
        return []
    rounds = {stage: sum(r.stage == stage for r in session.records) // 2 for stage in ("screen", "confirm")}
    confirmed = next((len(r.process.measurements) for r in session.records if r.stage == "confirm"), 0)
    return [
        f"{rounds['screen']} rounds on every cell, {rounds['confirm']} more on {confirmed}; a round is one fresh "
        f"process of each arm; {session.seconds / 60:.1f} minutes"
    ]


def _requirement_notes(requirements: Sequence[str]) -> list[str]:
    if not requirements:
        return []
    return [
        f"the revisions declare other dependencies ({', '.join(requirements)}); both arms run with what is installed "
        "here, so that a gate cannot show what these change"
    ]


def _selftest_notes(session: Session, settings: SessionSettings, environment: Mapping[str, Any]) -> list[str]:
    """Warnings where this machine cannot do what was asked, as far as a self-test has shown it."""
    path = device_cache_path("selftest", environment)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["result"]
        tolerance, minutes, cells = (float(known[name]) for name in ("tolerance", "minutes", "cells"))
        detectable = float(known["detectable"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return ["no self-test on this machine yet: `opbench gate --selftest` shows what it can detect"]
    notes = [f"by its self-test this machine detects slow-downs of about {detectable:.1%} in a typical cell"]
    if settings.rules.tolerance < tolerance:
        notes.append(
            f"warning: a tolerance of {settings.rules.tolerance:.1%} is finer than this machine can show; "
            f"its self-test recommends {tolerance:.1%}"
        )
    if settings.budget_s is not None and cells:
        count = len(session.comparison.cells)
        if settings.budget_s / 60 < minutes * count / cells:
            notes.append(f"warning: the budget is below the {minutes:.0f} minutes that its self-test recommends")
    return notes


def _require_same_selftest(path: Path, asked: Mapping[str, Any]) -> None:
    if not path.exists():
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        same = all(there[name] == json.loads(json.dumps(value)) for name, value in asked.items())
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path}: damaged: {error!r}") from None
    if not same:
        raise UsageError(f"{path.parent}: holds a self-test with other options; choose another --out")
