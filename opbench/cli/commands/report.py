"""`opbench report`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from opbench.cli.shared import EXIT_UNREADABLE, NoColor, stdout

if TYPE_CHECKING:
    from opbench.results.run import Run

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(report)


class Format(StrEnum):
    """How `opbench report` prints tables."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    CSV = "csv"
    LATEX = "latex"
    HTML = "html"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs; `published` for the paper.")],
    format_: Annotated[
        Format, typer.Option("--format", metavar="FORMAT", help="terminal, markdown, csv, latex or html.")
    ] = Format.TERMINAL,
    paper: Annotated[bool, typer.Option("--paper", help="Beside the figures published with DCNv4.")] = False,
    samples: Annotated[bool, typer.Option("--samples", help="Every cell with the shape of its samples.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Also make measurements.csv, tables/ and plots/ again.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of --format html. [default: report.html in the first run]")
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option("--site", metavar="DIR", help="Make static pages there, of all runs in RUN. [default: none]"),
    ] = None,
    no_color: NoColor = False,
) -> None:
    """Print the tables of runs, or make one HTML page of them, or a site. Needs neither torch nor a GPU.

    Of --site RUN may also hold run folders, at any depth. Its exit code is 1 where some run could not be read: the
    index names it, and has the others.
    """
    if site:
        if paper or samples or write or out or format_ is not Format.TERMINAL:
            raise typer.BadParameter("--site goes with none of --format, --paper, --samples, --write and --out")
        _write_site(runs, site)
    from opbench.report import (
        paper_tables,
        print_tables,
        published_network_tables,
        result_tables,
        sample_table,
        summary_line,
    )
    from opbench.results.published import open_run

    folders = [open_run(run) for run in runs]
    if format_ is Format.HTML:
        _write_page(folders, out)
    elif out:
        raise typer.BadParameter("--out is for --format html; redirect the output of the others")
    else:
        for folder in folders:
            tables = published_network_tables(folder) or paper_tables(folder) if paper else result_tables(folder)
            print_tables([*tables, *([sample_table(folder)] if samples else [])], format_.value, stdout(no_color))
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


def _write_page(folders: "list[Run]", out: Path | None) -> None:
    from opbench.report import write_page

    print(write_page(folders, out))


def _write_site(runs: list[Path], folder: Path) -> NoReturn:
    from opbench.report import write_site

    index, problems = write_site(runs, folder)
    for problem in problems:
        print(f"opbench: left out: {problem}", file=sys.stderr)
    print(index)
    sys.exit(EXIT_UNREADABLE if problems else 0)
