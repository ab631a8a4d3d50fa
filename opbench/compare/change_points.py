"""Step changes in a series of one figure per run: PELT with a robust cost and a penalty that keeps silent on noise."""

import math
from collections.abc import Sequence
from itertools import pairwise

from opbench.errors import UsageError
from opbench.stats import median

__all__ = ["LEAST_RUNS", "MIN_SEGMENT", "change_points", "noise_scale", "require_ruptures"]

MIN_SEGMENT = 4
"""Runs of a segment, at least. Two odd runs of four leave the median's cost as it was, so they are no step; of three
they would be."""

LEAST_RUNS = 2 * MIN_SEGMENT
"""A step has a segment before it and one after it."""

NOISE_FLOOR = 0.001
"""Noise is taken to be 0.1 % at least: equal medians in a row, from a coarse timer, must not make anything a step."""

PENALTY = 5.0
"""Per step, times log n, on the scale of twice the log-likelihood; see change_points."""

NORMAL_QUARTILE = 0.6744897501960817
"""The median of |z| for a standard normal z."""

PEAK = 4 / math.sqrt(2 * math.pi)
"""4 f(0) of the standard normal density f: twice the log-likelihood per unit of absolute deviation."""


def change_points(values: Sequence[float]) -> list[int]:
    """Indices at which a new level begins, in order; none where there are fewer than LEAST_RUNS values.

    The least sum of absolute deviations from the segments' medians plus a penalty per step, minimised exactly by PELT;
    a segment has MIN_SEGMENT values or more. The absolute deviation (not the square) keeps a single slow run from
    being a step.

    The penalty is PENALTY * log(n) * sigma / PEAK, with sigma from noise_scale. Splitting a segment of pure noise
    lowers the sum of absolute deviations by a chi-squared variable of one degree times sigma / PEAK (Koenker and
    Bassett 1982), so PENALTY * log(n) stands where BIC has 2 * log(n): one for the step's place, one for its size. BIC
    takes sigma for known. Here it comes from as few as seven differences, and with 2 * log(n) 2 to 10 % of series of
    pure noise had a step; with 5 * log(n) it was 15 of 2,400 with normal noise and 11 of 2,400 with heavy tails, of 8
    to 40 runs (docs/history.md, tests/test_change_points_in_noise.py). The price: of series of 12 runs with 1 %
    of normal noise, a step of 5 % at the ninth was found in 91 of 100, one of 3 % in 42.

    Noise is taken for independent from run to run. A slow drift shows as a staircase of small steps.

    Args:
        values: logarithms of latencies, in the order of the runs, so that a step's size is relative.

    Raises:
        UsageError: ruptures is not installed.

    Source: Killick, Fearnhead and Eckley, Optimal detection of changepoints with a linear computational cost, 2012;
    the implementation is that of ruptures (Truong, Oudre and Vayatis 2020).
    """
    require_ruptures()
    if len(values) < LEAST_RUNS:
        return []
    import numpy as np
    from ruptures.detection import Pelt

    penalty = PENALTY * math.log(len(values)) * noise_scale(values) / PEAK
    search = Pelt(model="l1", min_size=MIN_SEGMENT, jump=1)
    ends = search.fit_predict(np.asarray(values, dtype=float).reshape(-1, 1), pen=penalty)
    return _settled(values, [int(end) for end in ends[:-1]])


def _settled(values: Sequence[float], starts: list[int]) -> list[int]:
    """Each start where the absolute deviations from the levels on its two sides are least, near where PELT has it.

    PELT puts it there itself unless MIN_SEGMENT forbids: where a step has three runs behind it, the segment takes a
    fourth along, and the wrong revision would be named.
    """
    ends = [0, *starts, len(values)]
    levels = [median(values[low:high]) for low, high in pairwise(ends)]
    settled = [0]
    for start, end, old, new in zip(starts, ends[2:], levels, levels[1:], strict=False):
        nearer = [abs(value - old) - abs(value - new) for value in values[:end]]  # negative: to the old level

        def gain(place: int, start: int = start, nearer: list[float] = nearer) -> float:
            return sum(nearer[place:start]) - sum(nearer[start:place])

        places = range(max(settled[-1] + 1, start - MIN_SEGMENT + 1), min(end, start + MIN_SEGMENT))
        settled.append(max(places, key=lambda place: (gain(place), -abs(place - start))))
    return settled[1:]


def noise_scale(values: Sequence[float]) -> float:
    """Standard deviation of the noise between neighbours, NOISE_FLOOR at least.

    From the median absolute first difference, as if normal: steps and single odd values touch few differences.

    Raises:
        ValueError: fewer than two values.
    """
    differences = [abs(after - before) for before, after in pairwise(values)]
    return max(median(differences) / NORMAL_QUARTILE / math.sqrt(2), NOISE_FLOOR)


def require_ruptures() -> None:
    """Check that the library of the optional extra is there.

    Raises:
        UsageError: it is not.
    """
    try:
        import ruptures.detection  # noqa: F401
    except ImportError:
        raise UsageError(
            "opbench history needs ruptures (on Python 3.13 or older): pip install 'opbench[history]'"
        ) from None
