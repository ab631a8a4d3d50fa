"""Plots of two rows at a time: module and core, one operator and another, fp32 and less, events and graphs."""

import math
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opbench.report import analysis
from opbench.report.layout import OPERATOR_LABELS, Group, Series, three_digits
from opbench.report.plots.source import Source
from opbench.report.plots.style import FAINT, GREY, Page, log_axis, shape_axis_name, shape_ticks
from opbench.results.row import Row

__all__ = ["default_base", "heatmap_figure", "launches_figure", "precision_figure", "split_figure"]

BASE = "dcnv3"
"""What others are compared with where nothing is chosen: as the published ratios."""


def split_figure(source: Source, group: Group) -> Figure | None:
    """Share of a module's time (%) that its core takes, and what is left for projections; one panel per dtype.

    Drawn with the module's table. A core that took longer than its module (noise) shows as a share above 100 %.
    """
    if group.level != "module":
        return None
    beside = [
        row
        for row in source.rows
        if (row.shape_list, row.direction) == (group.shape_list, group.direction) and row.level in ("module", "core")
    ]
    splits = {id(split.module): split for split in analysis.time_splits(beside)}
    dtypes = [dtype for dtype in group.dtypes if any(split.module.dtype == dtype for split in splits.values())]
    if not splits:
        return None
    page = Page(group, dtypes)
    drawn = [series for series in group.series if any(id(row) in splits for row in _rows(group, series))]
    width = 0.8 / len(drawn)
    for axes, dtype in zip(page.axes, dtypes, strict=True):
        for rank, series in enumerate(drawn):
            for place, shape in enumerate(group.shapes):
                row = group.cell(series, shape, dtype)
                if row is not None and (split := splits.get(id(row))):
                    core = 100 * split.core.latency_ms / split.module.latency_ms
                    left = place - 0.4 + rank * width
                    colour = page.styles[series].colour
                    axes.bar(left, core, 0.9 * width, align="edge", color=colour, zorder=2)
                    axes.bar(
                        left, 100 - core, 0.9 * width, bottom=core, align="edge", color=colour, alpha=0.3, zorder=2
                    )
                    page.used(series)
        axes.axhline(100, color=GREY, linewidth=0.8, zorder=1)
        axes.grid(False, axis="x")
        shape_ticks(axes, group.shapes, batch=group.common_batch is None, room=6 if len(dtypes) > 1 else 10)
    page.label(shape_axis_name(group), "share of the module's time (%)")
    return page.finish(source, "Where time goes; full: core, pale: projections (module less core)", dtypes)


def default_base(rows: tuple[Row, ...]) -> str | None:
    """DCNv3 where it has a value, else the first operator that has one."""
    operators = list(dict.fromkeys(row.operator for row in analysis.measured(rows)))
    return BASE if BASE in operators else next(iter(operators), None)


def heatmap_figure(source: Source, group: Group, against: str | None = None) -> Figure | None:
    """Latency of the operator `against` / latency, operators down, shapes and dtypes across; above 1 is faster."""
    against = against or default_base(group.rows)
    ratios = {id(ratio.row): ratio.speedup for ratio in analysis.speedups(group.rows, against or "")}
    if len({series.operator for series in group.series}) < 2 or not ratios:
        return None
    label = OPERATOR_LABELS.get(against or "", against)
    page = Page(group, [f"{label} latency / latency"])
    (axes,) = page.axes
    columns = [(shape, dtype) for dtype in group.dtypes for shape in group.shapes]
    grid = [
        [ratios.get(id(group.cell(series, shape, dtype)), math.nan) for shape, dtype in columns]
        for series in group.series
    ]
    logs = [[math.log2(ratio) for ratio in line] for line in grid]
    reach = max(1.0, *(abs(value) for line in logs for value in line if not math.isnan(value)))
    axes.imshow(logs, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for down, line in enumerate(grid):
        for across, ratio in enumerate(line):
            if not math.isnan(ratio):
                ink = "white" if abs(logs[down][across]) > 0.7 * reach else "black"
                axes.text(across, down, three_digits(ratio), ha="center", va="center", fontsize=7, color=ink)
    axes.grid(False)
    axes.set_yticks(range(len(group.series)), [group.label(series) for series in group.series])
    batch = group.common_batch is None
    shape_ticks(axes, [shape for shape, _ in columns], batch=batch, room=7)
    for number, dtype in enumerate(group.dtypes):
        place = (number + 0.5) * len(group.shapes) - 0.5
        axes.annotate(
            dtype, (place, 1.0), xycoords=axes.get_xaxis_transform(), xytext=(0, 2), textcoords="offset points",
            ha="center", va="bottom",
        )  # fmt: skip
        if number:
            axes.axvline(number * len(group.shapes) - 0.5, color="black", linewidth=1.0)
    axes.set_title(f"{label} latency / latency; above 1 (blue) is faster than {label}", pad=16)
    axes.set_xlabel(shape_axis_name(group))
    missing = sum(math.isnan(ratio) for line in grid for ratio in line)
    return page.finish(source, f"Speed-up against {label}", group.dtypes, missing=missing)


def precision_figure(source: Source, group: Group) -> Figure | None:
    """Largest error against the fp64 reference, against the speed-up over strict fp32; one panel per dtype.

    fp32 itself stands at a speed-up of 1: faster is right, less exact is up.
    """
    gains = [gain for gain in analysis.precision_gains(group.rows) if gain.error]
    dtypes = [dtype for dtype in group.dtypes if any(gain.row.dtype == dtype for gain in gains)]
    if not any(dtype != "fp32" for dtype in dtypes):
        return None
    page = Page(group, dtypes)
    series_of = {id(row): series for series in group.series for row in _rows(group, series)}
    points: dict[tuple[str, Series], list[tuple[float, float]]] = {}
    for gain in gains:
        key = (gain.row.dtype, series_of[id(gain.row)])
        points.setdefault(key, []).append((gain.speedup, float(gain.error or 0)))
    for axes, dtype in zip(page.axes, dtypes, strict=True):
        for series in group.series:
            page.draw(axes, series, points.get((dtype, series), []))
        log_axis(axes.xaxis, [*(gain.speedup for gain in gains), 0.75, 1.5], least_span=1.0)
        log_axis(axes.yaxis, [float(gain.error or 0) for gain in gains])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        axes.axvline(1.0, color=GREY, linewidth=1.0, zorder=1)
    page.label("speed-up over fp32 (×)", "largest error against fp64")
    return page.finish(source, "Speed against exactness", dtypes, missing=len(group.rows) - len(gains))


def launches_figure(source: Source, group: Group) -> Figure | None:
    """Latency by CUDA events against latency by graph replay (ms); above the line the gaps between kernels show."""
    pairs = {id(pair.event): pair for pair in analysis.launches(group.rows)}
    if not pairs:
        return None
    dtypes = [dtype for dtype in group.dtypes if any(pair.event.dtype == dtype for pair in pairs.values())]
    page = Page(group, dtypes)
    latencies = [row.latency_ms for pair in pairs.values() for row in (pair.event, pair.graph)]
    # A group of both timers' rows has two for each cell; only one of them is in the group's own index.
    points = _launch_points(group, pairs)
    for axes, dtype in zip(page.axes, dtypes, strict=True):
        for series in group.series:
            page.draw(axes, series, points.get((dtype, series), []))
        for axis in (axes.xaxis, axes.yaxis):
            log_axis(axis, latencies)
        _diagonal(axes)
    page.label("by CUDA graph (ms)", "by CUDA events (ms)")
    return page.finish(source, "Launch overhead: events against graph; line: equal", dtypes)


def _launch_points(
    group: Group, pairs: Mapping[int, analysis.Launches]
) -> dict[tuple[str, Series], list[tuple[float, float]]]:
    known = {(series.operator, series.provider): series for series in group.series}
    points: dict[tuple[str, Series], list[tuple[float, float]]] = {}
    for pair in pairs.values():
        series = known[pair.event.operator, pair.event.provider]
        point = (pair.graph.latency_ms, pair.event.latency_ms)
        points.setdefault((pair.event.dtype, series), []).append(point)
    return points


def _diagonal(axes: Axes) -> None:
    low = max(axes.get_xlim()[0], axes.get_ylim()[0])
    high = min(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color=FAINT, linewidth=1.5, zorder=1)


def _rows(group: Group, series: Series) -> list[Row]:
    cells = (group.cell(series, shape, dtype) for shape in group.shapes for dtype in group.dtypes)
    return [cell for cell in cells if cell is not None]
