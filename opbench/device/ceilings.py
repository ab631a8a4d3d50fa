"""What a device can do at most, as measured on it, and what that allows a cell: its limit, and whether it beats it."""

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
    "Limit",
    "Missing",
    "Probe",
    "emulated_dtypes",
    "limit_columns",
    "limit_of",
    "missing_notes",
    "read_ceilings",
]

BOUNDS = ("compute", "memory", "cache", "launch")
"""What can hold a cell back, and the kinds of probes."""

NATIVE_SHARE = 0.5
"""A dtype whose matrix products run below this share of fp32's rate is emulated: it gains nothing but memory."""

BUSY_LOAD = 0.5
"""One-minute load average above which another process had about half a core or more."""

MARGIN = 0.05
"""A cell may beat its limit by this much before it is suspicious: clocks move between the ceiling and the cell."""


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
    """

    kind: str
    name: str
    size: str
    amount: int
    latency_ms: float
    latency_ms_min: float
    samples: int

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
    """

    device_name: str
    identity: Mapping[str, str]
    measured_at: str
    l2_bytes: int | None
    cache_bytes: int | None
    probes: tuple[Probe, ...]
    conditions: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[Missing, ...] = ()

    def compute_tflops(self, dtype: str) -> float | None:
        """Most matrix throughput seen, 1e12 FLOP/s; half precision may also compute in fp32, so the faster counts."""
        return max(filter(None, map(self.matrix_tflops, (dtype, str(Dtype.FP32)))), default=None)

    def matrix_tflops(self, dtype: str) -> float | None:
        """Most throughput seen in a dtype itself, 1e12 FLOP/s; `bf16 convolution` is one of bf16's probes."""
        return max((probe.best for probe in self.of("compute") if probe.name.split()[0] == dtype), default=None)

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
        for name in ("load_average_1min", "other_cpu_share"):
            value = found.conditions.get(name)
            if type(value) not in (int, float, type(None)):
                raise TypeError(f"{name} must be a number, got {value!r:.60}")
        return found


@dataclass(frozen=True, slots=True)
class Limit:
    """The shortest time that the ceilings allow a cell.

    Attributes:
        limit_ms: milliseconds.
        bound_by: one of BOUNDS.
    """

    limit_ms: float
    bound_by: str


def limit_of(
    ceilings: Ceilings, *, dtype: str, flop_count: int | None, bytes_moved: int | None, timer: str, cache: str
) -> Limit | None:
    """The largest of a cell's compute, memory or cache, and launch times; None where none is known.

    The cache stands in the memory's place where it is warm and the bytes fit in it. With a cold one each line that the
    cell reads first comes from memory; what it writes, and reads again, may stay in the cache (docs/ceilings.md).
    """
    times = {}
    if flop_count and (tflops := ceilings.compute_tflops(dtype)):
        times["compute"] = flop_count / tflops / 1e9
    if bytes_moved and ceilings.cache_bytes is not None:
        kind = "cache" if cache == "warm" and bytes_moved <= ceilings.cache_bytes else "memory"
        if gbps := ceilings.bandwidth_gbps(kind):
            times[kind] = bytes_moved / gbps / 1e6
    if launch_ms := ceilings.launch_ms(timer, cache):
        times["launch"] = launch_ms
    if not times:
        return None
    bound_by = max(times, key=times.__getitem__)
    return Limit(times[bound_by], bound_by)


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


def limit_columns(
    ceilings: Ceilings | None,
    *,
    dtype: str,
    flop_count: int,
    bytes_moved: int,
    timer: str,
    cache: str,
    latency_ms: float | None,
) -> dict[str, Any]:
    """limit_ms, limit_fraction, bound_by and suspicious of a row; None where there is no value.

    limit_fraction is limit_ms / latency_ms: 1 is as fast as the device can. `suspicious` holds the figures where it
    is above 1 by more than MARGIN.
    """
    columns: dict[str, Any] = dict.fromkeys(("limit_ms", "limit_fraction", "bound_by", "suspicious"))
    if ceilings is None:
        return columns
    limit = limit_of(ceilings, dtype=dtype, flop_count=flop_count, bytes_moved=bytes_moved, timer=timer, cache=cache)
    if limit is None:
        return columns
    columns |= {"limit_ms": limit.limit_ms, "bound_by": limit.bound_by}
    if latency_ms:
        columns["limit_fraction"] = limit.limit_ms / latency_ms
        if columns["limit_fraction"] > 1 + MARGIN:
            columns["suspicious"] = _beats(ceilings, limit, dtype, flop_count, bytes_moved, latency_ms)
    return columns


def _beats(ceilings: Ceilings, limit: Limit, dtype: str, flop_count: int, bytes_moved: int, latency_ms: float) -> str:
    """The figures of a row that is faster than its limit."""
    if limit.bound_by == "launch":
        return f"{latency_ms:.3g} ms, but the shortest launch measured here takes {limit.limit_ms:.3g} ms"
    if limit.bound_by == "compute":
        implied, most = flop_count / latency_ms / 1e9, ceilings.compute_tflops(dtype)
        return f"implies {implied:.3g} TFLOP/s in {dtype}, but {most:.3g} is the most measured here"
    implied, most = bytes_moved / latency_ms / 1e6, ceilings.bandwidth_gbps(limit.bound_by)
    return f"implies {implied:.3g} GB/s from {limit.bound_by}, but {most:.3g} is the most measured here"


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
