"""Step changes in series whose truth is known: found where they are, and not found in noise."""

from itertools import pairwise

import numpy as np
import pytest

from opbench.compare import change_points as module
from opbench.compare.change_points import LEAST_RUNS, MIN_SEGMENT, _settled, noise_scale
from opbench.stats import median


def change_points(values):
    """Of one series."""
    [starts] = module.change_points([values])
    return starts


@pytest.mark.parametrize(
    ("runs", "after", "small", "large"),
    [(8, 4, 0.00162, 0.00164), (9, 4, 0.00172, 0.00173), (20, 8, 0.00117, 0.00118), (40, 20, 0.00057, 0.00058)],
)
def test_a_step_is_what_saves_more_than_the_penalty(runs, after, small, large):
    """Without noise sigma is the floor, 0.001: 5 log(8) 0.001 / 1.596 are 0.00652, in each of four runs 0.00163."""
    for size, found in ((small, []), (large, [runs - after])):
        assert change_points([0.0] * (runs - after) + [size] * after) == found


def test_several_steps_up_and_down():
    rng = np.random.default_rng(3)
    levels = np.repeat([0.0, 0.08, -0.05, 0.0], [10, 6, 9, 5])
    assert change_points(levels + rng.normal(0, 0.005, 30)) == [10, 16, 25]


def test_a_step_shows_when_three_runs_have_it_and_is_where_it_begins():
    values = [0.002 * (-1) ** n for n in range(16)]
    slow = [value + 0.1 for value in values]
    for runs in range(1, 7):
        expected = [16] if runs >= 3 else []
        assert change_points(values + slow[:runs]) == expected, runs
        assert change_points([*slow[:runs], *values]) == ([runs] if expected else []), runs


def test_two_odd_runs_side_by_side_are_no_step():
    values = [0.002 * (-1) ** n for n in range(20)]
    values[9] += 0.3
    values[10] += 0.2
    assert change_points(values) == []


def test_short_and_still_series():
    assert change_points([]) == []
    assert change_points([0.0] * 3 + [5.0] * 4) == []  # one fewer than LEAST_RUNS
    assert change_points([0.0] * 4 + [5.0] * 4) == [4]
    assert change_points([1.0] * 30) == []
    assert change_points([0.0] * 15 + [0.0005] * 15) == []  # within what a timer's step makes of equal medians


def test_the_shortest_series_with_a_step_has_four_runs_on_each_side():
    with_step = [runs for runs in range(1, 12) if change_points([0.0] * (runs - runs // 2) + [5.0] * (runs // 2))]
    assert min(with_step) == LEAST_RUNS == 8


def nearest_starts(values, starts):
    """As _settled: by trying every place, and with whole numbers, so that equal sums are equal."""
    ends = [0, *starts, len(values)]
    levels = [median(values[low:high]) for low, high in pairwise(ends)]
    settled = [0]
    for n, start in enumerate(starts):
        places = [place for place in range(settled[-1] + 1, ends[n + 2]) if abs(place - start) < MIN_SEGMENT]
        cost = {
            place: sum(abs(value - levels[n]) for value in values[:place])
            + sum(abs(value - levels[n + 1]) for value in values[place : ends[n + 2]])
            for place in places
        }
        settled.append(min(places, key=lambda place: (cost[place], abs(place - start))))
    return settled[1:]


def test_a_start_is_the_place_nearby_with_the_smallest_deviations():
    rng = np.random.default_rng(7)
    for _ in range(500):
        lengths = rng.integers(MIN_SEGMENT, 7, 3)
        values = rng.integers(0, 6, lengths.sum()).tolist()
        starts = np.cumsum(lengths)[:-1].tolist()
        assert _settled(values, starts) == nearest_starts(values, starts), (values, starts)


def test_the_noise_is_that_of_the_differences_whatever_the_steps():
    rng = np.random.default_rng(11)
    values = rng.normal(0, 0.02, 2000)
    assert noise_scale(values) == pytest.approx(0.02, rel=0.1)
    values[700:] += 0.5
    values[::50] += 1.0
    assert noise_scale(values) == pytest.approx(0.02, rel=0.15)
