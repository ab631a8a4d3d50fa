"""What a device can do at most, as measured on it."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from opbench.device.interference import OTHER_LOAD
from opbench.errors import ResultsError
from opbench.text import one_line
from opbench.workload.case import Dtype

__all__ = [
    "BOUNDS",
    "BUSY_LOAD",
    "NATIVE_SHARE",
    "Ceilings",
    "Missing",
    "Probe",
    "emulated_dtypes",
    "missing_notes",
    "read_ceilings",
]

BOUNDS = ("compute", "memory", "cache", "launch")
"""The kinds of probes, each of which may hold a cell back."""

NATIVE_SHARE = 0.5
"""A dtype whose matrix products run below this share of fp32's rate is emulated: it gains nothing but memory."""

BUSY_LOAD = 0.5
"""One-minute load average above which another process had about half a core or more."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One measurement of the device.

    Attributes:
        kind: one of BOUNDS.
        name: the dtype for compute, with the operator where it is no matrix product; copy, read or write for memory and
            cache; `timer/cache` for launch.
        size: what was launched, for a person.
        amount: FLOP or bytes of one launch; 0 for launch.
        latency_ms: median of one launch.
        latency_ms_min: its fastest sample.
        samples: how many.
        sm_clock_mhz: the GPU's clock right after the samples; None where it is not told, and on a CPU.
    """

    kind: str
    name: str
    size: str
    amount: int
    latency_ms: float
    latency_ms_min: float
    samples: int
    sm_clock_mhz: float | None = None

    @property
    def best(self) -> float:
        """The fastest sample: TFLOP/s for compute, GB/s for memory and cache, ms for launch."""
        return self._figure(self.latency_ms_min)

    @property
    def typical(self) -> float:
        """The median, in the unit of `best`."""
        return self._figure(self.latency_ms)

    def _figure(self, latency_ms: float) -> float:
        if self.kind == "launch":
            return latency_ms
        return self.amount / latency_ms / (1e9 if self.kind == "compute" else 1e6)


@dataclass(frozen=True, slots=True)
class Missing:
    """A probe without a figure.

    Attributes:
        kind, name: as in Probe.
        reason: why there is none.
        at: when that was found, ISO 8601.
        begun: it was tried; else the budget was spent before its turn.
    """

    kind: str
    name: str
    reason: str
    at: str
    begun: bool


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The limits of one device.

    Attributes:
        device_name: of the device.
        identity: what must be the same for these figures to hold: device, versions, driver or threads.
        measured_at: date and time, ISO 8601.
        l2_bytes: L2 cache; on the CPU of all cores that torch uses. None where the system does not tell.
        cache_bytes: the largest working set that a warm cache keeps: the L2 of a GPU, the last level of a CPU.
        probes: every measurement.
        conditions: what else moved the figures: a GPU's clocks and power, or the CPU's load average, at the start; and
            other_cpu_share, the share of all cores that other processes used while they were measured.
        missing: probes that gave no figure, each with its reason.
        multiprocessors: of a GPU.
        max_sm_clock_mhz: the highest clock that the GPU may have; None where it is not told, and on a CPU.
    """

    device_name: str
    identity: Mapping[str, str]
    measured_at: str
    l2_bytes: int | None
    cache_bytes: int | None
    probes: tuple[Probe, ...]
    conditions: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[Missing, ...] = ()
    multiprocessors: int | None = None
    max_sm_clock_mhz: float | None = None

    def compute_probe(self, dtype: str) -> Probe | None:
        """Of the most matrix throughput seen; half precision may also compute in fp32, so the faster counts."""
        return self._fastest((dtype, str(Dtype.FP32)))

    def compute_tflops(self, dtype: str) -> float | None:
        """The throughput of compute_probe, 1e12 FLOP/s."""
        fastest = self.compute_probe(dtype)
        return fastest.best if fastest else None

    def matrix_tflops(self, dtype: str) -> float | None:
        """Most throughput seen in a dtype itself, 1e12 FLOP/s; `bf16 convolution` is one of bf16's probes."""
        fastest = self._fastest((dtype,))
        return fastest.best if fastest else None

    def _fastest(self, dtypes: Collection[str]) -> Probe | None:
        probes = (probe for probe in self.of("compute") if probe.name.split()[0] in dtypes)
        return max(probes, key=lambda probe: probe.best, default=None)

    def bandwidth_gbps(self, kind: str) -> float | None:
        """Most bandwidth seen, 1e9 byte/s, of "memory" or "cache": copy, read or write, whichever is fastest."""
        return max((probe.best for probe in self.of(kind)), default=None)

    def launch_ms(self, timer: str, cache: str) -> float | None:
        """The shortest launch that a timer has seen with a cold or warm cache, milliseconds."""
        return min((probe.best for probe in self.of("launch") if probe.name == f"{timer}/{cache}"), default=None)

    @property
    def busy(self) -> str:
        """What else used the device while these were measured, so that they may be too low; empty where nothing did."""
        if "sm_clock_mhz" in self.conditions:
            return "other processes were on the GPU" if self.conditions.get("other_gpu_processes") else ""
        share = self.conditions.get("other_cpu_share")
        if share is not None:
            return f"other processes used {share:.0%} of all cores" if share > OTHER_LOAD else ""
        load = self.conditions.get("load_average_1min") or 0.0  # ceilings from before the share was kept
        return f"the machine was busy, load {load:.2f}," if load >= BUSY_LOAD else ""

    def of(self, kind: str) -> list[Probe]:
        """The probes of one kind."""
        return [probe for probe in self.probes if probe.kind == kind]

    def to_json(self) -> dict[str, Any]:
        """A dictionary that from_json reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The ceilings that to_json wrote; KeyError, TypeError or ValueError where they are damaged."""
        probes = tuple(Probe(**probe) for probe in data["probes"])
        missing = tuple(Missing(**entry) for entry in data.get("missing", ()))
        found = cls(**{**data, "probes": probes, "missing": missing})
        for probe in found.probes:
            numbers = (probe.amount, probe.samples, probe.latency_ms, probe.latency_ms_min)
            plain = all(type(value) in (int, float) for value in numbers)
            named = all(isinstance(text, str) and text.isprintable() for text in (probe.name, probe.size))
            if not (plain and named and probe.kind in BOUNDS and 0 <= probe.amount < 2**63):
                raise ValueError(f"not a probe: {probe}")
            if not 0 < probe.latency_ms_min <= probe.latency_ms < float("inf"):
                raise ValueError(f"not a probe: {probe}")
        texts = [found.device_name, found.measured_at, *found.identity, *found.identity.values()]
        texts += [text for entry in missing for text in (entry.kind, entry.name, entry.reason, entry.at)]
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise ValueError("device_name, measured_at, identity and missing must be printable texts")
        if not all(type(size) is int or size is None for size in (found.l2_bytes, found.cache_bytes)):
            raise TypeError("cache sizes must be integers or null")
        facts = {name: found.conditions.get(name) for name in ("load_average_1min", "other_cpu_share")}
        facts |= {"multiprocessors": found.multiprocessors, "max_sm_clock_mhz": found.max_sm_clock_mhz}
        facts |= {f"sm_clock_mhz of {probe.name}": probe.sm_clock_mhz for probe in found.probes}
        for name, value in facts.items():
            if type(value) not in (int, float, type(None)):
                raise TypeError(f"{name} must be a number, got {value!r:.60}")
        return found


def emulated_dtypes(ceilings: Ceilings, dtypes: Collection[str] = tuple(Dtype)) -> list[str]:
    """One line for each of these dtypes that is far slower than fp32: `bf16 matmul: 0.9 GFLOP/s, emulated`."""
    full = ceilings.matrix_tflops(Dtype.FP32)
    found = {dtype: ceilings.matrix_tflops(dtype) for dtype in dtypes}
    return [
        f"{dtype} matmul: {1e3 * tflops:.2g} GFLOP/s, emulated ({full / tflops:.0f} times slower than fp32)"
        for dtype, tflops in found.items()
        if full and tflops and tflops < NATIVE_SHARE * full
    ]


def missing_notes(ceilings: Ceilings) -> list[str]:
    """One line for each reason why probes gave no figure, with their names."""
    names: dict[str, list[str]] = {}
    for entry in ceilings.missing:
        names.setdefault(entry.reason, []).append(f"{entry.kind} {entry.name}")
    return [f"no ceiling for {', '.join(probes)}: {reason}" for reason, probes in names.items()]


def read_ceilings(path: Path) -> Ceilings | None:
    """The ceilings in a file; None where there is no file, or it says why there are none.

    Raises:
        ResultsError: the file is damaged or cannot be read.
    """
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise ResultsError(f"{path}: must be a regular file")
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and isinstance(data.get("reason"), str):
            return None
        return Ceilings.from_json(data)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ResultsError(f"{path}: damaged: {one_line(repr(error))}") from None
