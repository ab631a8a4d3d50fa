"""Step changes in series whose truth is known: found where they are, and not found in noise."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from opbench.compare import change_points as module
from opbench.compare.change_points import LEAST_RUNS, change_points, noise_scale
from opbench.errors import UsageError

NOISE = 0.01
HEAVY_TAILS = {
    "normal": lambda rng, runs: rng.normal(0, NOISE, runs),
    "student, 3 degrees": lambda rng, runs: NOISE * rng.standard_t(3, runs),
    "one run in 20 slow": lambda rng, runs: (
        rng.normal(0, NOISE, runs) + (rng.random(runs) < 0.05) * rng.exponential(0.1, runs)
    ),
}


def false_steps(kind, runs, series=300):
    """Series of pure noise in which a step is found."""
    rng = np.random.default_rng(runs)
    return sum(bool(change_points(HEAVY_TAILS[kind](rng, runs))) for _ in range(series))


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


@pytest.mark.parametrize("kind", HEAVY_TAILS)
@pytest.mark.parametrize("size", [0.1, -0.1])
def test_a_step_of_ten_percent_is_found_at_its_run(kind, size):
    rng = np.random.default_rng(7)
    found = []
    for _ in range(50):
        values = HEAVY_TAILS[kind](rng, 24)
        values[15:] += math.log1p(size)
        found.append(change_points(values))
    assert sum(bool(starts) for starts in found) >= 49
    assert sum(starts == [15] for starts in found) >= 45  # a slow run beside the step can move it by one
    assert sum(any(abs(start - 15) <= 1 for start in starts) for starts in found) >= 48


@pytest.mark.parametrize("kind", HEAVY_TAILS)
def test_noise_has_no_steps(kind):
    counts = {runs: false_steps(kind, runs) for runs in (LEAST_RUNS, 12, 25)}
    assert sum(counts.values()) <= 0.01 * 300 * len(counts), counts


def test_the_usual_penalty_of_bic_would_not_do(monkeypatch):
    monkeypatch.setattr(module, "PENALTY", 2.0)
    assert false_steps("normal", 12) > 0.04 * 300


@pytest.mark.slow
def test_the_table_of_the_documentation():
    text = (Path(__file__).parents[1] / "docs" / "ci.md").read_text()
    lines = re.findall(r"^\| noise from .*\n\|[-:|]+\n((?:\|.*\n)+)", text, re.MULTILINE)[0].splitlines()
    assert len(lines) == len(HEAVY_TAILS)
    for line, noise in zip(lines, HEAVY_TAILS.values(), strict=True):
        rngs = {runs: np.random.default_rng(100 + runs) for runs in (8, 12, 20, 40)}
        wrong = sum(bool(change_points(noise(rng, runs))) for runs, rng in rngs.items() for _ in range(600))
        figures = [wrong]
        for runs, place, size in ((20, 10, 0.05), (20, 10, 0.03), (40, 36, 0.05)):
            rng = np.random.default_rng(3)
            found = 0
            for _ in range(200):
                values = noise(rng, runs)
                values[place:] += math.log1p(size)
                found += any(abs(start - place) <= 1 for start in change_points(values))
            figures.append(found / 2)
        documented = [float(cell.strip(" %")) for cell in line.strip("|").split("|")[1:]]
        assert figures == pytest.approx(documented, abs=1), line
