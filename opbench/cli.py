"""The command line: parse, call, print. Heavy imports stay inside the commands that need them."""

import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from opbench.errors import OpbenchError, StorageError
from opbench.streams import guarded

if TYPE_CHECKING:
    from rich.console import Console

    from opbench.case import Cell
    from opbench.results import RunFolder

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Micro-benchmarks of vision operators: every value checked, every failure a row.",
)

EXIT_FAILED_CELLS = 1
EXIT_USAGE = 2
EXIT_STORAGE = 3
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130
TRACEBACK_VARIABLE = "OPBENCH_TRACEBACK"

NoColor = Annotated[bool, typer.Option("--no-color", help="No colours; the variable NO_COLOR does the same.")]

PIPE_WIDTH = 160
"""Columns of tables that do not go to a terminal: the widest one fits."""


class Listing(StrEnum):
    """What `opbench list` can list."""

    OPERATORS = "operators"
    PROVIDERS = "providers"
    SHAPES = "shapes"
    DEVICES = "devices"


class Format(StrEnum):
    """How `opbench report` prints tables."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    CSV = "csv"
    LATEX = "latex"
    HTML = "html"


def main() -> None:
    """Run the command line; whatever is raised is one line on standard error and an exit code of its kind."""
    with redirect_stdout(guarded(sys.stdout, "standard output")), redirect_stderr(guarded(sys.stderr, "")):
        _run_app()


def _run_app() -> None:
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # a full disk refuses no sooner
    except OpbenchError as error:
        _fail(str(error), EXIT_STORAGE if isinstance(error, StorageError) else EXIT_USAGE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        from opbench.measurement import one_line

        what = one_line(f"{type(error).__name__}: {error}")
        _fail(f"internal error: {what}; {TRACEBACK_VARIABLE}=1 shows where, for a bug report", EXIT_INTERNAL)


def _fail(message: str, code: int) -> NoReturn:
    print(f"opbench: {message}", file=sys.stderr)
    sys.exit(code)


def _shape_lists() -> list[str]:
    """Names that complete --shapes."""
    from opbench.shapes import builtin_shape_lists

    return list(builtin_shape_lists())


@app.command()
def sweep(
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=_shape_lists,
            help="Shape list; repeat for several. [default: standard and high_resolution on CUDA, smoke on the CPU]",
        ),
    ] = None,
    ops: Annotated[str | None, typer.Option(metavar="a,b", help="Operators. [default: all]")] = None,
    providers: Annotated[
        str | None,
        typer.Option(
            metavar="op=p,...",
            help="Implementations, op=all for every one. [default: the first that works here]",
        ),
    ] = None,
    dtypes: Annotated[
        str | None,
        typer.Option(metavar="fp32,tf32,fp16,bf16", help="[default: fp32,fp16 on CUDA; fp32,bf16 on the CPU]"),
    ] = None,
    level: Annotated[str | None, typer.Option(metavar="module,core", help="[default: module]")] = None,
    direction: Annotated[str | None, typer.Option(metavar="fwd,bwd,fwd_bwd", help="[default: fwd]")] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="[default: auto]")] = None,
    timer: Annotated[
        str | None,
        typer.Option(
            metavar="auto|cuda-event|cuda-graph|wall-clock",
            autocompletion=lambda: ["auto", "cuda-event", "cuda-graph", "wall-clock"],
            help="[default: auto: cuda-event on CUDA, wall-clock on the CPU]",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="cold|warm", help="Flush the L2 before each launch, or not. [default: cold on CUDA]"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="op.param=value", help="A setting of an operator; repeat for several."),
    ] = None,
    time_budget: Annotated[
        float | None, typer.Option(metavar="SECONDS_PER_CELL", help="Sampling time per cell. [default: 1]")
    ] = None,
    memory_limit: Annotated[
        float | None, typer.Option(metavar="GIB", help="Memory that a cell may take. [default: no limit]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of inputs and parameters. [default: 0]")] = None,
    isolation: Annotated[
        str | None,
        typer.Option(
            metavar="process|none",
            help="A worker process for each operator and shape, or none, for debugging. [default: process]",
        ),
    ] = None,
    cell_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Stop a cell after that. [default: 120 and ten time budgets]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Results folder. [default: results/<date>-<device>-<n>]"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    retry: Annotated[
        str | None,
        typer.Option(metavar="error,timeout", help="With --resume, measure cells of these statuses again."),
    ] = None,
    accept_differences: Annotated[
        bool, typer.Option("--accept-differences", help="Resume although the plan or the environment differs.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and run nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only where the results are.")] = False,
    no_color: NoColor = False,
) -> None:
    """Check and time operators; write raw samples, tables and plots.

    Exit codes: 0 every cell measured (or not applicable, or out of memory), 1 some cell wrong, error, timeout or
    unavailable, 2 usage or bad input, 3 results cannot be written, 130 interrupted (what was finished is kept).
    """
    options = {
        "shapes": shapes, "ops": _split("--ops", ops), "providers": _split("--providers", providers),
        "dtypes": _split("--dtypes", dtypes), "level": _split("--level", level),
        "direction": _split("--direction", direction), "device": device, "timer": timer, "cache": cache,
        "settings": settings, "time_budget": time_budget, "memory_limit": memory_limit, "seed": seed,
    }  # fmt: skip
    # A kill, or a terminal that closes, asks for the same as Ctrl-C: stop, and keep what is finished.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)
    from opbench import registry
    from opbench import run as api
    from opbench.progress import ConsoleProgress

    known = registry.registered()
    ways = {"isolation": isolation, "cell_timeout": cell_timeout, "retry": _split("--retry", retry)}
    conduct = api.make_conduct(ways, resume=resume)
    if dry_run:
        _print_plan(api.plan(api.make_request(options, known), known))
        return
    if resume and out is None:
        raise typer.BadParameter("--resume needs --out: the folder of the run to continue")
    if resume and out is not None:
        run = api.continue_run(out, options, known, accept_differences=accept_differences)
    else:
        run = api.start_run(api.make_request(options, known), known, out, conduct)
    interrupted = False
    progress = ConsoleProgress(quiet=quiet, no_color=no_color)
    try:
        with progress:
            api.run_cells(run, known, progress, conduct)
    except KeyboardInterrupt:
        interrupted = True
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    api.finish(run)
    _conclude(run, interrupted=interrupted, quiet=quiet, no_color=no_color)


@app.command("list")
def list_(what: Annotated[Listing, typer.Argument(help="What to list.")], no_color: NoColor = False) -> None:
    """List what there is, with its availability here and the reason where not."""
    from opbench import listing

    _stdout(no_color).print(getattr(listing, what.value)())


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs; `published` for the paper.")],
    format_: Annotated[Format, typer.Option("--format", help="How to show.")] = Format.TERMINAL,
    paper: Annotated[bool, typer.Option("--paper", help="Beside the figures published with DCNv4.")] = False,
    samples: Annotated[bool, typer.Option("--samples", help="Every cell with the shape of its samples.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Also make measurements.csv, tables/ and plots/ again.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of --format html. [default: report.html in the first run]")
    ] = None,
    no_color: NoColor = False,
) -> None:
    """Print the tables of runs, or make one HTML page of them. Needs neither torch nor a GPU."""
    from opbench.report import paper_tables, print_tables, run_tables, sample_table, speedup_tables, summary_line
    from opbench.report.published import open_run

    folders = [open_run(run) for run in runs]
    if format_ is Format.HTML:
        _write_page(folders, out)
    elif out:
        raise typer.BadParameter("--out is for --format html; redirect the output of the others")
    else:
        for folder in folders:
            tables = paper_tables(folder) if paper else [*run_tables(folder), *speedup_tables(folder)]
            print_tables([*tables, *([sample_table(folder)] if samples else [])], format_.value, _stdout(no_color))
            if format_ is Format.TERMINAL:
                print(f"\n{summary_line(folder)}")
    if write:
        from opbench.report import write_plots, write_tables

        for folder in folders:
            folder.write_measurements_csv()
            for path in (
                *write_tables(folder),
                *write_plots(folder, *(other for other in folders if other is not folder)),
            ):
                print(path, file=sys.stderr)


@app.command()
def env(
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Which device.")] = "auto",
) -> None:
    """Print device, driver, clocks, versions and precision flags, for a bug report."""
    from opbench.environment import collect_environment, environment_lines, resolve_device

    for label, value in environment_lines(collect_environment(resolve_device(device))):
        print(f"{label}: {value}")


@app.command()
def ceilings(
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Which device.")] = "auto",
    again: Annotated[bool, typer.Option("--again", help="Measure even if the figures are kept from before.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print what a run keeps in ceilings.json.")] = False,
    no_color: NoColor = False,
) -> None:
    """Measure this device's own limits: matrix throughput, memory and cache bandwidth, launch overhead.

    Kept per device and versions; sweeps take them along.
    """
    import json

    from opbench.ceiling_cache import keep, known_ceilings
    from opbench.environment import collect_environment, resolve_device

    name = resolve_device(device)
    environment = collect_environment(name)
    found = None if again else known_ceilings(environment)
    if found is None:
        from opbench.ceiling_probes import measure_ceilings
        from opbench.progress import probe_progress

        with probe_progress(quiet=json_, no_color=no_color) as on_probe:
            found = measure_ceilings(name, on_probe=on_probe)
        keep(found, environment)
    if json_:
        print(json.dumps(found.to_json()))
    else:
        from opbench.report import ceiling_table, print_tables

        print_tables([ceiling_table(found)], Format.TERMINAL.value, _stdout(no_color))


@app.command()
def inspect(
    arch: Annotated[str, typer.Option(metavar="sm_80,sm_90,sm_100", help="Architectures.")] = "sm_80,sm_90,sm_100",
    dtypes: Annotated[str, typer.Option(metavar="fp32,fp16,bf16")] = "fp32,fp16,bf16",
    direction: Annotated[str, typer.Option(metavar="fwd,bwd")] = "fwd,bwd",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON: a list, one item per architecture.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write DIR/<architecture>.json.")] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Compare with DIR/<architecture>.json; exit 1 where worse.")
    ] = None,
) -> None:
    """Compile the DCN kernels for GPUs that need not be here; show registers, spills, instructions and bounds.

    Exit codes: 0, or 1 where a forward kernel spills or loads narrowly or, with --check, a figure got worse; 2 usage.
    """
    from opbench.inspection import command

    status = command.inspect(
        _split("--arch", arch) or [],
        _split("--dtypes", dtypes) or [],
        _split("--direction", direction) or [],
        json_output=json_,
        out=out,
        check=check,
        console=_stdout(),
    )
    sys.exit(status)


def _split(option: str, text: str | None) -> list[str] | None:
    """The items of a comma-separated option."""
    if text is None:
        return None
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise typer.BadParameter(f"{option} must be names separated by commas, got {text!r}")
    return items


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _stdout(no_color: bool = False) -> "Console":
    from rich.console import Console

    # None leaves it to NO_COLOR.
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, soft_wrap=False, no_color=no_color or None)


def _write_page(folders: "list[RunFolder]", out: Path | None) -> None:
    from opbench.report import write_page

    print(write_page(folders, out))


def _print_plan(cells: "list[Cell]") -> None:
    from rich.table import Table

    table = Table("cell", "provider", "GFLOP", "MB moved", "memory, MiB", title=f"{len(cells)} cells, none run")
    for column in table.columns[2:]:
        column.justify = "right"
    for cell in cells:
        table.add_row(
            cell.case.key,
            cell.provider,
            f"{cell.flop_count / 1e9:.3g}",
            f"{cell.bytes_moved / 1e6:.3g}",
            f"{cell.memory_bytes / 2**20:.0f}",
        )
    _stdout().print(table)
    largest = max(cells, key=lambda cell: cell.memory_bytes, default=None)
    if largest:
        print(f"largest estimated memory: {largest.memory_bytes / 2**30:.2f} GiB, {largest.key}")


def _conclude(run: "RunFolder", *, interrupted: bool, quiet: bool, no_color: bool) -> NoReturn:
    """Print the tables, what failed and where everything is; exit with the run's code."""
    from opbench.measurement import FAILURES
    from opbench.report import print_tables, run_tables, speedup_tables, summary_line

    rows = run.rows()
    if not quiet:
        print_tables([*run_tables(run), *speedup_tables(run)], Format.TERMINAL.value, _stdout(no_color))
        print(f"\n{summary_line(run)}")
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    for row in rows:
        if row["status"] in FAILURES:
            cell = f"{row['operator']} {row['level']} {row['direction']} {row['shape']} {row['dtype']}"
            print(f"{row['status']}: {cell} ({row['provider']}): {row['reason']}", file=sys.stderr)
    disturbed = sum(bool(row["warnings"]) for row in rows)
    if disturbed and not quiet:
        print(f"warnings: {disturbed} of {len(rows)} cells; see the notes under the tables", file=sys.stderr)
    print(f"{len(rows)} cells: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    print(f"results: {run.path}")
    if not quiet:
        for name in ("measurements.csv", "tables", "plots", "journal.jsonl"):
            print(f"  {run.path / name}")
    if interrupted:
        print(f"interrupted; continue with: opbench sweep --resume --out {run.path}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(EXIT_FAILED_CELLS if any(row["status"] in FAILURES for row in rows) else 0)


if __name__ == "__main__":
    main()
