"""`opbench list`."""

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from opbench.cli.shared import NoColor, known_operators, text_width

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command("list")(list_)


class Listing(StrEnum):
    """What `opbench list` can list."""

    OPERATORS = "operators"
    PROVIDERS = "providers"
    SHAPES = "shapes"
    DEVICES = "devices"


def list_(
    what: Annotated[Listing, typer.Argument(metavar="WHAT", help="operators, providers, shapes or devices.")],
    check: Annotated[
        bool, typer.Option("--check", help="Also whether each operator or provider works here; imports PyTorch.")
    ] = False,
    no_color: NoColor = False,
) -> None:
    """List what there is, and what it needs."""
    from opbench.cli import listing

    if what in (Listing.OPERATORS, Listing.PROVIDERS):
        known_operators()
    bold = sys.stdout.isatty() and not (no_color or os.environ.get("NO_COLOR"))
    for line in getattr(listing, what.value)(text_width(), check=check):
        print(typer.style(line, bold=True) if bold and not line.startswith(" ") else line)
