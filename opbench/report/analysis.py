"""What rows say together: pairs and fits that plots, the page and the summary draw from. Plain rows in, rows kept.

Only ok rows with a latency take part. Nothing is rounded.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from opbench.results.row import MeasuredRow, Row, is_ok

__all__ = [
    "Fit",
    "Gain",
    "Launches",
    "Ratio",
    "Split",
    "intensity",
    "is_clear",
    "is_faster",
    "launches",
    "measured",
    "precision_gains",
    "scaling_fits",
    "speedups",
    "time_splits",
]

IDENTITY = (
    "run_id", "operator", "provider", "level", "direction", "shape_list", "shape", "dtype", "device", "timer",
    "cache", "settings",
)  # fmt: skip
LEAST_POINTS = 3
"""Resolutions that a fitted exponent needs: two would fit any line."""


@dataclass(frozen=True, slots=True)
class Split:
    """Where a module's time goes: its core, and what is left for projections and the rest around it.

    Attributes:
        module, core: the rows, equal but for the level.
        projections_ms: module latency less core latency; below 0 where the difference is within the noise.
    """

    module: MeasuredRow
    core: MeasuredRow
    projections_ms: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """One row against another operator's row of the same shape, dtype and set-up.

    Attributes:
        row, base: the rows.
        speedup: base latency / row latency; above 1 the row is faster.
    """

    row: MeasuredRow
    base: MeasuredRow
    speedup: float


@dataclass(frozen=True, slots=True)
class Gain:
    """What a dtype gives over strict fp32, and what it costs in exactness.

    Attributes:
        row, full: the rows; equal but for the dtype.
        speedup: fp32 latency / latency.
        error: largest error against the fp64 reference; None where the row has none.
        full_error: likewise in fp32.
    """

    row: MeasuredRow
    full: MeasuredRow
    speedup: float
    error: float | None
    full_error: float | None


@dataclass(frozen=True, slots=True)
class Launches:
    """One cell by CUDA events and by graph replay, in the same cache state.

    Attributes:
        event, graph: the rows.
        overhead_ms: event latency less graph latency.
    """

    event: MeasuredRow
    graph: MeasuredRow
    overhead_ms: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Latency as a power of the pixels: latency_ms = scale_ms * pixels ** exponent, by least squares in logarithms.

    Attributes:
        rows: those that were fitted, by pixels.
        exponent, scale_ms: of the fit.
        r_squared: share of the variance of log latency that the fit explains.
        channels: of every row; None where they change along with the resolution, which the exponent then includes.
    """

    rows: tuple[MeasuredRow, ...]
    exponent: float
    scale_ms: float
    r_squared: float
    channels: int | None


def measured(rows: Iterable[Row]) -> list[MeasuredRow]:
    """The rows that have a latency."""
    return [row for row in rows if is_ok(row) and row.latency_ms > 0]


def intensity(row: Row) -> float | None:
    """FLOP per byte that must cross the memory bus; None where either count is missing."""
    return row.flop_count / row.bytes_moved if row.flop_count and row.bytes_moved else None


def time_splits(rows: Iterable[Row]) -> list[Split]:
    """Module against core, where a run has both."""
    found = measured(rows)
    cores = {_key(row, "level"): row for row in found if row.level == "core"}
    return [
        Split(row, core, row.latency_ms - core.latency_ms)
        for row in found
        if row.level == "module" and (core := cores.get(_key(row, "level")))
    ]


def speedups(rows: Iterable[Row], against: str) -> list[Ratio]:
    """Every row against the operator `against`, by its first provider that has a value there."""
    found = measured(rows)
    bases: dict[tuple[object, ...], MeasuredRow] = {}
    for row in found:
        if row.operator == against:
            bases.setdefault(_key(row, "operator", "provider", "settings"), row)
    return [
        Ratio(row, base, base.latency_ms / row.latency_ms)
        for row in found
        if (base := bases.get(_key(row, "operator", "provider", "settings")))
    ]


def precision_gains(rows: Iterable[Row]) -> list[Gain]:
    """Every row against strict fp32, itself included with a speed-up of 1; rows without an fp32 one are left out."""
    found = measured(rows)
    full = {_key(row, "dtype"): row for row in found if row.dtype == "fp32"}
    return [
        Gain(row, base, base.latency_ms / row.latency_ms, row.max_rel_error, base.max_rel_error)
        for row in found
        if (base := full.get(_key(row, "dtype")))
    ]


def is_clear(gain: Gain) -> bool:
    """Whether the dtype is faster beyond the noise: the medians' intervals lie apart."""
    return is_faster(gain.row, gain.full)


def is_faster(row: MeasuredRow, other: MeasuredRow) -> bool:
    """Whether a row is faster than another beyond the noise: the medians' intervals lie apart."""
    high, low = row.ci_high_ms, other.ci_low_ms
    if high is None or low is None:  # a published figure
        return row.latency_ms < other.latency_ms
    return high < low


def launches(rows: Iterable[Row]) -> list[Launches]:
    """Event against graph time of the same cell, from one run or from two of the same device."""
    found = measured(rows)
    graphs = {_key(row, "timer", "run_id"): row for row in found if row.timer == "cuda-graph"}
    return [
        Launches(row, graph, row.latency_ms - graph.latency_ms)
        for row in found
        if row.timer == "cuda-event" and (graph := graphs.get(_key(row, "timer", "run_id")))
    ]


def scaling_fits(rows: Iterable[Row]) -> list[Fit]:
    """Latency against pixels (batch * height * width), per operator, provider, dtype and table.

    Rows of equal batch and channels are fitted together where they have three resolutions or more. Where a list
    has no such rows, all of it is fitted, and `channels` is None.
    """
    series: defaultdict[tuple[object, ...], list[MeasuredRow]] = defaultdict(list)
    for row in measured(rows):
        series[_key(row, "shape")].append(row)
    fits = []
    for members in series.values():
        alike: defaultdict[tuple[int, int], list[MeasuredRow]] = defaultdict(list)
        for row in members:
            alike[row.batch, row.channels].append(row)
        clean = [(group, channels) for (_, channels), group in alike.items() if _resolutions(group) >= LEAST_POINTS]
        chosen: list[tuple[list[MeasuredRow], int | None]] = [*clean] or [(members, None)]
        fits += [_fit(group, channels) for group, channels in chosen if _resolutions(group) >= LEAST_POINTS]
    return fits


def pixels(row: Row) -> int:
    """batch * height * width."""
    return row.batch * row.height * row.width


def _resolutions(rows: Sequence[Row]) -> int:
    return len({pixels(row) for row in rows})


def _fit(rows: Sequence[MeasuredRow], channels: int | None) -> Fit:
    ordered = sorted(rows, key=pixels)
    x = [math.log(pixels(row)) for row in ordered]
    y = [math.log(row.latency_ms) for row in ordered]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    exponent = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    offset = mean_y - exponent * mean_x
    total = sum((b - mean_y) ** 2 for b in y)
    left = sum((b - offset - exponent * a) ** 2 for a, b in zip(x, y, strict=True))
    return Fit(tuple(ordered), exponent, math.exp(offset), 1 - left / total if total else 1.0, channels)


def _key(row: Row, *without: str) -> tuple[object, ...]:
    return tuple(getattr(row, column) for column in IDENTITY if column not in without)
