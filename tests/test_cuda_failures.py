"""What goes wrong on a CUDA device while a cell is timed ends as the right row; on the device of fake_device.py."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from builders import make_cell
from fake_device import ILLEGAL_ACCESS, NO_MEMORY, FakeDevice, measure_on

from opbench.results.measurement import Status
from opbench.sweeps.isolation.executor import WorkerExecutor
from opbench.sweeps.isolation.worker_process import Workers
from opbench.sweeps.request import RunOptions
from opbench.sweeps.runner import CellRunner
from opbench.timing import cuda
from opbench.timing.launch_sync import LaunchSyncTimer

EVENT, GRAPH, LAUNCH_SYNC = "cuda-event", "cuda-graph", "launch-sync"
SAMPLER = cuda.EventSampler
WARM_UP, CAPTURE, FLUSH = (cuda, "_warm_up"), (cuda, "_captured"), (cuda, "_flusher")
CALIBRATION, SAMPLES = (SAMPLER, "calibrate"), (SAMPLER, "times_ms")
ALONE, SAMPLES_ALONE = (LaunchSyncTimer, "prepare"), (LaunchSyncTimer, "sample")


@pytest.fixture
def device(monkeypatch):
    return FakeDevice(monkeypatch)


def fault_in(place, fault, device, monkeypatch):
    """From the first call of a function on, the device has a fault."""
    whole = getattr(*place)

    def entered(*arguments):
        setattr(device, fault, True)
        return whole(*arguments)

    monkeypatch.setattr(*place, entered)


def runner_on(device, monkeypatch, timer, cache=None):
    cache = cache or ("warm" if timer == LAUNCH_SYNC else "cold")
    operator = measure_on(device, monkeypatch, right=device.launch)
    return CellRunner(RunOptions("cuda:0", timer, cache, 0.01, None, 0), lambda name: operator)


@pytest.mark.parametrize("cache", ["cold", "warm"])
@pytest.mark.parametrize("timer", [EVENT, GRAPH])
def test_a_cell_without_a_fault_is_measured(device, monkeypatch, timer, cache):
    runner = runner_on(device, monkeypatch, timer, cache)
    measured = runner.run(make_cell())
    assert (measured.status, measured.timer, measured.cache) == (Status.OK, timer, cache)
    assert measured.latencies_ms == pytest.approx([0.25] * len(measured.latencies_ms))
    assert not runner.must_restart


def test_a_cell_keeps_what_its_provider_counted_for_this_gpu(device, monkeypatch):
    operator = measure_on(device, monkeypatch, right=device.launch)
    [provider] = operator.providers
    counted = replace(provider, warp_instructions=lambda case, architecture: {"sm_90": 12345}[architecture])
    options = RunOptions("cuda:0", EVENT, "warm", 0.01, None, 0)
    measured = CellRunner(options, lambda name: replace(operator, providers=(counted,))).run(make_cell())
    assert measured.warp_instructions == 12345
    assert measured.resolution_ms == 0.5e-3


@pytest.mark.parametrize(
    ("timer", "place"),
    [(EVENT, WARM_UP), (EVENT, FLUSH), (EVENT, CALIBRATION), (EVENT, SAMPLES),
     (GRAPH, WARM_UP), (GRAPH, CAPTURE), (GRAPH, FLUSH), (LAUNCH_SYNC, ALONE), (LAUNCH_SYNC, SAMPLES_ALONE)],
)  # fmt: skip
def test_a_launch_that_runs_out_of_memory_costs_its_own_row(device, monkeypatch, timer, place):
    runner = runner_on(device, monkeypatch, timer)
    with monkeypatch.context() as patched:
        fault_in(place, "full", device, patched)
        measured = runner.run(make_cell())
    assert measured.status is Status.OUT_OF_MEMORY
    assert measured.reason.startswith(f"OutOfMemoryError in timing: {NO_MEMORY}")
    assert measured.latencies_ms == ()
    assert not runner.must_restart
    assert device.current is device.default
    device.full = False
    assert runner.run(make_cell()).status is Status.OK


def test_memory_that_runs_out_before_the_timing_is_a_row_too(device, monkeypatch):
    device.full = True
    measured = runner_on(device, monkeypatch, EVENT).run(make_cell())
    assert measured.status is Status.OUT_OF_MEMORY
    assert measured.reason.startswith(f"OutOfMemoryError in build: {NO_MEMORY}")


@pytest.mark.parametrize(
    ("timer", "place"),
    [(timer, place) for timer in (EVENT, GRAPH) for place in (WARM_UP, FLUSH, CALIBRATION, SAMPLES)]
    + [(GRAPH, CAPTURE), (LAUNCH_SYNC, ALONE), (LAUNCH_SYNC, SAMPLES_ALONE)],
)
def test_an_illegal_access_is_an_error_and_ends_the_process(device, monkeypatch, timer, place):
    runner = runner_on(device, monkeypatch, timer)
    fault_in(place, "broken", device, monkeypatch)
    measured = runner.run(make_cell())
    assert measured.status is Status.ERROR
    assert " in timing: " in measured.reason
    assert ILLEGAL_ACCESS in measured.reason
    assert runner.must_restart
    assert runner.device_broken
    assert device.current is device.default


def test_memory_that_runs_out_in_a_capture_that_cannot_be_ended_is_out_of_memory_and_ends_the_process(
    device, monkeypatch
):
    runner = runner_on(device, monkeypatch, GRAPH)
    fault_in(CAPTURE, "full", device, monkeypatch)
    device.end_failure = RuntimeError("operation failed due to a previous error during capture")
    measured = runner.run(make_cell())
    assert measured.status is Status.OUT_OF_MEMORY
    assert f"cannot be captured in a CUDA graph: OutOfMemoryError: {NO_MEMORY}" in measured.reason
    assert runner.device_broken


WORKER = """
import pytest
from fake_device import FakeDevice, measure_on
from opbench.registry import registry
from opbench.sweeps.isolation import worker

def serve(connection):
    with pytest.MonkeyPatch.context() as patch:
        device = FakeDevice(patch)
        launches = {fault: faulty(device, fault) for fault in ("stuck", "broken")}
        operator = measure_on(device, patch, right=device.launch, **launches)
        patch.setattr(registry, "find", lambda name: operator)
        worker.serve(connection)

def faulty(device, fault):
    count = 0
    def launch():
        nonlocal count
        count += 1
        setattr(device, fault, count == 2)  # in the warm-up
        return device.launch()
    return launch
"""


def test_an_event_that_never_completes_is_a_timeout_and_another_worker_goes_on(tmp_path, monkeypatch):
    """As it does after an illegal access."""
    (tmp_path / "cuda_worker.py").write_text(WORKER)
    paths = (str(tmp_path), str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    options = RunOptions("cuda:0", EVENT, "cold", 0.01, None, 0).to_json()
    rows, workers = {}, Workers("cuda_worker:serve")
    try:
        for name in ("right", "stuck", "right again", "broken", "right at last"):
            # The limit ends the one that is stuck, and no other, however slow the machine is.
            executor = WorkerExecutor(options, 3.0 if name == "stuck" else 60.0, workers)
            rows[name] = executor.run(make_cell(provider=name.split()[0]), lambda stage: None)
    finally:
        workers.close()
    assert {name: row.status for name, row in rows.items() if name.startswith("right")} == dict.fromkeys(
        ("right", "right again", "right at last"), Status.OK
    )
    assert (rows["stuck"].status, rows["stuck"].reason) == (Status.TIMEOUT, "no result after 3 s, in timing")
    assert (rows["broken"].status, ILLEGAL_ACCESS in rows["broken"].reason) == (Status.ERROR, True)
