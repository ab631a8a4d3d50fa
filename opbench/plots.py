"""Figures of a results frame: each function takes what `opbench.load_results` gives and draws one figure per table.

A table is a shape list at one level and direction. The functions return matplotlib figures by the name of their table,
`<shape list>-<level>-<direction>`; with several runs in the frame, `<run_id>/<table>`. Where there is nothing to draw
the dictionary is empty. Limits are those that were measured with the run: frame.attrs["ceilings"], or the argument.

    frame = opbench.load_results("results/xeon-2core")
    figures = opbench.plots.roofline(frame)
    figures["smoke-module-fwd"].savefig("roofline.png")
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opbench.report.layout import Group, group_rows
from opbench.report.plots.files import flops_figure, resolution_figure, speedup_figure, throughput_figure
from opbench.report.plots.pairs import heatmap_figure, launches_figure, precision_figure, split_figure
from opbench.report.plots.roofline import roofline_figure
from opbench.report.plots.scaling import scaling_figure
from opbench.report.plots.source import Source, sources_of_frame
from opbench.report.plots.style import plot_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = [
    "flops",
    "half_precision",
    "heatmap",
    "launch_overhead",
    "precision",
    "resolution",
    "roofline",
    "scaling",
    "throughput",
    "time_split",
]

Figures = dict[str, "Figure"]
CeilingsByRun = Mapping[str, Any]


def roofline(frame: "DataFrame", *, ceilings: CeilingsByRun | None = None) -> Figures:
    """TFLOP/s against FLOP per byte moved, with the measured matrix throughput, memory and cache bandwidth."""
    return _draw(frame, roofline_figure, ceilings)


def throughput(frame: "DataFrame", *, ceilings: CeilingsByRun | None = None) -> Figures:
    """TFLOP/s against median latency (ms), with the measured matrix throughput and shortest launch."""
    return _draw(frame, throughput_figure, ceilings)


def flops(frame: "DataFrame") -> Figures:
    """Median latency (ms) against FLOP count."""
    return _draw(frame, flops_figure)


def time_split(frame: "DataFrame") -> Figures:
    """Share of a module's time (%) in its core and in projections (module less core); needs both levels."""
    return _draw(frame, split_figure)


def heatmap(frame: "DataFrame", *, against: str | None = None) -> Figures:
    """Speed-up of every operator over the operator `against` (dcnv3, else the first one) at each shape and dtype."""
    return _draw(frame, lambda source, group: heatmap_figure(source, group, against))


def half_precision(frame: "DataFrame") -> Figures:
    """Latency in fp32 / latency in fp16 (else bf16) at each shape."""
    return _draw(frame, speedup_figure)


def precision(frame: "DataFrame") -> Figures:
    """Largest error against the fp64 reference, against the speed-up over strict fp32; one panel per dtype."""
    return _draw(frame, precision_figure)


def launch_overhead(frame: "DataFrame") -> Figures:
    """Latency by CUDA events against latency by graph replay (ms); the rows may be of two runs on one device."""
    return _draw(frame, launches_figure, by="device")


def resolution(frame: "DataFrame") -> Figures:
    """Median latency (ms) at each shape, by pixels per image."""
    return _draw(frame, resolution_figure)


def scaling(frame: "DataFrame") -> Figures:
    """Median latency (ms) against pixels, with the fitted exponent of each operator."""
    return _draw(frame, scaling_figure)


def _draw(
    frame: "DataFrame",
    draw: "Callable[[Source, Group], Figure | None]",
    ceilings: CeilingsByRun | None = None,
    *,
    by: str = "run_id",
) -> Figures:
    sources = sources_of_frame(frame, ceilings=ceilings, by=by)
    figures = {}
    with plot_style():
        for name, source in sources.items():
            for group in group_rows(source.rows):
                figure = draw(source, group)
                if figure is not None:
                    figures[group.stem if len(sources) == 1 else f"{name}/{group.stem}"] = figure
    return figures
