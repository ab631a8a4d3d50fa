"""`opbench inspect`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from opbench.cli.shared import split, stdout

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(inspect)


def inspect(
    arch: Annotated[str, typer.Option(metavar="LIST", help="Architectures.")] = "sm_80,sm_90,sm_100",
    dtypes: Annotated[str, typer.Option(metavar="LIST", help="Of the kernels' tensors.")] = "fp32,fp16,bf16",
    direction: Annotated[str, typer.Option(metavar="LIST", help="Of fwd, bwd.")] = "fwd,bwd",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON: a list, one item per architecture.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write DIR/<architecture>.json; with --official, DIR/official-<architecture>.json. "
            "[default: only print]",
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Compare with DIR/<architecture>.json; exit 1 where worse. [default: with nothing]"
        ),
    ] = None,
    official: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Compile the official kernels, too, and compare: DIR is a checkout of OpenGVLab/DCNv4. Needs nvcc. "
            "[default: ours alone]",
        ),
    ] = None,
) -> None:
    """Compile the DCN kernels for GPUs that need not be here; show registers, spills, instructions and bounds.

    Exit codes: 0, or 1 where a kernel spills or loads narrowly or, with --check, a figure got worse; 2 usage.
    """
    from opbench.inspection import command

    status = command.inspect(
        split("--arch", arch) or [],
        split("--dtypes", dtypes) or [],
        split("--direction", direction) or [],
        json_output=json_,
        out=out,
        check=check,
        official=official,
        console=stdout(),
    )
    sys.exit(status)
