"""Throughput against arithmetic intensity under the device's measured ceilings."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opbench.report.analysis import intensity, measured
from opbench.report.layout import Group
from opbench.report.plots.source import Source
from opbench.report.plots.style import GREY, Page, dtypes_of, log_axis, name_top
from opbench.report.value_text import three_digits

__all__ = ["roofline_figure"]


def roofline_figure(source: Source, group: Group) -> Figure | None:
    """TFLOP/s (1e12 FLOP/s) against FLOP per byte moved, one panel per dtype, with the measured ceilings.

    The sloping lines are bandwidth (memory; dotted: a warm cache), the level one is matrix throughput.
    """
    points = {id(row): (x, row.tflops) for row in measured(group.rows) if (x := intensity(row)) and row.tflops}
    rows = [row for row in group.rows if id(row) in points]
    if not rows:
        return None
    dtypes = dtypes_of(group, rows)
    page = Page(group, dtypes)
    ceilings = source.ceilings
    tops = [top for dtype in dtypes if ceilings and (top := ceilings.compute_tflops(dtype))]
    for axes, dtype in zip(page.axes, dtypes, strict=True):
        for series in group.series:
            cells = [group.cell(series, shape, dtype) for shape in group.shapes]
            page.draw(axes, series, [points[id(cell)] for cell in cells if id(cell) in points])
        log_axis(axes.xaxis, [x for x, _ in points.values()])
        log_axis(axes.yaxis, [*(y for _, y in points.values()), *tops])
        _roofs(axes, source, dtype)
    page.label("FLOP per byte moved", "TFLOP/s")
    title = "Roofline; " + ("lines: ceilings measured on this device" if ceilings else "no ceilings were measured")
    return page.finish(source, title, dtypes, missing=len(group.rows) - len(rows))


def _roofs(axes: Axes, source: Source, dtype: str) -> None:
    ceilings = source.ceilings
    top = ceilings.compute_tflops(dtype) if ceilings else None
    if ceilings is None or top is None:
        return
    low, high = axes.get_xlim()
    bottom = axes.get_ylim()[0]
    for kind, style in (("memory", "--"), ("cache", ":")):
        gbps = ceilings.bandwidth_gbps(kind)
        if gbps is None:
            continue
        knee = top * 1e3 / gbps
        xs = sorted({low, min(max(knee, low), high), high})
        axes.plot(xs, [min(top, x * gbps / 1e3) for x in xs], color=GREY, linewidth=1.0, linestyle=style, zorder=1)
        start = max(low, bottom * 1e3 / gbps) * 1.1
        if start < min(knee, high):
            axes.annotate(
                f"{kind} {three_digits(gbps)} GB/s",
                (start, start * gbps / 1e3),
                fontsize=7,
                color="#555555",
                ha="left",
                va="top",
                xytext=(5, 0),
                textcoords="offset points",
            )
    name_top(axes, top, f"{three_digits(top)} TFLOP/s")
