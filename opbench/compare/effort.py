"""How many rounds would decide a cell that a gate left undecided, by the noise that it measured. Pure."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from opbench.compare.rules import Rules

__all__ = ["MOST_ROUNDS", "SHARE", "chance_of_verdict", "rounds_to_decide"]

SHARE = 0.8
"""Of the gates with so many rounds, those that give the cell a verdict."""
MOST_ROUNDS = 1_000


def rounds_to_decide(rounds: NDArray[np.float64], suspects: int, rules: Rules) -> int | None:
    """The rounds of both stages with which SHARE of the gates decide a cell; None beyond MOST_ROUNDS.

    Args:
        rounds: its log ratios, two or more, which decided nothing; the answer is more than these.
        suspects: cells that share the level of the second stage.
        rules: levels; the tolerance.

    The change is taken to be as large as it was seen, less what noise alone makes of the mean: its square minus the
    mean's own variance, and none where that is negative. The closer it is to the tolerance, the longer it takes.
    """
    spread = float(rounds.std(ddof=1))
    mean = math.sqrt(max(0.0, float(rounds.mean()) ** 2 - spread**2 / len(rounds)))
    counts = np.arange(max(len(rounds), rules.screen_rounds + 1) + 1, MOST_ROUNDS + 1)
    enough = chance_of_verdict(mean, spread, counts, suspects, rules) >= SHARE
    return int(counts[np.argmax(enough)]) if enough.any() else None


def chance_of_verdict(
    mean: float, spread: float, counts: NDArray[np.int_], suspects: int, rules: Rules
) -> NDArray[np.float64]:
    """How likely a gate finds a cell the same, slower or faster, for each of several numbers of rounds.

    Args:
        mean: the true log ratio.
        spread: standard deviation of a round's log ratio, taken as known.
        counts: rounds of both stages; the first has as many as the rules say, and the second two or more.
        suspects: as in rounds_to_decide.
        rules: levels; the tolerance.
    """
    limit = math.log1p(rules.tolerance)
    spread = max(spread, 1e-12)
    error = spread / np.sqrt(counts)
    inside = np.maximum(limit - stats.t.ppf(1 - rules.same_level / 2, counts - 1) * error, 0.0)
    same = stats.norm.cdf((inside - mean) / error) - stats.norm.cdf((-inside - mean) / error)
    confirm = counts - rules.screen_rounds
    beyond = limit * np.sqrt(confirm) / spread + stats.t.ppf(1 - rules.level / max(suspects, 1), confirm - 1)
    shift = mean * np.sqrt(confirm) / spread
    chance: NDArray[np.float64] = same + stats.norm.sf(beyond - shift) + stats.norm.sf(beyond + shift)
    return chance
