"""The fixture opbench_benchmark, in sessions of its own: what it times, and pytest-benchmark's gate on it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points

import pytest

from opbench.compare.open_arm import open_arm
from opbench.pytest_plugin.device_benchmark import DeviceClock, EventStamp

# The fixture's clock on the CPU moves by what a launch says that it takes, so that a busy machine slows nothing down.
CLOCK = """
from types import SimpleNamespace
from opbench.pytest_plugin import device_benchmark

seconds = 0.0

def work(launches):
    global seconds
    seconds += 1e-5 * launches

def read():
    global seconds
    seconds += 1e-7
    return seconds

device_benchmark.time = SimpleNamespace(perf_counter=read)
"""
CELLS = """
import os
import clock
from builders import PROVIDERS, doubling
from opbench.workload.case import Shape
from opbench.workload.operator import Provider

REPEATS = int(os.environ.get("REPEATS", "20"))

def build(case, tensors):
    def launch():
        clock.work(REPEATS)
        return tensors["x"] * 2
    return launch

OPERATOR = doubling(providers=(Provider("repeated", build, ""), Provider("wrong", PROVIDERS["wrong"], "")))

def test_cell(opbench_benchmark):
    found = opbench_benchmark.cell(OPERATOR, Shape(1, 8, 8, 8), level="core", device="cpu")
    assert found.latencies_ms

def test_closure(opbench_benchmark):
    assert opbench_benchmark(lambda: clock.work(REPEATS) or "done", device="cpu") == "done"
"""
OTHERS = """
import pytest

def test_other(benchmark):
    assert benchmark(lambda: 3) == 3

@pytest.mark.benchmark(timer=__import__("time").perf_counter)
def test_timer(opbench_benchmark):
    opbench_benchmark(lambda: 3, device="cpu")

def test_wrong(opbench_benchmark):
    from test_cells import OPERATOR, Shape
    opbench_benchmark.cell(OPERATOR, Shape(1, 8, 8, 8), level="core", provider="wrong", device="cpu")

def test_not_applicable(opbench_benchmark):
    from test_cells import OPERATOR, Shape
    opbench_benchmark.cell(OPERATOR, Shape(1, 8, 8, 8), level="core", dtype="tf32", device="cpu")
"""
QUICK = ("--benchmark-max-time=0.05", "--benchmark-min-rounds=30")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin")
    (path / "clock.py").write_text(CLOCK)
    (path / "test_cells.py").write_text(CELLS)
    (path / "test_others.py").write_text(OTHERS)
    return path


def session(folder, *arguments, **variables):
    """pytest in a process of its own, and no worker of this one; the tests' helpers are importable there."""
    path = os.pathsep.join((os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")))
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], cwd=folder, text=True,
        capture_output=True, timeout=240, env={**own, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables},
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(folder):
    done = session(folder, *QUICK, "-rA", "--benchmark-save=base", "--benchmark-json=base.json")
    assert "3 passed" in done.stdout, done.stdout + done.stderr
    (folder / "output").write_text(done.stdout)
    return folder


def test_the_plugin_is_installed():
    [found] = entry_points(group="pytest11", name="opbench")
    assert found.value == "opbench.pytest_plugin.plugin"


def test_a_session_that_does_not_ask_for_it_loads_nothing_heavy():
    code = (
        "import sys, pytest, opbench.pytest_plugin.plugin\n"
        "assert not {'torch', 'triton', 'numpy', 'pandas', 'opbench.pytest_plugin.device_benchmark'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compare_fail_fails_on_a_slow_down_and_not_on_the_same(saved):
    limit = ("--benchmark-compare=0001", "--benchmark-compare-fail=median:200%")
    same = session(saved, "test_cells.py", *QUICK, *limit)
    assert same.returncode == 0, same.stdout + same.stderr
    slow = session(saved, "test_cells.py", *QUICK, *limit, "--benchmark-json=slow.json", REPEATS="200")
    assert slow.returncode != 0
    assert "Performance has regressed" in slow.stdout + slow.stderr
    assert {"test_cell", "test_closure"} <= set((slow.stdout + slow.stderr).replace("::", " ").split())
    # The same two files, judged by opbench: ten times the work is slower by more than 200 %.
    from opbench.compare.runs import compare_runs

    def alone(name):  # what else ran on the machine of this test is not in question
        arm = open_arm(saved / name)
        return replace(arm, readings={key: replace(reading, warnings=()) for key, reading in arm.readings.items()})

    found = compare_runs(alone("base.json"), alone("slow.json"), 0.99)
    verdicts = {cell.cell.key.rpartition("::")[2]: cell.verdict for cell in found.cells}
    assert list(verdicts.values())[:2] == ["slower", "slower"]
    assert verdicts["test_other"] == "missing"


def test_what_is_saved_says_cell_and_circumstances(saved):
    document = json.loads((saved / "base.json").read_text())
    by_name = {entry["name"]: entry for entry in document["benchmarks"]}
    about = by_name["test_cell"]["extra_info"]["opbench"]
    assert about["cell"]["operator"] == "double"
    assert about["circumstances"].keys() == {"device", "torch", "triton", "cuda", "torch threads", "timer", "cache"}
    assert (about["circumstances"]["timer"], about["circumstances"]["cache"]) == ("wall-clock", "warm")
    assert len(about["source"]) == 16
    assert set(open_arm(saved / "base.json").readings) == {
        "double/core/fwd/benchmarks/1x8x8x8/fp32/factor=2@repeated",
        "test_cells.py::test_closure",
        "test_others.py::test_other",
    }


def test_other_tests_are_left_alone_and_bad_ones_fail(saved):
    output = (saved / "output").read_text()
    assert "PASSED test_others.py::test_other\n" in output
    assert "ERROR test_others.py::test_timer" in output
    assert "opbench_benchmark brings its own timer: take `timer` out of the benchmark marker" in output
    assert "FAILED test_others.py::test_wrong" in output
    assert "wrong: output is off by 0.00" in output
    assert "tf32 is a mode of CUDA devices, this is cpu" in output
    assert "1 failed, 3 passed, 1 skipped" in output
    by_name = {entry["name"]: entry for entry in json.loads((saved / "base.json").read_text())["benchmarks"]}
    assert by_name.keys() == {"test_cell", "test_closure", "test_other"}
    assert by_name["test_other"]["extra_info"] == {}
    assert by_name["test_other"]["options"]["timer"] == "perf_counter"


def test_disabled_checks_values_and_measures_nothing(folder):
    done = session(folder, "test_cells.py", "--benchmark-disable", "--benchmark-json=none.json")
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    assert not (folder / "none.json").exists()


def test_without_pytest_benchmark_it_says_what_is_missing(folder):
    (folder / "light").mkdir()
    (folder / "light" / "test_light.py").write_text("def test_it(opbench_benchmark): pass\ndef test_other(): pass\n")
    done = session(folder / "light", "-p", "no:benchmark")
    assert "1 passed, 1 error" in done.stdout
    assert "opbench_benchmark needs pytest-benchmark: pip install pytest-benchmark" in done.stdout


class FakeEvent:
    """A CUDA event on a device that is done 2.5 ms after another."""

    def __init__(self, at_ms):
        self.at_ms = at_ms
        self.waited = False

    def synchronize(self):
        self.waited = True

    def elapsed_time(self, later):
        assert later.waited  # an event that is not done has no time yet
        return later.at_ms - self.at_ms


def test_event_stamps_subtract_to_seconds_and_wait_for_the_later():
    assert EventStamp(FakeEvent(12.5)) - EventStamp(FakeEvent(10.0)) == pytest.approx(2.5e-3)


def test_a_clock_has_a_name_for_each_kind_of_device():
    clock = DeviceClock()
    clock.choose("cpu")
    assert (clock.name, type(clock())) == ("wall-clock", float)
    clock.choose("cuda:0")
    assert clock.name == "cuda-event around rounds"


@pytest.mark.gpu
def test_events_see_what_the_host_does_not_wait_for():
    """A product that the host only queues: events give its time on the device, not the time to queue it."""
    import torch

    clock = DeviceClock()
    clock.choose("cuda:0")
    x = torch.randn(4096, 4096, device="cuda:0")
    x @ x
    torch.cuda.synchronize()
    single, ten = (_seconds(clock, lambda count=count: [x @ x for _ in range(count)]) for count in (1, 10))
    assert 5 < ten / single < 20


def _seconds(clock, launch):
    start = clock()
    launch()
    return clock() - start
