"""`opbench baseline save|list|show|rm`."""

from pathlib import Path
from typing import Annotated

import typer

from opbench.cli.shared import NoColor, stdout

__all__ = ["register"]

Folder = Annotated[Path, typer.Option("--dir", metavar="FOLDER", help="Where baselines are kept.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name, or KEY/NAME where several keys have it.")]


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Keep runs to compare with, by hardware and software.")
    group.command()(save)
    group.command("list")(list_)
    group.command()(show)
    group.command()(rm)
    app.add_typer(group, name="baseline")


def save(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    folder: Folder,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="[default: the run's id]")] = None,
) -> None:
    """Keep a copy of a run under its hardware and software; an existing name is refused.

    Exit codes: 0 saved, 2 usage, no run there or a name that is taken, 3 it cannot be written.
    """
    from opbench.compare.baselines import save_baseline
    from opbench.results.run import Run

    print(save_baseline(Run.open(run), folder, name).path)


def list_(folder: Folder, no_color: NoColor = False) -> None:
    """List baselines, the oldest first."""
    from opbench.compare.baselines import list_baselines
    from opbench.report import Table, print_tables

    rows = tuple((b.key, b.name, b.saved_at[:19], str(len(b.run.plan()))) for b in list_baselines(folder))
    table = Table("baselines", f"Baselines in {folder}", ("Key", "Name", "Saved (UTC)", "Cells"), rows, text_columns=3)
    print_tables([table], "terminal", stdout(no_color))


def show(name: Name, folder: Folder) -> None:
    """Print what a baseline was measured on, and its cells by status."""
    from collections import Counter

    from opbench.compare.baselines import find_baseline, read_baseline

    baseline = read_baseline(find_baseline(folder, name))
    counts = Counter(row.status for row in baseline.run.rows())
    lines = {
        "baseline": f"{baseline.key}/{baseline.name}",
        "saved": baseline.saved_at,
        "run": baseline.run.run_id,
        **baseline.identity.parts,
        "cells": ", ".join(f"{count} {status}" for status, count in counts.items()),
    }
    for label, value in lines.items():
        print(f"{label}: {value}")


def rm(name: Name, folder: Folder) -> None:
    """Remove a baseline, damaged or not."""
    from opbench.compare.baselines import remove_baseline

    print(f"removed {remove_baseline(folder, name)}")
