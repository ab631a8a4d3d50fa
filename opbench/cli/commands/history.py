"""`opbench history`: the runs of a folder over time, and where cells became slower or faster."""

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opbench.cli.shared import EXIT_UNREADABLE, NoColor, split, stdout
from opbench.errors import UnknownNameError

if TYPE_CHECKING:
    from opbench.compare.trends import History

__all__ = ["register"]

FILES = {"markdown": "history.md", "csv": "history.csv"}
"""What --out makes of each format that has a file."""
FORMATS = ("terminal", *FILES)


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(history)


def history(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Holds run folders, at any depth.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write history.md, history.csv and plots/ there. [default: only print]"),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="LIST",
            help="Of terminal, markdown, csv. [default: terminal; with --out also markdown and csv]",
        ),
    ] = None,
    no_color: NoColor = False,
) -> None:
    """Show each cell's median over the runs of a folder, and the revisions at which its level changed.

    Needs neither torch nor a GPU. Each device, timer and cache is a series. Each step has its
    cause where the runs tell it: environment (other versions), machine, or code. A step needs 4 runs before it and 4
    from it on.

    Exit codes: 0 shown, with steps or without; 1 some run could not be read, the others are shown; 2 usage, or no run
    that can be read; 3 a file cannot be written.
    """
    formats = split("--format", format_) or (list(FORMATS) if out else ["terminal"])
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError("format", name, FORMATS)
    from opbench.compare.history import read_history

    found = read_history(folder)
    gc.freeze()  # a collection would walk all its points, again and again while the tables are made
    for problem in found.problems:
        print(f"opbench: left out: {problem}", file=sys.stderr)
    _show(found, formats, out, no_color=no_color)
    if out:
        from opbench.report.plots.history import write_history_plots

        for path in write_history_plots(found, out / "plots"):
            print(path, file=sys.stderr)
    sys.exit(EXIT_UNREADABLE if found.problems else 0)


def _show(found: "History", formats: list[str], out: Path | None, *, no_color: bool) -> None:
    """Print what has no file or nowhere to go, and write the others."""
    from opbench.files import storage_errors, write_whole
    from opbench.report.history_tables import history_csv, history_tables
    from opbench.report.render import print_tables, render

    for name in formats:
        if name == "terminal":
            print_tables(history_tables(found), name, stdout(no_color))
            print()
            continue
        text = history_csv(found) if name == "csv" else "\n".join(render(t, name) for t in history_tables(found))
        if out is None:
            print(text, end="")
            continue
        with storage_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        write_whole(out / FILES[name], text)
        print(out / FILES[name], file=sys.stderr)
