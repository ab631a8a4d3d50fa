"""Order statistics of latency samples: medians, quantiles and the median's confidence interval."""

import math
from collections.abc import Sequence
from functools import cache

__all__ = ["median", "median_interval", "median_interval_ranks", "quantile", "relative_half_width"]


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """The quantile of sorted samples, interpolated linearly (numpy's default).

    Raises:
        ValueError: no samples.
    """
    if not ordered:
        raise ValueError("a quantile of no samples")
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def median(samples: Sequence[float]) -> float:
    """The median of samples in any order."""
    return quantile(sorted(samples), 0.5)


@cache
def median_interval_ranks(count: int) -> tuple[int, int]:
    """Indices into the sorted samples whose values enclose the median with at least 95 % confidence.

    The number of samples below the true median is Binomial(count, 1/2), whatever the distribution, so the
    pair of order statistics (r, count - 1 - r) misses it with probability 2 P(Binomial <= r). Exact up to 1000
    samples, the normal approximation rounded outwards beyond. Below 6 samples no pair reaches 95 %: the
    whole range is returned.

    Source: Hahn and Meeker, Statistical Intervals, section 5.2.
    """
    if count < 6:
        return 0, count - 1
    if count > 1000:
        low = math.floor(count / 2 - 1.96 * math.sqrt(count) / 2) - 1
        return low, count - 1 - low
    tail, term, low = 0, 1, -1
    limit = 2**count // 40  # 2.5 % of all outcomes
    for below in range(count):
        tail += term
        if tail > limit:
            break
        low = below
        term = term * (count - below) // (below + 1)
    return low, count - 1 - low


def median_interval(samples: Sequence[float], step: float = 0.0) -> tuple[float, float]:
    """Lower and upper end of the median's distribution-free 95 % confidence interval.

    Args:
        samples: at least one.
        step: of the clock that they were read on, in their unit. A reading is rounded to it, so the interval reaches
            half a step from the median at least, whatever the samples say.
    """
    ordered = sorted(samples)
    low, high = median_interval_ranks(len(ordered))
    middle = quantile(ordered, 0.5)
    return min(ordered[low], max(0.0, middle - step / 2)), max(ordered[high], middle + step / 2)


def relative_half_width(samples: Sequence[float], step: float = 0.0) -> float:
    """The longer arm of the median's 95 % interval, divided by the median; arguments as median_interval's."""
    middle = median(samples)
    low, high = median_interval(samples, step)
    return max(high - middle, middle - low) / middle if middle > 0 else math.inf
