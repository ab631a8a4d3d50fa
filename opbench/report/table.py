"""A table of text, before it has a form."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["SEPARATOR", "Table"]

SEPARATOR = " / "
"""Between the figures of several dtypes in a cell."""


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
