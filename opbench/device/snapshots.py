"""Snapshots of what moves a device's speed, taken right before and after a cell's samples."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from opbench.device.interference import others_share
from opbench.device.nvml import nvml_of
from opbench.host.system import SILENT

__all__ = [
    "GATE_VARIABLE",
    "busy_counters",
    "conditions",
    "cpu_conditions",
    "gpu_conditions",
    "others_now",
    "scaling_governor",
    "sm_clock_mhz",
]

GATE_VARIABLE = "OPBENCH_GATE_PID"
"""In the environment of a gate's processes: who started them, and so which others are its own."""

WATCHED_S = 0.25
"""The system counts in steps of 10 ms: half a core's worth of others is 12 steps."""

CPU0 = Path("/sys/devices/system/cpu/cpu0")


def conditions(device: str) -> dict[str, Any]:
    """What moves the speed of `device`, a GPU ("cuda:N") or "cpu"; of the CPU in both cases, since it launches."""
    return cpu_conditions() if device == "cpu" else {**cpu_conditions(), **gpu_conditions(device)}


def gpu_conditions(device: str) -> dict[str, Any]:
    """Clocks (MHz), power and its limits (W), temperature (C), what limits the clocks, MIG, and who else is there.

    Returns:
        sm_clock_mhz, memory_clock_mhz, power_w, temperature_c, clock_event_reasons, power_limit_w,
        default_power_limit_w, mig_mode, each None where the GPU does not report it; other_gpu_processes, a list;
        {} on the CPU and where NVML does not answer.
    """
    with nvml_of(device) as nvml:
        found = {**nvml.conditions(), **nvml.limits()}
        if all(value is None for value in found.values()):
            return {}
        siblings = _siblings()
        others = nvml.other_processes(_own_processes() | siblings, contexts=1 + len(siblings))
        return {**found, "other_gpu_processes": others}


def sm_clock_mhz(device: str) -> float | None:
    """The SM clock of a GPU at this moment; None on the CPU, and where NVML does not tell."""
    if device == "cpu":
        return None
    with nvml_of(device) as nvml:
        clock: float | None = nvml.conditions()["sm_clock_mhz"]
        return clock


def cpu_conditions() -> dict[str, Any]:
    """Load, governor, clock (MHz), temperature (C) and throttling of the CPU; None where the system does not tell."""
    return {
        "load_average_1min": _load_average(),
        "governor": scaling_governor(),
        "cpu_clock_mhz": _clock_mhz(),
        "cpu_temperature_c": _temperature(),
        "thermal_throttle_count": _integer(_first_line(CPU0 / "thermal_throttle/package_throttle_count")),
        **busy_counters(),
    }


def others_now() -> float | None:
    """Share of all cores that other processes use at this moment, watched for WATCHED_S; None if not known.

    What this process has started is not among the others. A load average would not do: it holds for a minute what
    has ended, a sweep before this one say.
    """
    before = busy_counters(children=True)
    time.sleep(WATCHED_S)
    return others_share(before, busy_counters(children=True))


def busy_counters(*, children: bool = False) -> dict[str, Any]:
    """Seconds on the clock (clock_s), of all processes on all cores (busy_s), and of this process (own_busy_s).

    {} where the system does not tell. With `children`, what this process has started is its own, too.
    """
    import psutil

    try:
        times = psutil.cpu_times()
        process = psutil.Process()
        own = process.cpu_times()
        family = [_cpu_times(child) for child in process.children(recursive=True)] if children else []
    except (psutil.Error, *SILENT):
        return {}
    # user holds guest and nice holds guest_nice; what the hypervisor steals is busy for us.
    busy = ("user", "nice", "system", "irq", "softirq", "steal")
    return {
        "cores": os.cpu_count(),
        "clock_s": time.monotonic(),
        "busy_s": sum(getattr(times, name, 0.0) for name in busy),
        "own_busy_s": own.user + own.system + sum(family),
    }


def _cpu_times(child: Any) -> float:  # noqa: ANN401 - psutil has no types
    import psutil

    with suppress(psutil.Error):  # it has just ended
        times = child.cpu_times()
        return float(times.user + times.system)
    return 0.0


def scaling_governor() -> str | None:
    """How the CPU chooses its clock: performance, powersave, schedutil...; None where the system does not tell."""
    return _first_line(CPU0 / "cpufreq/scaling_governor")


def _own_processes() -> set[int]:
    """This process, the sweep that started it, and what is between."""
    import psutil

    return {os.getpid(), *(parent.pid for parent in psutil.Process().parents()[:2])}


def _siblings() -> set[int]:
    """The other processes of the gate that this one belongs to: both arms of a round live at once."""
    import psutil

    gate = os.environ.get(GATE_VARIABLE, "")
    with suppress(psutil.Error):
        if gate.isdecimal():
            return {child.pid for child in psutil.Process(int(gate)).children()} - {os.getpid()}
    return set()


def _load_average() -> float | None:
    with suppress(*SILENT):
        return os.getloadavg()[0]
    return None


def _clock_mhz() -> float | None:
    import psutil

    with suppress(psutil.Error, *SILENT):
        frequency = psutil.cpu_freq()
        return float(frequency.current) if frequency else None
    return None


def _temperature() -> float | None:
    """The hottest reading of the CPU's own sensors."""
    import psutil

    with suppress(psutil.Error, *SILENT):  # AttributeError: not on this system
        sensors = psutil.sensors_temperatures()
        readings = [r.current for name in ("coretemp", "k10temp", "cpu_thermal") for r in sensors.get(name, ())]
        return max(readings, default=None)
    return None


def _first_line(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip() or None
    return None


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
