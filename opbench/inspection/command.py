"""`opbench inspect`: compile, print, write and compare."""

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from opbench.errors import UnknownNameError
from opbench.inspection import baseline
from opbench.inspection.compile import require_compiler
from opbench.inspection.static import GPUS, Estimate, Variant, inspect_kernels
from opbench.inspection.tables import class_table, estimate_table, variant_table
from opbench.report.render import print_tables
from opbench.workload.case import Direction, Dtype

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["inspect"]

Choice = TypeVar("Choice", bound=StrEnum)
Results = list[tuple[Variant, list[Estimate]]]
DTYPES = (Dtype.FP32, Dtype.FP16, Dtype.BF16)
DIRECTIONS = (Direction.FWD, Direction.BWD)


def inspect(
    architectures: Sequence[str],
    dtypes: Sequence[str],
    directions: Sequence[str],
    *,
    json_output: bool,
    out: Path | None,
    check: Path | None,
    console: "Console",
) -> int:
    """Run the command; returns its exit code.

    Raises:
        UsageError: a name that does not exist, a baseline that cannot be read, or no compiler.
    """
    for architecture in architectures:
        if architecture not in GPUS:
            raise UnknownNameError("architecture", architecture, GPUS)
    chosen_dtypes = [_choice("dtype", name, DTYPES) for name in dtypes]
    chosen_directions = [_choice("direction", name, DIRECTIONS) for name in directions]
    require_compiler()
    bases = {name: baseline.load(check / f"{name}.json") for name in architectures} if check else {}
    import triton

    by_architecture: dict[str, Results] = {name: [] for name in architectures}
    for architecture, variant, estimates in inspect_kernels(architectures, chosen_dtypes, chosen_directions):
        print(f"{architecture} {variant.name}", file=sys.stderr)
        by_architecture[architecture].append((variant, estimates))
    documents, complaints = [], []
    for architecture, results in by_architecture.items():
        document = baseline.to_json(architecture, triton.__version__, results)
        documents.append(document)
        complaints += [f"{architecture} {line}" for line in baseline.failures(results)]
        if architecture in bases:
            complaints += [f"{architecture} {line}" for line in baseline.worse(bases[architecture], document)]
        if not json_output:
            tables = (table(architecture, results) for table in (variant_table, class_table, estimate_table))
            print_tables(tables, "terminal", console)
        if out:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{architecture}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if json_output:
        print(json.dumps(documents, indent=1))
    for line in complaints:
        print(f"worse: {line}", file=sys.stderr)
    return 1 if complaints else 0


def _choice(kind: str, name: str, allowed: Sequence[Choice]) -> Choice:
    for choice in allowed:
        if choice.value == name:
            return choice
    raise UnknownNameError(kind, name, allowed)
