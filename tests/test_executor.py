"""The worker process: answers, crashes, hangs, and what is left of them."""

import json
import os
import signal
import sys

import pytest
from builders import make_cell

from opbench.case import Direction, Dtype, Level, Shape
from opbench.executor import WorkerExecutor
from opbench.measurement import Status
from opbench.plan import SweepRequest, plan_cells
from opbench.registry import registered
from opbench.runner import RunOptions
from opbench.shapes import ShapeList

OPTIONS = RunOptions("cpu", "wall-clock", "warm", 0.05, None, 0).to_json()

SCRIPT = """
import json, os, signal, sys, time
options = json.loads(sys.stdin.readline())
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    cell = json.loads(line)
    print(json.dumps({"stage": "check"}), flush=True)
    BODY
    print(json.dumps({"measurement": {"cell": cell, "status": "not_applicable", "reason": str(os.getpid()),
        "latencies_ms": [], "stop_reason": None}, "device_broken": cell["provider"] == "breaks"}), flush=True)
"""


def executor(body="pass", limit_s=30.0):
    return WorkerExecutor(OPTIONS, limit_s, (sys.executable, "-c", SCRIPT.replace("BODY", body)))


@pytest.fixture
def run():
    made = []

    def make(*args, **kwargs):
        made.append(executor(*args, **kwargs))
        return lambda provider="p": made[-1].run(make_cell(provider=provider), lambda stage: None)

    yield make
    for each in made:
        each.close()


def test_one_worker_serves_many_cells(run):
    measure = run()
    first, second = measure(), measure()
    assert first.reason == second.reason
    assert int(first.reason) != os.getpid()


def test_a_crash_costs_one_row_and_names_the_signal(run):
    measure = run('cell["provider"] == "crashes" and os.kill(os.getpid(), signal.SIGSEGV)')
    before, crash, after = measure(), measure("crashes"), measure()
    assert crash.status is Status.ERROR
    assert "died in check: signal SIGSEGV" in crash.reason
    assert after.status is Status.NOT_APPLICABLE
    assert after.reason != before.reason


def test_the_kernels_killer_is_out_of_memory(run):
    crash = run("os.kill(os.getpid(), signal.SIGKILL)")()
    assert crash.status is Status.OUT_OF_MEMORY
    assert "SIGKILL, which the system sends when memory runs out" in crash.reason


def test_an_exit_gives_the_last_words(run):
    crash = run('sys.exit("the dog ate it")')()
    assert crash.status is Status.ERROR
    assert crash.reason == "the worker process died in check: exit code 1 (the dog ate it)"


def test_a_hang_is_a_timeout_and_the_next_cell_runs(run):
    measure = run('cell["provider"] == "hangs" and time.sleep(60)', limit_s=2.0)
    hang, after = measure("hangs"), measure()
    assert hang.status is Status.TIMEOUT
    assert hang.reason == "no result after 2 s, in check"
    assert after.status is Status.NOT_APPLICABLE


def test_a_broken_device_gets_a_new_process(run):
    measure = run()
    assert measure("breaks").reason != measure().reason


def test_close_leaves_no_process():
    worker = executor()
    pid = int(worker.run(make_cell(), lambda stage: None).reason)
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)


def test_the_real_worker_measures_a_real_cell():
    request = SweepRequest(
        shapes=("tiny",), ops=("conv3x3",), dtypes=(Dtype.FP32,), levels=(Level.CORE,), directions=(Direction.FWD,),
        device="cpu", timer="wall-clock", cache="warm",
    )  # fmt: skip
    [cell] = plan_cells(request, [ShapeList("tiny", "", (Shape(1, 5, 4, 8),), "here")], registered())
    worker, stages = WorkerExecutor(OPTIONS, 120), []
    try:
        measurement = worker.run(cell, stages.append)
    finally:
        worker.close()
    assert measurement.status is Status.OK, measurement.reason
    assert len(measurement.latencies_ms) >= 30
    assert stages == ["set-up", "check", "build", "timing"]
    assert json.loads(measurement.to_json_line())["timer"] == "wall-clock"
