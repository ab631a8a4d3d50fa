"""The end of `opbench sweep`: its tables, plots, what failed, and the exit code."""

import sys
from collections import Counter
from typing import TYPE_CHECKING, NoReturn

from opbench.cli.shared import EXIT_FAILED_CELLS, EXIT_INTERRUPTED, stdout
from opbench.errors import StorageError

if TYPE_CHECKING:
    from opbench.results.run import Run

__all__ = ["conclude", "draw_plots", "print_results"]


def print_results(run: "Run", *, no_color: bool) -> None:
    """Print the tables and the summary."""
    from opbench.report import (
        energy_tables,
        network_tables,
        print_tables,
        run_tables,
        speedup_tables,
        summary_line,
    )
    from opbench.results.measurement import FAILURES

    # Why cells failed comes at the end, for all tables together.
    latencies = run_tables(run, without_reasons_of=FAILURES)
    tables = [*latencies, *speedup_tables(run), *energy_tables(run), *network_tables(run)]
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
        print(f"interrupted; continue with: opbench sweep --resume --out {run.path}{ops}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    missing = counts[Status.NOT_RUN]
    if missing:
        print(f"{missing} cells have no row; measure them: opbench sweep --resume --out {run.path}", file=sys.stderr)
    sys.exit(EXIT_FAILED_CELLS if missing or any(is_failure(row.status) for row in rows) else 0)
