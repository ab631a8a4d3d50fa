"""One cell from set-up to row: every way to fail is a status with a reason."""

import gc
import json
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from builders import doubling, make_case, make_cell
from fake_timer import FakeTimer

from opbench.results.measurement import Measurement, Status
from opbench.sweeps.check import CheckResult
from opbench.sweeps.global_state import seeded
from opbench.sweeps.heap import short_collections
from opbench.sweeps.process_limits import memory_limit
from opbench.sweeps.request import RunOptions
from opbench.sweeps.runner import CellRunner
from opbench.timing import SpoiledProcessError
from opbench.timing.precision import BACKENDS, float32_precision, torch_precision
from opbench.timing.stopping import StopReason
from opbench.workload.case import OPERATOR_DIRECTIONS, Direction, Dtype, Shape
from opbench.workload.cell_warning import CellWarning
from opbench.workload.operator import Provider

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
    assert stages == ["set-up", "check", "build", "timing", "check again"]
    assert measurement.latencies_ms[:4] == (1.0, 2.0, 3.0, 1.0)
    assert measurement.stop_reason is StopReason.TIME_BUDGET
    assert measurement.max_rel_error == 0
    assert measurement.checked_shape == "1x4x4x8"
    assert measurement.timer == "fake"
    assert len(measurement.kernel_source_hash) == 16


@pytest.mark.parametrize("direction", list(OPERATOR_DIRECTIONS))
def test_the_first_call_and_one_with_caches_are_kept(direction, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("opbench.sweeps.check.time.perf_counter", lambda: clock[0])
    takes = [4.0, 0.5]  # seconds of each build

    def build(case, tensors):
        clock[0] += takes.pop(0) if takes else 0.0
        return lambda: tensors["x"] * 2

    operator = doubling(providers=(Provider("slow", build, "slow to build"),))
    measurement, _ = run("slow", operator, direction=direction)
    assert (measurement.status, measurement.reason) == (Status.OK, "")
    assert (measurement.first_call_ms, measurement.cached_call_ms) == (4000.0, 500.0)
    assert measurement.kernels_compiled == 0
    assert Measurement.from_json(json.loads(measurement.to_json_line())).first_call_ms == 4000.0


@pytest.mark.parametrize("direction", list(OPERATOR_DIRECTIONS))
def test_a_forward_pass_is_timed_without_gradients(direction):
    enabled = set()

    class Watching(FakeTimer):
        def sample(self, launch, count):
            enabled.add(torch.is_grad_enabled())
            return super().sample(launch, count)

    run(timer=Watching([1.0]), direction=direction)
    assert enabled == {direction is not Direction.FWD}


@pytest.mark.parametrize(
    ("timer", "latency_ms", "count"),
    [("launch-sync", 1.0, 200), ("launch-sync", 3.0, 30), ("wall-clock", 1.0, 30), ("wall-clock", 3.0, 6)],
)
def test_a_timer_says_how_many_samples_it_takes_at_least(timer, latency_ms, count):
    """Also where the budget, 10 ms, is spent before; of a launch that takes a fifth of that it is fewer."""
    runner = CellRunner(replace(OPTIONS, timer=timer), {"double": doubling()}.__getitem__, FakeTimer([latency_ms]))
    assert len(runner.run(make_cell()).latencies_ms) == count


@pytest.mark.parametrize("direction", list(OPERATOR_DIRECTIONS))
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


@pytest.mark.parametrize(
    ("provider", "memory_bytes", "status", "checks"),
    [
        ("out_of_memory", 9_000, Status.OUT_OF_MEMORY, 0),  # not checked first, which may take a minute
        ("out_of_memory", 4_000, Status.OUT_OF_MEMORY, 1),
        ("right", 9_000, Status.OK, 1),
        ("raising", 9_000, Status.ERROR, 1),
    ],
)
def test_a_cell_that_may_not_fit_is_tried_before_it_is_checked(monkeypatch, provider, memory_bytes, status, checks):
    from opbench.sweeps import runner

    checked, whole = [], runner.check
    monkeypatch.setattr(runner, "available_memory_bytes", lambda: 10_000)
    monkeypatch.setattr(runner, "check", lambda *arguments: checked.append(1) or whole(*arguments))
    cells = CellRunner(OPTIONS, {"double": doubling()}.__getitem__, FakeTimer([1.0, 2.0, 3.0]))
    measurement = cells.run(make_cell(make_case(), provider, memory_bytes=memory_bytes))
    assert (measurement.status, len(checked)) == (status, checks)
    assert ("in build" in measurement.reason) == (not checks)
    assert ("in check" in measurement.reason) == (bool(checks) and status is not Status.OK)


def test_the_timed_shape_must_be_finite_where_a_smaller_one_was_checked(monkeypatch):
    from opbench.sweeps import check

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
    first, second, third = seen[0], seen[3], seen[6]  # the check, the timing and the check after it
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


class StopHereError(Exception):
    """Ends a cell where a test has seen enough."""


class CudaCalls:
    """A GPU that is not there: what the runner asks of it, in order."""

    def __init__(self, monkeypatch):
        self.calls = []
        for place, name in (
            (torch.cuda, "synchronize"),
            (torch.cuda, "empty_cache"),
            (torch._C, "_cuda_clearCublasWorkspaces"),
        ):
            monkeypatch.setattr(place, name, lambda *_, name=name: self.calls.append(name), raising=False)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr("opbench.sweeps.runner.seeded", lambda seed, device: nullcontext())
        self.options = replace(OPTIONS, device="cuda:0", timer="cuda-event")

    def runner(self):
        return CellRunner(self.options, lambda name: doubling(), FakeTimer([1.0]))


@pytest.fixture
def cuda(monkeypatch):
    return CudaCalls(monkeypatch)


def test_memory_of_the_check_is_given_back_before_the_timed_tensors_are_made(cuda, monkeypatch):
    def check(*_):
        cuda.calls.append("check")
        return CheckResult(0, 1, "1x4x4x8", "")

    def make_tensors(*_):
        cuda.calls.append("timed tensors")
        raise StopHereError

    monkeypatch.setattr("opbench.sweeps.runner.check", check)
    monkeypatch.setattr("opbench.sweeps.runner.make_tensors", make_tensors)
    cuda.runner().run(make_cell())
    release = ["_cuda_clearCublasWorkspaces", "empty_cache"]
    assert cuda.calls == ["check", *release, "timed tensors", "synchronize", *release]


def test_a_torch_without_cublas_releases_memory_all_the_same(cuda, monkeypatch):
    monkeypatch.delattr(torch._C, "_cuda_clearCublasWorkspaces")
    monkeypatch.setattr("opbench.sweeps.runner.check", lambda *_: CheckResult(1, 0, "1x4x4x8", "off"))
    runner = cuda.runner()
    assert runner.run(make_cell()).status is Status.WRONG
    assert cuda.calls == ["synchronize", "empty_cache"]
    assert not runner.device_broken


def test_peak_memory_is_read_before_the_timer_prepares(monkeypatch):
    """What a timer allocates is none of the cell's."""
    order = []
    monkeypatch.setattr(CellRunner, "_peak_memory_bytes", lambda self, launch: order.append("peak"))
    timer = FakeTimer([1.0])
    monkeypatch.setattr(timer, "prepare", lambda launch, seconds: order.append("prepare"))
    run(timer=timer)
    assert order == ["peak", "prepare"]


def test_a_spoiled_process_runs_no_other_cell(cuda, monkeypatch):
    def fail(*_):
        raise SpoiledProcessError("cannot be captured in a CUDA graph: OutOfMemoryError: CUDA out of memory")

    monkeypatch.setattr("opbench.sweeps.runner.check", fail)
    runner = cuda.runner()
    measurement = runner.run(make_cell())
    assert measurement.status is Status.OUT_OF_MEMORY
    assert "cannot be captured" in measurement.reason
    assert runner.must_restart
    assert runner.device_broken


def test_a_device_that_answers_nothing_is_a_row(monkeypatch):
    """Also where seeding it is the first to find out."""

    def refuse(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    generator = SimpleNamespace(get_state=refuse)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    monkeypatch.setattr(torch.cuda, "synchronize", refuse)
    runner = CellRunner(replace(OPTIONS, device="cuda:0"), lambda name: doubling(), FakeTimer([1.0]))
    measurement = runner.run(make_cell())
    assert (measurement.status, runner.must_restart) == (Status.ERROR, True)
    message = "RuntimeError in set-up: CUDA error: an illegal memory access was encountered, at test_runner.py:"
    assert measurement.reason.startswith(message)


def test_a_cell_seeds_the_gpu_that_it_runs_on_and_puts_its_state_back(monkeypatch):
    states = [torch.Generator().manual_seed(number) for number in range(2)]
    before = [generator.get_state() for generator in states]
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "default_generators", tuple(states))
    drawn = []
    for _ in range(2):
        with seeded(7, "cuda:1"):
            drawn.append((torch.rand(1).item(), torch.rand(1, generator=states[1]).item()))
            assert torch.equal(states[0].get_state(), before[0])  # the current device, and not ours
    assert drawn[0] == drawn[1]
    assert all(torch.equal(generator.get_state(), state) for generator, state in zip(states, before, strict=True))


def test_a_cells_error_is_not_hidden_by_a_generator_that_cannot_be_put_back(monkeypatch):
    def refuse(state):
        raise RuntimeError("CUDA error")

    gpu = SimpleNamespace(get_state=lambda: None, manual_seed=lambda seed: None, set_state=refuse)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "default_generators", (gpu,))
    with pytest.raises(StopHereError), seeded(0, "cuda:0"):
        raise StopHereError


def variables_after(monkeypatch, changed, **given):
    """Row of a cell that changes environment variables, and what they are after it."""
    for name in ("TRITON_CACHE_DIR", "TRITON_PTXAS_PATH", "TORCHINDUCTOR_CACHE_DIR", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    def reference(case, tensors):
        os.environ.update(changed)
        return tensors["x"] * 2

    measurement, _ = run(operator=doubling(reference=reference))
    assert measurement.status is Status.OK
    named = [warning for warning in measurement.warnings if warning.kind == "global state"]
    return named, {name: os.environ.get(name) for name in changed}


def test_what_compilers_set_for_themselves_is_taken_away_and_not_named(monkeypatch):
    """As TorchInductor does in its first compilation, on a GPU."""
    names = ("TRITON_CACHE_DIR", "TRITON_PTXAS_PATH", "TORCHINDUCTOR_CACHE_DIR")
    named, left = variables_after(monkeypatch, dict.fromkeys(names, "/somewhere"))
    assert (named, left) == ([], dict.fromkeys(names))


@pytest.mark.parametrize(
    ("given", "changed"),
    [({"TRITON_CACHE_DIR": "/mine"}, {"TRITON_CACHE_DIR": "/other"}), ({}, {"OMP_NUM_THREADS": "1"})],
)
def test_other_changes_of_the_environment_are_named(monkeypatch, given, changed):
    named, left = variables_after(monkeypatch, changed, **given)
    assert [*map(str, named)] == ["global state: the cell changed os.environ"]
    assert left == {name: given.get(name) for name in changed}


def test_the_timers_warnings_are_in_the_row():
    timer = FakeTimer([1.0])
    timer.warnings = (CellWarning("host time", "late"),)
    assert CellWarning("host time", "late") in run(timer=timer)[0].warnings


def test_shapes_print_as_columns_say():
    assert str(Shape(64, 56, 56, 128)) == "64x56x56x128"


@pytest.mark.parametrize("direction", list(OPERATOR_DIRECTIONS))
def test_a_compiled_backward_pass_may_run_again(direction):
    """What torch.compile makes in either build must not reuse buffers of the forward pass; a cache hands it on."""
    from torch._functorch import config

    seen = []

    def build(case, tensors):
        seen.append(config.donated_buffer)
        return lambda: tensors["x"] * 2

    before = config.donated_buffer
    measurement, _ = run("torch", doubling(providers=(Provider("torch", build, ""),)), direction=direction)
    assert measurement.status is Status.OK, measurement.reason
    assert seen == [before and direction is not Direction.BWD] * 2
    assert config.donated_buffer == before


def test_the_row_says_what_was_allowed_and_another_dtype():
    measurement, _ = run()
    assert (measurement.tolerance, measurement.mean_rel_error) == (pytest.approx(12 * 2**-24), 0)
    assert measurement.mean_tolerance > 0
    wide = doubling(providers=(Provider("wide", lambda case, tensors: lambda: tensors["x"].double() * 2, ""),))
    measurement, _ = run("wide", wide)
    assert (measurement.status, measurement.reason) == (Status.OK, "the output is float64, not float32")
    assert measurement.other_dtype == measurement.reason


def test_what_was_imported_is_set_aside_for_the_collections_between_cells(monkeypatch):
    gc.unfreeze()  # tests/conftest.py has done the same for the tests
    try:
        with short_collections() as set_aside:
            assert gc.get_freeze_count() > 1000
            kept = [[]]
            set_aside()
            assert any(thing is kept for thing in gc.get_objects())  # no module came: a cell's objects stay collectable
            monkeypatch.setitem(sys.modules, "a_module_of_a_cell", sys)
            set_aside()
            assert not any(thing is kept for thing in gc.get_objects())
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()


def test_a_heap_that_its_owner_froze_is_left_alone(monkeypatch):
    assert gc.get_freeze_count()  # by tests/conftest.py
    monkeypatch.setitem(sys.modules, "a_module_of_a_cell", sys)
    kept = [[]]
    with short_collections() as set_aside:
        set_aside()
        assert any(thing is kept for thing in gc.get_objects())
    assert gc.get_freeze_count()
