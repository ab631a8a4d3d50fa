"""NVIDIA's management library, asked about one GPU; None wherever it does not answer."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePath
from types import ModuleType
from typing import Any

__all__ = ["Nvml", "nvml_of", "watts"]

CLOCK_EVENT_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
"""Bits of nvmlClocksEventReason*, in NVML's own words."""

INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""Of the host; the number is fixed in the kernel's headers (PROC_PID_INIT_INO)."""


class Nvml:
    """Asks NVML about one GPU; answers None where the library, the GPU or the question is unknown."""

    def __init__(self, module: ModuleType | None, handle: Any = None) -> None:  # noqa: ANN401
        self.module = module
        self.handle = handle

    def ask(self, function: str, *arguments: object) -> Any:  # noqa: ANN401 - as NVML
        """What a function of NVML answers, or None."""
        if self.module is None:
            return None
        try:
            return getattr(self.module, function)(*arguments)
        except (self.module.NVMLError, AttributeError):  # AttributeError: an older nvidia-ml-py
            return None

    def about_gpu(self, function: str, *arguments: object) -> Any:  # noqa: ANN401 - as NVML
        """What a function of NVML answers about the GPU, or None."""
        return None if self.handle is None else self.ask(function, self.handle, *arguments)

    def find(self, device: str) -> None:
        """Point at torch's GPU, by UUID or PCI address: CUDA_VISIBLE_DEVICES renumbers torch's, not NVML's."""
        import torch

        properties: Any = torch.cuda.get_device_properties(device)
        names = []
        if uuid := getattr(properties, "uuid", None):
            names += [("nvmlDeviceGetHandleByUUID", f"{kind}-{uuid}") for kind in ("GPU", "MIG")]
        with suppress(AttributeError):  # some builds of torch do not know the address
            address = (properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id)
            names.append(("nvmlDeviceGetHandleByPciBusId", "{:08x}:{:02x}:{:02x}.0".format(*address)))
        for function, name in names:
            self.handle = self.ask(function, name)
            if self.handle is not None:
                return

    def gpu_names(self) -> list[str]:
        """Every GPU of the machine, in NVML's order, whether torch may use it or not."""
        count = self.ask("nvmlDeviceGetCount") or 0
        handles = [self.ask("nvmlDeviceGetHandleByIndex", index) for index in range(count)]
        return [self.ask("nvmlDeviceGetName", handle) or "unknown" for handle in handles]

    def uuid(self) -> str:
        """Of the GPU, or of the MIG slice that is used; empty where NVML does not tell."""
        told = self.about_gpu("nvmlDeviceGetUUID") or ""
        return told.decode() if isinstance(told, bytes) else str(told)  # bytes: an older nvidia-ml-py

    def conditions(self) -> dict[str, Any]:
        """Clocks (MHz), power (W), temperature (C) and what limits the clocks."""
        reasons = self.about_gpu("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # drivers before 535 know them as throttle reasons
            reasons = self.about_gpu("nvmlDeviceGetCurrentClocksThrottleReasons")
        return {
            "sm_clock_mhz": self.about_gpu("nvmlDeviceGetClockInfo", 1),  # NVML_CLOCK_SM
            "memory_clock_mhz": self.about_gpu("nvmlDeviceGetClockInfo", 2),  # NVML_CLOCK_MEM
            "power_w": watts(self.about_gpu("nvmlDeviceGetPowerUsage")),
            "temperature_c": self.about_gpu("nvmlDeviceGetTemperature", 0),  # NVML_TEMPERATURE_GPU
            "clock_event_reasons": None if reasons is None else _reason_names(reasons),
        }

    def limits(self) -> dict[str, Any]:
        """Power limits (W): the one in force and the card's own; and whether the GPU is cut into MIG slices."""
        mig = self.about_gpu("nvmlDeviceGetMigMode")  # which a slice itself does not answer
        is_slice = bool(self.about_gpu("nvmlDeviceIsMigDeviceHandle"))
        return {
            "power_limit_w": watts(self.about_gpu("nvmlDeviceGetEnforcedPowerLimit")),
            "default_power_limit_w": watts(self.about_gpu("nvmlDeviceGetPowerManagementDefaultLimit")),
            "mig_mode": is_slice or (None if mig is None else bool(mig[0])),
        }

    def other_processes(self, own: Collection[int] = (), contexts: int = 1) -> list[dict[str, Any]]:
        """Everyone else on the GPU: pid, program name without its folder, memory in bytes where known.

        Args:
            own: processes that are not someone else; this one where none are given.
            contexts: how many of them use the GPU. In a container NVML counts pids as the host does, so that none is
                recognised: then as many processes, and no more, are taken for them.
        """
        own = own or {os.getpid()}
        by_pid = {
            process.pid: process
            for kind in ("Graphics", "Compute")
            for process in self.about_gpu(f"nvmlDeviceGet{kind}RunningProcesses") or ()
        }
        if len(by_pid) <= contexts and not by_pid.keys() & set(own) and _in_container():
            return []
        return [
            {
                "pid": pid,
                # Folders and arguments hold user names.
                "name": PurePath((self.ask("nvmlSystemGetProcessName", pid) or "").split(" ")[0]).name or None,
                "used_memory_bytes": process.usedGpuMemory,
            }
            for pid, process in sorted(by_pid.items())
            if pid not in own
        ]


@contextmanager
def nvml_of(device: str) -> Iterator[Nvml]:
    """NVML, pointed at the GPU if the device is one."""
    try:
        import pynvml
    except ImportError:
        yield Nvml(None)
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield Nvml(None)
        return
    nvml = Nvml(pynvml)
    try:
        if device.startswith("cuda"):
            nvml.find(device)
        yield nvml
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _in_container() -> bool:
    """This process has a pid of its own namespace, beside the host's or in place of it."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid") != INITIAL_PID_NAMESPACE
    return False


def _reason_names(bits: int) -> list[str]:
    """Names of the bits that are set, lowest first."""
    set_bits = [1 << position for position in range(bits.bit_length()) if bits >> position & 1]
    return [CLOCK_EVENT_REASONS.get(bit, f"unknown_{bit:#x}") for bit in set_bits]


def watts(milliwatts: int | None) -> float | None:
    """Milliwatts as NVML gives them, in W."""
    return None if milliwatts is None else milliwatts / 1000
