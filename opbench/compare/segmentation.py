"""Divides series into segments of one level each at the least cost, exactly. Pure."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["divide"]

BATCH = 16
"""Series that are divided together. One at a time takes five times as long, in the overhead of numpy's calls."""

EARLIER = 2.0**-33
"""Of the penalty: what a segment costs for each value before it. It decides between divisions of equal cost, and is far
above the rounding error of a sum of a thousand values."""

Floats = npt.NDArray[np.float64]


def divide(series: Sequence[Sequence[float]], penalties: Sequence[float], least: int) -> list[list[int]]:
    """Where the segments of each series begin, in ascending order, without the first one, which begins at 0.

    The cost of a division is the sum of the absolute deviations of the values from the median of their segment, plus
    the penalty for each segment after the first. The division of least cost is found; of several, the one whose starts
    have the smallest sum.

    The median is the level with the smallest absolute deviations, and one of the values is as good. So the least cost
    of the first values is known from that of one value fewer, for each level that the last segment can have: the
    segment goes on, or it began just so many values ago as a segment must have. This takes a time that is quadratic in
    the length of a series, whatever its values are.

    Args:
        series: finite values, any number of them in each.
        penalties: one for each series, above 0.
        least: fewest values of a segment.
    """
    starts: list[list[int]] = [[] for _ in series]
    # Of similar lengths: all of a batch take as long as its longest.
    order = sorted((len(values), number) for number, values in enumerate(series) if len(values) >= 2 * least)
    for first in range(0, len(order), BATCH):
        batch = [number for _, number in order[first : first + BATCH]]
        found = _divide_batch([series[number] for number in batch], [penalties[number] for number in batch], least)
        for number, own in zip(batch, found, strict=True):
            starts[number] = own
    return starts


def _divide_batch(series: Sequence[Sequence[float]], penalties: Sequence[float], least: int) -> list[list[int]]:
    count, longest = len(series), max(map(len, series))
    values, levels = np.zeros((longest, count, 1)), np.zeros((count, longest))
    for number, own in enumerate(series):
        values[: len(own), number, 0] = own
        levels[number] = np.pad(np.sort(own), (0, longest - len(own)), mode="edge")
    penalty = np.asarray(penalties, dtype=float)
    least_cost = np.full((longest + 1, count), np.inf)  # of the first values
    least_cost[0] = -penalty  # the first segment costs none
    last_level = np.zeros((longest + 1, count), dtype=int)  # in that division, its index
    # By level. Of the sums of deviations so far the latest are kept, in turns; the cost of a division whose last
    # segment has the level is the sum plus the offset, which is the cost before the segment minus the sum before it.
    sums = np.zeros((least + 1, count, longest))
    offset = np.full((count, longest), np.inf)
    work = np.empty((count, longest))
    numbers = np.arange(count)
    for end in range(1, longest + 1):
        now, before = sums[end % (least + 1)], sums[(end - 1) % (least + 1)]
        np.abs(np.subtract(levels, values[end - 1], out=work), out=work)
        np.add(before, work, out=now)
        if (start := end - least) >= 0:
            cost_before = least_cost[start] + penalty * (1 + EARLIER * start)
            np.subtract(cost_before[:, None], sums[start % (least + 1)], out=work)
            np.minimum(offset, work, out=offset)
            np.add(offset, now, out=work)
            last_level[end] = work.argmin(axis=1)
            least_cost[end] = work[numbers, last_level[end]]
    return [
        _starts(
            np.asarray(own, dtype=float),
            levels[number, last_level[: len(own) + 1, number]],
            least_cost[: len(own) + 1, number],
            float(penalty[number]),
            least,
        )
        for number, own in enumerate(series)
    ]


def _starts(values: Floats, last_levels: Floats, least_cost: Floats, penalty: float, least: int) -> list[int]:
    """From the last segment to the first: it begins where the least cost of all before it, with its own, is least."""
    found: list[int] = []
    end = len(values)
    while end:
        deviations = np.abs(values[:end] - last_levels[end])
        before = np.arange(end - least + 1)
        sums = np.concatenate([[0.0], np.cumsum(deviations)])[before]
        end = int(np.argmin(least_cost[before] + penalty * (1 + EARLIER * before) - sums))
        found.append(end)
    return found[-2::-1]
