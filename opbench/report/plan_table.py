"""What a sweep would run, as a table."""

from collections.abc import Sequence
from dataclasses import replace

from opbench.report.table import Table
from opbench.workload.case import Cell

__all__ = ["plan_table"]


def plan_table(cells: Sequence[Cell]) -> Table:
    """Every cell with its costs and the memory that it is estimated to take.

    Settings stand in the notes: in one sweep an operator has the same in all of its cells.
    """
    settings = dict.fromkeys((cell.case.operator, cell.case.settings_text) for cell in cells if cell.case.settings)
    return Table(
        name="plan",
        title=f"{len(cells)} cells, none run",
        columns=("cell", "provider", "GFLOP", "MB moved", "memory, MiB"),
        rows=tuple(
            (
                replace(cell.case, settings=()).key,
                cell.provider,
                f"{cell.flop_count / 1e9:.3g}",
                f"{cell.bytes_moved / 1e6:.3g}",
                f"{cell.memory_bytes / 2**20:.0f}",
            )
            for cell in cells
        ),
        notes=tuple(f"Settings of {operator}: {text.replace(';', ', ')}." for operator, text in settings),
    )
