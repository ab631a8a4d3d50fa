"""The energy of cells by NVML's counter, on a made-up device: no GPU has been measured."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from builders import make_cell
from fake_device import FakeDevice, measure_on
from test_environment import GPU, HANDLE, nvml  # noqa: F401 - a fixture

from opbench.results.energy import energy_columns
from opbench.results.measurement import Measurement, Status
from opbench.sweeps import energy
from opbench.sweeps.request import RunOptions
from opbench.sweeps.runner import CellRunner

IDLE_W, BUSY_W = 70.0, 400.0
COUNTER = "nvmlDeviceGetTotalEnergyConsumption"


class PoweredDevice(FakeDevice):
    """The fake CUDA device with a counter of energy that steps every 50 ms."""

    STEP_MS = 50.0

    def __init__(self, monkeypatch):
        self.work, self.busy_ms, self.begun_ms = [], 0.0, 0
        super().__init__(monkeypatch)
        monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: self.host / 1e3, sleep=self.sleep))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: GPU)

    def sleep(self, seconds):
        self.host += 1e3 * seconds

    def queue(self, host_ms, device_ms):
        super().queue(host_ms, device_ms)
        self.work.append((self.free - device_ms, self.free))

    def energy_mj(self):
        """As NVML: a whole number that stands still between two steps."""
        moment = self.host // self.STEP_MS * self.STEP_MS
        while self.begun_ms < len(self.work) and self.work[self.begun_ms][1] <= moment:
            start, end = self.work[self.begun_ms]
            self.busy_ms += end - start
            self.begun_ms += 1
        part = max(0.0, moment - self.work[self.begun_ms][0]) if self.begun_ms < len(self.work) else 0.0
        return int(IDLE_W * moment + (BUSY_W - IDLE_W) * (self.busy_ms + part))


def alone(nvml):  # noqa: F811
    """The card for this process, without MIG."""
    nvml.answers["nvmlDeviceGetComputeRunningProcesses", HANDLE] = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=5)]
    nvml.forget("nvmlDeviceGetGraphicsRunningProcesses")


def runner_on(device, monkeypatch, timer="cuda-event", launch=None):
    operator = measure_on(device, monkeypatch, right=launch or device.launch)
    options = RunOptions("cuda:0", timer, "warm", 0.01, None, 0, energy=True)
    return CellRunner(options, lambda name: operator)


@pytest.fixture
def powered(nvml, monkeypatch):  # noqa: F811
    device = PoweredDevice(monkeypatch)
    nvml.answers[COUNTER, HANDLE] = device.energy_mj
    alone(nvml)
    return device


@pytest.mark.parametrize("timer", ["cuda-event", "cuda-graph", "launch-sync", "wall-clock"])
def test_a_cell_on_a_gpu_has_its_energy_with_every_timer(powered, monkeypatch, timer):
    stages = []
    found = runner_on(powered, monkeypatch, timer).run(make_cell(flop_count=10**9), stages.append)
    assert (found.status, found.reason) == (Status.OK, "")
    assert stages[-3:] == ["timing", "energy", "check again"]
    columns = energy_columns(found.energy, 10**9)
    assert columns["energy_mj"] == pytest.approx(0.25 * BUSY_W, rel=0.02)  # back to back, whatever the timer waits for
    assert columns["energy_idle_subtracted_mj"] == pytest.approx(0.25 * (BUSY_W - IDLE_W), rel=0.02)
    assert columns["gflop_per_joule"] == pytest.approx(10.0, rel=0.02)
    assert (columns["energy_source"], found.energy.launches > 7900) == ("nvml", True)
    assert Measurement.from_json(json.loads(found.to_json_line())) == found


def test_launches_that_the_host_queues_slowly_have_pauses_between_them_but_not_in_a_graph(powered, monkeypatch):
    powered.host_ms = 1.0
    by_host, by_graph = (
        runner_on(powered, monkeypatch, timer).run(make_cell()).energy for timer in ("cuda-event", "cuda-graph")
    )
    assert by_host.window_mj / by_host.launches == pytest.approx(0.25 * BUSY_W + 0.75 * IDLE_W, rel=0.02)
    assert by_graph.window_mj / by_graph.launches == pytest.approx(0.25 * BUSY_W, rel=0.02)


def no_counter(nvml):  # noqa: F811
    nvml.forget(COUNTER)


def no_handle(nvml):  # noqa: F811
    nvml.forget("nvmlDeviceGetHandleByUUID", "nvmlDeviceGetHandleByPciBusId")


def mig(nvml):  # noqa: F811
    nvml.answers["nvmlDeviceGetMigMode", HANDLE] = [1, 1]


def slice_of_mig(nvml):  # noqa: F811
    nvml.forget("nvmlDeviceGetMigMode")
    nvml.answers["nvmlDeviceIsMigDeviceHandle", HANDLE] = 1


def others(nvml):  # noqa: F811
    nvml.answers["nvmlDeviceGetComputeRunningProcesses", HANDLE] = [
        SimpleNamespace(pid=pid, usedGpuMemory=5) for pid in (os.getpid(), 2**22 + 7)
    ]


def others_later(nvml):  # noqa: F811
    shown = nvml.answers[COUNTER, HANDLE]
    nvml.answers[COUNTER, HANDLE] = lambda: others(nvml) or shown()


def silent_later(nvml):  # noqa: F811
    shown, readings = nvml.answers[COUNTER, HANDLE], []

    def fail_within_the_window():
        readings.append(1)
        if len(readings) > 700:
            raise nvml.NVMLError("GPU is lost")
        return shown()

    nvml.answers[COUNTER, HANDLE] = fail_within_the_window


def nonsense(nvml):  # noqa: F811
    nvml.answers[COUNTER, HANDLE] = lambda: {}["no such key"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (no_counter, "NVML does not tell the energy that the card has used: not supported"),
        (no_handle, "NVML does not answer about the device"),
        (mig, "MIG is on, and the counter is of the whole card"),
        (slice_of_mig, "MIG is on, and the counter is of the whole card"),
        (others, f"other processes are on the card: {2**22 + 7} python3"),
        (others_later, f"other processes are on the card: {2**22 + 7} python3"),
        (silent_later, "NVML does not tell the energy that the card has used: not supported"),
        (nonsense, "KeyError: 'no such key'"),
    ],
)
def test_without_energy_the_timing_is_kept_and_the_reason_said(powered, nvml, monkeypatch, fault, reason):  # noqa: F811
    fault(nvml)
    found = runner_on(powered, monkeypatch).run(make_cell())
    assert (found.status, found.reason, found.energy) == (Status.OK, f"no energy: {reason}", None)
    assert found.latencies_ms == pytest.approx([0.25] * len(found.latencies_ms))
    assert nvml.open == 0


def test_a_launch_that_fails_while_its_energy_is_measured_is_the_cells_own_fault(powered, monkeypatch):
    whole = energy.measure

    def broken_from_here_on(*arguments):
        powered.broken = True
        return whole(*arguments)

    monkeypatch.setattr(energy, "measure", broken_from_here_on)
    runner = runner_on(powered, monkeypatch)
    found = runner.run(make_cell())
    assert (found.status, found.energy, runner.device_broken) == (Status.ERROR, None, True)
    assert found.reason.startswith("AcceleratorError in energy: CUDA error: an illegal memory access")
