"""`opbench compare`."""

from pathlib import Path
from typing import Annotated

import typer

from opbench.cli.shared import (
    ComparisonFormats,
    ComparisonOut,
    Inconclusive,
    NoColor,
    accepts_inconclusive,
    chosen_formats,
    conclude,
    verdict_exit_codes,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(compare)


def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Run, pytest-benchmark JSON, or folder of baselines.")],
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="Run or pytest-benchmark JSON that is judged.")],
    threshold: Annotated[
        str, typer.Option(metavar="PERCENT", help="Relative change that is accepted. Wide: each side is one process.")
    ] = "10%",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="A circumstance that may differ: torch, timer, op.setting...; repeatable. [default: none]",
        ),
    ] = None,
    format_: ComparisonFormats = None,
    inconclusive: Inconclusive = "fail",
    out: ComparisonOut = None,
    no_color: NoColor = False,
) -> None:
    """Compare two stored runs cell by cell: ratios of medians with intervals, and a verdict on each.

    Runs of `sweep --repeat` are judged between processes. Of others, a change within what two processes of the same
    code differ by on the device (`opbench noise`), or in cells that were disturbed, is inconclusive at most.

    Exit codes: 0 same or faster, 1 some cell slower, 2 usage or bad input, 3 inconclusive, 4 not comparable, 5 cells
    missing or failed in either run, 74 a file cannot be written.
    """
    from opbench.compare.baselines import is_baseline_folder, newest_baseline, no_baseline
    from opbench.compare.noise import known_noise
    from opbench.compare.open_arm import open_arm
    from opbench.compare.runs import compare_runs
    from opbench.text import parse_percent

    tolerance = parse_percent("--threshold", threshold)
    formats, accepted = chosen_formats(format_, out), accepts_inconclusive(inconclusive)
    judged = open_arm(head)
    with verdict_exit_codes():
        against = newest_baseline(base, judged, allow or ()) if is_baseline_folder(base) else open_arm(base)
        comparison = (
            compare_runs(against, judged, tolerance, allow or (), known_noise(judged.environment))
            if against
            else no_baseline(base, judged, tolerance)
        )
        conclude(comparison, formats, out, accept_inconclusive=accepted, no_color=no_color)
