"""Finds what disturbed a cell's samples, from snapshots before and after them. The row gets a warning and is kept."""

from collections.abc import Iterator, Mapping
from typing import Any

from opbench.workload.cell_warning import CellWarning, WarningKind

__all__ = ["OTHER_LOAD", "interference", "others_share"]

OTHER_LOAD = 0.1
"""Share of all cores that other processes may use."""
LEAST_OTHER_LOAD_S = 0.05
"""Least busy time of other processes that counts: the system counts in steps of 10 ms per core and process."""
CLOCK_MOVE = 0.05
"""Change of a clock during the samples that is tolerated, as a share of its first reading."""
HARMLESS_LIMITS = frozenset({"gpu_idle", "applications_clocks_setting", "sync_boost", "display_clock_setting"})
"""Clock event reasons that a user set, or that mean an idle GPU; every other reason slows a busy GPU."""
POWER_CAP = "sw_power_cap"
"""Clock event reason of a GPU that lowers its clocks to stay within its power limit."""

Snapshot = Mapping[str, Any]


def interference(before: Snapshot, after: Snapshot) -> tuple[CellWarning, ...]:
    """One warning for each thing that disturbed the samples, or that makes the device another one.

    Args:
        before: opbench.device.snapshots.conditions() before the samples; keys may be missing.
        after: the same after them.
    """
    return (*_on_cpu(before, after), *_on_gpu(before, after))


def others_share(before: Snapshot, after: Snapshot) -> float | None:
    """Share of all cores that other processes used between two snapshots with busy_counters(); None if not known.

    0 where it is too little to tell, LEAST_OTHER_LOAD_S.
    """
    if not {"clock_s", "busy_s", "own_busy_s", "cores"} <= before.keys() & after.keys():
        return None
    others_s = (after["busy_s"] - before["busy_s"]) - (after["own_busy_s"] - before["own_busy_s"])
    available_s = (after["clock_s"] - before["clock_s"]) * after["cores"]
    return float(others_s / available_s) if others_s > LEAST_OTHER_LOAD_S else 0.0


def _on_cpu(before: Snapshot, after: Snapshot) -> Iterator[CellWarning]:
    if (share := others_share(before, after) or 0) > OTHER_LOAD:
        yield CellWarning(
            WarningKind.CPU_LOAD, f"other processes used {share:.0%} of all cores during warm-up and samples"
        )
    governor = after.get("governor")
    if governor not in (None, "performance"):
        yield CellWarning(WarningKind.CPU_GOVERNOR, f"{governor}, so the clock follows the load")
    hot = _rise(before, after, "thermal_throttle_count")
    if hot:
        yield CellWarning(WarningKind.CPU_HEAT, f"the CPU slowed itself {hot} times during the samples")
    yield from _moved(before, after, "cpu_clock_mhz", WarningKind.CPU_CLOCK)


def _on_gpu(before: Snapshot, after: Snapshot) -> Iterator[CellWarning]:
    others = {process["pid"]: process for side in (before, after) for process in side.get("other_gpu_processes") or ()}
    if others:
        names = ", ".join(f"{pid} {process.get('name') or 'unknown'}" for pid, process in sorted(others.items()))
        yield CellWarning(WarningKind.GPU_SHARED, f"other processes on it: {names}")
    reasons = {reason for side in (before, after) for reason in side.get("clock_event_reasons") or ()}
    limit, default = after.get("power_limit_w"), after.get("default_power_limit_w")
    slowing = sorted(reasons - HARMLESS_LIMITS)
    if slowing == [POWER_CAP]:
        allowed = "its power limit" if limit is None else f"its limit of {limit:g} W"
        yield CellWarning(WarningKind.GPU_AT_POWER_LIMIT, f"it lowers its clocks to stay within {allowed}")
    elif slowing:
        yield CellWarning(WarningKind.GPU_CLOCKS_LIMITED, f"by {', '.join(slowing)} ({_temperatures(before, after)})")
    yield from _moved(before, after, "sm_clock_mhz", WarningKind.GPU_SM_CLOCK)
    yield from _moved(before, after, "memory_clock_mhz", WarningKind.GPU_MEMORY_CLOCK)
    if after.get("mig_mode"):
        yield CellWarning(WarningKind.GPU_MIG, "the device is a slice of a GPU that others may use")
    if limit is not None and default is not None and limit < default:
        yield CellWarning(WarningKind.GPU_POWER_CAP, f"{limit:g} W, below the card's own {default:g} W")


def _moved(before: Snapshot, after: Snapshot, name: str, kind: WarningKind) -> Iterator[CellWarning]:
    first, last = before.get(name), after.get(name)
    if first and last and abs(last - first) > CLOCK_MOVE * first:
        yield CellWarning(kind, f"moved from {first:.0f} to {last:.0f} MHz during the samples")


def _rise(before: Snapshot, after: Snapshot, name: str) -> int:
    first, last = before.get(name), after.get(name)
    return last - first if first is not None and last is not None else 0


def _temperatures(before: Snapshot, after: Snapshot) -> str:
    texts = ["unknown" if (t := side.get("temperature_c")) is None else f"{t:g}" for side in (before, after)]
    return f"{texts[0]} C before, {texts[1]} C after"
