"""What a comparison of two arms says: verdicts per cell and overall, and the exit code that each stands for.

`opbench compare` and `opbench gate` both end in a Comparison; opbench.report.comparison shows one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from opbench.cell_warning import CellWarning
from opbench.estimate import Estimate
from opbench.workload.case import Cell

__all__ = ["Benchmark", "CellComparison", "Comparison", "Verdict", "overall_verdict"]


class Verdict(StrEnum):
    """What is known about one cell, or about a whole comparison."""

    SLOWER = "slower"
    """Slower by more than what is tolerated."""
    FASTER = "faster"
    """Faster by more than what is tolerated."""
    SAME = "same"
    """Shown to differ by less than what is tolerated; not merely not shown to differ."""
    INCONCLUSIVE = "inconclusive"
    """Neither of these could be shown."""
    NOT_COMPARABLE = "not comparable"
    """Measured under other circumstances; the reason names them."""
    MISSING = "missing"
    """Not measured, or failed, in one arm or both; the reason says which."""


EXIT_CODES = {
    Verdict.SAME: 0,
    Verdict.FASTER: 0,
    Verdict.SLOWER: 1,
    Verdict.INCONCLUSIVE: 3,
    Verdict.NOT_COMPARABLE: 4,
    Verdict.MISSING: 5,
}
"""2 is left for usage."""

PRECEDENCE = (
    Verdict.NOT_COMPARABLE,
    Verdict.SLOWER,
    Verdict.MISSING,
    Verdict.INCONCLUSIVE,
    Verdict.FASTER,
    Verdict.SAME,
)
"""The first that any cell has is the verdict on all: no good news hides bad news."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark of pytest-benchmark's that no opbench made: it has a name, and no operator or shape."""

    fullname: str

    @property
    def key(self) -> str:
        """What it is matched by."""
        return self.fullname


@dataclass(frozen=True, slots=True)
class CellComparison:
    """One cell in both arms.

    Attributes:
        cell: as the base planned it; a Benchmark only where both arms are pytest-benchmark's JSON.
        verdict: what is known.
        reason: why, in one line; may be empty for slower, faster and same.
        base_ms, head_ms: medians, milliseconds per launch; None where there is no measurement.
        change: the ratio head / base; None likewise.
        base_source, head_source: hashes of operator and kernel source; empty where unknown.
        warnings: what disturbed either arm.
    """

    cell: Cell | Benchmark
    verdict: Verdict
    reason: str = ""
    base_ms: float | None = None
    head_ms: float | None = None
    change: Estimate | None = None
    base_source: str = ""
    head_source: str = ""
    warnings: tuple[CellWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two arms, cell by cell.

    Attributes:
        base, head: what the arms are called: folders or revisions.
        tolerance: relative change that is accepted, 0.01 for 1 %.
        cells: in the order of the base's plan.
        verdict: the overall one.
        reason: why, in one line.
        means: geometric means of the ratios by name ("all cells", then operators).
        only_in_head: keys of cells that the base does not plan; they count for nothing.
        not_applicable: keys of cells that have no meaning in either arm; they count for nothing.
        notes: lines that a reader must see: how the figures came about, and how far to trust them.
        same_source: nothing was compared, since both arms ran the same source of every operator.
    """

    base: str
    head: str
    tolerance: float
    cells: tuple[CellComparison, ...]
    verdict: Verdict
    reason: str = ""
    means: tuple[tuple[str, Estimate], ...] = ()
    only_in_head: tuple[str, ...] = ()
    not_applicable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    same_source: bool = False

    @property
    def exit_code(self) -> int:
        """0 same or faster, 1 slower, 3 inconclusive, 4 not comparable, 5 missing."""
        return EXIT_CODES[self.verdict]


def overall_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on all cells: the worst; missing where there is none, for nothing measured is nothing passed."""
    found = set(verdicts)
    return next((verdict for verdict in PRECEDENCE if verdict in found), Verdict.MISSING)
