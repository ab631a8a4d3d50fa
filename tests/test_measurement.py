"""A line of the journal: what it may hold, on both sides of every bound, and what it gives back."""

import json
import math
from dataclasses import replace

import pytest
from builders import make_case, make_cell

from opbench.results.measurement import MAX_REASON_LENGTH, Measurement, Status, is_failure
from opbench.workload.case import MAX_COUNT, Dtype

OK = Measurement(make_cell(), Status.OK, latencies_ms=(1.0, 2.0))
LINE = json.loads(OK.to_json_line())
NUMBERS = (
    "max_rel_error", "tolerance", "mean_rel_error", "mean_tolerance", "seconds", "first_call_ms", "cached_call_ms",
)  # fmt: skip
COUNTS = ("launches_per_sample", "peak_memory_bytes", "kernels_compiled")
TEXTS = ("reason", "timer", "cache", "checked_shape", "result_dtype", "kernel_source_hash")


def read(**changes):
    return Measurement.from_json(LINE | changes)


@pytest.mark.parametrize(
    ("names", "valid", "invalid"),
    [
        (NUMBERS, (None, 0, -1.5, 1e308), (math.inf, -math.inf, math.nan, True, "1")),
        (COUNTS, (None, 0, 1, MAX_COUNT - 1), (-1, MAX_COUNT, 1.0, "1")),
        (("repetition",), (1, 2), (0, -1, True, 1.0, None)),
        (("latencies_ms",),
         ([1.0], [0.0, 1], [1e-9], [1e12], [0]),
         ([], ["1"], [True], 1.0, "1", [math.nan], [-1.0], [0.99e-9, 1.0], [1.0, 1e12 + 0.5])),
        (("conditions",), ({}, {"before": {}}), ([], None, {"before": True}, {"after": [1]})),
        (("warnings",), ([], ["CPU load: 20 %"]), ([3], ["CPU\nload"])),
        (("traceback",), ("", "one\ntwo"), ("one\x1btwo", None)),
        (("status",), ("ok",), (None, 3, "two\nlines", "error")),  # an error needs a reason
        (("stop_reason",), (None, "converged"), (3, "two\nlines")),
        (TEXTS, ("", "a text"), (3, None)),
        (TEXTS[1:], ("a text",), ("two\nlines",)),
    ],
)  # fmt: skip
def test_a_line_holds_what_it_may_and_nothing_else(names, valid, invalid):
    for name in names:
        for value in valid:
            assert json.loads(read(**{name: value}).to_json_line())[name] == value
        for value in invalid:
            with pytest.raises((ValueError, TypeError, AttributeError)):
                read(**{name: value})


def test_a_line_gives_back_what_was_measured():
    cell = make_cell(make_case(dtype=Dtype.FP16))
    full = replace(OK, cell=cell, max_rel_error=0.1, seconds=2.5, repetition=3, conditions={"before": {"x": 1}})
    assert Measurement.from_json(json.loads(full.to_json_line())) == full
    assert "processes" not in LINE
    assert read(processes=7).processes == 1  # never in a journal


@pytest.mark.parametrize(("error", "kept"), [(0.5, 0.5), (None, None), (math.inf, None), (math.nan, None)])
def test_an_error_that_is_not_finite_becomes_null(error, kept):
    wrong = Measurement(OK.cell, Status.WRONG, "wrong", max_rel_error=error, mean_rel_error=error)
    line = json.loads(wrong.to_json_line())
    assert (line["max_rel_error"], line["mean_rel_error"]) == (kept, kept)


def test_a_line_is_strict_json_with_its_letters_as_they_are():
    assert '"reason": "2×2"' in replace(OK, reason="2×2").to_json_line()
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(OK, seconds=math.nan).to_json_line()


def test_a_line_from_before_a_field_was_kept_has_its_default():
    old = Measurement.from_json({name: LINE[name] for name in ("cell", "status", "latencies_ms", "stop_reason")})
    assert (old.seconds, old.repetition, old.warnings, old.conditions) == (0.0, 1, (), {})


def test_a_failure_is_what_was_not_measured_though_it_was_asked_for():
    failures = [status for status in (*Status, "melted") if is_failure(status)]
    assert failures == ["unavailable", "wrong", "error", "timeout", "melted"]


def test_a_cell_that_is_not_ok_needs_a_reason_and_no_samples():
    with pytest.raises(ValueError, match="a cell that is error needs a reason"):
        Measurement(OK.cell, Status.ERROR)
    assert read(status="error", reason="no luck", latencies_ms=[]).latencies_ms == ()


def test_a_reason_is_one_line_of_bounded_length():
    assert replace(OK, reason="a\nb").reason == "a b"
    assert replace(OK, reason="\n").reason == "unprintable"
    assert replace(OK, reason="a\n" * MAX_REASON_LENGTH).reason == "a " * (499 // 2) + "a…"
    assert replace(OK, reason="a" * 501).reason == "a" * 501  # of one line none is cut


def test_another_dtype_of_the_output_is_said():
    assert replace(OK, result_dtype="float16").other_dtype == "the output is float16, not float32"
    assert (OK.other_dtype, replace(OK, result_dtype="float32").other_dtype) == ("", "")
    half = make_cell(make_case(dtype=Dtype.FP16))
    assert replace(OK, cell=half, result_dtype="float16").other_dtype == ""
