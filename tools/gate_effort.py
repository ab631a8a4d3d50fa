"""How right a gate is about what would decide a cell: estimates of single gates beside the rounds really needed."""

import math

import numpy as np

from opbench.compare.effort import SHARE, rounds_to_decide
from opbench.compare.rules import Rules, decide, screen
from opbench.compare.verdicts import Verdict

__all__ = ["effort_rows", "estimates", "normal", "resampled", "share_decided"]

GATES = 200
"""Of each kind, for an estimate; as many for a share."""
MOST_ROUNDS = 3000


def one_gate(draw, confirm, rules):
    """Whether a gate of one cell decides it, by the gate's own rules, and its log ratios; `draw` gives so many."""
    first = draw(rules.screen_rounds)[:, None]
    kept = screen(first, rules).kept(settle=True)
    second = draw(confirm)[:, None] if kept.any() else None
    [verdict] = decide(first, second, kept, rules).verdicts
    rounds = first if second is None else np.vstack([first, second])
    return verdict is not Verdict.INCONCLUSIVE, rounds[:, 0]


def share_decided(draw, rounds, rules, gates=GATES):
    """Of gates with so many rounds, those that decide."""
    return sum(one_gate(draw, rounds - rules.screen_rounds, rules)[0] for _ in range(gates)) / gates


def estimates(draw, rules, gates):
    """Of so many gates with the rounds of the rules, what those that decide nothing say would decide."""
    ends = (one_gate(draw, rules.confirm_rounds, rules) for _ in range(gates))
    return [rounds_to_decide(rounds, 1, rules) or math.inf for decided, rounds in ends if not decided]


def needed(draw, rules):
    """The rounds with which SHARE of the gates decide, to 5 %."""
    low, high = rules.screen_rounds + 2, MOST_ROUNDS
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (low, middle) if share_decided(draw, middle, rules) >= SHARE else (middle, high)
    return high


def effort_rows(draws):
    """A row for each name: undecided gates, rounds needed, the estimates' median, and those within a factor of 2."""
    rules, rows = Rules(), []
    for name, draw in draws.items():
        told, true = estimates(draw, rules, GATES), needed(draw, rules)
        near = sum(true / 2 <= estimate <= 2 * true for estimate in told)
        middle = np.median(told)
        shown = f"{middle:.0f}" if math.isfinite(middle) else "beyond 1000"
        rows.append([name, f"{len(told)} of {GATES}", true, shown, f"{near / len(told):.0%}"])
    return rows


def normal(mean, spread, random):
    """Draws rounds of a cell with this true log ratio and spread."""
    return lambda count: random.normal(mean, spread, count)


def resampled(column, random):
    """Draws from real rounds of the same code, whose mean is taken away."""
    return lambda count: random.choice(column - column.mean(), count)
