"""The figures of a run, each once: its name, what draws it, and which rows it needs."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from opbench.report.plots.flops import flops_figure
from opbench.report.plots.heatmap import heatmap_figure
from opbench.report.plots.launches import launches_figure
from opbench.report.plots.offsets import offsets_figure
from opbench.report.plots.precision import precision_figure
from opbench.report.plots.resolution import resolution_figure
from opbench.report.plots.roofline import roofline_figure
from opbench.report.plots.scaling import scaling_figure
from opbench.report.plots.speedup import speedup_figure
from opbench.report.plots.split import split_figure
from opbench.report.plots.throughput import throughput_figure

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of figure.

    Attributes:
        draw: called with a Source and one table's Group; None where there is nothing to draw.
        joins_runs: it compares rows of several runs on one device.
    """

    draw: Callable[..., Figure | None]
    joins_runs: bool = False


KINDS = {
    "throughput": Kind(throughput_figure),
    "roofline": Kind(roofline_figure),
    "flops": Kind(flops_figure),
    "speedup": Kind(speedup_figure),
    "resolution": Kind(resolution_figure),
    "scaling": Kind(scaling_figure),
    "split": Kind(split_figure),
    "heatmap": Kind(heatmap_figure),
    "precision": Kind(precision_figure),
    "offsets": Kind(offsets_figure),
    "launches": Kind(launches_figure, joins_runs=True),
}
"""By the start of the plot's file name; a new figure is an entry here, and a function of opbench.plots."""
