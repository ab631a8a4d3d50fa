"""`opbench list`."""

from enum import StrEnum
from typing import Annotated

import typer

from opbench.commands._shared import NoColor, stdout

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


def list_(what: Annotated[Listing, typer.Argument(help="What to list.")], no_color: NoColor = False) -> None:
    """List what there is, with its availability here and the reason where not."""
    from opbench import listing

    stdout(no_color).print(getattr(listing, what.value)())
