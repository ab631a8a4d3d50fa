"""What a sweep would run, as a table."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from opbench.report.table import Table
from opbench.workload.case import Cell

__all__ = ["plan_table"]


def plan_table(cells: Sequence[Cell]) -> Table:
    """Every cell with its costs and the memory that it is estimated to take.

    Where an operator has the same settings in all of its cells, they stand in a note.
    """
    choices: defaultdict[str, set[str]] = defaultdict(set)
    for cell in cells:
        choices[cell.case.operator].add(cell.case.settings_text)
    same = {operator: text for operator, [text, *others] in choices.items() if text and not others}
    return Table(
        name="plan",
        title=f"{len(cells)} cells, none run",
        columns=("cell", "provider", "GFLOP", "MB moved", "memory, MiB"),
        rows=tuple(
            (
                replace(cell.case, settings=()).key if cell.case.operator in same else cell.case.key,
                cell.provider,
                f"{cell.flop_count / 1e9:.3g}",
                f"{cell.bytes_moved / 1e6:.3g}",
                f"{cell.memory_bytes / 2**20:.0f}",
            )
            for cell in cells
        ),
        notes=tuple(f"Settings of {operator}: {text.replace(';', ', ')}." for operator, text in same.items()),
    )
