"""`opbench export`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


class Target(StrEnum):
    """What a run can be exported to."""

    PYTEST_BENCHMARK = "pytest-benchmark"


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(export)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    to: Annotated[Target, typer.Option("--to", metavar="TOOL", help="For which tool: pytest-benchmark.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Must not exist. [default: print]")] = None,
) -> None:
    """Write a run as another tool's file, samples included: `pytest-benchmark compare FILE...` reads it.

    Exit codes: 0 written, 2 usage, no run there or a file that exists, 3 it cannot be written.
    """
    from opbench.compare.benchmark_json import run_as_benchmark_json
    from opbench.errors import ResultsError
    from opbench.files import write_whole
    from opbench.results.run import Run

    text = json.dumps(run_as_benchmark_json(Run.open(run)), indent=1, allow_nan=False) + "\n"
    if out is None:
        print(text, end="")
    elif out.exists():
        raise ResultsError(f"{out} exists; remove it or choose another --out")
    else:
        write_whole(out, text)
