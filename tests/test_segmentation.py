"""The division of least cost: against every other division, and against ruptures' PELT, which found the steps before.

Values and penalties are multiples of 1/64, so that sums are exact and equal costs are equal.
"""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opbench.compare import segmentation
from opbench.compare.segmentation import divide
from opbench.stats import median

LEAST = 4
SIXTY_FOURTHS = st.integers(-40, 40).map(lambda value: value / 64)
PENALTIES = st.integers(1, 100).map(lambda value: value / 64)


def cost(values, starts, penalty):
    deviations = 0.0
    for low, high in pairwise([0, *starts, len(values)]):
        middle = median(values[low:high])
        deviations += sum(abs(value - middle) for value in values[low:high])
    return deviations + penalty * len(starts)


def every_division(length, least):
    for count in range(length // least):
        for starts in combinations(range(least, length - least + 1), count):
            if all(after - before >= least for before, after in pairwise([0, *starts, length])):
                yield [*starts]


@given(st.lists(SIXTY_FOURTHS, max_size=14), PENALTIES, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_no_other_division_costs_less_and_of_equal_ones_the_starts_are_the_earliest(values, penalty, least):
    [found] = divide([values], [penalty], least)
    if len(values) < 2 * least:
        assert found == []
    else:
        divisions = every_division(len(values), least)
        assert found == min(divisions, key=lambda starts: (cost(values, starts, penalty), sum(starts)))


@pytest.mark.slow
@given(st.lists(st.tuples(SIXTY_FOURTHS, st.integers(2, 12)), min_size=1, max_size=4), st.data(), PENALTIES)
@settings(max_examples=300, deadline=None)
def test_the_steps_are_those_of_ruptures_but_where_it_misses_the_least_cost(levels, data, penalty):
    """Its PELT may leave out a start that could still win, because a segment has a least length; and it takes another
    one of equal divisions."""
    detection = pytest.importorskip("ruptures.detection", reason="ruptures has no wheel for this Python")
    values = [level + data.draw(st.integers(-3, 3)) / 64 for level, length in levels for _ in range(length)] + [
        0.0
    ] * LEAST
    [found] = divide([values], [penalty], LEAST)
    search = detection.Pelt(model="l1", min_size=LEAST, jump=1)
    theirs = search.fit_predict(np.array(values)[:, None], pen=penalty)[:-1] if len(values) >= 2 * LEAST else []
    assert found == theirs or (cost(values, found, penalty), sum(found)) < (cost(values, theirs, penalty), sum(theirs))


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_series_of_any_lengths_are_divided_together_as_each_alone(monkeypatch, batch):
    rng = np.random.default_rng(batch)
    series = [rng.normal(0, 0.01, length) for length in rng.integers(1, 60, 20)]
    for values in series:
        values[len(values) // 2 :] += 0.1
    penalties = rng.uniform(0.02, 0.1, 20).tolist()
    alone = [divide([values], [penalty], LEAST)[0] for values, penalty in zip(series, penalties, strict=True)]
    monkeypatch.setattr(segmentation, "BATCH", batch)
    assert divide(series, penalties, LEAST) == alone
    assert sum(len(starts) for starts in alone) > 10


def test_no_series_no_division():
    assert divide([], [], LEAST) == []
