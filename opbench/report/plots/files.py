"""Plots of one table: throughput, cost, half-precision speed-up and resolution; and the files of a run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from opbench.files import make_folder
from opbench.report.layout import Group, Series, group_rows
from opbench.report.plots.pairs import heatmap_figure, launches_figure, precision_figure, split_figure
from opbench.report.plots.roofline import ceiling_marks, roofline_figure
from opbench.report.plots.scaling import scaling_figure
from opbench.report.plots.source import Source, source_of_run
from opbench.report.plots.style import (
    FAINT,
    GREY,
    Page,
    Point,
    has_latency,
    log_axis,
    plot_style,
    save,
    shape_axis_name,
    shape_ticks,
    si,
)
from opbench.report.tables import half_precision, speedup
from opbench.results.row import MeasuredRow, Row
from opbench.results.run import Run

__all__ = ["write_plots"]


def write_plots(run: Run, *others: Run) -> list[Path]:
    """Draw every plot of a run into its folder `plots`, each as PNG and SVG.

    A plot without a single value is not drawn; cells without a value are counted in the figure.

    Args:
        run: whose plots.
        others: runs of the same device, for plots that compare two: events and graphs.

    Returns:
        The files written.
    """
    folder = run.path / "plots"
    make_folder(folder)
    alone, beside = source_of_run(run), source_of_run(run, *others)
    written = []
    for source, kinds in ((alone, KINDS), (beside, {"launches": launches_figure})):
        for group in group_rows(source.rows):
            for kind, draw in kinds.items():
                with plot_style():
                    figure = draw(source, group)
                    if figure is not None:
                        written += save(figure, folder / f"{kind}-{group.stem}")
    return written


@dataclass(frozen=True, slots=True)
class Axis:
    """What a scatter plot shows along one axis."""

    column: str
    """Of measurements.csv."""
    name: str
    unit: str = ""
    """Written at the ticks with a decimal prefix; empty where the name holds it."""

    def of(self, row: Row) -> float:
        """The value of a row that has one."""
        return float(getattr(row, self.column))


LATENCY = Axis("latency_ms", "median latency (ms)")
THROUGHPUT = Axis("tflops", "TFLOP/s")
FLOP_COUNT = Axis("flop_count", "FLOP count of one pass", "FLOP")


def throughput_figure(source: Source, group: Group) -> Figure | None:
    """Achieved TFLOP/s (1e12 FLOP/s) against median latency (ms), and lines of equal FLOP count."""
    title = "Achieved throughput against latency; grey: equal FLOP count"
    if source.ceilings:
        title += "\ndashed: most matrix throughput measured on this device; dotted: shortest launch"
    return _scatter(source, group, title, LATENCY, THROUGHPUT)


def flops_figure(source: Source, group: Group) -> Figure | None:
    """Median latency (ms) against FLOP count."""
    return _scatter(source, group, "Latency against FLOP count", FLOP_COUNT, LATENCY)


def _has_rate(row: Row | None) -> TypeGuard[MeasuredRow]:
    """Whether a row can stand on logarithmic axes of latency, FLOP count and throughput."""
    return has_latency(row) and bool(row.flop_count)


def _scatter(source: Source, group: Group, title: str, x: Axis, y: Axis) -> Figure | None:
    """One marker per cell, one panel per dtype, both axes logarithmic."""
    rows = [row for row in group.rows if _has_rate(row)]
    if not rows:
        return None
    dtypes = [dtype for dtype in group.dtypes if any(row.dtype == dtype for row in rows)]
    page = Page(group, dtypes)
    ceilings = source.ceilings if y == THROUGHPUT else None
    tops = [top for dtype in dtypes if ceilings and (top := ceilings.compute_tflops(dtype))]
    for axes, dtype in zip(page.axes, dtypes, strict=True):
        for series in group.series:
            cells = [group.cell(series, shape, dtype) for shape in group.shapes]
            page.draw(axes, series, [(x.of(cell), y.of(cell)) for cell in cells if _has_rate(cell)])
        log_axis(axes.xaxis, [x.of(row) for row in rows], unit=x.unit)
        log_axis(axes.yaxis, [*(y.of(row) for row in rows), *tops], unit=y.unit)
    page.label(x.name, y.name)
    figure = page.finish(source, title, dtypes, missing=len(group.rows) - len(rows))
    if (x, y) == (LATENCY, THROUGHPUT):
        figure.draw_without_rendering()  # lays out the panels, whose size sets the labels' angle and place
        for axes, dtype in zip(page.axes, dtypes, strict=True):
            points = [(x.of(row), y.of(row)) for row in rows if row.dtype == dtype]
            _equal_flop_lines(axes, points, [row.flop_count or 0 for row in rows])
            ceiling_marks(axes, source, dtype, sorted({(row.timer, row.cache) for row in rows}))
    return figure


def speedup_figure(source: Source, group: Group) -> Figure | None:
    """Latency in fp32 divided by latency in fp16 (else bf16), per operator and shape."""
    half = half_precision(group)
    if half is None:
        return None
    ratios: dict[Series, list[Point]] = {series: [] for series in group.series}
    missing = 0
    for place, shape in enumerate(group.shapes):
        for series, found in ratios.items():
            full_row, half_row = (group.cell(series, shape, dtype) for dtype in ("fp32", half))
            if ratio := speedup(full_row, half_row):
                found.append((place, ratio))
            elif full_row or half_row:
                missing += 1
    drawn = [series for series, found in ratios.items() if found]
    if not drawn:
        return None
    page = Page(group, [f"fp32 latency / {half} latency; above 1: {half} is faster"])
    (axes,) = page.axes
    for rank, series in enumerate(drawn):
        # Side by side within a shape: equal speed-ups would hide each other.
        offset = 0.8 * ((rank + 0.5) / len(drawn) - 0.5)
        places, heights = zip(*ratios[series], strict=True)
        moved = [place + offset for place in places]
        page.draw(axes, series, list(zip(moved, heights, strict=True)))
        axes.vlines(moved, 1.0, heights, color=page.styles[series].colour, linewidth=1.0, zorder=2)
    _speedup_axes(axes, group, [ratio for found in ratios.values() for _, ratio in found])
    page.label(shape_axis_name(group), "speed-up")
    return page.finish(source, f"Speed-up of {half} over fp32", ["fp32", half], missing=missing)


def _speedup_axes(axes: Axes, group: Group, ratios: list[float]) -> None:
    """A logarithmic axis in powers of two with a line at 1, and the shapes across, kept apart."""
    log_axis(axes.yaxis, [*ratios, 0.75, 1.5], least_span=1.0)
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.5) if high / low < 16 else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}×"))
    axes.axhline(1.0, color=GREY, linewidth=1.2, zorder=1)
    axes.grid(False, axis="x")
    shape_ticks(axes, group.shapes, batch=group.common_batch is None, room=9)
    for edge in range(1, len(group.shapes)):
        axes.axvline(edge - 0.5, color=FAINT, linewidth=0.8)


def resolution_figure(source: Source, group: Group) -> Figure | None:
    """Median latency (ms) per operator, shapes ordered by pixels per image; one panel per dtype."""
    rows = [row for row in group.rows if has_latency(row)]
    if not rows:
        return None
    dtypes = [dtype for dtype in group.dtypes if any(row.dtype == dtype for row in rows)]
    shapes = sorted(group.shapes, key=lambda shape: (shape.height * shape.width, shape.channels, shape.batch))
    page = Page(group, dtypes, lines=True)
    for axes, dtype in zip(page.axes, dtypes, strict=True):
        for series in group.series:
            cells = [group.cell(series, shape, dtype) for shape in shapes]
            if any(has_latency(cell) for cell in cells):
                # NaN breaks the line: nothing is drawn across a shape without a value.
                latencies = [cell.latency_ms if has_latency(cell) else math.nan for cell in cells]
                page.draw(axes, series, list(enumerate(latencies)))
        log_axis(axes.yaxis, [row.latency_ms for row in rows])
        shape_ticks(axes, shapes, batch=group.common_batch is None, room=6 if len(dtypes) > 1 else 10)
    page.label(f"{shape_axis_name(group)}, by pixels per image", LATENCY.name)
    return page.finish(source, "Latency against resolution", dtypes, missing=len(group.rows) - len(rows))


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


KINDS: dict[str, Callable[[Source, Group], Figure | None]] = {
    "throughput": throughput_figure,
    "roofline": roofline_figure,
    "flops": flops_figure,
    "speedup": speedup_figure,
    "resolution": resolution_figure,
    "scaling": scaling_figure,
    "split": split_figure,
    "heatmap": heatmap_figure,
    "precision": precision_figure,
}
"""Start of a plot's file name, and what draws it from one table's rows."""
