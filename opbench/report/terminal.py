"""A table in a terminal: no figure is cut, no name is lost, whatever the width."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from opbench.report.table import SEPARATOR, Table

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

__all__ = ["terminal"]

GAP = 2
"""Blanks between columns, and before the figures that stand below their name."""
LONGEST_NAMES = 2 / 3
"""Of the width: longer ones, such as a cell's, would stand beside one figure at a time."""
RANK_STYLES = {"best": "bold green", "worst": "red"}
_PIECES = re.compile(r"[^ /;]+[ /;]*|[ /;]+")
"""Of a name, which is wrapped between them."""


def terminal(table: Table, width: int) -> "Group":
    """A table as a rich renderable of at most `width` columns; no text in it is taken for rich markup.

    Columns of figures that do not fit beside the others stand in a block of their own below: a table folds by shape.
    Where the names leave too little room for that, each has a line of its own, and its figures the next.
    """
    from rich.console import Group
    from rich.text import Text

    columns = table.columns
    second_lines = {column.partition("\n")[2] for column in columns[table.text_columns :]}
    if len(second_lines) == 1:  # the title says it too, and a terminal is narrow
        columns = tuple(column.partition("\n")[0] for column in columns)
    wide = _widths(table, columns)
    words, figures = sum(wide[: table.text_columns]), wide[table.text_columns :]
    room = width + GAP - words
    if sum(figures) <= room or (words <= LONGEST_NAMES * width and max(figures, default=0) <= room):
        blocks = _blocks(table.text_columns, wide, room)
        parts: list[RichTable | Text] = [_grid(table, columns, block) for block in blocks]
    else:
        columns = tuple(" ".join(column.split("\n")) for column in columns)
        wide = _widths(table, columns)
        blocks = _blocks(table.text_columns, wide, width)
        parts = [line for block in blocks for line in _stack(table, columns, wide, block, width)]
    # Not the grid's own title, which is wrapped to the grid's width.
    return Group(Text(table.title, style="bold"), *parts, *(Text(note, style="dim") for note in table.notes))


def _widths(table: Table, columns: Sequence[str]) -> list[int]:
    """Of each column's widest line, with a gap."""
    from rich.cells import cell_len

    texts = zip(columns, *table.rows, strict=True)
    return [GAP + max(cell_len(line) for text in column for line in text.split("\n")) for column in texts]


def _blocks(first: int, wide: Sequence[int], room: int) -> list[list[int]]:
    """The columns from `first` on, in as few groups as the room allows; one each where none fits."""
    blocks: list[list[int]] = [[]]
    left = room
    for index in range(first, len(wide)):
        if blocks[-1] and wide[index] > left:
            blocks.append([])
            left = room
        blocks[-1].append(index)
        left -= wide[index]
    return blocks


def _grid(table: Table, columns: Sequence[str], figures: Sequence[int]) -> "RichTable":
    """Every row's words, and these columns of its figures."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    shown = (*range(table.text_columns), *figures)
    for index in shown:
        is_figure = index >= table.text_columns
        grid.add_column(
            Text(columns[index]), justify="right" if is_figure else "left", vertical="top" if is_figure else "middle",
            no_wrap=True, overflow="fold",
        )  # fmt: skip
    for number, row in enumerate(table.rows):
        grid.add_row(*(_ranked(table, number, column, row[column]) for column in shown))
    return grid


def _stack(
    table: Table, columns: Sequence[str], wide: Sequence[int], figures: Sequence[int], width: int
) -> "Iterator[Text]":
    """Lines: every row's words, and below them these columns of its figures, right-aligned under their headings."""
    from rich.text import Text

    def lines(texts: "Sequence[Text]") -> "Iterator[Text]":
        yield from _packed(texts[: table.text_columns], width)
        yield Text().join(Text(" " * (wide[index] - texts[index].cell_len)) + texts[index] for index in figures)

    yield from lines([Text(column, style="bold") for column in columns])
    yield Text("─" * min(width, max(sum(wide[index] for index in figures), width // 2)))
    for number, row in enumerate(table.rows):
        yield from lines([_ranked(table, number, column, value) for column, value in enumerate(row)])


def _packed(texts: "Iterable[Text]", width: int) -> "Iterator[Text]":
    """Texts side by side on as few lines as hold them; one that is wider than a line is wrapped between its pieces."""
    from rich.text import Text

    line = Text()
    for text in texts:
        if line and line.cell_len + GAP + text.cell_len > width:
            yield line
            line = Text()
        line = Text(" " * GAP).join([line, text]) if line else text
        if line.cell_len > width:
            *whole, line = _wrapped(line, width)
            yield from whole
    yield line


def _wrapped(text: "Text", width: int) -> "list[Text]":
    from rich.cells import cell_len

    offsets, place, column = [], 0, 0
    for piece in _PIECES.findall(text.plain):
        if column and column + cell_len(piece.rstrip()) > width:
            offsets.append(place)
            column = 0
        place += len(piece)
        column += cell_len(piece)
    lines = text.divide(offsets)
    for line in lines:
        line.rstrip()
    return list(lines)


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
