"""Static figures as JSON files, and whether new ones are worse than committed ones."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opbench.errors import UsageError
from opbench.inspection.static import GPUS, Estimate, Variant

__all__ = ["SCHEMA_VERSION", "failures", "load", "to_json", "worse"]

SCHEMA_VERSION = 1
SAME_COMPILER = 1.02
"""Most growth of a count: the compiler schedules the same source a little differently after unrelated changes."""
OTHER_COMPILER = 1.15
"""Most growth of a count when Triton's version differs: a wide net, which the message says."""


def to_json(
    architecture: str, triton_version: str, results: Sequence[tuple[Variant, Sequence[Estimate]]]
) -> dict[str, Any]:
    """The content of one file: one architecture's variants and estimates, rounded to what they can carry."""
    return {
        "schema_version": SCHEMA_VERSION,
        "architecture": architecture,
        "triton": triton_version,
        "assumed_gpu": asdict(GPUS[architecture]),
        "formula": {
            "issue_ms": "warps * instructions / (sms * 4 * clock)",
            "l1_ms": "4 * K * P * C * element_bytes / (sms * l1_bytes_per_clock * clock); "
            "fused: also K * (P * C * group_tiles + C * 4 * G * pixel_tiles) elements; "
            "depthwise: rows, and weights or rows of the gradient, of every chunk; "
            "dcnv2, pconv: what the tiles load",
            "hbm_ms": "bytes once / hbm_gbps",
        },
        "variants": [
            asdict(variant) | {"instructions_per_point": float(f"{variant.instructions_per_point:.4g}")}
            for variant, _ in results
        ],
        "estimates": [
            {name: round(value, 5) if isinstance(value, float) else value for name, value in asdict(estimate).items()}
            | {"bound_by": estimate.bound_by}
            for _, estimates in results
            for estimate in estimates
        ],
    }


def load(path: Path) -> dict[str, Any]:
    """The content of a committed file.

    Raises:
        UsageError: it is not there, or not one of these files.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema_version"] != SCHEMA_VERSION:
            raise UsageError(f"{path}: schema_version must be {SCHEMA_VERSION}, got {data['schema_version']!r}")
        {variant["name"]: variant["registers"] for variant in data["variants"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a file of static figures: {error!r}") from error
    result: dict[str, Any] = data
    return result


def failures(results: Sequence[tuple[Variant, Sequence[Estimate]]]) -> list[str]:
    """Targets whatever came before: no stack and no spill, and loads as wide as they should be."""
    lines = []
    for variant, _ in results:
        if variant.stack_bytes or variant.local_accesses:
            lines.append(f"{variant.name}: {variant.stack_bytes} bytes of stack, {variant.local_accesses} spills")
        wide = variant.loads.get(128, 0)
        if wide < variant.expected_wide_loads:
            lines.append(f"{variant.name}: {wide} loads of 128 bits, expected at least {variant.expected_wide_loads}")
    return lines


def worse(base: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What got worse from `base` to `new`, one line each; empty where nothing did.

    Only variants of both are compared; one that `new` lacks is worse if its direction and dtype were inspected.
    """
    same = base["triton"] == new["triton"]
    factor = SAME_COMPILER if same else OTHER_COMPILER
    note = "" if same else f" (Triton {base['triton']} then, {new['triton']} now: {factor:.0%} allowed)"
    after = {variant["name"]: variant for variant in new["variants"]}
    inspected = set(map(_direction_and_dtype, after))
    lines = []
    for before in base["variants"]:
        name = before["name"]
        if name not in after:
            if _direction_and_dtype(name) in inspected:
                lines.append(f"{name}: no longer compiled; make the file again if the published shapes use another")
            continue
        now = after[name]
        for key in ("stack_bytes", "local_accesses", "shared_bytes"):
            if now[key] > before[key]:
                lines.append(f"{name}: {key} {before[key]} -> {now[key]}{note}")
        if now["instructions_per_point"] > before["instructions_per_point"] * factor:
            lines.append(
                f"{name}: instructions per point {before['instructions_per_point']} -> "
                f"{now['instructions_per_point']}{note}"
            )
        if now["occupancy"] * factor < before["occupancy"]:
            lines.append(
                f"{name}: occupancy {before['occupancy']:.0%} -> {now['occupancy']:.0%}, "
                f"registers {before['registers']} -> {now['registers']}{note}"
            )
        for kind in ("loads", "stores"):
            wide_before, wide_now = (_share_of_wide(figures[kind]) for figures in (before, now))
            if wide_now < wide_before:
                lines.append(f"{name}: 128-bit share of {kind} {wide_before:.0%} -> {wide_now:.0%}{note}")
    return lines


def _direction_and_dtype(name: str) -> str:
    """The first two parts of a variant's name: its direction, or kind of forward kernel, and dtype."""
    return "-".join(name.split("-")[:2])


def _share_of_wide(accesses: Mapping[Any, int]) -> float:
    counts = {int(width): count for width, count in accesses.items()}
    return counts.get(128, 0) / (sum(counts.values()) or 1)
