"""What verdicts stand for: exit codes, and which of several is the verdict on all."""

from itertools import combinations
from xml.etree import ElementTree

import pytest

from opbench.compare.verdicts import Benchmark, CellComparison, Comparison, Verdict, overall_verdict
from opbench.report.annotations import workflow_commands
from opbench.report.comparison import comparison_tables
from opbench.report.junit import junit_xml

WORST_FIRST = ["not comparable", "slower", "missing", "inconclusive", "faster", "same", "unchanged"]


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        ("same", 0),
        ("faster", 0),
        ("unchanged", 0),
        ("slower", 1),
        ("inconclusive", 3),
        ("not comparable", 4),
        ("missing", 5),
    ],
)
def test_each_verdict_has_its_exit_code(verdict, code):
    comparison = Comparison("base", "head", 0.01, (), Verdict(verdict))
    assert comparison.exit_code == code
    assert not comparison.same_source  # which ends a gate before anything is compared


@pytest.mark.parametrize(
    ("verdict", "junit", "rank", "words"),
    [
        ("same", "", "", "the same within 3 %"),
        ("unchanged", "skipped", "", "not measured: it is the same code in both"),
        ("faster", "", "best", "faster by more than 3 %, none slower"),
        ("slower", "failure", "worst", "slower by more than 3 %"),
        ("inconclusive", "error", "", "neither shown to differ nor to be the same"),
        ("not comparable", "error", "worst", "measured under other circumstances"),
        ("missing", "error", "worst", "not measured in both"),
    ],
)
def test_each_verdict_has_its_forms(verdict, junit, rank, words):
    found = Verdict(verdict)
    assert (found.junit, found.rank, found.words.format(tolerance="3 %")) == (junit, rank, words)
    assert found.passed == (found.exit_code == 0) == (verdict in ("same", "faster", "unchanged"))
    assert junit_cells(found) == [junit or "system-out"]
    assert junit_cells(found, accepted=[found]) == ["skipped" if junit else "system-out"]
    assert workflow_commands(of_one_cell(found)).startswith("::error") != found.passed
    assert workflow_commands(of_one_cell(found), [found]).startswith("::warning") != found.passed
    table, *_ = comparison_tables(of_one_cell(found))
    assert [*table.ranks.values()] == [rank] * bool(rank)


def of_one_cell(verdict):
    cell = CellComparison(Benchmark("a"), verdict)
    return Comparison("base", "head", 0.03, (cell,), verdict)


def junit_cells(verdict, accepted=()):
    root = ElementTree.fromstring(junit_xml(of_one_cell(verdict), accepted))  # noqa: S314 - our own
    return [element.tag for case in root.iter("testcase") for element in case]


def test_the_worst_is_the_verdict_on_all():
    assert {*WORST_FIRST} == {*Verdict}
    for worse, better in combinations(WORST_FIRST, 2):
        assert overall_verdict([Verdict(better), Verdict(worse), Verdict(better)]) == worse
        assert overall_verdict([Verdict(better)]) == better


def test_nothing_measured_is_nothing_passed():
    assert overall_verdict([]) == "missing"
