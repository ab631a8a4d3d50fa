"""One cell from set-up to row: every way to fail is a status with a reason."""

import json

import pytest
import torch
from builders import doubling, make_case, make_cell

from opbench.case import Direction, Dtype, Shape
from opbench.measurement import Measurement, Status, StopReason
from opbench.precision import BACKENDS, float32_precision, torch_precision
from opbench.runner import CellRunner, RunOptions, memory_limit, source_hash
from opbench.timing.fake import FakeTimer

OPTIONS = RunOptions(device="cpu", timer="wall-clock", cache="warm", time_budget_s=0.01, memory_limit_gib=None, seed=0)


def run(provider="right", operator=None, timer=None, **case_changes):
    operator = operator or doubling()
    runner = CellRunner(OPTIONS, {operator.name: operator}.__getitem__, timer or FakeTimer([1.0, 2.0, 3.0]))
    stages = []
    measurement = runner.run(make_cell(make_case(**case_changes), provider), stages.append)
    return measurement, stages


def test_a_right_cell_is_checked_then_timed():
    measurement, stages = run()
    assert measurement.status is Status.OK
    assert stages == ["set-up", "check", "build", "timing"]
    assert measurement.latencies_ms[:4] == (1.0, 2.0, 3.0, 1.0)
    assert measurement.stop_reason is StopReason.TIME_BUDGET
    assert measurement.max_rel_error == 0
    assert measurement.checked_shape == "1x4x4x8"
    assert measurement.timer == "fake"
    assert len(measurement.kernel_source_hash) == 16


@pytest.mark.parametrize("direction", list(Direction))
def test_every_direction_is_timed(direction):
    measurement, _ = run(direction=direction)
    assert measurement.status is Status.OK, measurement.reason


@pytest.mark.parametrize(
    ("provider", "status", "reason"),
    [
        ("wrong", Status.WRONG, "output is off by"),
        ("unwritten", Status.WRONG, "32 of 128 values of the output are not finite"),
        ("raising", Status.ERROR, "ValueError in check: no such luck"),
        ("out_of_memory", Status.OUT_OF_MEMORY, "in check"),
    ],
)
def test_a_cell_that_fails_is_a_row_and_is_not_timed(provider, status, reason):
    measurement, stages = run(provider)
    assert measurement.status is status
    assert reason in measurement.reason
    assert "\n" not in measurement.reason
    assert measurement.latencies_ms == ()
    assert "timing" not in stages


def test_the_timed_shape_must_be_finite_where_a_smaller_one_was_checked(monkeypatch):
    from opbench import check

    monkeypatch.setattr(check, "_bytes_available", lambda device: 2 * 8 * 3 * 4 * 4 * 8)
    measurement, _ = run("nan_where_not_checked", shape=(16, 4, 4, 8))
    assert measurement.status is Status.WRONG
    assert "not finite at 16x4x4x8 (right at 1x4x4x8)" in measurement.reason
    fine, _ = run("right", shape=(16, 4, 4, 8))
    assert fine.status is Status.OK
    assert "checked at 1x4x4x8" in fine.reason


def test_what_does_not_apply_says_why():
    operator = doubling(not_applicable=lambda case: "never on a Sunday")
    measurement, stages = run(operator=operator)
    assert (measurement.status, measurement.reason) == (Status.NOT_APPLICABLE, "never on a Sunday")
    assert stages == ["set-up"]
    tf32, _ = run(dtype=Dtype.TF32)
    assert tf32.status is Status.NOT_APPLICABLE


def test_an_unknown_provider_is_an_error_row():
    measurement, _ = run("nobody")
    assert measurement.status is Status.ERROR
    assert "known: right, wrong" in measurement.reason


def test_inputs_do_not_depend_on_the_order_of_cells():
    seen = []

    def make_inputs(case, generator):
        seen.append(torch.randn(4, generator=generator))
        return {"x": seen[-1].expand(1, 4, 4, 4).contiguous()}

    operator = doubling(make_inputs=make_inputs)
    runner = CellRunner(OPTIONS, lambda name: operator, FakeTimer([1.0]))
    cases = [make_case(shape=(1, 4, 4, 4)), make_case(shape=(1, 4, 4, 4), shape_list="other")]
    for case in (cases[0], cases[1], cases[0]):
        runner.run(make_cell(case))
    first, second, third = seen[0], seen[2], seen[4]
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


def test_the_journal_line_reads_back():
    measurement, _ = run("right")
    assert Measurement.from_json(json.loads(measurement.to_json_line())) == measurement
    wrong, _ = run("unwritten")
    line = wrong.to_json_line()
    assert "Infinity" not in line
    assert Measurement.from_json(json.loads(line)).max_rel_error is None


def test_a_failure_without_a_reason_is_impossible():
    with pytest.raises(ValueError, match="needs a reason"):
        Measurement(make_cell(), Status.ERROR)


def test_precision_is_strict_around_a_cell_and_restored_after():
    before, older_before = float32_precision(), torch.backends.cudnn.allow_tf32
    seen = {}

    def reference(case, tensors):
        seen.update(float32_precision())
        return tensors["x"] * 2

    run(operator=doubling(reference=reference))
    assert seen == dict.fromkeys(BACKENDS, "ieee")
    with torch_precision(Dtype.TF32):
        assert float32_precision()["cuda.matmul"] == "tf32"
        assert float32_precision()["cudnn.conv"] == "tf32"
        assert float32_precision()["mkldnn.matmul"] == "ieee"
        # Compilers read the older settings, which raise where they and the new ones disagree.
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    with torch_precision(Dtype.FP32):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert float32_precision() == before
    assert torch.backends.cudnn.allow_tf32 == older_before


def test_precision_is_restored_after_a_failure():
    before = float32_precision()
    with pytest.raises(RuntimeError), torch_precision(Dtype.FP32):
        raise RuntimeError
    assert float32_precision() == before


def test_a_memory_limit_on_the_cpu_holds_and_goes_away():
    with memory_limit(0.25, "cpu"), pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.ones(2**28)  # 1 GiB
    assert torch.ones(2**26).sum() == 2**26


def test_the_source_hash_follows_the_sources(tmp_path, monkeypatch):
    from dataclasses import replace

    (tmp_path / "some_kernel.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    operator = doubling()
    provider = replace(operator.provider("right"), sources=("some_kernel",))
    without = source_hash(operator, operator.provider("right"))
    first = source_hash(operator, provider)
    (tmp_path / "some_kernel.py").write_text("x = 2\n")
    assert len({without, first, source_hash(operator, provider)}) == 3


def test_shapes_print_as_columns_say():
    assert str(Shape(64, 56, 56, 128)) == "64x56x56x128"
