"""A folder of nightly runs with known steps, as large as wanted: `python tests/history_folder.py DIR RUNS CELLS`.

With 1,000 runs of 560 cells it takes 3 GB.

At the middle run the operator dcnv4 becomes slower under triton; at three quarters every cell does.
"""

import itertools
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from opbench.results.journal import JOURNAL
from opbench.results.measurement import Measurement, Status
from opbench.results.run_json import RUN, new_run, run_text
from opbench.timing.stopping import StopReason
from opbench.workload.case import Case, Cell, Direction, Dtype, Level, Shape

BEGIN = datetime(2024, 1, 1, 2, tzinfo=UTC)
CODE_STEP, MACHINE_STEP = 0.08, 0.1
NOISE = 0.01
PLACE = "[1.5]"
"""Stands in a line of the journal where the latencies come."""


def planned_cells(count):
    """Cells of five operators with two providers each."""
    shapes = (Shape(1, side, side, 64) for side in itertools.count(8))
    groups = itertools.product(
        itertools.islice(shapes, count), Dtype, ("conv3x3", "attention", "dcnv3", "dcnv4", "slak"), ("torch", "triton")
    )
    return [
        Cell(Case(operator, Level.MODULE, Direction.FWD, "made", shape, dtype), provider, 4 * 10**9, 10**6, 10**6)
        for shape, dtype, operator, provider in itertools.islice(groups, count)
    ]


def factor(cell, night, runs):
    """How much slower a cell is in that run than in the first."""
    moved = (cell.case.operator, cell.provider) == ("dcnv4", "triton") and night >= runs // 2
    return (1 + CODE_STEP * moved) * (1 + MACHINE_STEP * (night >= 3 * runs // 4))


def make_history(folder, runs, cells, samples=5, nights=None):
    """Write the runs.

    Args:
        folder: where, made if need be.
        runs: of the whole history.
        cells: of each run.
        samples: of each cell.
        nights: which of the runs; None for all.
    """
    plan = planned_cells(cells)
    halves = [
        Measurement(
            cell, Status.OK, latencies_ms=(1.5,), launches_per_sample=1, stop_reason=StopReason.CONVERGED,
            timer="cuda-event", cache="cold", max_rel_error=1e-6, tolerance=1e-5, kernel_source_hash="0123456789abcdef",
            seconds=0.5, conditions={side: {"load_average_1min": 0.5} for side in ("before", "after")},
        ).to_json_line().split(PLACE)
        for cell in plan
    ]  # fmt: skip
    spread = np.random.default_rng(0).normal(1, 0.02, samples)
    for night in range(runs) if nights is None else nights:
        path = folder / f"night-{night:04d}"
        path.mkdir(parents=True)
        made = {
            "device": "cuda:0",
            "device_name": "Example GPU 40GB",
            "driver_version": "1.2",
            "packages": {"torch": "2.1"},
            "git_revision": f"{night:04x}" + "c0ffee" * 6,
        }
        run = new_run({"timer": "cuda-event", "cache": "cold"}, made, plan)
        run |= {"run_id": f"made-{night}", "started_at": (BEGIN + timedelta(days=night)).isoformat()}
        (path / RUN).write_text(run_text(run))
        noise = np.random.default_rng(night).normal(1, NOISE, cells)
        medians = [factor(cell, night, runs) * value for cell, value in zip(plan, noise, strict=True)]
        (path / JOURNAL).write_text(
            "".join(
                f"{before}{json.dumps((median * spread).tolist())}{after}\n"
                for median, (before, after) in zip(medians, halves, strict=True)
            )
        )


if __name__ == "__main__":
    make_history(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), samples=200)
