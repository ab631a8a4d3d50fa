"""What to do about samples that scatter on a CPU where other programs run. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from opbench.workload.cell_warning import CellWarning, WarningKind

__all__ = ["SCATTER", "cells_advice", "way_out"]

SCATTER = 0.25
"""Half width of the median's 95 % interval, as a fraction of the median, from which on samples scatter."""


def way_out(environment: Mapping[str, Any]) -> str:
    """What helps on a CPU that other programs use; empty for another device, which does not wait for the CPU."""
    if environment.get("device") != "cpu":
        return ""
    threads = (environment.get("cpu") or {}).get("torch_threads")
    if threads == 1:
        return "close the other program, or take a larger --time-budget"
    several = f"the {threads} threads" if threads else "the threads"
    return (
        f"close the other program, or measure with --threads 1: {several} of an operator wait for each other whenever "
        "another program has a core"
    )


def cells_advice(cells: Iterable[tuple[float | None, Iterable[CellWarning]]], environment: Mapping[str, Any]) -> str:
    """What was seen in cells and what helps, in one line; empty where there is nothing to say.

    Args:
        cells: of each the half width of its interval over its median, None where it has none, and its warnings.
        environment: of the run.
    """
    helps = way_out(environment)
    if not helps:
        return ""
    widths, loaded = [], 0
    for width, warnings in cells:
        widths += [width] if width is not None and width > SCATTER else []
        loaded += any(warning.kind == WarningKind.CPU_LOAD for warning in warnings)
    seen = []
    if widths:
        seen.append(f"samples scatter by up to ±{100 * max(widths):.0f} %")
    if loaded:
        seen.append("other programs used the CPU")
    return f"{' and '.join(seen)}: {helps}" if seen else ""
