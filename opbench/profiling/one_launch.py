"""A program for NVIDIA's profilers: checks a cell, then launches it once between the calls that they listen for.

    python -m opbench.profiling.one_launch CELL OPTIONS MEASUREMENT

CELL and OPTIONS are JSON; the file MEASUREMENT gets the cell's journal line.
"""

import json
import sys
import time
from pathlib import Path

import torch

from opbench.registry.registry import find
from opbench.sweeps.request import RunOptions
from opbench.sweeps.runner import CellRunner
from opbench.timing import Launch
from opbench.workload.case import Cell
from opbench.workload.cell_warning import CellWarning

__all__ = ["OneLaunch", "main"]

WARM_UP_LAUNCHES = 3


class OneLaunch:
    """A timer that launches once between cudaProfilerStart and cudaProfilerStop; its latencies mean nothing."""

    name = "profiler-range"
    cache = "warm"
    launches_per_sample = 1
    resolution_ms = 0.0
    warnings: tuple[CellWarning, ...] = ()

    def __init__(self, device: str) -> None:
        self._device = device
        self._done = False

    def now(self) -> float:
        """Seconds on the host's clock."""
        return time.perf_counter()

    def prepare(self, launch: Launch, _seconds: float) -> None:
        """Compile, tune and warm up outside the range."""
        for _ in range(WARM_UP_LAUNCHES):
            launch()
        torch.cuda.synchronize(self._device)

    def sample(self, launch: Launch, count: int) -> list[float]:
        """The range at the first call."""
        if not self._done:
            self._done = True
            torch.cuda.profiler.start()
            launch()
            torch.cuda.synchronize(self._device)
            torch.cuda.profiler.stop()
        return [1.0] * count


def main(cell: str, options: str, out: str) -> None:
    """Run the cell and write its measurement."""
    run_options = RunOptions(**json.loads(options))
    runner = CellRunner(run_options, find, OneLaunch(run_options.device))
    Path(out).write_text(runner.run(Cell.from_json(json.loads(cell))).to_json_line())


if __name__ == "__main__":
    main(*sys.argv[1:])
