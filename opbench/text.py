"""Texts as a reader gets them: one line, a percentage, a choice."""

import math
from collections.abc import Iterable

from opbench.errors import UsageError

__all__ = ["one_line", "one_of", "parse_percent", "percent_text"]


def parse_percent(option: str, text: str) -> float:
    """The fraction that `3%` or `0.03` stands for.

    Raises:
        UsageError: neither of these, or not above 0 and below 100 %; a bare 3 could mean 3 % or 300 %.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if rest or not 0 < value < 1:
        raise UsageError(f"{option} must be a percentage like 3% or a fraction like 0.03, below 100 %, got {text!r}")
    return value


def percent_text(fraction: float) -> str:
    """`3 %`, `0.25 %`."""
    return f"{100 * fraction:.4g} %"


def one_line(text: str, length: int = 300) -> str:
    """A text cut to one printable line: what breaks a line is a space, other control characters are escaped."""
    if len(text) <= length and text.isprintable():
        return text
    words = " ".join(text[: 4 * length].split())
    printable = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)
    return printable if len(printable) <= length else f"{printable[: length - 1]}…"


def one_of(names: Iterable[str]) -> str:
    """`a, b or c`."""
    *first, last = names
    return " or ".join(filter(None, (", ".join(first), last)))
