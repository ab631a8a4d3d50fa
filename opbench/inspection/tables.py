"""Static figures as tables for a terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from opbench.inspection.launches import POINTS
from opbench.inspection.sass import CLASSES
from opbench.inspection.static import GPUS, Estimate, Variant

__all__ = ["estimate_table", "variant_table"]


def variant_table(architecture: str, results: Sequence[tuple[Variant, Sequence[Estimate]]]) -> Table:
    """One line per compiled variant."""
    table = Table(
        "variant", "registers", "stack", "spills", "shared", "occupancy", "loads 128/other", "stores 128/other",
        "atomics", "instructions", "per point", title=f"{architecture}: kernels, compiled and not run",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for variant, _ in results:
        table.add_row(
            variant.name,
            str(variant.registers),
            str(variant.stack_bytes),
            str(variant.local_accesses),
            str(variant.shared_bytes),
            f"{variant.occupancy:.0%}",
            _wide_and_other(variant.loads),
            _wide_and_other(variant.stores),
            str(sum(variant.atomics.values())),
            str(variant.instructions),
            f"{variant.instructions_per_point:.1f}",
        )
    return table


def class_table(architecture: str, results: Sequence[tuple[Variant, Sequence[Estimate]]]) -> Table:
    """Instructions by class, one line per variant."""
    classes = [name for name in (*CLASSES, "other") if any(name in variant.classes for variant, _ in results)]
    table = Table("variant", *classes, title=f"{architecture}: instructions of {POINTS} points, by class")
    for column in table.columns[1:]:
        column.justify = "right"
    for variant, _ in results:
        table.add_row(variant.name, *(str(variant.classes.get(name, 0)) for name in classes))
    return table


def estimate_table(architecture: str, results: Sequence[tuple[Variant, Sequence[Estimate]]]) -> Table:
    """One line per shape: three lower bounds, in milliseconds."""
    gpu = GPUS[architecture]
    title = (
        f"{architecture}: lower bounds, ms, of a {gpu.name} with {gpu.sms} SMs at {gpu.clock_ghz} GHz (not measured)\n"
        "issue = warps * instructions / (SMs * 4 * clock); "
        f"L1 = 4 K P C bytes (fused: and the product's) / (SMs * {gpu.l1_bytes_per_clock} * clock); "
        f"HBM = bytes once / {gpu.hbm_gbps:.0f} GB/s"
    )
    table = Table("shape list", "shape", "variant", "issue", "L1", "HBM", "bound by", title=title)
    for column in table.columns[3:6]:
        column.justify = "right"
    for _, estimates in results:
        for estimate in estimates:
            table.add_row(
                estimate.shape_list,
                estimate.shape,
                estimate.variant,
                *(f"{time:.4f}" for time in (estimate.issue_ms, estimate.l1_ms, estimate.hbm_ms)),
                estimate.bound_by,
            )
    return table


def _wide_and_other(accesses: Mapping[int, int]) -> str:
    counts = dict(accesses)
    wide = counts.pop(128, 0)
    return f"{wide}/{sum(counts.values())}"
