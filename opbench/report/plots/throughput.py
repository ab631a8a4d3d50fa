"""Achieved throughput against latency, with lines of equal FLOP count and the measured limits."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opbench.report.layout import Group
from opbench.report.plots.scatter import LATENCY, THROUGHPUT, scatter
from opbench.report.plots.source import Source
from opbench.report.plots.style import GREY, Point, name_top, si
from opbench.report.value_text import three_digits

__all__ = ["throughput_figure"]


def throughput_figure(source: Source, group: Group) -> Figure | None:
    """Achieved TFLOP/s (1e12 FLOP/s) against median latency (ms), and lines of equal FLOP count."""
    drawn = scatter(group, LATENCY, THROUGHPUT, source.ceilings)
    if drawn is None:
        return None
    title = "Achieved throughput against latency; grey: equal FLOP count"
    if source.ceilings:
        title += "\ndashed: most matrix throughput measured on this device; dotted: shortest launch"
    figure = drawn.page.finish(source, title, drawn.dtypes, missing=drawn.missing)
    figure.draw_without_rendering()  # lays out the panels, whose size sets the labels' angle and place
    for axes, dtype in zip(drawn.page.axes, drawn.dtypes, strict=True):
        points = [(LATENCY.of(row), THROUGHPUT.of(row)) for row in drawn.rows if row.dtype == dtype]
        _equal_flop_lines(axes, points, [row.flop_count or 0 for row in drawn.rows])
        _limits(axes, source, dtype, sorted({(row.timer, row.cache) for row in drawn.rows}))
    return figure


def _limits(axes: Axes, source: Source, dtype: str, timers: Sequence[tuple[str, str]]) -> None:
    """The dtype's matrix throughput, and the shortest launch of each timer."""
    if source.ceilings is None:
        return
    if top := source.ceilings.compute_tflops(dtype):
        axes.axhline(top, color=GREY, linewidth=1.0, linestyle="--", zorder=1)
        name_top(axes, top, f"{three_digits(top)} TFLOP/s measured")
    low, high = axes.get_xlim()
    for timer, cache in timers:
        launch_ms = source.ceilings.launch_ms(timer, cache)
        if launch_ms and low < launch_ms < high:
            axes.axvline(launch_ms, color=GREY, linewidth=1.0, linestyle=":", zorder=1)


def _equal_flop_lines(axes: Axes, points: list[Point], flop_counts: list[int]) -> None:
    """Thin lines on which the FLOP count is a power of ten, each named where it is farthest from the points.

    Args:
        axes: a logarithmic panel, latency (ms) across, TFLOP/s up, already laid out.
        points: what is drawn there.
        flop_counts: the FLOP counts that the lines should span.
    """
    low, high = math.floor(math.log10(min(flop_counts))), math.ceil(math.log10(max(flop_counts)))
    ends_ms = axes.get_xlim()
    obstacles = [_pixels(axes, point) for point in points]
    for exponent in range(low, high + 1, 1 + (high - low) // 7):
        flop_count = 10.0**exponent
        axes.plot(ends_ms, [flop_count / end / 1e9 for end in ends_ms], color="#bbbbbb", linewidth=0.7, zorder=1)
        place = _clearest_place(axes, flop_count, obstacles)
        if place is None:
            continue
        first, second = (_pixels(axes, (end, flop_count / end / 1e9)) for end in ends_ms)
        angle = math.degrees(math.atan2(second[1] - first[1], second[0] - first[0]))
        axes.text(
            *place,
            si(flop_count, "FLOP"),
            color="#666666",
            fontsize=7,
            rotation=angle,
            rotation_mode="anchor",
            ha="center",
            va="center",
            in_layout=False,
            zorder=2,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )


def _pixels(axes: Axes, point: Point) -> Point:
    """Where a point of the data stands on the page."""
    across, up = axes.transData.transform(point)
    return float(across), float(up)


def _clearest_place(axes: Axes, flop_count: float, obstacles: Sequence[Point]) -> Point | None:
    """The place (ms, TFLOP/s) on a line of equal FLOP count that is farthest from every obstacle (pixels)."""
    inch = axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    box = axes.bbox
    low, high = (math.log(end) for end in axes.get_xlim())
    best: tuple[float, Point] | None = None
    for step in range(61):
        latency_ms = math.exp(low + (high - low) * step / 60)
        place = (latency_ms, flop_count / latency_ms / 1e9)
        across, up = _pixels(axes, place)
        margin = 0.25 * inch  # half a label
        if not (box.x0 + margin < across < box.x1 - margin and box.y0 + margin < up < box.y1 - margin):
            continue
        clearance = min((math.hypot(across - a, up - b) for a, b in obstacles), default=inch)
        if best is None or clearance > best[0]:
            best = (clearance, place)
    return None if best is None else best[1]
