"""`opbench merge`."""

from pathlib import Path
from typing import Annotated

import typer

from opbench.cli.shared import AcceptDifference, AcceptDifferences, NoColor
from opbench.cli.sweep_end import conclude, draw_plots, print_results
from opbench.errors import StorageError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(merge)


def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of `opbench sweep --shard`.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the merged run; must not exist, or be empty.")],
    accept_differences: AcceptDifferences = False,
    accept_difference: AcceptDifference = None,
    plots: Annotated[
        bool, typer.Option("--plots/--no-plots", help="Draw plots; `report --write` draws them, too.")
    ] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only where the results are.")] = False,
    no_color: NoColor = False,
) -> None:
    """Make one run of the shards of a sweep; each row keeps the run that it is from.

    Exit codes: 0 every cell measured (or not applicable, or out of memory), 1 some cell failed or is in no shard, 2
    usage, another plan or set-up, or a cell that two runs have, 3 results cannot be written.
    """
    from opbench.report import write_tables
    from opbench.sweeps.merge import merge_runs

    run = merge_runs(runs, out, accept_differences=accept_differences or accept_difference or ())
    refused = None
    try:
        run.write_measurements_csv()
        write_tables(run)
    except StorageError as error:  # the journal is there, and can be shown
        refused = error
    if not quiet:
        print_results(run, no_color=no_color)
    if plots and not refused:
        refused = draw_plots(run, quiet=quiet, no_color=no_color)
    conclude(run, interrupted=False, refused=refused, quiet=quiet)
