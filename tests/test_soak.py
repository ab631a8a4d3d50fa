"""Long sweeps: the parent's memory stays flat, the last cell takes what the first took, and results stay readable.

Run with -s to see the figures that docs/reliability.md quotes.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise

import psutil
import pytest
from builders import build_right, doubling, make_case, make_cell
from test_results import COMMAND, ENVIRONMENT, LATENCIES, ok

from opbench import run as run_module
from opbench.case import Dtype
from opbench.executor import InProcessExecutor
from opbench.operator import Provider
from opbench.results import RunFolder, load_results
from opbench.run import make_request, run_cells, start_run
from opbench.runner import CellRunner, RunOptions
from opbench.timing.fake import FakeTimer


class Watch:
    """Progress that remembers when each cell ended, and this process's memory then."""

    def __init__(self):
        self.ends, self.sizes, self.process = [time.perf_counter()], [], psutil.Process()

    def started(self, cell, number, total):
        pass

    def stage(self, name):
        pass

    def note(self, text):
        pass

    def ended(self, measurement):
        self.ends.append(time.perf_counter())
        self.sizes.append(self.process.memory_info().rss)


def assert_constant(ends, sizes):
    """The last tenth of the cells takes as long as the second, and the process did not grow between them."""
    seconds = [end - start for start, end in pairwise(ends)]
    tenth = len(seconds) // 10
    early, late = (statistics.median(part) for part in (seconds[tenth : 2 * tenth], seconds[-tenth:]))
    before, after = (statistics.median(part) for part in (sizes[len(sizes) // 10 : len(sizes) // 5], sizes[-10:]))
    print(
        f"\n{len(seconds)} steps in {ends[-1] - ends[0]:.1f} s; median of the second tenth {1e3 * early:.2f} ms, of "
        f"the last {1e3 * late:.2f} ms; memory {before / 2**20:.1f} MiB, then {after / 2**20:.1f} MiB"
    )
    assert late < 1.5 * early
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
        runner = CellRunner(RunOptions.of(run.run["command"]), known.__getitem__, FakeTimer([1.0, 1.1, 0.9]))
        return InProcessExecutor(runner.run)

    monkeypatch.setattr(run_module, "_executor", executor)
    watch = Watch()
    gc.collect()
    gc.freeze()  # as in a worker: a collection after each cell must not walk what pytest imported
    try:
        run_cells(run, known, watch)
    finally:
        gc.unfreeze()
    assert_constant(watch.ends, watch.sizes)
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
        ends, sizes = [], []
        while process.poll() is None and len(ends) < 1000:
            count = journal.read_bytes().count(b"\n") if journal.exists() else 0
            if count > len(ends):
                ends += [time.perf_counter()] * (count - len(ends))
                sizes.append(watched.memory_info().rss)
            time.sleep(0.05)
        done = time.perf_counter()
        assert process.wait(timeout=600) == 0, (tmp_path / "err").read_text()
    print(f"\ntables and plots of 1000 cells: {time.perf_counter() - done:.1f} s")
    # Several cells may end between two looks, so their times are averaged over a hundred.
    assert_constant(ends[::20], sizes)
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
    run = RunFolder.create(path, command=COMMAND, environment=ENVIRONMENT, plan=cells)
    line = json.loads(ok(cells[0], LATENCIES).to_json_line())
    with (path / "journal.jsonl").open("w") as journal:
        for cell in cells:
            journal.write(json.dumps({**line, "cell": cell.to_json()}) + "\n")
    return run


def seconds_to_load(path):
    started = time.process_time()  # not the time that others have the processor
    frame = load_results(path)
    seconds = time.process_time() - started
    assert frame.latency_ms.notna().all()
    return seconds, len(frame)


def check_loading(tmp_path, rows):
    """Ten times the rows take about ten times as long."""
    long_run(tmp_path / "short", rows // 10)
    long_run(tmp_path / "long", rows)
    seconds_to_load(tmp_path / "short")  # imports pandas
    # The fastest of three: whatever else runs here can only add to a time.
    short, _ = min(seconds_to_load(tmp_path / "short") for _ in range(3))
    long, count = min(seconds_to_load(tmp_path / "long") for _ in range(3))
    size = os.path.getsize(tmp_path / "long" / "journal.jsonl")
    print(f"\n{rows // 10} rows: {short:.2f} s; {count} rows ({size / 2**20:.0f} MiB): {long:.2f} s")
    assert count == rows
    assert long < 20 * short


def test_a_long_journal_loads_in_linear_time(tmp_path):
    check_loading(tmp_path, 4000)


@pytest.mark.slow
def test_a_journal_of_100000_rows_loads_in_linear_time(tmp_path):
    check_loading(tmp_path, 100_000)
