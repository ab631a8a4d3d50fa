"""Error against speed-up of the precisions below fp32."""

from matplotlib.figure import Figure

from opbench.report import analysis
from opbench.report.layout import Group, Series
from opbench.report.plots.source import Source
from opbench.report.plots.style import GREY, Page, Point, dtypes_of, log_axis, rows_of

__all__ = ["precision_figure"]


def precision_figure(source: Source, group: Group) -> Figure | None:
    """Largest error against the fp64 reference, against the speed-up over strict fp32; one panel per dtype.

    fp32 itself stands at a speed-up of 1: faster is right, less exact is up.
    """
    gains = [gain for gain in analysis.precision_gains(group.rows) if gain.error]
    dtypes = dtypes_of(group, [gain.row for gain in gains])
    if not any(dtype != "fp32" for dtype in dtypes):
        return None
    page = Page(group, dtypes)
    series_of = {id(row): series for series in group.series for row in rows_of(group, series)}
    points: dict[tuple[str, Series], list[Point]] = {}
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
