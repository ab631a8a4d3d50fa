"""What a comparison of two arms says: verdicts per cell and overall, and what each stands for.

`opbench compare` and `opbench gate` both end in a Comparison; opbench.report.comparison shows one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from opbench.compare.estimate import Estimate
from opbench.workload.case import Cell
from opbench.workload.cell_warning import CellWarning

__all__ = ["Benchmark", "CellComparison", "Comparison", "Doubt", "JUnit", "Rank", "Verdict", "overall_verdict"]


class JUnit(StrEnum):
    """What a cell's test case holds in JUnit XML."""

    PASSED = ""
    FAILURE = "failure"
    ERROR = "error"
    SKIPPED = "skipped"


class Rank(StrEnum):
    """How a table stresses a verdict: opbench.report.table.Table.ranks."""

    BEST = "best"
    WORST = "worst"
    PLAIN = ""


class Verdict(StrEnum):
    """What is known about one cell, or about a whole comparison; a new one is an entry here.

    Worst first: the first that any cell has is the verdict on all, so that no good news hides bad news.

    Attributes:
        exit_code: of a command that ends in it; 2 is left for usage.
        junit: what its test case holds where the verdict is not accepted.
        rank: how a table stresses it.
        words: what cells of it have in common, for the reason of the verdict on all; `{tolerance}` is replaced.
    """

    exit_code: int
    junit: JUnit
    rank: Rank
    words: str

    # The defaults are never used: with them, type checkers accept Verdict("slower").
    def __new__(
        cls,
        text: str,
        exit_code: int = 5,
        junit: JUnit = JUnit.ERROR,
        rank: Rank = Rank.WORST,
        words: str = "",
    ) -> Self:
        """A verdict with its attributes; its value is the text."""
        verdict = str.__new__(cls, text)
        verdict._value_ = text
        verdict.exit_code, verdict.junit, verdict.rank, verdict.words = exit_code, junit, rank, words
        return verdict

    NOT_COMPARABLE = "not comparable", 4, JUnit.ERROR, Rank.WORST, "measured under other circumstances"
    """Measured under other circumstances; the reason names them."""
    SLOWER = "slower", 1, JUnit.FAILURE, Rank.WORST, "slower by more than {tolerance}"
    """Slower by more than what is tolerated."""
    MISSING = "missing", 5, JUnit.ERROR, Rank.WORST, "not measured in both"
    """Not measured, or failed, in one arm or both; the reason says which."""
    INCONCLUSIVE = "inconclusive", 3, JUnit.ERROR, Rank.PLAIN, "neither shown to differ nor to be the same"
    """None of slower, faster and same could be shown."""
    FASTER = "faster", 0, JUnit.PASSED, Rank.BEST, "faster by more than {tolerance}, none slower"
    """Faster by more than what is tolerated."""
    SAME = "same", 0, JUnit.PASSED, Rank.PLAIN, "the same within {tolerance}"
    """Shown to differ by less than what is tolerated; not merely not shown to differ."""
    UNCHANGED = "unchanged", 0, JUnit.SKIPPED, Rank.PLAIN, "not measured: it is the same code in both"
    """Not measured, since both arms run the same code for it; the reason says how that is known."""

    @property
    def passed(self) -> bool:
        """Whether a build that ends in it passes."""
        return self.exit_code == 0


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark of pytest-benchmark's that no opbench made: it has a name, and no operator or shape."""

    fullname: str

    @property
    def key(self) -> str:
        """What it is matched by."""
        return self.fullname


@dataclass(frozen=True, slots=True)
class Doubt:
    """What is known of a cell that a gate measured and could not decide.

    Attributes:
        base_ms, head_ms: every sample of all processes of either arm, milliseconds per launch.
        spread: standard deviation of a round's log ratio.
        rounds: that were measured.
        more_rounds: beyond these, that would decide it (opbench.compare.effort); None where no number would.
        more_s: seconds that they take; None likewise.
    """

    base_ms: tuple[float, ...]
    head_ms: tuple[float, ...]
    spread: float
    rounds: int
    more_rounds: int | None
    more_s: float | None

    @property
    def remedy(self) -> str:
        """What would decide it, in words."""
        if self.more_s is None:
            return "a thousand rounds would not decide it"
        return f"about {self.more_s / 60:.1f} more minutes would decide it"


@dataclass(frozen=True, slots=True)
class CellComparison:
    """One cell in both arms.

    Attributes:
        cell: as the base planned it; a Benchmark only where both arms are pytest-benchmark's JSON.
        verdict: what is known.
        reason: why, in one line; may be empty for slower, faster and same.
        base_ms, head_ms: medians, milliseconds per launch; None where there is no measurement.
        change: the ratio head / base; None likewise.
        base_source, head_source: the kernel_source_hash of either; empty where unknown.
        warnings: what disturbed either arm.
        doubt: of a cell that a gate measured and left inconclusive; else None.
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
    doubt: Doubt | None = None


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
        """Of the verdict on all."""
        return self.verdict.exit_code


def overall_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on all cells: the worst; missing where there is none, for nothing measured is nothing passed."""
    found = set(verdicts)
    return next((verdict for verdict in Verdict if verdict in found), Verdict.MISSING)
