"""Runs one cell under torch.profiler, in the place of its timing."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from opbench.results.measurement import Measurement, Status
from opbench.sweeps.request import RunOptions
from opbench.sweeps.runner import CellRunner
from opbench.timing import Launch
from opbench.workload.case import Cell
from opbench.workload.cell_warning import CellWarning
from opbench.workload.operator import Operator

__all__ = ["KernelTime", "Profile", "profile_cell", "run_options"]

WARM_UP_LAUNCHES = 3


@dataclass(frozen=True, slots=True)
class KernelTime:
    """A kernel on a GPU, or on a CPU an operation of PyTorch's without those that it calls.

    Attributes:
        name: as the profiler has it.
        calls: per launch.
        time_us: of all of these calls, per launch, microseconds.
    """

    name: str
    calls: float
    time_us: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What a launch of a cell consists of.

    Attributes:
        measurement: of the cell, whose values were checked; not ok where nothing was profiled.
        launches: under the profiler.
        launch_us: mean of a launch from call to end, under the profiler, by the host's clock, microseconds.
        kernels: the longest first.
    """

    measurement: Measurement
    launches: int
    launch_us: float
    kernels: tuple[KernelTime, ...]


def profile_cell(
    cell: Cell, find: Callable[[str], Operator], options: RunOptions, launches: int, trace: Path | None
) -> Profile:
    """Check a cell's values, run it `launches` times under torch.profiler, and check it again.

    Args:
        cell: what to run.
        find: the operator of a name.
        options: device, seed and memory limit.
        launches: at least 1.
        trace: file that gets all of it in Chrome's trace format; None for none.
    """
    profiler = _Profiler(options.device, launches, trace)
    measurement = CellRunner(options, find, profiler).run(cell)
    kernels = profiler.kernels() if measurement.status is Status.OK else ()
    return Profile(measurement, launches, profiler.launch_us, kernels)


def run_options(request: RunOptions) -> RunOptions:
    """What a process that measures is told, of a request that holds more."""
    return RunOptions(**{field.name: getattr(request, field.name) for field in fields(RunOptions)})


class _Profiler:
    """A timer that profiles where others time."""

    name = "torch-profiler"
    cache = "warm"
    launches_per_sample = 1
    resolution_ms = 0.0
    warnings: tuple[CellWarning, ...] = ()

    def __init__(self, device: str, launches: int, trace: Path | None) -> None:
        self.launch_us = 0.0
        self._device = device
        self._launches = launches
        self._trace = trace
        self._profile: Any = None

    def now(self) -> float:
        """Seconds on the host's clock."""
        return time.perf_counter()

    def prepare(self, launch: Launch, _seconds: float) -> None:
        """Warm up."""
        for _ in range(WARM_UP_LAUNCHES):
            launch()
        self._synchronize()

    def sample(self, launch: Launch, count: int) -> list[float]:
        """Profile once; every sample is the mean launch, milliseconds."""
        if self._profile is None:
            self._run(launch)
        return [self.launch_us / 1e3] * count

    def kernels(self) -> tuple[KernelTime, ...]:
        """What was profiled, the longest first."""
        on_gpu = self._device != "cpu"
        entries = []
        for event in self._profile.key_averages():
            if on_gpu != (event.device_type == torch._C._autograd.DeviceType.CUDA):
                continue
            spent_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            if spent_us > 0:
                entries.append(KernelTime(event.key, event.count / self._launches, spent_us / self._launches))
        return tuple(sorted(entries, key=lambda entry: -entry.time_us))

    def _run(self, launch: Launch) -> None:
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._device != "cpu" else [])
        with profile(activities=activities, acc_events=True) as self._profile:
            started = time.perf_counter()
            for _ in range(self._launches):
                launch()
            self._synchronize()
            self.launch_us = (time.perf_counter() - started) * 1e6 / self._launches
        if self._trace:
            self._profile.export_chrome_trace(str(self._trace))

    def _synchronize(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)
