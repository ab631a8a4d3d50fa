"""The official kernels beside ours: what each point of a group of 32 channels costs.

`python -m opbench.inspection.comparison` writes the tables of docs/kernels.md again, from results/static.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from opbench.inspection import baseline
from opbench.inspection.launches import POINTS
from opbench.inspection.nvcc import FLAGS
from opbench.inspection.official import PUBLISHED, OfficialVariant, Sources
from opbench.inspection.sass import CLASSES
from opbench.inspection.static import Variant
from opbench.report.render import render
from opbench.report.table import Table
from opbench.workload.case import Direction

__all__ = ["Made", "comparison_tables", "page", "stored_tables", "to_json"]

Figures = TypeVar("Figures", OfficialVariant, Variant)
CORE = re.compile(r"(fwd|bwd)-\w+-groups")
"""Names of our variants that are shown."""
SHOWN = ("sm_90", "sm_80")
"""Architectures of the page."""
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"


@dataclass(frozen=True, slots=True)
class Made:
    """How the official kernels were compiled.

    Attributes:
        nvcc, torch: versions.
        digests: of the sources, by operator.
    """

    nvcc: str
    torch: str
    digests: Mapping[str, str]

    @classmethod
    def of(cls, nvcc: str, torch: str, sources: Sequence[Sources]) -> "Made":
        """From what the compiler and the checkout say."""
        return cls(nvcc, torch, {source.operator: source.digest for source in sources})


@dataclass(frozen=True, slots=True)
class PerPoint:
    """One line of the tables: counts are warp instructions per sampled point of a group of 32 channels."""

    direction: str
    dtype: str
    label: str
    """An official kernel, or what sets a variant of ours apart but for its groups."""
    groups: tuple[str, ...]
    """Of the shapes that take a variant of ours."""
    registers: int
    stack_bytes: int
    instructions: float
    classes: Mapping[str, float]
    loads: Mapping[int, float]
    stores: Mapping[int, float]
    atomics: Mapping[int, float]


def to_json(architecture: str, made: Made, variants: Sequence[OfficialVariant]) -> dict[str, Any]:
    """The content of official-<architecture>.json."""
    return {
        "schema_version": baseline.SCHEMA_VERSION,
        "architecture": architecture,
        **asdict(made),
        "flags": list(FLAGS),
        "variants": [
            asdict(variant) | {"instructions_per_point": round(_official(variant).instructions, 2)}
            for variant in variants
        ],
    }


def _official(variant: OfficialVariant) -> PerPoint:
    operator, direction, dtype, stride = variant.name.split("-")
    label = "official DCNv3" if operator == "dcnv3" else f"official DCNv4, d_stride {stride.removeprefix('stride')}"
    return _per_point(variant, direction, dtype, label, (), 1 / (variant.rows * POINTS))


def _ours(variant: Variant) -> PerPoint:
    direction, dtype, groups, *rest = variant.name.split("-")
    share = variant.num_warps / (variant.block_rows * POINTS)
    return _per_point(variant, direction, dtype, ", ".join(["ours", *rest]), (groups.removeprefix("groups"),), share)


def _per_point(
    variant: OfficialVariant | Variant, direction: str, dtype: str, label: str, groups: tuple[str, ...], share: float
) -> PerPoint:
    def scaled(counts: Mapping[Any, int]) -> dict[Any, float]:
        return {key: count * share for key, count in counts.items()}

    return PerPoint(
        direction=direction,
        dtype=dtype,
        label=label,
        groups=groups,
        registers=variant.registers,
        stack_bytes=variant.stack_bytes,
        instructions=variant.instructions * share,
        classes=scaled(variant.classes),
        loads=scaled(variant.loads),
        stores=scaled(variant.stores),
        atomics=scaled(variant.atomics),
    )


def _lines(official: Sequence[OfficialVariant], ours: Sequence[Variant]) -> list[PerPoint]:
    """By direction and dtype, the official kernels first."""
    lines = [_official(variant) for variant in official]
    lines += _merged([_ours(variant) for variant in ours])
    order = list(dict.fromkeys((line.direction, line.dtype) for line in lines))
    return sorted(lines, key=lambda line: order.index((line.direction, line.dtype)))


def _merged(lines: Sequence[PerPoint]) -> list[PerPoint]:
    """Variants that cost the same on one line."""
    merged: list[PerPoint] = []
    for line in lines:
        for place, other in enumerate(merged):
            if replace(other, groups=line.groups) == line:
                merged[place] = replace(other, groups=(*other.groups, *line.groups))
                break
        else:
            merged.append(line)
    return merged


def comparison_tables(
    architecture: str, made: Made, triton: str, official: Sequence[OfficialVariant], ours: Sequence[Variant]
) -> list[Table]:
    """Registers, instructions and accesses; then instructions by class.

    Args:
        architecture: of all of them.
        made: how the official ones were compiled.
        triton: version that compiled ours.
        official, ours: any variants; of ours, forward and backward of the core are shown.
    """
    lines = _lines(official, [variant for variant in ours if CORE.match(variant.name)])
    classes = [name for name in (*CLASSES, "other") if any(name in line.classes for line in lines)]
    heads = [(line.direction, line.dtype, _label(line)) for line in lines]
    costs = Table(
        name="official",
        title=f"{architecture}: official and ours, compiled and not run; warp instructions per point of 32 channels",
        columns=("pass", "dtype", "kernel", "registers", "stack", "instructions", "loads", "stores", "atomics"),
        rows=tuple(
            (
                *head,
                str(line.registers),
                str(line.stack_bytes),
                f"{line.instructions:.1f}",
                *(_by_width(accesses) for accesses in (line.loads, line.stores, line.atomics)),
            )
            for head, line in zip(heads, lines, strict=True)
        ),
        notes=_notes(made, triton),
        text_columns=3,
    )
    by_class = Table(
        name="official_classes",
        title=f"{architecture}: the same instructions by class",
        columns=("pass", "dtype", "kernel", *classes),
        rows=tuple(
            (*head, *(f"{line.classes.get(name, 0):.1f}" for name in classes))
            for head, line in zip(heads, lines, strict=True)
        ),
        text_columns=3,
    )
    return [costs, by_class]


def _label(line: PerPoint) -> str:
    return f"{line.label}, groups {' '.join(line.groups)}" if line.groups else line.label


def _notes(made: Made, triton: str) -> tuple[str, ...]:
    strides = {direction: PUBLISHED[direction] for direction in (Direction.FWD, Direction.BWD)}
    digests = ", ".join(f"{operator} {digest}" for operator, digest in made.digests.items())
    return (
        "loads, stores and atomics: warp instructions by their width in bits per lane",
        f"the published shapes take d_stride {strides[Direction.FWD]} forward and {strides[Direction.BWD]} backward",
        f"official: nvcc {made.nvcc}, headers of torch {made.torch}, sources {digests}; ours: Triton {triton}",
    )


def _by_width(accesses: Mapping[int, float]) -> str:
    return " + ".join(f"{count:.2f} x {width}" for width, count in sorted(accesses.items())) or "-"


def stored_tables(static: Path, architecture: str) -> list[Table]:
    """The tables of stored figures, for a folder such as results/static.

    Raises:
        UsageError: figures that are missing or cannot be read.
    """
    ours = baseline.load(static / f"{architecture}.json")
    stored = baseline.load(static / f"official-{architecture}.json")
    return comparison_tables(
        architecture,
        Made(stored["nvcc"], stored["torch"], stored["digests"]),
        ours["triton"],
        [_restored(OfficialVariant, entry) for entry in stored["variants"]],
        [_restored(Variant, entry) for entry in ours["variants"]],
    )


def page(text: str, static: Path) -> str:
    """A page whose tables, between their marks, are those of stored figures.

    Raises:
        UsageError: figures that are missing or cannot be read.
    """
    parts = []
    for architecture in SHOWN:
        parts += [render(table, "markdown") for table in stored_tables(static, architecture)]
        flags = baseline.load(static / f"official-{architecture}.json")["flags"]
        parts.append(f"Flags of nvcc: `-arch={architecture} {' '.join(flags)}`.\n")
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + "\n".join(parts) + "\n" + END + rest.partition(END)[2]


def _restored(kind: type[Figures], entry: Mapping[str, Any]) -> Figures:
    values = {field.name: entry[field.name] for field in fields(kind)}
    for name in ("loads", "stores", "atomics"):
        values[name] = {int(width): count for width, count in values[name].items()}
    return kind(**values)


if __name__ == "__main__":
    ROOT = Path(__file__).parents[2]
    PAGE = ROOT / "docs" / "kernels.md"
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), ROOT / "results" / "static"), encoding="utf-8")
