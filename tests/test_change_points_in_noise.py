"""How often noise has a step, and a step in noise is found: counts over series of each kind of noise."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from opbench.compare import change_points as module
from opbench.compare.change_points import LEAST_RUNS, change_points

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
    return sum(map(bool, change_points([HEAVY_TAILS[kind](rng, runs) for _ in range(series)])))


@pytest.mark.parametrize("kind", HEAVY_TAILS)
@pytest.mark.parametrize("size", [0.1, -0.1])
def test_a_step_of_ten_percent_is_found_at_its_run(kind, size):
    rng = np.random.default_rng(7)
    series = [HEAVY_TAILS[kind](rng, 24) for _ in range(50)]
    for values in series:
        values[15:] += math.log1p(size)
    found = change_points(series)
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
    text = (Path(__file__).parents[1] / "docs" / "history.md").read_text()
    lines = re.findall(r"^\| noise from .*\n\|[-:|]+\n((?:\|.*\n)+)", text, re.MULTILINE)[0].splitlines()
    assert len(lines) == len(HEAVY_TAILS)
    for line, noise in zip(lines, HEAVY_TAILS.values(), strict=True):
        rngs = {runs: np.random.default_rng(100 + runs) for runs in (8, 12, 20, 40)}
        wrong = sum(map(bool, change_points([noise(rng, runs) for runs, rng in rngs.items() for _ in range(600)])))
        figures = [wrong]
        for runs, place, size in ((20, 10, 0.05), (20, 10, 0.03), (40, 36, 0.05)):
            rng = np.random.default_rng(3)
            series = [noise(rng, runs) for _ in range(200)]
            for values in series:
                values[place:] += math.log1p(size)
            found = sum(any(abs(start - place) <= 1 for start in starts) for starts in change_points(series))
            figures.append(found / 2)
        documented = [float(cell.strip(" %")) for cell in line.strip("|").split("|")[1:]]
        assert figures == pytest.approx(documented, abs=1), line
