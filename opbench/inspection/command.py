"""`opbench inspect`: compile, print, write and compare; with committed figures, or with the official kernels."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from opbench.errors import UnknownNameError, UsageError
from opbench.inspection import baseline
from opbench.inspection.comparison import Made, comparison_tables, to_json
from opbench.inspection.compile import require_compiler
from opbench.inspection.nvcc import Nvcc
from opbench.inspection.official import OfficialVariant, find_sources, inspect_official
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
    official: Path | None,
    console: "Console",
) -> int:
    """Run the command; returns its exit code.

    Raises:
        UsageError: a name that does not exist, a baseline that cannot be read, no compiler, or official sources that
            are not there or do not compile.
    """
    if official and check:
        raise UsageError("--check compares with committed figures, --official with the official kernels: give one")
    for architecture in architectures:
        if architecture not in GPUS:
            raise UnknownNameError("architecture", architecture, GPUS)
    chosen_dtypes = [_choice("dtype", name, DTYPES) for name in dtypes]
    chosen_directions = [_choice("direction", name, DIRECTIONS) for name in directions]
    require_compiler()
    if official:
        beside_official(
            official, architectures, chosen_dtypes, chosen_directions, json_output=json_output, out=out, console=console
        )
        return 0
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
            _write(out / f"{architecture}.json", document)
    if json_output:
        print(json.dumps(documents, indent=1))
    for line in complaints:
        print(f"worse: {line}", file=sys.stderr)
    return 1 if complaints else 0


def beside_official(
    checkout: Path,
    architectures: Sequence[str],
    dtypes: Sequence[Dtype],
    directions: Sequence[Direction],
    *,
    json_output: bool,
    out: Path | None,
    console: "Console",
) -> None:
    """Compile the official kernels and ours; print both, and write the official ones' figures.

    Args:
        checkout: of github.com/OpenGVLab/DCNv4.
        architectures, dtypes, directions: of both.
        json_output: print a list, one item per architecture with the official kernels and ours.
        out: folder of official-<architecture>.json.
        console: for tables.
    """
    import torch
    import triton

    sources = find_sources(checkout)
    nvcc = Nvcc()
    for architecture in architectures:
        nvcc.require(architecture)
    made = Made.of(nvcc.version, torch.__version__, sources)
    theirs: dict[str, list[OfficialVariant]] = {name: [] for name in architectures}
    for architecture, compiled in inspect_official(nvcc, sources, architectures, dtypes, directions):
        print(*(f"{architecture} official {variant.name}" for variant in compiled), sep="\n", file=sys.stderr)
        theirs[architecture] += compiled
    ours: dict[str, list[Variant]] = {name: [] for name in architectures}
    for architecture, variant, _ in inspect_kernels(architectures, dtypes, directions, core_only=True):
        print(f"{architecture} {variant.name}", file=sys.stderr)
        ours[architecture].append(variant)
    documents = []
    for architecture in architectures:
        document = to_json(architecture, made, theirs[architecture])
        documents.append({"official": document, "ours": [asdict(variant) for variant in ours[architecture]]})
        if out:
            _write(out / f"official-{architecture}.json", document)
        if not json_output:
            tables = comparison_tables(architecture, made, triton.__version__, theirs[architecture], ours[architecture])
            print_tables(tables, "terminal", console)
    if json_output:
        print(json.dumps(documents, indent=1))


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _choice(kind: str, name: str, allowed: Sequence[Choice]) -> Choice:
    for choice in allowed:
        if choice.value == name:
            return choice
    raise UnknownNameError(kind, name, allowed)
