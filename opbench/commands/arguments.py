"""Arguments that several commands take."""

import re
import sys
from typing import TYPE_CHECKING

from opbench.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["PIPE_WIDTH", "parse_fraction", "split_names", "stdout"]

PIPE_WIDTH = 160
"""Columns of tables that do not go to a terminal: the widest one fits."""


def split_names(option: str, text: str | None) -> list[str] | None:
    """The items of a comma-separated option; None where it was not given.

    Raises:
        UsageError: an item is empty.
    """
    if text is None:
        return None
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise UsageError(f"{option} must be names separated by commas, got {text!r}")
    return items


def parse_fraction(option: str, text: str) -> float:
    """A relative change: `3%` or `0.03`, above 0 and below 1.

    Raises:
        UsageError: something else.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        raise UsageError(f"{option} must be a change above 0 % and below 100 %, such as 3% or 0.03, got {text!r}")
    return value


def stdout(*, no_color: bool = False) -> "Console":
    """Standard output as tables need it."""
    from rich.console import Console

    # None leaves it to NO_COLOR.
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, soft_wrap=False, no_color=no_color or None)
