"""Mistakes in the functions of a user's operator: one clear line before anything runs, and no damaged run."""

import pytest
from builders import doubling
from test_fuzz import call

from opbench.errors import OperatorError
from opbench.results.measurement import Status
from opbench.results.run import Run
from opbench.sweeps.request import make_request
from opbench.sweeps.start import plan, start_run
from opbench.workload.case import MAX_COUNT
from opbench.workload.operator import Provider

FILE = """\
import torch
import opbench
from builders import doubling

operator = doubling(name="mine", {function}={value})
"""
TINY = "shapes:\n  - {batch: 1, height: 4, width: 4, channels: 8}\n"


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    return str(tmp_path / "tiny.yaml")


def planned(tiny, **changes):
    known = {"double": doubling(**changes)}
    return plan(make_request({"shapes": [tiny], "device": "cpu", "dtypes": ["fp32"]}, known), known)


@pytest.mark.parametrize("function", ["flop_count", "bytes_moved", "memory_bytes"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("lambda case: 1 / 0", "raises ZeroDivisionError: division by zero, at mine.py:5"),
        ("lambda case: 1.5", "must be a whole number of at least 0, got 1.5"),
        ("lambda case: -1", "must be a whole number of at least 0, got -1"),
        ("lambda case: None", "must be a whole number of at least 0, got None"),
        ("lambda case: True", "must be a whole number of at least 0, got True"),
    ],
)
def test_a_wrong_cost_function_is_one_line(tmp_path, monkeypatch, tiny, function, value, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE.format(function=function, value=value))
    code, _, err = call("sweep", "--ops", "mine.py", "--shapes", tiny, "--dtypes", "fp32", "--device", "cpu",
                        "--isolation", "none", "--out", "run")  # fmt: skip
    assert (code, err.splitlines()[-1]) == (
        2, f"opbench: operator mine: {function} of mine/module/fwd/tiny/1x4x4x8/fp32/factor=2 {message}"
    )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"not_applicable": lambda case: 1 / 0}, "not_applicable"),
        ({"providers": (Provider("p", None, "", unavailable=lambda device: 1 / 0),)}, "provider p: unavailable"),
        ({"providers": (Provider("p", None, "", not_applicable=lambda *_: 1 / 0),)}, "provider p: not_applicable"),
    ],
)
def test_what_says_whether_a_case_applies_is_named_too(tiny, changes, what):
    with pytest.raises(OperatorError, match=f"operator double: {what} of double/module/.* raises ZeroDivisionError"):
        planned(tiny, **changes)


def test_numpys_integers_are_counts(tiny):
    import numpy as np

    [cell] = planned(tiny, flop_count=lambda case: np.int64(7))
    assert (cell.flop_count, type(cell.flop_count)) == (7, int)


def test_costs_of_what_has_no_meaning_are_not_asked_for(tiny):
    [cell] = planned(tiny, not_applicable=lambda case: "never", flop_count=lambda case: 1 / 0)
    assert cell.flop_count == 0


@pytest.mark.parametrize(("count", "shown"), [(2**63, "9.22e+18"), (10**400, "1e+300")])
def test_a_count_that_is_too_large_is_not_applicable(tmp_path, tiny, count, shown):
    from test_runner import run

    operator = doubling(flop_count=lambda case: count)
    known = {"double": operator}
    request = make_request({"shapes": [tiny], "device": "cpu", "dtypes": ["fp32"]}, known)
    folder = start_run(request, known, tmp_path / "run")
    [cell] = Run.open(folder.path).plan()
    assert cell.flop_count == MAX_COUNT - 1
    measurement, _ = run(operator=operator)
    assert measurement.status is Status.NOT_APPLICABLE
    assert measurement.reason == f"flop_count would be {shown}, and 2**63 - 1 is the largest count that is kept"


def test_attention_on_a_huge_image_does_not_apply(tmp_path, monkeypatch):
    (tmp_path / "huge.yaml").write_text("shapes:\n  - {batch: 32, height: 8000, width: 8000, channels: 32}\n")
    monkeypatch.chdir(tmp_path)
    code, out, err = call("sweep", "--ops", "attention", "--shapes", "huge.yaml", "--dtypes", "fp32", "--device", "cpu",
                          "--isolation", "none", "--no-plots", "--out", "run")  # fmt: skip
    assert (code, "1 cells: 1 not_applicable" in out) == (0, True), err
    [row] = Run.open(tmp_path / "run").rows()
    assert row.reason.startswith("flop_count would be 1.74e+19, and 2**63 - 1 is")
