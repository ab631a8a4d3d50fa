"""What a reader of a run should be wary of, one line each."""

import json
from collections.abc import Mapping
from typing import Any

from opbench.device.identity import measured_revision
from opbench.report.cards import fleet_notes
from opbench.report.ceiling_table import BUSY_LOAD, busy_note
from opbench.report.cell_text import is_wide
from opbench.report.layout import group_rows
from opbench.report.notes import advice_notes, warning_notes
from opbench.report.value_text import count_cells
from opbench.results.measurement import Status
from opbench.results.row import Row, is_ok
from opbench.results.run import CEILINGS, Run

__all__ = ["run_warnings"]


def run_warnings(run: Run) -> list[str]:
    """Warnings of one run: uncertain cells, the machine's state, the code's state; suspicious cells have a list."""
    rows = run.rows()
    environment = run.environment
    return [
        *_row_warnings(rows),
        *advice_notes(rows, environment),
        *fleet_notes(run),
        *_environment_warnings(environment),
        *_ceiling_warnings(run),
    ]


def _row_warnings(rows: list[Row]) -> list[str]:
    warnings = []
    if wide := sum(is_ok(row) and is_wide(row) for row in rows):
        warnings.append(
            f"~: the median's 95 % interval is wider than ±5 % in {count_cells(wide)}: a busy machine, or too small a "
            "time budget."
        )
    if not_run := sum(row.status == Status.NOT_RUN for row in rows):
        warnings.append(f"{count_cells(not_run)} planned but not run: the run ended before.")
    return [*warnings, *(note for group in group_rows(rows) for note in warning_notes(group))]


def _environment_warnings(environment: Mapping[str, Any]) -> list[str]:
    cpu = environment.get("cpu") or {}
    warnings = []
    if "+dirty" in f"{environment.get('git_revision')}, {measured_revision(environment)}":
        warnings.append("The code differed from its revision (+dirty).")
    if processes := environment.get("other_gpu_processes"):
        warnings.append(f"{len(processes)} other processes were on the GPU when the run started.")
    if reason := environment.get("unusable_gpu"):
        warnings.append(f"A GPU was there and was not used: {reason}.")
    if (load := (cpu.get("load_average") or [0])[0]) >= BUSY_LOAD:
        warnings.append(f"The machine was busy when the run started (load {load:.2f}).")
    if environment.get("device") == "cpu" and cpu.get("governor") not in (None, "performance"):
        warnings.append(f"The CPU's governor was {cpu['governor']}, not performance.")
    return warnings


def _ceiling_warnings(run: Run) -> list[str]:
    if run.run_id == "published":
        return ["Published figures: not measured by this project; no samples, intervals, costs or limits."]
    if run.ceilings is not None:
        return busy_note(run.ceilings)
    path = run.path / CEILINGS
    if not path.exists():
        return ["No ceilings: the run holds no ceilings.json, so nothing is said about limits."]
    reason = json.loads(path.read_text(encoding="utf-8"))["reason"]  # run.ceilings has read it before
    return [f"No ceilings, so nothing is said about limits: {reason}"]
