"""What a device's ceilings allow a cell: its limit, which of them binds, and whether the cell beats it."""

from dataclasses import dataclass
from typing import Any

from opbench.device.ceilings import BOUNDS, Ceilings

__all__ = ["LIMITS", "Limit", "Work", "limit_columns", "limit_of"]

LIMITS = (*BOUNDS, "l1", "issue")
"""What can hold a cell back."""

L1_BYTES_PER_CLOCK = 128
"""That one multiprocessor reads from its L1. Source: NVIDIA's whitepapers of Volta to Hopper."""
ISSUED_PER_CLOCK = 4
"""Warp instructions that one multiprocessor issues: one in each of its four schedulers. Source: as above."""

MARGIN = 0.05
"""A cell may beat its limit by this much before it is suspicious: clocks move between the ceiling and the cell."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one launch of a cell has to do.

    Attributes:
        dtype: as in Case.
        flop_count, bytes_moved: as in Cell; None or 0 where not known.
        gathered_bytes: as in Cell, 0 where the operator gathers nothing.
        warp_instructions: as in Measurement.
    """

    dtype: str
    flop_count: int | None
    bytes_moved: int | None
    gathered_bytes: int = 0
    warp_instructions: int | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """The shortest time that the ceilings allow a cell.

    Attributes:
        limit_ms: milliseconds.
        bound_by: one of LIMITS.
    """

    limit_ms: float
    bound_by: str


def limit_of(
    ceilings: Ceilings, work: Work, *, timer: str, cache: str, sm_clock_mhz: float | None = None
) -> Limit | None:
    """The longest of the times that a cell takes at least; None where none is known.

    `compute`, `memory` or `cache`, and `launch` follow from probes. On a GPU whose clock is known, `l1` is the time to
    read the gathered bytes from all L1s, and `issue` the time to issue the kernel's instructions, which are the
    kernel's own and not the operator's.

    The cache stands in the memory's place where it is warm and the bytes fit in it. With a cold one each line that the
    cell reads first comes from memory; what it writes, and reads again, may stay in the cache (docs/ceilings.md).

    Args:
        ceilings: of the device.
        work: of the cell.
        timer, cache: as the cell is timed.
        sm_clock_mhz: the clock at which compute, l1 and issue are taken, in place of the highest.
    """
    times = {
        **_measured_times(ceilings, work, timer, cache, sm_clock_mhz),
        **_clocked_times(ceilings, work, sm_clock_mhz),
    }
    if not times:
        return None
    bound_by = max(times, key=times.__getitem__)
    return Limit(times[bound_by], bound_by)


def _measured_times(
    ceilings: Ceilings, work: Work, timer: str, cache: str, sm_clock_mhz: float | None
) -> dict[str, float]:
    times = {}
    if work.flop_count and (probe := ceilings.compute_probe(work.dtype)):
        slowed = probe.sm_clock_mhz / sm_clock_mhz if sm_clock_mhz and probe.sm_clock_mhz else 1.0
        times["compute"] = slowed * work.flop_count / probe.best / 1e9
    if work.bytes_moved and ceilings.cache_bytes is not None:
        kind = "cache" if cache == "warm" and work.bytes_moved <= ceilings.cache_bytes else "memory"
        if gbps := ceilings.bandwidth_gbps(kind):
            times[kind] = work.bytes_moved / gbps / 1e6
    if launch_ms := ceilings.launch_ms(timer, cache):
        times["launch"] = launch_ms
    return times


def _clocked_times(ceilings: Ceilings, work: Work, sm_clock_mhz: float | None) -> dict[str, float]:
    clock_mhz = sm_clock_mhz or ceilings.max_sm_clock_mhz
    if not (ceilings.multiprocessors and clock_mhz):
        return {}
    per_ms = ceilings.multiprocessors * clock_mhz * 1e3
    times = {}
    if work.gathered_bytes:
        times["l1"] = work.gathered_bytes / (per_ms * L1_BYTES_PER_CLOCK)
    if work.warp_instructions:
        times["issue"] = work.warp_instructions / (per_ms * ISSUED_PER_CLOCK)
    return times


def limit_columns(
    ceilings: Ceilings | None,
    work: Work,
    *,
    timer: str,
    cache: str,
    latency_ms: float | None,
    sm_clock_mhz: float | None = None,
) -> dict[str, Any]:
    """limit_ms, limit_fraction, bound_by, limit_at_clock_ms and suspicious of a row; None where there is no value.

    limit_fraction is limit_ms / latency_ms: 1 is as fast as the device can. `suspicious` holds the figures where it
    is above 1 by more than MARGIN.

    Args:
        ceilings: of the device, if they were measured.
        work: of the cell.
        timer, cache: as the cell is timed.
        latency_ms: its median, if it was measured.
        sm_clock_mhz: the GPU's clock around its samples, if that is known.
    """
    names = ("limit_ms", "limit_fraction", "bound_by", "limit_at_clock_ms", "suspicious")
    columns: dict[str, Any] = dict.fromkeys(names)
    limit = limit_of(ceilings, work, timer=timer, cache=cache) if ceilings else None
    if ceilings is None or limit is None:
        return columns
    columns |= {"limit_ms": limit.limit_ms, "bound_by": limit.bound_by}
    if sm_clock_mhz and (at_clock := limit_of(ceilings, work, timer=timer, cache=cache, sm_clock_mhz=sm_clock_mhz)):
        columns["limit_at_clock_ms"] = at_clock.limit_ms
    if latency_ms:
        columns["limit_fraction"] = limit.limit_ms / latency_ms
        if columns["limit_fraction"] > 1 + MARGIN:
            columns["suspicious"] = _beats(ceilings, limit, work, latency_ms)
    return columns


def _beats(ceilings: Ceilings, limit: Limit, work: Work, latency_ms: float) -> str:
    """The figures of a row that is faster than its limit."""
    if limit.bound_by in ("launch", "issue"):
        what = {"launch": "the shortest launch measured here", "issue": "issuing its counted instructions"}
        return f"{latency_ms:.3g} ms, but {what[limit.bound_by]} takes {limit.limit_ms:.3g} ms"
    if limit.bound_by == "l1":
        implied = work.gathered_bytes / latency_ms / 1e6
        most = work.gathered_bytes / limit.limit_ms / 1e6
        return f"implies {implied:.3g} GB/s from the L1s, but they give {most:.3g} at the highest clock"
    if limit.bound_by == "compute":
        implied, most = (work.flop_count or 0) / latency_ms / 1e9, (work.flop_count or 0) / limit.limit_ms / 1e9
        return f"implies {implied:.3g} TFLOP/s in {work.dtype}, but {most:.3g} is the most measured here"
    implied, most = ((work.bytes_moved or 0) / time_ms / 1e6 for time_ms in (latency_ms, limit.limit_ms))
    return f"implies {implied:.3g} GB/s from {limit.bound_by}, but {most:.3g} is the most measured here"
