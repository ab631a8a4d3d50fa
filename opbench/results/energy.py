"""The energy of a cell, as it was measured, and the figures that follow from it. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

__all__ = ["EnergyWindow", "energy_columns", "together"]


@dataclass(frozen=True, slots=True)
class EnergyWindow:
    """What the device used in a window of launches back to back, between two changes of its counter.

    Attributes:
        source: of the counter: `nvml`, or `rapl: ` and its domains.
        window_mj: all that was used in the window, mJ.
        window_s: its length, seconds.
        launches: in it.
        counter_updates: how often the counter was seen to change in it, its end included and its begin not.
        idle_power_w: right before it, of the device without work, W.
    """

    source: str
    window_mj: float
    window_s: float
    launches: int
    counter_updates: int
    idle_power_w: float

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The window of a journal's line; fields that only a newer opbench knows are left out.

        Raises:
            KeyError, TypeError, ValueError: no version of opbench writes that.
        """
        values = {field.name: data[field.name] for field in fields(cls)}
        if not (isinstance(values["source"], str) and values["source"].isprintable()):
            raise ValueError(f"source must be a printable text, got {values['source']!r:.60}")
        for name in ("launches", "counter_updates"):
            if not (type(values[name]) is int and values[name] >= 1):
                raise ValueError(f"{name} must be a positive integer, got {values[name]!r:.60}")
        for name in ("window_mj", "window_s", "idle_power_w"):
            if type(values[name]) not in (int, float) or not 0 <= values[name] < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {values[name]!r:.60}")
        if not values["window_s"]:
            raise ValueError("window_s must be above 0")
        return cls(**values)


def energy_columns(window: EnergyWindow | None, flop_count: int) -> dict[str, Any]:
    """The columns of a row about energy; each None where there is no window.

    Args:
        window: of the cell.
        flop_count: of one launch.
    """
    names = (
        "energy_mj", "energy_idle_subtracted_mj", "energy_window_s", "energy_launches", "energy_counter_updates",
        "energy_source", "average_power_w", "idle_power_w", "gflop_per_joule",
    )  # fmt: skip
    if window is None:
        return dict.fromkeys(names)
    idle_mj = 1e3 * window.idle_power_w * window.window_s
    values = (
        window.window_mj / window.launches,
        (window.window_mj - idle_mj) / window.launches,
        window.window_s,
        window.launches,
        window.counter_updates,
        window.source,
        window.window_mj / window.window_s / 1e3,
        window.idle_power_w,
        flop_count * window.launches / window.window_mj / 1e6 if window.window_mj else None,
    )
    return dict(zip(names, values, strict=True))


def together(windows: Sequence[EnergyWindow]) -> EnergyWindow | None:
    """The windows of several processes as one; None where there is none."""
    if not windows:
        return None
    seconds = sum(window.window_s for window in windows)
    return EnergyWindow(
        source=", ".join(dict.fromkeys(window.source for window in windows)),
        window_mj=sum(window.window_mj for window in windows),
        window_s=seconds,
        launches=sum(window.launches for window in windows),
        counter_updates=sum(window.counter_updates for window in windows),
        idle_power_w=sum(window.idle_power_w * window.window_s for window in windows) / seconds,
    )
