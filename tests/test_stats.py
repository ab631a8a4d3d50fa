"""Order statistics against numpy, scipy and simulation."""

import numpy as np
import pytest
from scipy.stats import binom

from opbench.stats import median, median_interval, median_interval_ranks, quantile, relative_half_width


@pytest.mark.parametrize("count", [1, 2, 5, 30, 101])
@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_quantiles_are_numpys(count, fraction):
    samples = sorted(np.random.default_rng(count).lognormal(size=count))
    assert quantile(samples, fraction) == pytest.approx(np.quantile(samples, fraction), rel=1e-14)


def test_a_quantile_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


@pytest.mark.parametrize(("counts", "spare"), [(range(6, 1001), 0), (range(1001, 3000), 1)])
def test_the_interval_covers_95_percent_and_is_the_narrowest_or_one_rank_wider(counts, spare):
    low, high = np.array([median_interval_ranks(count) for count in counts]).T
    counts = np.array(counts)
    assert (low + high == counts - 1).all()
    # The interval misses if at most `low` samples, or as many, lie on one side of the median.
    assert (1 - 2 * binom.cdf(low, counts, 0.5) >= 0.95).all()
    assert (1 - 2 * binom.cdf(low + 1 + spare, counts, 0.5) < 0.95).all()


def test_the_ranks_are_exact_up_to_1000_samples():
    assert (median_interval_ranks(1000), binom.ppf(0.025, 1000, 0.5) - 1) == ((468, 531), 468)
    assert (median_interval_ranks(1001), binom.ppf(0.025, 1001, 0.5) - 1) == ((468, 532), 469)  # rounded outwards


def test_too_few_samples_give_the_whole_range():
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_the_interval_covers_the_median_of_skewed_samples():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        low, high = median_interval(generator.lognormal(sigma=1.0, size=40).tolist())
        hits += low <= 1.0 <= high
    assert hits / 2000 > 0.94


@pytest.mark.parametrize(("samples", "middle"), [([3.0, 1.0, 2.0], 2.0), ([8.0, 1.0, 4.0, 2.0], 3.0)])
def test_the_median_is_the_middle_one_or_between_the_middle_two(samples, middle):
    assert median(samples) == middle


def test_half_width_is_the_longer_arm():
    samples = [1.0] * 10 + [2.0] * 10 + [4.0] * 10
    low, high = median_interval(samples)
    assert (low, median(samples), high) == (1.0, 2.0, 4.0)
    assert relative_half_width(samples) == pytest.approx(1.0)
    assert relative_half_width([0.25, 0.375, 0.5, 0.5625, 0.625]) == 0.5
    assert relative_half_width([0.0] * 30) == float("inf")


def test_the_interval_reaches_half_a_step_of_the_clock_at_least():
    assert median_interval([4.0] * 30, step=1.0) == (3.5, 4.5)
    assert median_interval([0.0] * 30, step=1.0) == (0.0, 0.5)  # no time is negative
    assert median_interval([1.0, 4.0, 9.0], step=2.0) == (1.0, 9.0)
    assert relative_half_width([4.0] * 30, step=1.0) == 0.125


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_below_six_samples_the_ranks_are_the_first_and_the_last(count):
    assert median_interval_ranks(count) == (0, count - 1)
