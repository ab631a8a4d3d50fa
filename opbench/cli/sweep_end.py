"""The end of `opbench sweep`: its tables, plots, what failed, and the exit code."""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from opbench.cli.shared import EXIT_FAILED_CELLS, EXIT_INTERRUPTED, stdout
from opbench.errors import StorageError

if TYPE_CHECKING:
    from opbench.results.run import Run

__all__ = ["conclude", "draw_plots", "print_results"]


def print_results(*runs: "Run", no_color: bool) -> None:
    """Print a run's tables and its summary; of the runs of several cards how the cards differ."""
    from opbench.report import print_tables, result_tables, summary_line
    from opbench.report.cards import spread_tables
    from opbench.results.measurement import FAILURES

    if len(runs) > 1:
        print_tables(spread_tables(runs), "terminal", stdout(no_color))
        return
    # Why cells failed comes at the end, for all tables together.
    tables = result_tables(runs[0], without_reasons_of=FAILURES)
    print_tables(tables, "terminal", stdout(no_color))
    print(f"\n{summary_line(runs[0])}", flush=True)


def draw_plots(*runs: "Run", quiet: bool, no_color: bool) -> StorageError | None:
    """Gives why the plots could not all be written, once the tables are on the screen."""
    from opbench.report import write_plots
    from opbench.report.cards import draw_spread
    from opbench.sweeps.console_progress import ConsoleProgress

    with ConsoleProgress(quiet=quiet, no_color=no_color) as progress:
        progress.stage("drawing plots")
        try:
            for run in runs:
                write_plots(run)
            draw_spread(runs)
        except StorageError as error:
            return error
    return None


def conclude(*runs: "Run", interrupted: bool, refused: StorageError | None, quiet: bool) -> NoReturn:
    """Print what failed and where everything is; exit with the code of all runs together."""
    from opbench.report.cards import SPREAD_CSV
    from opbench.report.notes import failure_lines
    from opbench.results.measurement import Status, is_failure

    several = len(runs) > 1
    folder = runs[0].path.parent if several else runs[0].path
    rows = [row for run in runs for row in run.rows()]
    counts = Counter(row.status for row in rows)
    for line in failure_lines(rows):
        print(line, file=sys.stderr)
    disturbed = sum(bool(row.warnings) for row in rows)
    if disturbed and not quiet:
        print(f"warnings: {disturbed} of {len(rows)} cells; see the notes under the tables", file=sys.stderr)
    cells = f"{len(rows)} cells on {len(runs)} cards" if several else f"{len(rows)} cells"
    print(f"{cells}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    print(f"results: {folder}")
    if not quiet:
        own = [run.path.name for run in runs] if several else []
        for name in ("measurements.csv", SPREAD_CSV, "tables", "plots", "journal.jsonl", *own):
            if (folder / name).exists():
                print(f"  {folder / name}")
    if refused:
        raise refused
    again = f"opbench sweep --resume{_fleet_flags(runs)} --out {folder}"
    if interrupted:
        from opbench.registry.places import ops_option

        print(f"interrupted; continue with: {again}{ops_option(runs[0].command)}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    missing = counts[Status.NOT_RUN]
    if missing:
        print(f"{missing} cells have no row; measure them: {again}", file=sys.stderr)
    sys.exit(EXIT_FAILED_CELLS if missing or any(is_failure(row.status) for row in rows) else 0)


def _fleet_flags(runs: "Sequence[Run]") -> str:
    """What goes on with runs on the fleet that measured them; empty where none did."""
    engine = runs[0].command.get("fleet")
    mode = " --fleet-mode replicate" if len(runs) > 1 else ""
    return f" --fleet {engine}{mode}" if engine else ""
