"""What a gate knows of cells that it could not decide: their samples, and how many more rounds would decide them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean

from opbench.compare.effort import MOST_ROUNDS, SHARE, rounds_to_decide
from opbench.compare.rules import Rules
from opbench.compare.verdicts import CellComparison, Comparison, Doubt, Verdict
from opbench.gate.outcome import Pair, complete
from opbench.results.measurement import Status
from opbench.workload.case import Cell

__all__ = ["with_doubts"]


def with_doubts(comparison: Comparison, rounds: Sequence[Pair], suspects: int, rules: Rules) -> Comparison:
    """A comparison whose undecided cells have their samples and what would decide them; with a note on all of them.

    Args:
        comparison: of a session.
        rounds: of both its stages.
        suspects: cells that share the level of the second stage.
        rules: of the session.
    """
    last = rounds[rules.screen_rounds :] or rounds
    round_s = fmean(sum(process.seconds for process in pair.values()) for pair in last) if last else 0.0
    cells = tuple(
        replace(row, doubt=_doubt(row.cell, rounds, round_s, suspects, rules))
        if row.verdict is Verdict.INCONCLUSIVE and row.change and isinstance(row.cell, Cell)
        else row
        for row in comparison.cells
    )
    return replace(comparison, cells=cells, notes=(*comparison.notes, *_notes(cells, rules)))


def _doubt(cell: Cell, rounds: Sequence[Pair], round_s: float, suspects: int, rules: Rules) -> Doubt:
    taken = [pair for pair in rounds if all(process.median_ms(cell.key) for process in pair.values())]
    _, ratios = complete([cell], taken)
    needed = rounds_to_decide(ratios[:, 0], suspects, rules)
    more = None if needed is None else needed - len(taken)
    return Doubt(
        base_ms=_samples(cell, "base", taken),
        head_ms=_samples(cell, "head", taken),
        spread=float(ratios[:, 0].std(ddof=1)),
        rounds=len(taken),
        more_rounds=more,
        more_s=None if more is None else more * round_s,
    )


def _samples(cell: Cell, arm: str, rounds: Sequence[Pair]) -> tuple[float, ...]:
    measured = (pair[arm].measurements[cell.key] for pair in rounds)
    return tuple(chain.from_iterable(m.latencies_ms for m in measured if m.status is Status.OK))


def _notes(cells: Sequence[CellComparison], rules: Rules) -> list[str]:
    doubts = [row.doubt for row in cells if row.doubt]
    able = [(d.more_s, d.more_rounds, d.rounds) for d in doubts if d.more_s is not None and d.more_rounds is not None]
    notes = []
    if able:
        more_s, more, had = max(able)
        notes.append(
            f"about {more_s / 60:.1f} more minutes would decide {_count(len(able), len(doubts))}, with a chance of "
            f"{SHARE:.0%} each: {more} rounds more, --rounds {rules.screen_rounds}+{had + more - rules.screen_rounds}"
        )
    if len(able) < len(doubts):
        notes.append(
            f"{MOST_ROUNDS} rounds would not decide {_count(len(doubts) - len(able), len(doubts))}: the change is near "
            "the tolerance, or the noise far above it; a wider --tolerance or a quieter machine would"
        )
    return notes


def _count(some: int, every: int) -> str:
    cells = f"inconclusive cell{'' if every == 1 else 's'}"
    return f"the {every} {cells}" if some == every else f"{some} of the {every} {cells}"
