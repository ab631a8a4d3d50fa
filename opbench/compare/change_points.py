"""Finds step changes in a series with one value per run.

The cost function is robust: a single outlier is not a step. The penalty is chosen so that noise alone rarely gives a
step.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from opbench.compare.segmentation import divide
from opbench.stats import median

__all__ = ["LEAST_RUNS", "MIN_SEGMENT", "change_points", "noise_scale"]

MIN_SEGMENT = 4
"""Fewest runs of a segment. Two outliers of four do not change the cost of the median, so that they are not found as
a step. With three runs in a segment, two outliers would be."""

LEAST_RUNS = 2 * MIN_SEGMENT
"""Fewest runs of a series with a step: it needs one segment before the step and one after it."""

NOISE_FLOOR = 0.001
"""Lower bound of the noise estimate, 0.1 %. A timer with coarse steps can give equal medians in several runs; without
the bound the noise would be 0 and every small change a step."""

PENALTY = 5.0
"""The penalty of a step is this times log n, on the scale of twice the log-likelihood. change_points says why."""

NORMAL_QUARTILE = 0.6744897501960817
"""The median of |z| for a standard normal z."""

PEAK = 4 / math.sqrt(2 * math.pi)
"""4 f(0) with the standard normal density f. It converts a sum of absolute deviations, in units of sigma, to twice the
log-likelihood."""


def change_points(series: Sequence[Sequence[float]]) -> list[list[int]]:
    """For each series the indices at which a new level begins, in ascending order.

    The values are divided into segments, each with MIN_SEGMENT values or more, at the smallest cost. The cost is the
    sum of the absolute deviations from the median of each segment, plus a penalty for each step. Absolute deviations
    are used, not squares, so that a single slow run is not found as a step.

    The penalty of a step is PENALTY * log(n) * sigma / PEAK. n is the number of values, and sigma is the standard
    deviation of the noise (noise_scale). The reason for this form: if a segment contains only noise, dividing it in
    two lowers its sum of absolute deviations by sigma / PEAK times a chi-squared variable with one degree of freedom
    (Koenker and Bassett 1982). In these units the BIC would be a penalty of 2 * log(n), one log(n) for the position
    of the step and one for its size. But the BIC assumes that sigma is known. Here sigma is estimated, from as few as
    seven differences. With 2 * log(n), between 2 and 10 % of the series of pure noise had a step. With 5 * log(n) it
    was 15 of 2,400 series with normal noise and 11 of 2,400 with heavy tails, each of 8 to 40 runs (docs/history.md
    has the table; tests/test_change_points_in_noise.py counts). The price of that: of series of 12
    runs with 1 % of normal noise, a step of 5 % at the ninth run was found in 91 of 100 series, and a step of 3 % in
    42 of 100.

    The method assumes that the noise of different runs is independent. A slow drift is found as several small steps.

    Args:
        series: logarithms of the latencies, each series in the order of its runs. With logarithms, a step's size is
            relative.

    Returns:
        A list for each series; empty if there is no step, or if there are fewer than LEAST_RUNS values.

    Source: cost and penalty as for PELT (Killick, Fearnhead and Eckley, Optimal detection of changepoints with a linear
        computational cost, 2012). PELT leaves out candidates that cannot win, which is not exact where a segment has
        a least length, and helps little in a series with few steps; opbench.compare.segmentation leaves out none.
    """
    penalties = [
        PENALTY * math.log(len(values)) * noise_scale(values) / PEAK if len(values) >= LEAST_RUNS else math.inf
        for values in series
    ]
    divided = divide(series, penalties, MIN_SEGMENT)
    return [_settled(values, starts) if starts else [] for values, starts in zip(series, divided, strict=True)]


def _settled(values: Sequence[float], starts: list[int]) -> list[int]:
    """Move each start to the nearby index with the smallest absolute deviations from the levels before and after it.

    The division has this index if MIN_SEGMENT allows it. If a step is followed by only three runs, a fourth run must be
    in the new segment, which starts one run too early. The report would then name the wrong revision.
    """
    ends = [0, *starts, len(values)]
    levels = [median(values[low:high]) for low, high in pairwise(ends)]
    settled = [0]
    for start, end, old, new in zip(starts, ends[2:], levels, levels[1:], strict=False):
        nearer = [abs(value - old) - abs(value - new) for value in values[:end]]  # negative: nearer to the old level

        def gain(place: int, start: int = start, nearer: list[float] = nearer) -> float:
            return sum(nearer[place:start]) - sum(nearer[start:place])

        places = range(max(settled[-1] + 1, start - MIN_SEGMENT + 1), min(end, start + MIN_SEGMENT))
        settled.append(max(places, key=lambda place: (gain(place), -abs(place - start))))
    return settled[1:]


def noise_scale(values: Sequence[float]) -> float:
    """The standard deviation of the noise, at least NOISE_FLOOR.

    It is estimated from the differences between neighbouring values: the median of their absolute values, converted as
    for normal noise. A step or a single outlier changes only one or two of the differences, so the median hardly moves.

    Raises:
        ValueError: fewer than two values.
    """
    differences = [abs(after - before) for before, after in pairwise(values)]
    return max(median(differences) / NORMAL_QUARTILE / math.sqrt(2), NOISE_FLOOR)
