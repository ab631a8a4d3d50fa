"""The worker process: answers, crashes, hangs, and what is left of them."""

import json
import os

import psutil
import pytest
from builders import make_case, make_cell

from opbench.registry.registry import registered
from opbench.results.measurement import Status
from opbench.sweeps.isolation.executor import WorkerExecutor
from opbench.sweeps.isolation.worker_process import Workers
from opbench.sweeps.plan import plan_cells
from opbench.sweeps.request import RunOptions, SweepRequest
from opbench.workload.case import Direction, Dtype, Level, Shape
from opbench.workload.shapes import ShapeList

OPTIONS = RunOptions("cpu", "wall-clock", "warm", 0.05, None, 0).to_json()

FAKE_WORKER = """
import json, os, signal, subprocess, sys, tempfile, time

def serve(connection):
    lines = connection.makefile("r")
    options = json.loads(lines.readline())
    say = lambda **message: connection.sendall(json.dumps(message).encode() + b"\\n")
    say(ready=True)
    for line in lines:
        cell = json.loads(line)
        say(stage="check")
        BODY
        say(measurement={"cell": cell, "status": "not_applicable", "reason": str(os.getpid()), "latencies_ms": [],
            "stop_reason": None}, must_restart=cell["provider"] == "breaks")
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Make an executor whose worker does `body` in each cell; gives what measures a cell of a provider and shape."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    made = []

    def make(body="pass", limit_s=30.0, **options):
        (tmp_path / "fake_worker.py").write_text(FAKE_WORKER.replace("BODY", body))
        made.append(
            WorkerExecutor({**OPTIONS, **options}, limit_s, Workers("fake_worker:serve"), {("double", "alone")})
        )
        return lambda provider="p", side=4: made[-1].run(
            make_cell(make_case(shape=(1, side, 4, 8)), provider=provider), lambda stage: None
        )

    def close():
        for each in made:
            each.close()

    make.close = close
    yield make
    close()
    assert not list((tmp_path / "tmp").iterdir()), "temporary files are left"


def test_one_worker_serves_many_cells(run):
    measure = run()
    first, second = measure(), measure()
    assert first.reason == second.reason
    assert int(first.reason) != os.getpid()


def test_a_worker_without_memory_for_its_own_error_is_out_of_memory(run):
    without = run("raise MemoryError")()
    assert without.status is Status.OUT_OF_MEMORY
    assert without.reason == "the worker process died in check: exit code 1 (MemoryError)"


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


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("os.abort()", "the worker process died in energy: signal SIGABRT"),
        ("time.sleep(60)", "no result after 2 s, in energy"),
    ],
)
def test_a_worker_that_ends_while_energy_is_measured_costs_the_energy_alone(run, ending, reason):
    measure = run(f'options["energy"] and (say(stage="energy"), {ending})', limit_s=2.0, energy=True)
    first, second = measure(), measure()
    for found in (first, second):
        pid, said = found.reason.split("; no energy: ")
        assert (found.status, said) == (Status.NOT_APPLICABLE, reason)
        assert int(pid) != os.getpid()
    assert first.reason != second.reason  # another process, and energy is tried again
    fine = run('say(stage="energy" if options["energy"] else "check")', energy=True)()
    assert "no energy" not in fine.reason


def test_a_broken_device_gets_a_new_process(run):
    measure = run()
    assert measure("breaks").reason != measure().reason


def test_another_shape_gets_another_process(run):
    measure = run()
    assert measure(side=4).reason == measure(side=4).reason != measure(side=6).reason


def test_a_provider_that_must_be_alone_gets_another_process(run):
    measure = run()
    first, alone, again, after = measure(), measure("alone"), measure("alone"), measure()
    assert alone.reason == again.reason
    assert len({first.reason, alone.reason, after.reason}) == 3


def test_a_worker_that_writes_among_the_answers_costs_one_row(run):
    measure = run('cell["provider"] == "babbles" and connection.sendall(b"\\xff[1, 2\\n")')
    before, nonsense, after = measure(), measure("babbles"), measure()
    assert (nonsense.status, after.status) == (Status.ERROR, Status.NOT_APPLICABLE)
    assert "answered nonsense in check" in nonsense.reason
    assert after.reason != before.reason


def test_a_flood_of_output_neither_blocks_nor_piles_up(run):
    flood = run('print("x" * 2**24); sys.exit("the flood")')()
    assert flood.reason == "the worker process died in check: exit code 1 (the flood)"


def test_control_characters_of_a_dying_worker_stay_out_of_the_row(run):
    crash = run(r'sys.stderr.buffer.write(b"\x1b[2J\xff\x00 end"); sys.stderr.flush(); os._exit(3)')()
    assert crash.reason.isprintable()
    assert crash.reason.endswith("exit code 3 (\\x1b[2J\ufffd\\x00 end)")


ORPHANS = """
child = os.fork()
if child == 0:
    os.setsid()
    grandchild = os.fork()
    if grandchild == 0:
        subprocess.run(["sleep", os.environ["SECONDS"]])
    time.sleep(321)
time.sleep(0.2)
"""


@pytest.mark.parametrize("ending", ["pass", "os.abort()", "time.sleep(60)"])
def test_what_a_cell_started_is_gone_with_it(run, ending, tmp_path):
    code = ORPHANS + 'open(os.environ["HOLDER"], "w").write(str(child)); ' + ending
    limit_s = 3.0 if "sleep" in ending else 60.0  # the limit ends that one, and no other
    measure = run("""cell["provider"] == "leaves" and exec(os.environ["ORPHANS"])""", limit_s=limit_s)
    holder = tmp_path / "child"
    seconds = str(10_000 + os.getpid())  # of this process: its likes may run this test at the same time
    os.environ.update(ORPHANS=code, HOLDER=str(holder), SECONDS=seconds)
    try:
        measure("leaves")
        child = psutil.Process(int(holder.read_text())) if ending == "pass" else None
        assert child is None or child.is_running()
        measure(side=6)  # another group, so another worker
    finally:
        del os.environ["ORPHANS"], os.environ["HOLDER"], os.environ["SECONDS"]
    assert not psutil.pid_exists(int(holder.read_text()))
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", seconds]]


def test_temporary_files_of_a_killed_worker_are_removed(run):
    # The fixture looks at the folder when the executor is closed.
    crash = run('open(tempfile.mkstemp()[1], "w").write("x"); os.abort()')()
    assert "SIGABRT" in crash.reason


def test_a_supervisor_that_dies_costs_one_row(run):
    measure = run('cell["provider"] == "regicide" and (os.kill(os.getppid(), signal.SIGTERM), time.sleep(60))')
    before, lost, after = measure(), measure("regicide"), measure()
    assert lost.status is Status.ERROR
    assert lost.reason.startswith("the worker process was lost in check: the supervisor ended: exit code 0")
    assert after.status is Status.NOT_APPLICABLE
    assert after.reason != before.reason


def test_close_leaves_no_process(run, tmp_path):
    measure = run()
    worker = psutil.Process(int(measure().reason))
    supervisor = worker.parent()
    run.close()
    assert not worker.is_running()
    assert not supervisor.is_running()


def test_the_real_worker_measures_a_real_cell():
    request = SweepRequest(
        shapes=("tiny",), ops=("conv3x3",), dtypes=(Dtype.FP32,), levels=(Level.CORE,), directions=(Direction.FWD,),
        device="cpu", timer="wall-clock", cache="warm", time_budget_s=1.0,
    )  # fmt: skip
    [cell] = plan_cells(request, [ShapeList("tiny", "", (Shape(1, 5, 4, 8),), "here")], registered())
    worker, stages = WorkerExecutor(OPTIONS, 120), []
    try:
        measurement = worker.run(cell, stages.append)
    finally:
        worker.close()
    assert measurement.status is Status.OK, measurement.reason
    assert len(measurement.latencies_ms) >= 30
    assert stages == ["set-up", "check", "build", "timing", "check again"]
    assert json.loads(measurement.to_json_line())["timer"] == "wall-clock"
