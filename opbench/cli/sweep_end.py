"""The end of `opbench sweep`: its tables, plots, what failed, and the exit code."""

import sys
from collections import Counter
from typing import TYPE_CHECKING, NoReturn

from opbench.cli.shared import EXIT_FAILED_CELLS, EXIT_INTERRUPTED, stdout
from opbench.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opbench.results.run import Run

__all__ = ["conclude", "conclude_cards", "draw_plots", "print_results"]


def print_results(run: "Run", *, no_color: bool) -> None:
    """Print the tables and the summary."""
    from opbench.report import print_tables, result_tables, summary_line
    from opbench.results.measurement import FAILURES

    # Why cells failed comes at the end, for all tables together.
    tables = result_tables(run, without_reasons_of=FAILURES)
    print_tables(tables, "terminal", stdout(no_color))
    print(f"\n{summary_line(run)}", flush=True)


def draw_plots(run: "Run", *, quiet: bool, no_color: bool) -> StorageError | None:
    """Gives why the plots could not all be written, once the tables are on the screen."""
    from opbench.report import write_plots
    from opbench.sweeps.console_progress import ConsoleProgress

    with ConsoleProgress(quiet=quiet, no_color=no_color) as progress:
        progress.stage("drawing plots")
        try:
            write_plots(run)
        except StorageError as error:
            return error
    return None


def conclude(run: "Run", *, interrupted: bool, refused: StorageError | None, quiet: bool) -> NoReturn:
    """Print what failed and where everything is; exit with the run's code."""
    from opbench.report.notes import failure_lines
    from opbench.results.measurement import Status, is_failure

    rows = run.rows()
    counts = Counter(row.status for row in rows)
    for line in failure_lines(rows):
        print(line, file=sys.stderr)
    disturbed = sum(bool(row.warnings) for row in rows)
    if disturbed and not quiet:
        print(f"warnings: {disturbed} of {len(rows)} cells; see the notes under the tables", file=sys.stderr)
    print(f"{len(rows)} cells: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    print(f"results: {run.path}")
    if not quiet:
        for name in ("measurements.csv", "tables", "plots", "journal.jsonl"):
            if (run.path / name).exists():
                print(f"  {run.path / name}")
    if refused:
        raise refused
    if interrupted:
        from opbench.registry.places import ops_option

        ops = ops_option(run.command)
        print(
            f"interrupted; continue with: opbench sweep --resume{fleet_flag(run)} --out {run.path}{ops}",
            file=sys.stderr,
        )
        sys.exit(EXIT_INTERRUPTED)
    missing = counts[Status.NOT_RUN]
    if missing:
        again = f"opbench sweep --resume{fleet_flag(run)} --out {run.path}"
        print(f"{missing} cells have no row; measure them: {again}", file=sys.stderr)
    sys.exit(EXIT_FAILED_CELLS if missing or any(is_failure(row.status) for row in rows) else 0)


def fleet_flag(run: "Run") -> str:
    """What goes on with a run on the fleet that measured it; empty where none did."""
    engine = run.command.get("fleet")
    return f" --fleet {engine}" if engine else ""


def conclude_cards(runs: "Sequence[Run]", *, interrupted: bool, quiet: bool, plots: bool, no_color: bool) -> NoReturn:
    """The end of a sweep that compares cards: how they differ, what failed, where everything is, and the exit code."""
    from opbench.report import print_tables, write_plots
    from opbench.report.cards import draw_spread, spread_tables, write_spread
    from opbench.report.notes import failure_lines
    from opbench.results.measurement import Status, is_failure
    from opbench.sweeps.sweep import finish

    folder = runs[0].path.parent
    for run in runs:
        finish(run, plots=False)
    written = write_spread(runs)
    if not quiet:
        print_tables(spread_tables(runs), "terminal", stdout(no_color))
    if plots:
        for run in runs:
            write_plots(run)
        written += draw_spread(runs)
    rows = [row for run in runs for row in run.rows()]
    for line in failure_lines(rows):
        print(line, file=sys.stderr)
    counts = Counter(row.status for row in rows)
    print(f"{len(rows)} cells on {len(runs)} cards: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    print(f"results: {folder}")
    for path in (*written, *(run.path for run in runs)):
        if not quiet:
            print(f"  {path}")
    missing = counts[Status.NOT_RUN]
    if interrupted or missing:
        again = f"opbench sweep --resume{fleet_flag(runs[0])} --fleet-mode replicate --out {folder}"
        said = "interrupted; continue with" if interrupted else f"{missing} cells have no row; measure them"
        print(f"{said}: {again}", file=sys.stderr)
    failed = missing or any(is_failure(row.status) for row in rows)
    sys.exit(EXIT_INTERRUPTED if interrupted else EXIT_FAILED_CELLS if failed else 0)
