"""Providers that compute right when they are checked and cheat when they are timed: each is found after the timing."""

import sys
import threading
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from builders import doubling, make_case, make_cell
from fake_timer import FakeTimer

from opbench.results.measurement import Status
from opbench.sweeps import check as check_module
from opbench.sweeps.request import RunOptions
from opbench.sweeps.runner import CellRunner
from opbench.workload.case import OPERATOR_DIRECTIONS, Direction
from opbench.workload.operator import Provider

OPTIONS = RunOptions("cpu", "wall-clock", "warm", 0.001, None, 0)
LAUNCHES_BEFORE_TIMING = 3
"""By the check, by the snapshot and by a warm-up."""


def run(build, *, timer=None, copied=(), **case_changes):
    operator = replace(doubling(), providers=(Provider("cheat", build, "", copied=copied),))
    runner = CellRunner(OPTIONS, lambda name: operator, timer or FakeTimer([1.0, 2.0, 3.0]))
    return runner.run(make_cell(make_case(**case_changes), "cheat"))


def keeps_its_result(case, tensors):
    kept = []

    def launch():
        if not kept:
            kept.append(2 * tensors["x"])
        return kept[0]

    return launch


def gives_a_copy_of_its_result(case, tensors):
    first = keeps_its_result(case, tensors)
    return lambda: first().clone()


def keeps_its_result_until_the_input_seems_to_change(case, tensors):
    kept = {}

    def launch():
        x = tensors["x"]
        key = (x.data_ptr(), x._version)
        if key not in kept:
            kept[key] = 2 * x
        return kept[key].clone()

    return launch


def keeps_results_in_its_module(case, tensors, kept={}):  # noqa: B006
    def launch():
        x = tensors["x"]
        if x.data_ptr() not in kept:
            kept[x.data_ptr()] = 2 * x
        return kept[x.data_ptr()].clone()

    kept.clear()  # for each build anew, so that the check is passed
    return launch


def does_half_of_it_from_some_launch_on(case, tensors):
    launches = []

    def launch():
        launches.append(1)
        out = 2 * tensors["x"]
        if len(launches) > LAUNCHES_BEFORE_TIMING - 1:
            out[:, out.shape[1] // 2 :] = 0
        return out

    return launch


def computes_in_half_precision_from_some_launch_on(case, tensors):
    launches = []

    def launch():
        launches.append(1)
        x = tensors["x"]
        return (2 * x.half()).float() if len(launches) > LAUNCHES_BEFORE_TIMING - 1 else 2 * x

    return launch


def writes_into_one_buffer_until_it_is_timed(case, tensors):
    out = torch.empty_like(tensors["x"])

    def launch():
        frame = sys._getframe()
        while frame := frame.f_back:
            if frame.f_code.co_filename.endswith("wall_clock.py"):
                return out
        return torch.mul(tensors["x"], 2, out=out)

    return launch


CHEATS = [
    keeps_its_result,
    gives_a_copy_of_its_result,
    keeps_its_result_until_the_input_seems_to_change,
    keeps_results_in_its_module,
    does_half_of_it_from_some_launch_on,
    computes_in_half_precision_from_some_launch_on,
]


@pytest.mark.parametrize("build", CHEATS)
def test_a_cheat_is_right_at_first_and_found_after_the_timing(build):
    measurement = run(build)
    assert measurement.status is Status.WRONG
    assert measurement.reason.startswith("after the timing, on other values: ")
    assert measurement.max_rel_error <= measurement.tolerance  # as checked before
    assert not measurement.latencies_ms


@pytest.mark.parametrize("build", CHEATS)
def test_also_where_the_reference_of_the_shape_is_too_large(build, monkeypatch):
    monkeypatch.setitem(check_module.REFERENCE_FLOPS, "cpu", 50)
    measurement = run(build, shape=(1, 4, 4, 8))
    assert measurement.checked_shape != "1x4x4x8"
    assert measurement.status is Status.WRONG
    assert "after the timing" in measurement.reason


def test_what_cheats_only_inside_the_timer_is_found_as_the_timer_launches_it_again():
    operator = replace(doubling(), providers=(Provider("cheat", writes_into_one_buffer_until_it_is_timed, ""),))
    measurement = CellRunner(OPTIONS, lambda name: operator).run(make_cell(make_case(), "cheat"))
    assert measurement.status is Status.WRONG
    assert "not finite" in measurement.reason


class Backlog(FakeTimer):
    """A timer whose launches come faster than another thread can work."""

    def __init__(self, keeps_up):
        super().__init__([1.0])
        self._keeps_up = keeps_up

    def prepare(self, launch, seconds):
        self._keeps_up.clear()


def test_work_that_another_thread_ends_later_comes_too_late():
    keeps_up, threads = threading.Event(), []
    keeps_up.set()

    def build(case, tensors):
        def launch():
            out = torch.full_like(tensors["x"], 7.0)

            def work():
                keeps_up.wait()
                torch.mul(tensors["x"], 2, out=out)

            threads.append(threading.Thread(target=work))
            threads[-1].start()
            if keeps_up.is_set():
                threads[-1].join()
            return out

        return launch

    measurement = run(build, timer=Backlog(keeps_up))
    keeps_up.set()
    for thread in threads:
        thread.join()
    assert measurement.status is Status.WRONG
    assert measurement.reason.startswith("after the timing, on other values: output is off by")


class KeptGradient(torch.autograd.Function):
    """Doubling whose backward pass keeps its result."""

    kept: ClassVar[list[torch.Tensor]] = []

    @staticmethod
    def forward(ctx, x):
        KeptGradient.kept.clear()
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        if not KeptGradient.kept:
            KeptGradient.kept.append(2 * grad)
        return KeptGradient.kept[0].clone()


def test_a_backward_pass_that_keeps_its_gradient_is_found():
    measurement = run(lambda case, tensors: lambda: KeptGradient.apply(tensors["x"]), direction=Direction.BWD)
    assert measurement.status is Status.WRONG
    assert "the closure gives what it gave before they changed" in measurement.reason


class ComputesWhenRead(torch.Tensor):
    """A tensor that could do its work when it is first read."""


def test_a_subclass_of_tensor_may_compute_later_and_is_refused():
    measurement = run(lambda case, tensors: lambda: (2 * tensors["x"]).as_subclass(ComputesWhenRead))
    assert measurement.status is Status.WRONG
    assert "the closure must return the output, a torch.Tensor itself, got ComputesWhenRead" in measurement.reason


@pytest.mark.parametrize("direction", list(OPERATOR_DIRECTIONS))
@pytest.mark.parametrize("crop", [False, True])
def test_what_is_honest_stays_right(direction, crop, monkeypatch):
    if crop:
        monkeypatch.setitem(check_module.REFERENCE_FLOPS, "cpu", 50)
    out = []

    def build(case, tensors):
        if direction is not Direction.FWD:
            return lambda: tensors["x"] + tensors["x"]
        out.append(torch.empty_like(tensors["x"]))  # one buffer for all launches
        return lambda: torch.mul(tensors["x"], 2, out=out[-1])

    measurement = run(build, direction=direction)
    assert (measurement.status, "after the timing" in measurement.reason) == (Status.OK, False)


def test_a_result_in_the_memory_of_an_input_is_not_overwritten():
    operator = doubling(
        reference=lambda case, tensors: tensors["x"].flip(1),
        providers=(Provider("view", lambda case, tensors: lambda: tensors["x"].flip(1).view_as(tensors["x"]), ""),),
    )
    for direction in OPERATOR_DIRECTIONS:
        cell = make_cell(make_case(direction=direction), "view")
        assert CellRunner(OPTIONS, lambda name: operator, FakeTimer([1.0])).run(cell).status is Status.OK


def builds_on_a_copy(case, tensors):
    x = tensors["x"].clone()
    return lambda: 2 * x


def test_what_build_copies_must_be_named():
    assert "Provider.copied does not name them" in run(builds_on_a_copy).reason
    assert run(builds_on_a_copy, copied=("x",)).status is Status.OK


def test_a_check_that_needs_too_much_memory_is_said(monkeypatch):
    def too_much(*_, **__):
        raise MemoryError

    monkeypatch.setattr("opbench.sweeps.runner.recheck", too_much)
    measurement = run(lambda case, tensors: lambda: 2 * tensors["x"])
    assert (measurement.status, measurement.reason) == (
        Status.OK,
        "not checked again after the timing: out of memory",
    )
