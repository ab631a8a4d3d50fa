"""`opbench profile`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opbench.cli.shared import EXIT_FAILED_CELLS, NoColor, fail, interrupt_on_termination, stdout
from opbench.cli.sweep_flags import takes_sweep_flags
from opbench.host.system import require_unix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opbench.report.table import Table
    from opbench.results.measurement import Measurement
    from opbench.sweeps.request import SweepRequest
    from opbench.workload.case import Cell
    from opbench.workload.operator import Operator

__all__ = ["register"]


class Tool(StrEnum):
    """What profiles."""

    TORCH = "torch"
    NCU = "ncu"
    NSYS = "nsys"


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(takes_sweep_flags(profile))


def profile(
    *,
    words: Annotated[
        list[str],
        typer.Argument(metavar="CELL", help="A cell's key, or parts of it: dcnv4 core fp16 1x56x56x128 triton."),
    ],
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A cell of this run. [default: of what a sweep could measure]")
    ] = None,
    options: dict[str, Any],
    tool: Annotated[
        Tool, typer.Option(metavar="torch|ncu|nsys", help="torch.profiler, Nsight Compute or Nsight Systems.")
    ] = Tool.TORCH,
    launches: Annotated[int, typer.Option(min=1, metavar="N", help="Under torch.profiler.")] = 20,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a trace for Perfetto or chrome://tracing. [default: none]"),
    ] = None,
    no_color: NoColor = False,
) -> None:
    """Show what one cell spends its time on: its kernels, or on a CPU PyTorch's operations, with their share.

    Checks the cell's values as a sweep does. Parts that are not named are taken as a sweep takes them: module, fwd,
    fp32, the first provider that works here.

    Exit codes: 0, 1 the cell is wrong or does not run, 2 usage, or the tool is missing or fails, 130 interrupted.
    """
    require_unix("opbench profile")
    interrupt_on_termination()
    from opbench.errors import UsageError
    from opbench.profiling.choose import choose, usual_cell

    if trace and tool is not Tool.TORCH:
        raise UsageError(f"--trace is torch.profiler's, this is --tool {tool}")
    request, known, cells = _planned(words, options, run)
    if tool is not Tool.TORCH and request.device_type != "cuda":
        raise UsageError(f"--tool {tool} needs a CUDA device, this is {request.device}")
    left = choose(words, cells)
    cell = left[0] if len(left) == 1 else usual_cell(left, known, request.device_type)
    measured, tables = _profiled(cell, known, request, tool, launches, trace)
    if measured.status != "ok":
        fail(f"{cell.key}: {measured.status}: {measured.reason}", EXIT_FAILED_CELLS)
    from opbench.report import print_tables

    print_tables(tables, "terminal", stdout(no_color))
    if measured.reason:
        print(measured.reason, file=sys.stderr)
    if trace:
        print(f"trace: {trace}")


def _planned(
    words: list[str], options: dict[str, Any], run: Path | None
) -> "tuple[SweepRequest, Mapping[str, Operator], list[Cell]]":
    """The cells to choose from: a run's, or those of the operator that the first word names or begins with."""
    from opbench.profiling.choose import parts_of_key
    from opbench.registry.places import is_place, resolve_ops
    from opbench.sweeps.request import make_request
    from opbench.sweeps.start import plan
    from opbench.workload.case import Direction, Dtype, Level

    if run:
        from opbench.results.run import Run

        opened = Run.open(run)
        asked, known = resolve_ops({**options, "ops": sorted({cell.case.operator for cell in opened.plan()})})
        return make_request(asked, known), known, opened.plan()
    operator, shape_list, settings = parts_of_key(words[0])
    given = {"shapes": [shape_list], "settings": settings} if shape_list else {}
    every = {"dtypes": [*Dtype], "direction": [*Direction], "level": [*Level]}
    asked, known = resolve_ops({**given, **every, **options, "ops": [operator]})
    if is_place(operator):
        words[0] = asked["ops"][0]
    asked["providers"] = [f"{name}=all" for name in asked["ops"] if name in known]
    request = make_request(asked, known)
    applicable = [cell for cell in plan(request, known) if cell.case.level in known[cell.case.operator].levels]
    return request, known, applicable


def _profiled(
    cell: "Cell",
    known: "Mapping[str, Operator]",
    request: "SweepRequest",
    tool: Tool,
    launches: int,
    trace: Path | None,
) -> "tuple[Measurement, list[Table]]":
    from opbench.profiling.profile import run_options
    from opbench.profiling.tables import counter_table, kernel_table

    options = run_options(request)
    if tool is Tool.TORCH:
        from opbench.profiling.profile import profile_cell

        found = profile_cell(cell, known.__getitem__, options, launches, trace)
        notes = [
            f"means of {launches} launches; one took {found.launch_us:.1f} us from call to end by the host's clock, "
            "what torch.profiler adds included"
        ]
        what = "kernel" if request.device_type == "cuda" else "operation, without those it calls"
        return found.measurement, [kernel_table(cell, found.kernels, what, notes)]
    from opbench.profiling.external import ncu, nsys

    if tool is Tool.NSYS:
        seen = nsys(cell, options)
        return seen.measurement, [kernel_table(cell, seen.kernels, "kernel", ["by Nsight Systems, of one launch"])]
    counted = ncu(cell, options)
    predicted = counted.measurement.warp_instructions
    notes = [] if predicted is None else [f"opbench inspect has {predicted} warp instructions for this launch"]
    return counted.measurement, [counter_table(cell, counted.counters, notes)]
