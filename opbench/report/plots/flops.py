"""Latency against FLOP count."""

from matplotlib.figure import Figure

from opbench.report.layout import Group
from opbench.report.plots.scatter import FLOP_COUNT, LATENCY, scatter
from opbench.report.plots.source import Source

__all__ = ["flops_figure"]


def flops_figure(source: Source, group: Group) -> Figure | None:
    """Median latency (ms) against FLOP count."""
    drawn = scatter(group, FLOP_COUNT, LATENCY)
    if drawn is None:
        return None
    return drawn.page.finish(source, "Latency against FLOP count", drawn.dtypes, missing=drawn.missing)
