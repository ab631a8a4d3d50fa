"""The gate's statistics: what rounds of paired measurements allow to conclude. Pure: arrays in, decisions out.

A round is one fresh process per arm, run one after the other; its figure for a cell is r = log(head / base) of the two
processes' medians. Rounds are the replicates: launches inside a process share its memory layout, clocks and caches, so
however many there are they say nothing about the next process.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from opbench.compare.estimate import Estimate, Unit
from opbench.compare.verdicts import Verdict

__all__ = ["Decision", "Rules", "Screen", "decide", "holm", "interval", "moved", "screen", "settle"]

Rounds = NDArray[np.float64]
"""Log ratios, one row per round, one column per cell."""
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rules:
    """Levels and numbers of rounds; docs/gate.md shows what they achieve.

    Attributes:
        tolerance: relative change of a cell that is accepted.
        screen_rounds: of the first stage, on every cell.
        confirm_rounds: of the second stage, on the cells that the first one leaves in doubt.
        screen_level: a cell is suspect when a paired t-test of no change gives less.
        level: family-wise error of the second stage over the cells that the first one suspects.
        unsettled_level: likewise over those that it merely could not settle: many, so they must not cost the suspects
            power.
        same_level: of each of the looks at which a cell can be shown to be the same.
        suite_share: of the tolerance, what is accepted of the geometric mean, in which noise averages out.
        sentinel_level: of the test whether the sentinel differs between the arms.
    """

    tolerance: float = 0.01
    screen_rounds: int = 6
    confirm_rounds: int = 16
    screen_level: float = 0.10
    level: float = 0.01
    unsettled_level: float = 0.001
    same_level: float = 0.05
    suite_share: float = 0.3
    sentinel_level: float = 0.001

    def to_json(self) -> dict[str, float]:
        """What gate.json and selftest.json keep; one level has its first name there."""
        return {"late_level" if name == "unsettled_level" else name: value for name, value in asdict(self).items()}

    @property
    def suite_limit(self) -> float:
        """Log of the change of the geometric mean that is accepted."""
        return math.log1p(self.suite_share * self.tolerance)


@dataclass(frozen=True, slots=True)
class Screen:
    """What the first stage leaves.

    Attributes:
        same: cells shown to differ by less than the tolerance.
        suspect: cells that may have changed by more.
        suite_suspect: the geometric mean over all other cells may have become slower.
    """

    same: Flags
    suspect: Flags
    suite_suspect: bool

    def kept(self, *, settle: bool) -> Flags:
        """The cells that the second stage measures.

        Args:
            settle: cells that are neither suspect nor shown to be the same, too.
        """
        if self.suite_suspect:
            return np.ones_like(self.suspect)
        return self.suspect | ~self.same if settle else self.suspect


@dataclass(frozen=True, slots=True)
class Decision:
    """What both stages conclude.

    Attributes:
        verdicts: one per cell.
        changes: head / base per cell with its 95 % interval, from the rounds that the verdict rests on.
        suite: of the geometric mean over all cells; where the suite itself is suspect, over those that are not.
        suite_slower: shown to be slower by more than is tolerated.
    """

    verdicts: tuple[Verdict, ...]
    changes: tuple[Estimate, ...]
    suite: Estimate
    suite_slower: bool


def screen(rounds: Rounds, rules: Rules) -> Screen:
    """The first stage: which cells are settled, and which are suspect.

    Args:
        rounds: of the first stage, at least 3.
        rules: levels.
    """
    limit = np.log1p(rules.tolerance)
    mean = rounds.mean(axis=0)
    changed = (_p_above(rounds, 0.0) < rules.screen_level) & (mean > limit)
    changed |= (_p_above(-rounds, 0.0) < rules.screen_level) & (mean < -limit)
    suite_suspect = False
    if rounds.shape[1] - changed.sum() > 1:
        suite = rounds[:, ~changed].mean(axis=1, keepdims=True)
        p = _p_above(suite, 0.0).item()
        suite_suspect = bool(p < rules.screen_level and suite.mean() > rules.suite_limit)
    return Screen(_same(rounds, rules) & ~changed, changed, suite_suspect)


def decide(first: Rounds, second: Rounds | None, kept: Flags, rules: Rules) -> Decision:
    """The verdicts after both stages.

    Slower and faster rest on the second stage alone: its data are new, so choosing the cells by the first one does
    not favour any outcome. Same rests on all rounds.

    Args:
        first: the first stage, every cell.
        second: the second stage, a column per kept cell; None where nothing was kept.
        kept: which cells the second stage measured.
        rules: levels.
    """
    result = screen(first, rules)
    verdicts = _settled(result.same)
    changes = [interval(column) for column in first.T]
    suite_rounds, suite_slower = first.mean(axis=1), False
    if second is not None and second.size:
        limit = np.log1p(rules.tolerance)
        both = np.vstack([first[:, kept], second])
        outcome = _settled(_same(both, rules))
        p_faster, p_slower = _p_above(-second, limit), _p_above(second, limit)
        for family, level in ((result.suspect[kept], rules.level), (~result.suspect[kept], rules.unsettled_level)):
            _reject(outcome, np.flatnonzero(family), p_faster, p_slower, level)
        verdicts[kept] = outcome
        for index, column, all_rounds, verdict in zip(np.flatnonzero(kept), second.T, both.T, outcome, strict=True):
            changes[index] = interval(all_rounds if verdict is Verdict.SAME else column)
        if result.suite_suspect and kept.all():
            suite_rounds = second[:, ~result.suspect].mean(axis=1)
            p = _p_above(suite_rounds[:, None], rules.suite_limit).item()
            suite_slower = bool(p < rules.level)
    return Decision(tuple(verdicts), tuple(changes), interval(suite_rounds), suite_slower)


def settle(columns: Sequence[Sequence[float]], rules: Rules) -> tuple[tuple[Verdict, ...], tuple[Estimate, ...]]:
    """Verdicts and changes by the second stage's tests where there was no first stage: all cells are one family.

    Args:
        columns: of each cell its log ratios, two or more.
        rules: levels; the tolerance.
    """
    limit = np.log1p(rules.tolerance)
    rounds = [np.asarray(column, dtype=np.float64)[:, None] for column in columns]
    outcome = _settled(np.array([_same(one, rules).item() for one in rounds]))
    p_faster, p_slower = (np.array([_p_above(sign * one, limit).item() for one in rounds]) for sign in (-1, 1))
    _reject(outcome, np.arange(len(rounds)), p_faster, p_slower, rules.level)
    return tuple(outcome), tuple(interval(one.ravel()) for one in rounds)


def moved(rounds: Sequence[float], rules: Rules) -> bool:
    """Whether a sentinel differs between the arms by enough to matter.

    That is by half of the tolerance or more, and by a two-sided paired t-test over all its rounds.
    """
    column = np.asarray(rounds, dtype=np.float64)[:, None]
    if abs(column.mean()) < np.log1p(rules.tolerance) / 2:
        return False
    p = min(_p_above(column, 0.0).item(), _p_above(-column, 0.0).item())
    return bool(p < rules.sentinel_level / 2)


def interval(rounds: NDArray[np.float64], confidence: float = 0.95) -> Estimate:
    """The ratio: exp of the mean log ratio with its t interval."""
    mean, half = float(rounds.mean()), float(_half_width(rounds[:, None], confidence).item())
    return Estimate(mean, mean - half, mean + half, Unit.LOG).exp(Unit.RATIO)


def holm(p_values: NDArray[np.float64], level: float) -> Flags:
    """Hypotheses that Holm's step-down procedure rejects at a family-wise level (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    passed = p_values[order] <= level / np.arange(len(p_values), 0, -1)
    rejected: Flags = np.zeros(len(p_values), dtype=bool)
    rejected[order[: len(passed) if passed.all() else int(np.argmin(passed))]] = True
    return rejected


def _reject(outcome: Any, family: Any, p_faster: Any, p_slower: Any, level: float) -> None:  # noqa: ANN401 - numpy's
    """Mark the cells of a family that are shown to be faster or slower."""
    for p_values, verdict in ((p_faster, Verdict.FASTER), (p_slower, Verdict.SLOWER)):
        for index in family[holm(p_values[family], level)]:
            outcome[index] = verdict


def _settled(same: Flags) -> NDArray[np.object_]:
    verdicts = np.empty(len(same), dtype=object)
    # One by one: numpy would turn an enumeration of texts into texts.
    for index, settled in enumerate(same):
        verdicts[index] = Verdict.SAME if settled else Verdict.INCONCLUSIVE
    return verdicts


def _same(rounds: Rounds, rules: Rules) -> Flags:
    """Two one-sided t-tests: the interval of confidence 1 - same_level lies within the tolerance (Schuirmann 1987)."""
    half = _half_width(rounds, 1 - rules.same_level)
    inside: Flags = np.abs(rounds.mean(axis=0)) + half < np.log1p(rules.tolerance)
    return inside


def _half_width(rounds: Rounds, confidence: float) -> NDArray[np.float64]:
    count = len(rounds)
    half: NDArray[np.float64] = stats.t.ppf((1 + confidence) / 2, count - 1) * rounds.std(axis=0, ddof=1) / count**0.5
    return half


def _p_above(rounds: Rounds, limit: float) -> Any:  # noqa: ANN401 - scipy's
    """One-sided p-values, per cell, of the hypothesis that the mean is at most `limit`."""
    count = len(rounds)
    spread = np.maximum(rounds.std(axis=0, ddof=1), np.finfo(np.float64).tiny)
    return stats.t.sf((rounds.mean(axis=0) - limit) / spread * count**0.5, count - 1)
