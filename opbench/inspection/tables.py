"""Static figures as tables for a terminal."""

from collections.abc import Mapping, Sequence

from opbench.inspection.launches import POINTS
from opbench.inspection.sass import CLASSES
from opbench.inspection.static import GPUS, Estimate, Variant
from opbench.report.table import Table

__all__ = ["class_table", "estimate_table", "variant_table"]

Results = Sequence[tuple[Variant, Sequence[Estimate]]]


def variant_table(architecture: str, results: Results) -> Table:
    """One line per compiled variant."""
    return Table(
        name="variants",
        title=f"{architecture}: kernels, compiled and not run",
        columns=(
            "variant", "registers", "stack", "spills", "shared", "occupancy", "loads 128/other", "stores 128/other",
            "atomics", "instructions", "per point",
        ),
        rows=tuple(
            (
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
            for variant, _ in results
        ),
        text_columns=1,
    )  # fmt: skip


def class_table(architecture: str, results: Results) -> Table:
    """Instructions by class, one line per variant."""
    classes = [name for name in (*CLASSES, "other") if any(name in variant.classes for variant, _ in results)]
    return Table(
        name="classes",
        title=f"{architecture}: instructions of {POINTS} points (others: of a chunk, of a program), by class",
        columns=("variant", *classes),
        rows=tuple((variant.name, *(str(variant.classes.get(name, 0)) for name in classes)) for variant, _ in results),
        text_columns=1,
    )


def estimate_table(architecture: str, results: Results) -> Table:
    """One line per shape: three lower bounds, in milliseconds."""
    gpu = GPUS[architecture]
    return Table(
        name="estimates",
        title=f"{architecture}: lower bounds, ms, not measured: {gpu.name}, {gpu.sms} SMs at {gpu.clock_ghz} GHz",
        columns=("shape list", "shape", "variant", "issue", "L1", "HBM", "bound by"),
        rows=tuple(
            (
                estimate.shape_list,
                estimate.shape,
                estimate.variant,
                *(f"{time:.4f}" for time in (estimate.issue_ms, estimate.l1_ms, estimate.hbm_ms)),
                estimate.bound_by,
            )
            for _, estimates in results
            for estimate in estimates
        ),
        notes=(
            "issue = warps * instructions / (SMs * 4 * clock)",
            f"L1 = 4 K P C bytes (fused: and the product's) / (SMs * {gpu.l1_bytes_per_clock} * clock)",
            "depthwise: the instructions of all chunks, and the bytes that they load",
            "dcnv2, pconv: all that their tiles load",
            f"HBM = bytes once / {gpu.hbm_gbps:.0f} GB/s",
        ),
        text_columns=3,
    )


def _wide_and_other(accesses: Mapping[int, int]) -> str:
    counts = dict(accesses)
    wide = counts.pop(128, 0)
    return f"{wide}/{sum(counts.values())}"
