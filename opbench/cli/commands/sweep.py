"""`opbench sweep`."""

import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opbench.cli.shared import (
    AcceptDifference,
    AcceptDifferences,
    NoColor,
    interrupt_on_termination,
    known_operators,
    shows_tracebacks,
    split,
    stdout,
)
from opbench.cli.sweep_end import conclude, draw_plots, print_results
from opbench.cli.sweep_flags import takes_sweep_flags
from opbench.errors import StorageError
from opbench.host.system import require_unix
from opbench.host.user_cache import say_if_nothing_is_kept

if TYPE_CHECKING:
    from opbench.results.run import Run
    from opbench.sweeps.conduct import Conduct
    from opbench.sweeps.console_progress import ConsoleProgress
    from opbench.workload.case import Cell

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(takes_sweep_flags(sweep))


def sweep(
    *,
    options: dict[str, Any],
    as_paper: Annotated[
        bool,
        typer.Option(
            "--as-paper",
            help="Measure as the published scripts do: launch-sync, warm, tf32 and fp16, batch 64 and 1; what is "
            "given as well wins. --dry-run prints the flags that it stands for.",
        ),
    ] = False,
    train: Annotated[
        bool,
        typer.Option("--train", help="Measure a step of training of networks; --direction train does the same."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Results folder. [default: a new one in results/, named by date and device]"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    retry: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="With --resume, measure cells of these statuses again, such as error,timeout. [default: none]",
        ),
    ] = None,
    accept_differences: AcceptDifferences = False,
    accept_difference: AcceptDifference = None,
    plots: Annotated[
        bool, typer.Option("--plots/--no-plots", help="Draw plots at the end; `report --write` draws them, too.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and run nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only where the results are.")] = False,
    no_color: NoColor = False,
) -> None:
    """Check and time operators; write raw samples, tables and plots.

    Exit codes: 0 every cell measured (or not applicable, or out of memory), 1 some cell wrong, error, timeout or
    unavailable, 2 usage or bad input, 3 results cannot be written, 130 interrupted (what was finished is kept).
    """
    if resume and out is None:
        raise typer.BadParameter("--resume needs --out: the folder of the run to continue")
    if train and options.setdefault("direction", ["train"]) != ["train"]:
        raise typer.BadParameter("--train is --direction train, which another --direction contradicts")
    require_unix("opbench sweep")
    # A kill, or a terminal that closes, asks for the same as Ctrl-C: stop, and keep what is finished.
    interrupt_on_termination()
    from opbench.sweeps.conduct import make_conduct
    from opbench.sweeps.console_progress import ConsoleProgress

    if as_paper:
        options = _as_paper(options, say=dry_run)
    conduct = make_conduct({**options, "retry": split("--retry", retry)}, resume=resume)
    accepted = accept_differences or accept_difference or ()
    shown = ConsoleProgress(
        quiet=quiet or dry_run, no_color=no_color, tracebacks=shows_tracebacks(options.get("isolation"))
    )
    with shown as progress:
        if dry_run:
            _dry_run(options)
            return
        interrupted, refused = False, None
        start = _on_fleet if conduct.fleet else _here
        with start(_Asked(options, conduct, out, resume, accepted), progress) as (runs, measure):
            try:
                measure()
            except KeyboardInterrupt:
                interrupted = True
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        from opbench.sweeps.sweep import finish

        progress.stage("writing tables")
        try:
            finish(*runs, plots=False)
        except StorageError as error:  # what was measured is in the journal, and can still be shown
            refused = error
    if not quiet:
        print_results(*runs, no_color=no_color)
    if plots and not refused:
        refused = draw_plots(*runs, quiet=quiet, no_color=no_color)
    conclude(*runs, interrupted=interrupted, refused=refused, quiet=quiet)


@dataclass(frozen=True)
class _Asked:
    """What the command line says of the runs to make or to go on with."""

    options: dict[str, Any]
    conduct: "Conduct"
    out: Path | None
    resume: bool
    accepted: bool | Collection[str]


Begun = tuple["list[Run]", Callable[[], None]]
"""Runs, and what measures what they lack."""


@contextmanager
def _here(asked: _Asked, progress: "ConsoleProgress") -> Iterator[Begun]:
    """On this machine's device."""
    from opbench.sweeps.isolation.worker_process import Workers

    with closing(Workers()) as workers:
        progress.doing("loading PyTorch")
        if asked.options.get("isolation") != "none":
            workers.launch()  # they import torch while this process does
        from opbench.registry.places import resolve_ops
        from opbench.sweeps.request import make_request
        from opbench.sweeps.run_cells import run_cells
        from opbench.sweeps.start import continue_run, dtypes_note, start_run

        known_operators()
        options, known = resolve_ops(asked.options)
        if asked.resume and asked.out:
            run = continue_run(asked.out, options, known, accept_differences=asked.accepted)
        else:
            progress.doing("planning")
            run = start_run(make_request(options, known), known, asked.out, asked.conduct)
            if note := dtypes_note(options, run.environment):
                progress.note(note)
        say_if_nothing_is_kept()
        yield [run], lambda: run_cells(run, known, progress, asked.conduct, workers)


@contextmanager
def _on_fleet(asked: _Asked, progress: "ConsoleProgress") -> Iterator[Begun]:
    """On the cards of a fleet."""
    from opbench.sweeps.fleet.sweep import connect_fleet, measure, start_fleet

    progress.doing("looking for the fleet")
    with connect_fleet(asked.conduct, asked.options) as fleet:
        sweep = start_fleet(
            fleet,
            asked.options,
            asked.conduct,
            asked.out,
            progress,
            resume=asked.resume,
            accept_differences=asked.accepted,
        )
        yield sweep.every_run, lambda: measure(fleet, sweep, asked.conduct, progress)


def _dry_run(options: dict[str, Any]) -> None:
    from opbench.registry.places import resolve_ops
    from opbench.sweeps.request import make_request
    from opbench.sweeps.start import plan

    known_operators()
    options, known = resolve_ops(options)
    _print_plan(plan(make_request(options, known), known))


def _as_paper(options: dict[str, Any], *, say: bool) -> dict[str, Any]:
    """Options, and what --as-paper adds to them."""
    from opbench.sweeps.as_paper import as_flags, as_paper_options

    added = as_paper_options(options)
    if say:
        print(f"--as-paper adds {as_flags(added) or 'nothing'}")
    return {**options, **added}


def _print_plan(cells: "list[Cell]") -> None:
    from opbench.report import print_tables
    from opbench.report.plan_table import plan_table

    print_tables([plan_table(cells)], "terminal", stdout())
    largest = max(cells, key=lambda cell: cell.memory_bytes, default=None)
    if largest:
        print(f"largest estimated memory: {largest.memory_bytes / 2**30:.2f} GiB, {largest.key}")
