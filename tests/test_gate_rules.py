"""The gate's statistics against scipy's tests, and what they must never do."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from opbench.compare.rules import Rules, decide, holm, interval, moved, screen, settle
from opbench.compare.verdicts import Verdict

RULES = Rules()


def rounds(count, means, spread=0.01, seed=0):
    """Log ratios of `count` rounds with exactly these means and standard deviations, a column per cell."""
    noise = np.random.default_rng(seed).standard_normal((count, len(means)))
    noise = (noise - noise.mean(axis=0)) / noise.std(axis=0, ddof=1)
    return np.asarray(means) + spread * noise


def test_interval_is_that_of_a_one_sample_t_test():
    column = rounds(16, [0.03])[:, 0]
    low, high = stats.ttest_1samp(column, 0.0).confidence_interval(0.95)
    found = interval(column)
    assert (found.value, found.low, found.high) == pytest.approx((math.exp(0.03), math.exp(low), math.exp(high)))


def test_holm_steps_down():
    # 0.01/3, 0.01/2, 0.01/1: the second fails, so the third is not looked at although it is below 0.01.
    assert holm(np.array([0.008, 0.001, 0.007]), 0.01).tolist() == [False, True, False]
    assert holm(np.array([0.004, 0.001, 0.007]), 0.01).tolist() == [True, True, True]
    assert holm(np.array([0.005, 0.01]), 0.01).tolist() == [True, True]  # at most the level, not below it
    assert holm(np.array([]), 0.01).tolist() == []


def test_the_screen_suspects_what_moved_and_settles_what_did_not():
    found = screen(rounds(6, [0.05, -0.05, 0.0, 0.012], [0.01, 0.01, 0.002, 0.02]), RULES)
    assert found.suspect.tolist() == [True, True, False, False]
    assert found.same.tolist() == [False, False, True, False]
    assert found.kept(settle=False).tolist() == [True, True, False, False]
    assert found.kept(settle=True).tolist() == [True, True, False, True]


def test_a_uniform_slow_down_that_no_cell_shows_makes_the_suite_suspect():
    found = screen(rounds(6, [0.008] * 40, 0.01), RULES)
    assert not found.suspect.any()
    assert found.suite_suspect
    assert found.kept(settle=False).all()
    second = rounds(16, [0.008] * 40, 0.01, seed=1)
    assert decide(rounds(6, [0.008] * 40, 0.01), second, np.ones(40, bool), RULES).suite_slower


@pytest.mark.parametrize(
    ("second", "verdict"),
    [(0.05, Verdict.SLOWER), (-0.05, Verdict.FASTER), (0.012, Verdict.INCONCLUSIVE)],
)
def test_the_second_stage_alone_decides(second, verdict):
    first = rounds(6, [0.05])
    decision = decide(first, rounds(16, [second], seed=1), np.array([True]), RULES)
    assert decision.verdicts == (verdict,)
    assert type(decision.verdicts[0]) is Verdict


def test_a_screen_alone_never_calls_a_cell_slower():
    decision = decide(rounds(6, [0.5, 0.0], [0.01, 0.001]), None, np.array([False, False]), RULES)
    assert decision.verdicts == (Verdict.INCONCLUSIVE, Verdict.SAME)


def test_not_shown_to_differ_is_not_shown_to_be_the_same():
    noisy = decide(rounds(6, [0.0], 0.05), rounds(16, [0.0], 0.05, seed=1), np.array([True]), RULES)
    quiet = decide(rounds(6, [0.0], 0.05), rounds(16, [0.0], 0.001, seed=1), np.array([True]), Rules(tolerance=0.03))
    assert noisy.verdicts == (Verdict.INCONCLUSIVE,)
    assert quiet.verdicts == (Verdict.SAME,)


def test_many_cells_in_doubt_cost_a_suspect_no_power():
    first = rounds(6, [0.05, *[0.0] * 200], [0.01, *[0.03] * 200])
    second = rounds(16, [0.03, *[0.0] * 200], [0.018, *[0.03] * 200], seed=1)
    assert stats.ttest_1samp(second[:, 0], math.log1p(0.01), alternative="greater").pvalue > 0.01 / 201
    assert decide(first, second, np.ones(201, bool), RULES).verdicts[0] is Verdict.SLOWER


def test_a_sentinel_moves_only_when_it_does():
    assert moved(rounds(22, [0.02])[:, 0], RULES)
    assert moved(rounds(22, [-0.02])[:, 0], RULES)
    assert not moved(rounds(22, [0.002])[:, 0], RULES)


def scaled_to(p_value, mean, count=22):
    """Rounds with this mean whose paired t-test of no change, two-sided, gives this p-value."""
    t = stats.t.isf(p_value / 2, count - 1)
    return rounds(count, [mean], abs(mean) * count**0.5 / t)[:, 0]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sentinel_moves_by_half_of_the_tolerance_and_at_its_level(sign):
    half = math.log1p(0.01) / 2
    assert moved(rounds(22, [sign * half * 1.001], 1e-5)[:, 0], RULES)
    assert not moved(rounds(22, [sign * half * 0.999], 1e-5)[:, 0], RULES)
    assert moved([sign * half] * 4, RULES)
    assert moved(scaled_to(0.00099, sign * 0.02), RULES)
    assert not moved(scaled_to(0.00101, sign * 0.02), RULES)


LIMIT = math.log1p(RULES.tolerance)


def still(*means, count=4):
    """Rounds without any noise: a power of two of them, so that their mean is exact."""
    return np.tile(np.array(means), (count, 1))


def column_with(p_value, mean, above=LIMIT, count=16):
    """Rounds with this mean whose one-sided t-test of a mean of at most `above` gives this p-value."""
    return rounds(count, [mean], (mean - above) * count**0.5 / stats.t.isf(p_value, count - 1), seed=1)[:, 0]


def test_a_cell_is_suspect_beyond_the_tolerance_and_the_same_within_it():
    beyond, within = (float(np.nextafter(LIMIT, end)) for end in (1, 0))
    found = screen(still(beyond, LIMIT, within, -within, -LIMIT, -beyond), RULES)
    assert found.suspect.tolist() == [True, False, False, False, False, True]
    assert found.same.tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_cell_is_suspect_at_the_level_of_the_screen(sign):
    columns = np.column_stack([sign * column_with(p, 0.02, above=0, count=6) for p in (0.099, 0.101)])
    assert screen(columns, RULES).suspect.tolist() == [True, False]


def test_the_suite_is_of_two_cells_or_more_that_are_not_suspect():
    assert not screen(still(0.008), RULES).suite_suspect
    assert not screen(still(0.05, 0.008), RULES).suite_suspect
    assert screen(still(0.008, 0.008), RULES).suite_suspect
    assert not screen(still(-0.008, -0.008), RULES).suite_suspect


def test_the_suite_is_suspect_beyond_its_limit_and_at_the_level_of_the_screen():
    limit = RULES.suite_limit
    assert limit == pytest.approx(math.log(1.003))
    assert not screen(still(limit, limit), RULES).suite_suspect
    assert screen(still(*[float(np.nextafter(limit, 1))] * 2), RULES).suite_suspect
    for p_value, suspect in ((0.099, True), (0.101, False)):
        column = column_with(p_value, 0.005, above=0, count=6)
        assert screen(np.column_stack([column, column]), RULES).suite_suspect is suspect


@pytest.mark.parametrize("sign", [1, -1])
def test_suspects_share_the_level_and_the_others_a_stricter_one(sign):
    # Four cells, two of them suspect: Holm halves the level of the smallest of two p-values.
    first = rounds(6, [0.05, 0.05, 0.0, 0.0], [0.01, 0.01, 0.05, 0.05])
    kept = np.ones(4, bool)
    assert screen(first, RULES).suspect.tolist() == [True, True, False, False]
    verdict = Verdict.SLOWER if sign > 0 else Verdict.FASTER
    for p_values, found in (
        ((0.0049, 0.4, 0.00049, 0.4), [True, False, True, False]),
        ((0.0051, 0.4, 0.00051, 0.4), [False, False, False, False]),
        ((0.0049, 0.0099, 0.00049, 0.00099), [True, True, True, True]),
        ((0.0049, 0.0101, 0.00049, 0.00101), [True, False, True, False]),
    ):
        second = np.column_stack([sign * column_with(p, 0.02 if p < 0.4 else 0.0101) for p in p_values])
        decision = decide(first, second, kept, RULES)
        assert [one is verdict for one in decision.verdicts] == found


def test_a_change_is_of_the_rounds_that_its_verdict_rests_on():
    first = rounds(6, [0.05, 0.0, 0.0, 0.0], [0.01, 0.001, 0.03, 0.05])
    kept = np.array([True, False, True, True])
    second = rounds(16, [0.06, 0.001, 0.0], [0.01, 0.001, 0.1], seed=1)
    decision = decide(first, second, kept, Rules(tolerance=0.02))
    assert decision.verdicts == (Verdict.SLOWER, Verdict.SAME, Verdict.SAME, Verdict.INCONCLUSIVE)
    both = np.concatenate([first[:, 2], second[:, 1]])
    expected = [interval(second[:, 0]), interval(first[:, 1]), interval(both), interval(second[:, 2])]
    assert list(decision.changes) == expected


def test_the_suite_is_of_the_second_stage_without_the_suspects():
    means = [0.2, *[0.008] * 9]
    first, every = rounds(6, means, 0.01), np.ones(10, bool)
    second = rounds(16, means, 0.01, seed=1)
    assert screen(first, RULES).suspect.tolist() == [True, *[False] * 9]
    assert decide(first, second, every, RULES).suite == interval(second[:, 1:].mean(axis=1))
    # Where the second stage did not measure every cell, the suite's figure is the first one's.
    alone = decide(first, second[:, :1], np.arange(10) < 1, RULES)
    assert (alone.suite, alone.suite_slower) == (interval(first.mean(axis=1)), False)


@pytest.mark.parametrize(("p_value", "slower"), [(0.0099, True), (0.0101, False)])
def test_the_suite_is_slower_at_its_level(p_value, slower):
    column = column_with(p_value, 0.006, above=RULES.suite_limit)
    second = np.column_stack([column, column])
    assert decide(still(0.008, 0.008), second, np.ones(2, bool), RULES).suite_slower is slower
    assert not decide(still(0.0, 0.0), second, np.ones(2, bool), RULES).suite_slower  # it was not suspect


@pytest.mark.parametrize("sign", [1, -1])
def test_without_a_first_stage_all_cells_are_one_family(sign):
    columns = [sign * column_with(0.0024, 0.02), still(0.0)[:, 0], column_with(0.4, 0.0101), -column_with(0.4, 0.0101)]
    changed = Verdict.SLOWER if sign > 0 else Verdict.FASTER
    expected = (changed, Verdict.SAME, Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE)
    assert settle(columns, RULES) == (expected, tuple(interval(np.asarray(column)) for column in columns))
    verdicts, _ = settle([sign * column_with(0.0026, 0.02), *columns[1:]], RULES)
    assert verdicts == (Verdict.INCONCLUSIVE, *expected[1:])


log_ratios = st.floats(-0.25, 0.25, allow_nan=False, width=32)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_swapping_the_arms_mirrors_the_verdicts(data):
    cells = data.draw(st.integers(1, 5))
    first = data.draw(arrays(np.float64, (6, cells), elements=log_ratios))
    second = data.draw(arrays(np.float64, (16, cells), elements=log_ratios))
    mirrored = {Verdict.SLOWER: Verdict.FASTER, Verdict.FASTER: Verdict.SLOWER}
    everything = np.ones(cells, bool)
    there = decide(first, second, everything, RULES)
    back = decide(-first, -second, everything, RULES)
    assert [mirrored.get(verdict, verdict) for verdict in there.verdicts] == list(back.verdicts)
    for a, b in zip(there.changes, back.changes, strict=True):
        assert a.value * b.value == pytest.approx(1)
        assert a.low * b.high == pytest.approx(1)


@settings(max_examples=100, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(3, 20), st.integers(1, 4)), elements=log_ratios))
def test_identical_rounds_and_any_others_give_finite_intervals(first):
    decision = decide(first, None, np.zeros(first.shape[1], bool), RULES)
    for change in decision.changes:
        assert 0 < change.low <= change.value <= change.high < math.inf


def test_false_alarms_stay_below_the_level_under_heavy_tails(monkeypatch):
    """At the edge of what is tolerated, where the error is largest: Student noise with 3 degrees of freedom."""
    monkeypatch.setattr(
        "opbench.compare.rules.interval", lambda rounds: None
    )  # half of the work, and no verdict's part
    random = np.random.default_rng(5)
    edge = math.log1p(RULES.tolerance)
    alarms = 0
    sessions = 2000
    for _ in range(sessions):
        noise = 0.01 * random.standard_t(3, (22, 5)) + edge
        kept = screen(noise[:6], RULES).kept(settle=False)
        if kept.any():
            alarms += Verdict.SLOWER in decide(noise[:6], noise[6:, kept], kept, RULES).verdicts
    assert alarms / sessions < RULES.level
