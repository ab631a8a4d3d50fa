"""Long sweeps: memory stays flat, the last cell takes the work that the first took, and results stay readable.

Run with -s to see the figures that docs/reliability.md quotes.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from typing import NamedTuple

import psutil
import pytest
from builders import build_right, doubling, make_case, make_cell
from fake_timer import FakeTimer
from test_results import COMMAND, ENVIRONMENT, LATENCIES, ok
from work import bytes_read, counted_calls

from opbench.results.frames import load_results
from opbench.results.run import Run
from opbench.sweeps.isolation.executor import InProcessExecutor
from opbench.sweeps.request import RunOptions, make_request
from opbench.sweeps.run_cells import run_cells
from opbench.sweeps.runner import CellRunner
from opbench.sweeps.start import start_run
from opbench.workload.case import Dtype
from opbench.workload.operator import Provider


class Watch:
    """Progress that remembers, after each cell, what this process has done and holds."""

    def __init__(self, calls):
        self.calls, self.cells, self.process = calls, 0, psutil.Process()
        self.started_s, self.looks = time.perf_counter(), [self.look()]

    def look(self):
        memory = self.process.memory_info().rss
        return Look(self.cells, self.calls.count, bytes_read(self.process), self.process.num_fds(), memory)

    def started(self, cell, number, total):
        pass

    def stage(self, name):
        pass

    def note(self, text):
        pass

    def ended(self, measurement):
        self.cells += 1
        self.looks.append(self.look())


class Look(NamedTuple):
    """Totals and sizes of a process at one moment."""

    cells: int
    calls: int
    bytes_read: int
    open_files: int
    memory_bytes: int


def assert_constant(looks):
    """A cell of the last tenth takes as many calls and bytes as one of the second; no file stays open, memory is flat.

    Counted, not timed: a cell's seconds are those of whatever else the machine does.
    """
    tenth = len(looks) // 10
    for name in ("calls", "bytes_read"):
        early, late = (
            (getattr(end, name) - getattr(start, name)) / (end.cells - start.cells)
            for start, end in ((looks[tenth], looks[2 * tenth]), (looks[-1 - tenth], looks[-1]))
        )
        print(f"{name}: {early:.0f} a cell in the second tenth, {late:.0f} in the last")
        # A look at another process may come in the middle of a cell, and that process reads nothing in most.
        assert late <= 1.1 * early + 100, name
    assert looks[-1].open_files <= looks[tenth].open_files + 5  # some are open for a moment; a leak is one a cell
    before, after = (
        statistics.median(look.memory_bytes for look in part) for part in (looks[tenth : 2 * tenth], looks[-tenth:])
    )
    print(f"memory {before / 2**20:.1f} MiB, then {after / 2**20:.1f} MiB")
    assert after < 1.05 * before


def write_shapes(path, count):
    rows = (f"  - {{batch: 1, height: {1 + n // 40}, width: {1 + n % 40}, channels: 8}}\n" for n in range(count))
    path.write_text("shapes:\n" + "".join(rows))
    return str(path)


def check_fake_soak(tmp_path, monkeypatch, shapes):
    providers = tuple(Provider(f"right{number}", build_right, "") for number in range(5))
    known = {"double": doubling(providers=providers)}
    options = {"shapes": [write_shapes(tmp_path / "many.yaml", shapes)], "dtypes": ["fp32", "fp16"],
               "providers": ["double=all"]}  # fmt: skip
    run = start_run(make_request(options, known), known, tmp_path / "run")

    def executor(*_):
        runner = CellRunner(RunOptions.of(run.command), known.__getitem__, FakeTimer([1.0, 1.1, 0.9]))
        return nullcontext(InProcessExecutor(runner.run))

    monkeypatch.setattr("opbench.sweeps.run_cells._executor", executor)
    gc.collect()
    gc.freeze()  # as in a worker: a collection after each cell must not walk what pytest imported
    try:
        with counted_calls() as calls:
            watch = Watch(calls)
            run_cells(run, known, watch)
    finally:
        gc.unfreeze()
    print(f"\n{10 * shapes} cells in {time.perf_counter() - watch.started_s:.1f} s, counting calls")
    assert_constant(watch.looks)
    frame = load_results(run.path)
    assert (frame.status == "ok").all()
    assert len(frame) == 10 * shapes


def test_a_soak_with_a_fake_timer(tmp_path, monkeypatch):
    check_fake_soak(tmp_path, monkeypatch, shapes=40)


@pytest.mark.slow
def test_a_soak_of_10000_cells_with_a_fake_timer(tmp_path, monkeypatch):
    check_fake_soak(tmp_path, monkeypatch, shapes=1000)


@pytest.mark.slow
def test_a_soak_of_1000_real_cells_in_worker_processes(tmp_path):
    write_shapes(tmp_path / "many.yaml", 500)
    command = [
        sys.executable, "-m", "opbench", "sweep", "--shapes", "many.yaml", "--ops", "conv3x3", "--level", "core",
        "--device", "cpu", "--dtypes", "fp32,bf16", "--time-budget", "0.01", "--out", "run", "--quiet",
    ]  # fmt: skip
    # What it prints comes after the cells, and is more than a pipe holds.
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=err)
        watched, journal = psutil.Process(process.pid), tmp_path / "run" / "journal.jsonl"
        started, looks = time.perf_counter(), []
        while process.poll() is None and len(looks) < 50:
            count = journal.read_bytes().count(b"\n") if journal.exists() else 0
            if count >= 20 * len(looks) + 1:  # every twentieth cell; its calls cannot be counted from here
                memory = watched.memory_info().rss
                looks.append(Look(count, 0, bytes_read(watched), watched.num_fds(), memory))
            time.sleep(0.01)
        cells_s = time.perf_counter() - started
        assert process.wait(timeout=600) == 0, (tmp_path / "err").read_text()
    print(f"\n1000 cells: {cells_s:.1f} s; with tables and plots: {time.perf_counter() - started:.1f} s")
    assert_constant(looks)
    frame = load_results(tmp_path / "run")
    assert (frame.status == "ok").all()
    assert len(frame) == 1000


def long_run(path, rows):
    """A finished run of many cells, written line by line as a sweep would have."""
    cells = [
        make_cell(make_case(shape=(1, 1 + n // 1000, 1 + n % 1000, 8), dtype=dtype))
        for n in range(rows // 4)
        for dtype in Dtype
    ]
    run = Run.create(path, command=COMMAND, environment=ENVIRONMENT, plan=cells)
    line = json.loads(ok(cells[0], LATENCIES).to_json_line())
    with (path / "journal.jsonl").open("w") as journal:
        for cell in cells:
            journal.write(json.dumps({**line, "cell": cell.to_json()}) + "\n")
    return run


def calls_to_load(path):
    started = time.perf_counter()
    with counted_calls() as calls:
        frame = load_results(path)
    size = os.path.getsize(path / "journal.jsonl")
    print(f"{len(frame)} rows ({size / 2**20:.0f} MiB): {calls.count} calls, {time.perf_counter() - started:.2f} s")
    assert frame.latency_ms.notna().all()
    return calls.count, len(frame)


def check_loading(tmp_path, rows):
    """Ten times the rows take ten times the calls."""
    long_run(tmp_path / "short", rows // 10)
    long_run(tmp_path / "long", rows)
    calls_to_load(tmp_path / "short")  # imports pandas
    short, _ = calls_to_load(tmp_path / "short")
    long, count = calls_to_load(tmp_path / "long")
    assert count == rows
    assert long < 10.5 * short


def test_a_long_journal_loads_in_linear_time(tmp_path):
    check_loading(tmp_path, 4000)


@pytest.mark.slow
def test_a_journal_of_100000_rows_loads_in_linear_time(tmp_path):
    check_loading(tmp_path, 100_000)
