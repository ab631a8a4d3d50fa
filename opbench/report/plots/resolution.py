"""Latency against resolution."""

import math

from matplotlib.figure import Figure

from opbench.report.layout import Group
from opbench.report.plots.source import Source
from opbench.report.plots.style import Page, dtypes_of, has_latency, log_axis, shape_axis_name, shape_ticks

__all__ = ["resolution_figure"]


def resolution_figure(source: Source, group: Group) -> Figure | None:
    """Median latency (ms) per operator, shapes ordered by pixels per image; one panel per dtype."""
    rows = [row for row in group.rows if has_latency(row)]
    if not rows:
        return None
    dtypes = dtypes_of(group, rows)
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
    page.label(f"{shape_axis_name(group)},\nby pixels per image", "median latency (ms)")
    return page.finish(source, "Latency against resolution", dtypes, missing=len(group.rows) - len(rows))
