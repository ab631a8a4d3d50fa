"""How fast results are read, beside another checkout: `python tests/benchmarks/bench_reading.py CHECKOUT [ROUNDS]`.

The same generated runs are read by both trees, in turns and each time in a fresh process: `opbench report` of 2,000
rows, and the end of a sweep of 500 cells (measurements.csv, tables, what is printed), with 30 samples a cell. Imports
are not in the times. No test asserts a time: tests/test_journal_reading.py counts the lines that are parsed.
"""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from opbench.results.journal import JOURNAL
from opbench.results.measurement import Measurement, Status
from opbench.results.run import Run
from opbench.stats import median
from opbench.timing.stopping import StopReason
from opbench.workload.case import Case, Cell, Direction, Dtype, Level, Shape

HERE = Path(__file__).parents[2]
SAMPLES = 30

CHILD = """\
import contextlib, json, os, sys, time
from pathlib import Path
import opbench
assert Path(opbench.__file__).is_relative_to(Path.cwd()), opbench.__file__
task, *folders = sys.argv[1:]
try:
    from opbench.cli.app import app
    from opbench.cli.sweep_end import conclude, print_results
    from opbench.sweeps.sweep import finish
except ImportError:  # before the modules moved into folders
    from opbench.cli import app
    from opbench.commands.sweep import _conclude as conclude, _print_results as print_results
    from opbench.run import finish

def end_of_sweep(folder):
    run = opbench.Run.open(folder)
    start = time.perf_counter(), time.process_time()
    finish(run, plots=False)
    print_results(run, no_color=True)
    with contextlib.suppress(SystemExit):
        conclude(run, interrupted=False, refused=None, quiet=False)
    return start

def report(folder):
    start = time.perf_counter(), time.process_time()
    app(["report", folder], standalone_mode=False)
    return start

for folder in folders:  # a small run first, which imports everything
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        start = {"report": report, "end": end_of_sweep}[task](folder)
        taken = time.perf_counter() - start[0], time.process_time() - start[1]
print(json.dumps(taken))
"""


def make_run(path, levels, directions, shapes, dtypes=tuple(Dtype)):
    """A run of five operators at these levels, directions, shapes and dtypes, every cell ok."""
    draw = random.Random(0)  # noqa: S311 - no secret
    cells = [
        Cell(Case(operator, level, direction, "made", shape, dtype, ()), "torch", 4 * 10**9, 10**6, 10**6)
        for level, direction, shape, operator, dtype in itertools.product(
            levels, directions, shapes, ("conv3x3", "attention", "window_attention", "dcnv3", "dcnv4"), dtypes
        )
    ]
    run = Run.create(
        path,
        command={"timer": "wall-clock", "cache": "warm"},
        environment={"device_name": "made for bench_reading.py"},
        plan=cells,
    )
    lines = [
        Measurement(
            cell, Status.OK, latencies_ms=tuple(draw.lognormvariate(1, 0.02) for _ in range(SAMPLES)),
            launches_per_sample=1, stop_reason=StopReason.CONVERGED, timer="wall-clock", cache="warm",
            max_rel_error=1e-6, tolerance=1e-5, kernel_source_hash="0123456789abcdef", seconds=0.5,
            conditions={"load_average_1min": 0.5, "other_cpu_share": 0.01},
        )
        for cell in cells
    ]  # fmt: skip
    (run.path / JOURNAL).write_text("".join(line.to_json_line() + "\n" for line in lines))
    return run.path


def seconds(checkout, task, folders):
    """Wall clock and processor time of a task in a fresh process of a checkout, on copies of the folders."""
    with tempfile.TemporaryDirectory() as place:
        copies = [shutil.copytree(folder, Path(place) / str(number)) for number, folder in enumerate(folders)]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, task, *map(str, copies)],
            cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
    return json.loads(done.stdout)


def main(checkout, rounds):
    """Both trees in turns, so that they meet the same load; medians and their ratios."""
    with tempfile.TemporaryDirectory() as place:
        shapes = [Shape(1, side, side, 64) for side in range(8, 33)]
        small = make_run(Path(place) / "small", (Level.CORE,), (Direction.FWD,), shapes[:1])
        large = make_run(Path(place) / "rows", (Level.MODULE, Level.CORE), (Direction.FWD, Direction.BWD), shapes)
        swept = make_run(Path(place) / "cells", (Level.CORE,), (Direction.FWD,), shapes)
        for name, task, folder in (("report of 2,000 rows", "report", large), ("end of 500 cells", "end", swept)):
            found = {tree: [] for tree in (checkout, HERE)}
            for _ in range(rounds):
                for tree, times in found.items():
                    times.append(seconds(tree, task, [small, folder]))
            for number, clock in enumerate(("wall clock", "processor")):
                other, this = (median([taken[number] for taken in times]) for times in found.values())
                print(
                    f"{name}, {clock}: {1e3 * other:.0f} ms there, {1e3 * this:.0f} ms here, {other / this:.2f} times"
                )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
