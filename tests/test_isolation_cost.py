"""What worker processes cost a smoke sweep, as a part of the whole."""

import subprocess
import sys
import time

import pytest

from opbench.results import RunFolder


def overhead_and_total_s(folder, isolation):
    """Seconds of a smoke sweep that are not sampling, and all of them.

    How long the sampling takes depends on when each interval is narrow enough, so it is left out of the comparison.
    """
    command = [
        sys.executable,
        "-m",
        "opbench",
        "sweep",
        "--device",
        "cpu",
        "--isolation",
        isolation,
        "--out",
        isolation,
    ]
    started = time.perf_counter()
    subprocess.run([*command, "--quiet"], cwd=folder, check=True, capture_output=True, timeout=900)
    total = time.perf_counter() - started
    sampling = sum(
        sum(m.latencies_ms) * m.launches_per_sample / 1e3 for m in RunFolder.open(folder / isolation).measurements()
    )
    return total - sampling, total


@pytest.mark.slow
def test_worker_processes_cost_less_than_a_tenth_of_a_smoke_sweep(tmp_path):
    alone, total = overhead_and_total_s(tmp_path, "none")
    isolated, isolated_total = overhead_and_total_s(tmp_path, "process")
    print(
        f"\nnone: {total:.1f} s, {alone:.1f} s of it not sampling; process: {isolated_total:.1f} s, {isolated:.1f} s; "
        f"cost {isolated - alone:.1f} s, {(isolated - alone) / total:.1%}"
    )
    assert isolated - alone < 0.1 * total
