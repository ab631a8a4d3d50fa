"""Speed-up of half precision over fp32."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from opbench.report.layout import Group, Series
from opbench.report.plots.source import Source
from opbench.report.plots.style import FAINT, GREY, Page, Point, log_axis, shape_axis_name, shape_ticks
from opbench.report.tables import half_precision, speedup

__all__ = ["speedup_figure"]


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
