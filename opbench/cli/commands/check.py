"""`opbench check`."""

import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opbench.cli.shared import (
    EXIT_FAILED_CELLS,
    NoColor,
    interrupt_on_termination,
    shows_tracebacks,
    stdout,
)
from opbench.cli.sweep_flags import takes_sweep_flags
from opbench.host.system import require_unix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opbench.contract.contract import Finding
    from opbench.results.measurement import Measurement
    from opbench.sweeps.conduct import Conduct
    from opbench.sweeps.request import SweepRequest
    from opbench.workload.operator import Operator

__all__ = ["register"]

TIME_BUDGET_S = 0.01
"""Sampling time of a cell: what is timed must run as often as in a sweep, its figures are not shown."""


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(takes_sweep_flags(check))


def check(
    *,
    target: Annotated[
        str,
        typer.Argument(metavar="OPERATOR", help="MODULE:OPERATOR or FILE.py, where it is; or a registered one's name."),
    ],
    options: dict[str, Any],
    no_color: NoColor = False,
) -> None:
    """Check an operator that you write: its inputs, reference, gradients and costs, and every provider's values.

    Runs at small shapes, and keeps and times nothing for later.

    Exit codes: 0 all fine, 1 something is wrong, 2 it cannot be loaded, or usage, 130 interrupted.
    """
    require_unix("opbench check")
    interrupt_on_termination()
    isolation = options.get("isolation")
    from opbench.registry.families import are_networks
    from opbench.registry.places import resolve_ops
    from opbench.sweeps.conduct import make_conduct
    from opbench.sweeps.request import NETWORK_SHAPES, make_request
    from opbench.workload.case import NETWORK_LEVELS, OPERATOR_DIRECTIONS, OPERATOR_LEVELS

    asked, known = resolve_ops({**options, "ops": [target], "time_budget": TIME_BUDGET_S})
    networks = are_networks(asked["ops"], known)
    asked = {
        "shapes": list(NETWORK_SHAPES["cpu"]) if networks else ["smoke"],
        "level": list(NETWORK_LEVELS if networks else OPERATOR_LEVELS),
        "dtypes": ["fp32", "fp16", "bf16"],
        "direction": list(OPERATOR_DIRECTIONS),
        **asked,
    }
    asked.setdefault("providers", [f"{name}=all" for name in asked["ops"] if name in known])
    request = make_request(asked, known)
    findings = [found for name in request.ops for found in _contract(known[name], request)]
    unplanned = {found.operator for found in findings if found.reason and found.part in ("description", "costs")}
    request = _without(request, unplanned)
    conduct = make_conduct(options)
    measurements = _run(request, known, conduct, no_color=no_color) if request.ops else []
    wrong = _show(asked["ops"], findings, measurements, traceback=shows_tracebacks(isolation), no_color=no_color)
    sys.exit(EXIT_FAILED_CELLS if wrong else 0)


def _contract(operator: "Operator", request: "SweepRequest") -> "list[Finding]":
    from opbench.contract.contract import check_contract
    from opbench.sweeps.plan import settings_choices
    from opbench.workload.case import Case
    from opbench.workload.shapes import load_shape_lists

    cases = [
        Case(operator.name, level, direction, shape_list.name, shape, dtype, operator.settings_at(level, settings))
        for settings in settings_choices(operator, request)
        for level in request.levels
        for direction in request.directions
        for shape_list in load_shape_lists(request.shapes)
        for shape in shape_list.shapes
        for dtype in request.dtypes
    ]
    return check_contract(operator, cases, request.device)


def _without(request: "SweepRequest", operators: set[str]) -> "SweepRequest":
    """A request that leaves out operators of which no plan can be made."""
    from dataclasses import replace

    return replace(
        request,
        ops=tuple(name for name in request.ops if name not in operators),
        providers=tuple(pair for pair in request.providers if pair[0] not in operators),
        settings=tuple(setting for setting in request.settings if setting[0] not in operators),
    )


def _run(
    request: "SweepRequest", known: "Mapping[str, Operator]", conduct: "Conduct", *, no_color: bool
) -> "list[Measurement]":
    """Every cell as a sweep runs it, in a folder that is not kept."""
    from opbench.sweeps.console_progress import ConsoleProgress
    from opbench.sweeps.isolation.worker_process import Workers
    from opbench.sweeps.run_cells import run_cells
    from opbench.sweeps.start import start_run

    with (
        TemporaryDirectory(prefix="opbench-check-") as folder,
        closing(Workers()) as workers,
        ConsoleProgress(no_color=no_color, outcomes=False) as progress,
    ):
        run = start_run(request, known, Path(folder) / "run", conduct)
        run.write_ceilings("a check compares no speeds")
        run_cells(run, known, progress, conduct, workers)
        return list(run.measurements())


def _show(
    ops: "Sequence[str]",
    findings: "Sequence[Finding]",
    measurements: "Sequence[Measurement]",
    *,
    traceback: bool,
    no_color: bool,
) -> int:
    """Print tables of each operator and a line for each fault; returns how many there are."""
    from opbench.contract.tables import faults, finding_table, provider_table
    from opbench.report import print_tables

    wrong: list[tuple[str, str]] = []
    for name in ops:
        own = [found for found in findings if found.operator == name]
        cells = [measurement for measurement in measurements if measurement.cell.case.operator == name]
        tables = [finding_table(name, own), *([provider_table(name, cells)] if cells else [])]
        print_tables(tables, "terminal", stdout(no_color))
        wrong += [(f"{name}: {found.part}: {found.reason}", found.traceback) for found in own if found.reason]
        wrong += [(f"{name}: {reason}", raised) for reason, raised in faults(cells)]
        if cells and not any(measurement.status == "ok" for measurement in cells) and not wrong:
            wrong.append((f"{name}: no provider was checked: {cells[0].reason}", ""))
    for reason, raised in wrong:
        print(reason, file=sys.stderr)
        if traceback and raised:
            print(raised, file=sys.stderr)
    print(f"{len(wrong)} fault{'s' if len(wrong) > 1 else ''}" if wrong else "all fine")
    return len(wrong)
