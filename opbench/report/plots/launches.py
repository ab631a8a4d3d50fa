"""Launch overhead: latency by events against latency by graph replay."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opbench.report import analysis
from opbench.report.layout import Group, Series
from opbench.report.plots.source import Source
from opbench.report.plots.style import FAINT, Page, Point, dtypes_of, log_axis

__all__ = ["launches_figure"]


def launches_figure(source: Source, group: Group) -> Figure | None:
    """Latency by CUDA events against latency by graph replay (ms); above the line the gaps between kernels show."""
    pairs = {id(pair.event): pair for pair in analysis.launches(group.rows)}
    if not pairs:
        return None
    dtypes = dtypes_of(group, [pair.event for pair in pairs.values()])
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


def _launch_points(group: Group, pairs: Mapping[int, analysis.Launches]) -> dict[tuple[str, Series], list[Point]]:
    known = {(series.operator, series.provider): series for series in group.series}
    points: dict[tuple[str, Series], list[Point]] = {}
    for pair in pairs.values():
        series = known[pair.event.operator, pair.event.provider]
        point = (pair.graph.latency_ms, pair.event.latency_ms)
        points.setdefault((pair.event.dtype, series), []).append(point)
    return points


def _diagonal(axes: Axes) -> None:
    low = max(axes.get_xlim()[0], axes.get_ylim()[0])
    high = min(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color=FAINT, linewidth=1.5, zorder=1)
