"""Where the time of a module goes: its core, and projections."""

from matplotlib.figure import Figure

from opbench.report import analysis
from opbench.report.layout import Group
from opbench.report.plots.source import Source
from opbench.report.plots.style import GREY, Page, dtypes_of, rows_of, shape_axis_name, shape_ticks

__all__ = ["split_figure"]


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
    dtypes = dtypes_of(group, [split.module for split in splits.values()])
    if not splits:
        return None
    page = Page(group, dtypes)
    drawn = [series for series in group.series if any(id(row) in splits for row in rows_of(group, series))]
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
