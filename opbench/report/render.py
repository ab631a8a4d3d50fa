"""The four forms of a table: terminal, Markdown, CSV, LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opbench.errors import UnknownNameError
from opbench.files import make_folder, write_whole
from opbench.report.table import SEPARATOR, Table
from opbench.report.terminal import terminal

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "FORMATS",
    "SEPARATOR",
    "TABLE_FORMATS",
    "Table",
    "TableFormat",
    "markdown_escape",
    "print_tables",
    "render",
    "write_table_files",
]

TERMINAL_WIDTH = 160

_LATEX_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "×": r"$\times$",
        "·": r"$\cdot$",
        "τ": r"$\tau$",
        "≤": r"$\le$",
        "≥": r"$\ge$",
        "→": r"$\to$",
        "—": "---",
        "…": r"\ldots{}",
    }
)
# An underscore inside a word is no emphasis in Markdown, and flash_attention_2 stays readable.
_MARKDOWN_SPECIAL = re.compile(r"([\\`*|<\[\]])|(?<!\w)(_)|(_)(?!\w)")


@dataclass(frozen=True, slots=True)
class TableFormat:
    """A form that a table can have.

    Attributes:
        text: the table as text that ends in one line break.
        suffix: of the file that a run's folder `tables` gets of each table; empty for none.
    """

    text: Callable[[Table], str]
    suffix: str = ""


def write_table_files(tables: Iterable[Table], folder: Path) -> list[Path]:
    """Write each table in every form that has files, .md, .csv and .tex; returns the files.

    Raises:
        StorageError: one cannot be written.
    """
    make_folder(folder)
    written = []
    for table in tables:
        for form in TABLE_FORMATS.values():
            if form.suffix:
                written.append(folder / f"{table.name}{form.suffix}")
                write_whole(written[-1], form.text(table))
    return written


def render(table: Table, format: str) -> str:  # noqa: A002 - the word of the command line
    """A table as text ending in one line break.

    Args:
        table: what to show.
        format: one of FORMATS. `csv` has no title and no notes; its first column is the table's name, so that
            several tables in one stream can be told apart.

    Raises:
        UnknownNameError: a format that is not known.
    """
    if format not in TABLE_FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    return TABLE_FORMATS[format].text(table)


def print_tables(tables: Iterable[Table], format: str, console: "Console") -> None:  # noqa: A002
    """Print tables to a rich console, a blank line between them; only `terminal` is coloured or wrapped."""
    from rich.text import Text

    for number, table in enumerate(tables):
        if number:
            console.print()
        if format == "terminal" and console.is_terminal:
            console.print(terminal(table, console.width))
        else:
            console.print(Text(render(table, format)), soft_wrap=True, end="")


def _terminal_text(table: Table) -> str:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=TERMINAL_WIDTH, no_color=True, force_terminal=False).print(
        terminal(table, TERMINAL_WIDTH)
    )
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _markdown(table: Table) -> str:
    def line(values: Iterable[str]) -> str:
        return "| " + " | ".join(markdown_escape(value).replace("\n", "<br>") for value in values) + " |"

    rules = ("---" if index < table.text_columns else "---:" for index in range(len(table.columns)))
    lines = [f"**{markdown_escape(table.title)}**", "", line(table.columns), f"| {' | '.join(rules)} |"]
    lines += [line(row) for row in table.rows]
    if table.notes:
        lines += ["", *(f"- {markdown_escape(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def markdown_escape(text: str) -> str:
    """Text in which Markdown sees no mark-up."""
    return _MARKDOWN_SPECIAL.sub(r"\\\g<0>", text)


def _csv(table: Table) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["Table", *(column.replace("\n", " ") for column in table.columns)])
    writer.writerows([table.name, *row] for row in table.rows)
    return stream.getvalue()


def _latex(table: Table) -> str:
    def heading(text: str) -> str:
        parts = [part.translate(_LATEX_ESCAPES) for part in text.split("\n")]
        return parts[0] if len(parts) == 1 else r"\shortstack{" + r"\\".join(parts) + "}"

    alignment = "l" * table.text_columns + "r" * (len(table.columns) - table.text_columns)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{table.title.translate(_LATEX_ESCAPES)}}}",
        rf"  \begin{{tabular}}{{{alignment}}}",
        r"    \toprule",
        f"    {' & '.join(heading(column) for column in table.columns)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(value.translate(_LATEX_ESCAPES) for value in row)} \\\\" for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        *(rf"  \par\footnotesize {note.translate(_LATEX_ESCAPES)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


TABLE_FORMATS = {
    "terminal": TableFormat(_terminal_text),
    "markdown": TableFormat(_markdown, ".md"),
    "csv": TableFormat(_csv, ".csv"),
    "latex": TableFormat(_latex, ".tex"),
}
"""By name; a new form is an entry here."""

FORMATS = tuple(TABLE_FORMATS)
