"""Latency against the number of pixels, with the fitted exponent of each operator."""

from collections import defaultdict

from matplotlib.figure import Figure

from opbench.report.analysis import Fit, pixels, scaling_fits
from opbench.report.layout import Group, Series
from opbench.report.plots.source import Source
from opbench.report.plots.style import Page, log_axis, rows_of

__all__ = ["scaling_figure"]


def scaling_figure(source: Source, group: Group) -> Figure | None:
    """Median latency (ms) against batch * height * width, one panel per dtype; the exponents stand in the legend.

    Only what was fitted is drawn: three resolutions or more of equal channels, else the whole list (marked *).
    """
    series_of = {id(row): series for series in group.series for row in rows_of(group, series)}
    fits: defaultdict[str, list[tuple[Series, Fit]]] = defaultdict(list)
    for fit in scaling_fits(group.rows):
        fits[fit.rows[0].dtype].append((series_of[id(fit.rows[0])], fit))
    if not fits:
        return None
    dtypes = [dtype for dtype in group.dtypes if dtype in fits]
    page = Page(group, dtypes)
    exponents: defaultdict[Series, list[str]] = defaultdict(list)
    rows = [row for found in fits.values() for _, fit in found for row in fit.rows]
    for axes, dtype in zip(page.axes, dtypes, strict=True):
        for series, fit in fits[dtype]:
            page.draw(axes, series, [(pixels(row), row.latency_ms) for row in fit.rows])
            ends = [pixels(fit.rows[0]), pixels(fit.rows[-1])]
            line = [fit.scale_ms * end**fit.exponent for end in ends]
            axes.plot(ends, line, color=page.styles[series].colour, linewidth=1.0, linestyle="--", zorder=2)
            exponents[series].append(f"{dtype} {fit.exponent:.2f}{'*' if fit.channels is None else ''}")
        log_axis(axes.xaxis, [pixels(row) for row in rows])
        log_axis(axes.yaxis, [row.latency_ms for row in rows])
    page.label("pixels (batch × height × width)", "median latency (ms)")
    mixed = any(fit.channels is None for found in fits.values() for _, fit in found)
    title = "Scaling with resolution; dashed: fitted powers, their exponents below"
    if mixed:
        title += "\n*: channels change along with the resolution, and the exponent holds both"
    labels = {series: f"{group.label(series)}: {', '.join(texts)}" for series, texts in exponents.items()}
    return page.finish(source, title, dtypes, labels=labels)
