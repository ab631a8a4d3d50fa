"""What a gate does on a GPU that slows itself because it is hot: it waits, and takes samples in bursts from then on.

Both arms are treated alike: the wait is before each measurement of either, and bursts begin with a cell, in both.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opbench.results.measurement import Measurement
from opbench.timing.bursts import BURST_S, REST_S

__all__ = ["Cooling", "Pauses", "cooling_notes"]

SLOWDOWNS = {"hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown"}
"""NVML's clock event reasons that a rest takes away. A card at its power limit is at it again with the next launch."""
COOLER_C = 10.0
"""A card that slowed itself is waited for until it is so much cooler than it was then."""
LONGEST_WAIT_S = 60.0
MOST_WAITING_S = 600.0
"""Of all waits of a session."""
POLL_S = 1.0

Conditions = Mapping[str, Any]
"""As opbench.device.snapshots.gpu_conditions gives them."""


@dataclass(slots=True)
class Pauses:
    """What was done for a process: waits, their seconds, those that ended too warm, cells measured in bursts."""

    waits: int = 0
    waited_s: float = 0.0
    ended_warm: int = 0
    cells_in_bursts: int = 0


@dataclass(slots=True)
class Cooling:
    """The state of one device over a session.

    Attributes:
        able: both arms can tell the conditions of the device, and take samples in bursts.
        in_bursts: take the samples in bursts, since the device has slowed itself once.
        sleep, clock: replaced in tests.
    """

    able: bool = True
    in_bursts: bool = False
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _has_slowed: bool = False
    _is_hot: bool = False
    _hot_c: float | None = None
    _waited_s: float = 0.0

    def look(self, measurement: Measurement) -> None:
        """Learn from what an arm has just measured."""
        for side in ("before", "after"):
            found = measurement.conditions.get(side) or {}
            if slowdowns(found):
                self._has_slowed = self._is_hot = True
                self._hot_c = found.get("temperature_c")

    def next_cell(self) -> None:
        """Both arms have measured a cell; the next one is measured in bursts where the device has slowed itself."""
        self.in_bursts = self.able and self._has_slowed

    def wait(self, conditions: Callable[[], Conditions], pauses: Pauses) -> None:
        """Where the device has slowed itself, wait until it is cooler and no longer slowed, for a while at most.

        Args:
            conditions: of the device, now; empty where they are not told.
            pauses: of the process that measures next.
        """
        if not (self.able and self._is_hot) or self._waited_s >= MOST_WAITING_S:
            return
        started = self.clock()
        pauses.waits += 1
        while not self._is_cool(conditions()):
            if self.clock() - started >= LONGEST_WAIT_S:
                pauses.ended_warm += 1
                break
            self.sleep(POLL_S)
        self._is_hot = False
        taken_s = self.clock() - started
        self._waited_s += taken_s
        pauses.waited_s += taken_s

    def _is_cool(self, found: Conditions) -> bool:
        temperature_c = found.get("temperature_c")
        cooler = self._hot_c is None or temperature_c is None or temperature_c <= self._hot_c - COOLER_C
        return cooler and not slowdowns(found)


def slowdowns(found: Conditions) -> set[str]:
    """Why the device slows itself, in NVML's words."""
    return SLOWDOWNS & {*(found.get("clock_event_reasons") or ())}


def cooling_notes(processes: Sequence[tuple[Pauses, Iterable[Measurement]]]) -> list[str]:
    """What a reader of the comparison must know of it; nothing where the device never slowed itself.

    Args:
        processes: of a session, each with what was done for it and what it measured.
    """
    reasons: Counter[str] = Counter()
    slowed = count = 0
    for _, measurements in processes:
        for measurement in measurements:
            count += 1
            found = {reason for side in measurement.conditions.values() for reason in slowdowns(side or {})}
            slowed += bool(found)
            reasons.update(found)
    if not slowed:
        return []
    waits, waited_s, warm, bursts = (
        sum(getattr(pauses, name) for pauses, _ in processes)
        for name in ("waits", "waited_s", "ended_warm", "cells_in_bursts")
    )
    told = f"the GPU slowed itself ({', '.join(sorted(reasons))}) in {slowed} of {count} measurements"
    if not waits and not bursts:
        return [f"{told}; nothing was done about it, because an arm's opbench cannot tell the state of its GPU"]
    duty = f"bursts of {1e3 * BURST_S:.0f} ms with rests of {1e3 * REST_S:.0f} ms"
    ended = f", {warm} of them until their limit of {LONGEST_WAIT_S:.0f} s" if warm else ""
    return [
        f"{told}; the gate waited {waits} times for it to cool, {waited_s:.0f} s in all{ended}, and took the samples "
        f"of {bursts} measurements in {duty}, in both arms"
    ]
