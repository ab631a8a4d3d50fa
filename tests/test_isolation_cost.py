"""What worker processes cost a smoke sweep: one more import of torch, and a fork for each operator and shape.

Run with -s to see the seconds that docs/reliability.md quotes; they are printed and not judged.
"""

import os
import subprocess
import sys
import time
from collections import Counter

import pytest

from opbench.results.run import Run

# Every Python that a sweep starts reads this before anything else, and a fork takes its hook along.
NOTE_PROCESSES = """
import os

def note(what):
    with open(os.environ["NOTED_PROCESSES"], "a") as file:
        file.write(what + "\\n")

note("start")
os.register_at_fork(after_in_child=lambda: note("fork"))
"""


def processes_of_a_sweep(folder, isolation):
    """How many Pythons a smoke sweep starts and forks."""
    noted = folder / f"{isolation}.txt"
    variables = {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "NOTED_PROCESSES": str(noted)}
    command = [
        sys.executable, "-m", "opbench", "sweep", "--device", "cpu", "--shapes", "smoke", "--dtypes", "fp32,bf16",
        "--isolation", isolation, "--out", isolation, "--quiet", "--no-plots",
    ]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=900, env={**os.environ, **variables})
    total = time.perf_counter() - started
    run = Run.open(folder / isolation)
    sampling = sum(sum(m.latencies_ms) * m.launches_per_sample / 1e3 for m in run.measurements())
    print(f"\n{isolation}: {total:.1f} s, {total - sampling:.1f} s of it not sampling")
    return Counter(noted.read_text().split()), run


@pytest.mark.slow
def test_worker_processes_cost_a_smoke_sweep_one_start_and_a_fork_for_each_operator_and_shape(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NOTE_PROCESSES)
    alone, _ = processes_of_a_sweep(tmp_path, "none")
    isolated, run = processes_of_a_sweep(tmp_path, "process")
    groups = {(cell.case.operator, cell.case.shape) for cell in run.plan()}
    assert 1 < len(groups) < len(run.plan())
    assert isolated - alone == {"start": 1, "fork": len(groups)}
