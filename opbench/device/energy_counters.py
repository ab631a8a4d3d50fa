"""Counters of the energy that a device has used: NVML's of a GPU, RAPL's of a CPU.

Sources: nvmlDeviceGetTotalEnergyConsumption in the NVML API Reference (mJ since the driver was loaded; of the whole
card); Documentation/power/powercap/powercap.rst of Linux (`energy_uj`, `max_energy_range_uj`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from opbench.device.interference import OTHER_LOAD, others_share
from opbench.device.nvml import Nvml, nvml_of
from opbench.device.snapshots import busy_counters, gpu_conditions

__all__ = ["EnergyCounter", "NoEnergyError", "energy_counter"]

POWERCAP = Path("/sys/class/powercap")
DOMAINS = "intel-rapl:*"
"""AMD's processors have the same name. `intel-rapl-mmio:*` counts the same energy again."""


class NoEnergyError(Exception):
    """There is no figure; the message says why."""


class EnergyCounter(Protocol):
    """A counter that steps from time to time.

    Attributes:
        source: what it counts.
    """

    source: str

    def read_mj(self) -> float:
        """Energy since some moment in the past, mJ."""
        ...


@contextmanager
def energy_counter(device: str) -> Iterator[EnergyCounter]:
    """The counter of "cuda:N" or "cpu", for a block that has the device to itself.

    Raises:
        NoEnergyError: it has none that can be read, or others used the device before the block or within it.
    """
    if device == "cpu":
        before = busy_counters()
        yield _RaplCounter()
        share = others_share(before, busy_counters()) or 0.0
        if share > OTHER_LOAD:
            raise NoEnergyError(f"other processes used {share:.0%} of all cores, and the counter is of all")
        return
    _require_whole_card(device)
    with nvml_of(device) as nvml:
        yield _NvmlCounter(nvml)
    _require_whole_card(device)


def _require_whole_card(device: str) -> None:
    found = gpu_conditions(device)
    if found.get("mig_mode"):
        raise NoEnergyError("MIG is on, and the counter is of the whole card")
    if others := found.get("other_gpu_processes"):
        names = ", ".join(f"{process['pid']} {process['name'] or 'unknown'}" for process in others)
        raise NoEnergyError(f"other processes are on the card: {names}")


class _NvmlCounter:
    source = "nvml"

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        if nvml.handle is None:
            raise NoEnergyError("NVML does not answer about the device")
        self.read_mj()

    def read_mj(self) -> float:
        """As the protocol."""
        found = self._nvml.about_gpu("nvmlDeviceGetTotalEnergyConsumption")
        if found is None:
            raise NoEnergyError("NVML does not tell the energy that the card has used: not supported")
        return float(found)


class _RaplCounter:
    """The sum of all packages and their memory: `core` and `uncore` are parts of a package, `psys` holds all."""

    def __init__(self) -> None:
        self._total_uj = 0
        self._files: list[Path] = []
        self._ranges_uj: list[int] = []
        names = []
        for domain in sorted(POWERCAP.glob(DOMAINS)):
            name = _text(domain / "name")
            if name.startswith("package") or name == "dram":
                names.append(name)
                self._files.append(domain / "energy_uj")
                self._ranges_uj.append(int(_text(domain / "max_energy_range_uj")))
        if not names:
            raise NoEnergyError(f"no RAPL counter in {POWERCAP}: a virtual machine, or another system or processor")
        self.source = f"rapl: {' + '.join(names)}"
        self._last_uj = self._read_uj()

    def read_mj(self) -> float:
        """As the protocol. Between two readings a counter may begin anew once; some do within minutes."""
        now_uj = self._read_uj()
        for now, last, most in zip(now_uj, self._last_uj, self._ranges_uj, strict=True):
            self._total_uj += now - last if now >= last else now - last + most
        self._last_uj = now_uj
        return self._total_uj / 1e3

    def _read_uj(self) -> list[int]:
        return [int(_text(file)) for file in self._files]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except PermissionError:
        raise NoEnergyError(f"{file} may be read by root alone") from None
    except OSError as error:
        raise NoEnergyError(f"{file}: {error.strerror}") from None
