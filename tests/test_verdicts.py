"""What verdicts stand for: exit codes, and which of several is the verdict on all."""

from itertools import combinations

import pytest

from opbench.compare.verdicts import Comparison, Verdict, overall_verdict

WORST_FIRST = ["not comparable", "slower", "missing", "inconclusive", "faster", "same"]


@pytest.mark.parametrize(
    ("verdict", "code"),
    [("same", 0), ("faster", 0), ("slower", 1), ("inconclusive", 3), ("not comparable", 4), ("missing", 5)],
)
def test_each_verdict_has_its_exit_code(verdict, code):
    comparison = Comparison("base", "head", 0.01, (), Verdict(verdict))
    assert comparison.exit_code == code
    assert not comparison.same_source  # which ends a gate before anything is compared


def test_the_worst_is_the_verdict_on_all():
    assert {*WORST_FIRST} == {*Verdict}
    for worse, better in combinations(WORST_FIRST, 2):
        assert overall_verdict([Verdict(better), Verdict(worse), Verdict(better)]) == worse
        assert overall_verdict([Verdict(better)]) == better


def test_nothing_measured_is_nothing_passed():
    assert overall_verdict([]) == "missing"
