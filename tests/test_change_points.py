"""Step changes in series whose truth is known: found where they are, and not found in noise."""

import sys

import numpy as np
import pytest

from opbench.compare.change_points import change_points, noise_scale
from opbench.errors import UsageError


@pytest.mark.parametrize(
    ("runs", "after", "small", "large"),
    [(8, 4, 0.00162, 0.00164), (20, 8, 0.00117, 0.00118), (40, 20, 0.00057, 0.00058)],
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


def test_the_noise_is_that_of_the_differences_whatever_the_steps():
    rng = np.random.default_rng(11)
    values = rng.normal(0, 0.02, 2000)
    assert noise_scale(values) == pytest.approx(0.02, rel=0.1)
    values[700:] += 0.5
    values[::50] += 1.0
    assert noise_scale(values) == pytest.approx(0.02, rel=0.15)


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ruptures", None)
    monkeypatch.setitem(sys.modules, "ruptures.detection", None)
    with pytest.raises(UsageError, match=r"^opbench history needs ruptures .*: pip install 'opbench\[history\]'$"):
        change_points([0.0] * 20)
