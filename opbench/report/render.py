"""A table of text and its four forms: terminal, Markdown, CSV, LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opbench.errors import UnknownNameError

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table as RichTable
    from rich.text import Text

__all__ = ["FORMATS", "SEPARATOR", "SUFFIXES", "Table", "markdown_escape", "print_tables", "render", "terminal"]

SUFFIXES = {"markdown": ".md", "csv": ".csv", "latex": ".tex"}
"""File suffix of each format that is written to files."""

FORMATS = ("terminal", *SUFFIXES)
TERMINAL_WIDTH = 160
SEPARATOR = " / "
"""Between the figures of several dtypes in a cell."""
GAP = 2
"""Blanks between a terminal's columns."""
NAME_COLUMNS = 2
"""An operator or a cell, and its provider."""
RANK_STYLES = {"best": "bold green", "worst": "red"}

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
class Table:
    """Text in rows and columns; a line break in a column's heading is kept where the form allows it."""

    name: str
    """Stem of its files."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    text_columns: int = 2
    """How many columns, from the left, are words; the rest are figures and stand right-aligned."""
    ranks: Mapping[tuple[int, int, int], str] = field(default_factory=dict)
    """`best` or `worst` by row, column and place between the cell's slashes; a terminal shows it in colour."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.name}: a row of {len(row)} values under {len(self.columns)} columns")


def render(table: Table, format: str) -> str:  # noqa: A002 - the word of the command line
    """A table as text ending in one line break.

    Args:
        table: what to show.
        format: one of FORMATS. `csv` has no title and no notes; its first column is the table's name, so that
            several tables in one stream can be told apart.

    Raises:
        UnknownNameError: a format that is not known.
    """
    forms: dict[str, Callable[[Table], str]] = {
        "terminal": _terminal_text,
        "markdown": _markdown,
        "csv": _csv,
        "latex": _latex,
    }
    if format not in forms:
        raise UnknownNameError("format", format, FORMATS)
    return forms[format](table)


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


def terminal(table: Table, width: int) -> "Group":
    """A table as a rich renderable of at most `width` columns; no text in it is taken for rich markup.

    A figure is never cut: columns that do not fit beside the others stand in a block of their own below.
    """
    from rich.console import Group
    from rich.text import Text

    columns = table.columns
    second_lines = {column.partition("\n")[2] for column in columns[table.text_columns :]}
    if len(second_lines) == 1:  # the title says it too, and a terminal is narrow
        columns = tuple(column.partition("\n")[0] for column in columns)
    blocks = [_grid(table, columns, block) for block in _blocks(table, columns, width)]
    # Not the grid's own title, which is wrapped to the grid's width.
    return Group(Text(table.title, style="bold"), *blocks, *(Text(note, style="dim") for note in table.notes))


def _blocks(table: Table, columns: tuple[str, ...], width: int) -> list[list[int]]:
    """The columns of figures, in as few groups as fit beside the columns of words; one each where none fits."""
    from rich.cells import cell_len

    def wide(index: int) -> int:
        texts = (columns[index], *(row[index] for row in table.rows))
        return GAP + max(cell_len(line) for text in texts for line in text.split("\n"))

    words = sum(wide(index) for index in range(table.text_columns))
    left = first = max(width + GAP - words, (width + GAP) // 2)  # names longer than half of it are wrapped
    blocks: list[list[int]] = [[]]
    for index in range(table.text_columns, len(columns)):
        if blocks[-1] and wide(index) > left:
            blocks.append([])
            left = first
        blocks[-1].append(index)
        left -= wide(index)
    return blocks


def _grid(table: Table, columns: tuple[str, ...], figures: list[int]) -> "RichTable":
    """Every row's words, and these columns of its figures."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    shown = (*range(table.text_columns), *figures)
    for index in shown:
        is_figure = index >= table.text_columns
        # Names alone may be wrapped: a histogram is words too.
        grid.add_column(
            Text(columns[index]), justify="right" if is_figure else "left", vertical="top" if is_figure else "middle",
            no_wrap=index >= NAME_COLUMNS, overflow="fold",
        )  # fmt: skip
    for number, row in enumerate(table.rows):
        grid.add_row(*(_ranked(table, number, column, row[column]) for column in shown))
    return grid


def _ranked(table: Table, row: int, column: int, value: str) -> "Text":
    """A cell's text with its best and worst figures in colour."""
    from rich.text import Text

    if not any((row, column, place) in table.ranks for place in range(value.count(SEPARATOR) + 1)):
        return Text(value)
    parts = [
        Text(part, style=RANK_STYLES.get(table.ranks.get((row, column, place), ""), ""))
        for place, part in enumerate(value.split(SEPARATOR))
    ]
    return Text(SEPARATOR).join(parts)


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
