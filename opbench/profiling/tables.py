"""The tables of `opbench profile`."""

from collections.abc import Sequence

from opbench.profiling.profile import KernelTime
from opbench.report.table import Table
from opbench.workload.case import Cell

__all__ = ["counter_table", "kernel_table"]

NAME_LENGTH = 90
SHOWN = 20
"""Kernels with a row of their own."""


def kernel_table(cell: Cell, kernels: Sequence[KernelTime], what: str, notes: Sequence[str] = ()) -> Table:
    """Where a launch's time goes, the longest first.

    Args:
        cell: that was profiled.
        kernels: its kernels, or operations.
        what: one of them, for the heading.
        notes: below the table.
    """
    shown, rest = [*kernels[:SHOWN]], kernels[SHOWN:]
    if rest:
        shown.append(_sum(f"{len(rest)} others", rest))
    total = _sum("all", kernels)
    rows = [
        (_short(each.name), f"{each.calls:.3g}", f"{each.time_us:.1f}", f"{100 * each.time_us / total.time_us:.1f} %")
        for each in (*shown, total)
    ]
    columns = (what, "calls", "time (us)", "share")
    return Table("profile", f"{cell.key}: one launch", columns, tuple(rows), tuple(notes), text_columns=1)


def counter_table(cell: Cell, counters: Sequence[dict[str, str]], notes: Sequence[str] = ()) -> Table:
    """A column for each counter, a row for each kernel; the first column is the kernel's name."""
    columns = tuple(counters[0])
    rows = tuple((_short(row[columns[0]]), *(row[name] for name in columns[1:])) for row in counters)
    return Table("counters", f"{cell.key}: one launch", columns, rows, tuple(notes), text_columns=1)


def _sum(name: str, kernels: Sequence[KernelTime]) -> KernelTime:
    return KernelTime(name, sum(kernel.calls for kernel in kernels), sum(kernel.time_us for kernel in kernels))


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
