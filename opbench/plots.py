"""Figures of a results frame: each function takes what `opbench.load_results` gives and draws one figure per table.

A table is a shape list at one level and direction. The functions return matplotlib figures by the name of their table,
`<shape list>-<level>-<direction>`; with several runs in the frame, `<run_id>/<table>`. Where there is nothing to draw
the dictionary is empty. Limits are those that were measured with the run: frame.attrs["ceilings"], or the argument.

    frame = opbench.load_results("results/xeon-2core")
    figures = opbench.plots.roofline(frame)
    figures["smoke-module-fwd"].savefig("roofline.png")
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opbench.report.layout import group_rows
from opbench.report.plots.kinds import KINDS
from opbench.report.plots.source import sources_of_frame
from opbench.report.plots.style import plot_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = [
    "flops",
    "half_precision",
    "heatmap",
    "launch_overhead",
    "offset_spread",
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
    return _draw(frame, "roofline", ceilings)


def throughput(frame: "DataFrame", *, ceilings: CeilingsByRun | None = None) -> Figures:
    """TFLOP/s against median latency (ms), with the measured matrix throughput and shortest launch."""
    return _draw(frame, "throughput", ceilings)


def flops(frame: "DataFrame") -> Figures:
    """Median latency (ms) against FLOP count."""
    return _draw(frame, "flops")


def time_split(frame: "DataFrame") -> Figures:
    """Share of a module's time (%) in its core and in projections (module less core); needs both levels."""
    return _draw(frame, "split")


def heatmap(frame: "DataFrame", *, against: str | None = None) -> Figures:
    """Speed-up of every operator over the operator `against` (dcnv3, else the first one) at each shape and dtype."""
    return _draw(frame, "heatmap", against=against)


def half_precision(frame: "DataFrame") -> Figures:
    """Latency in fp32 / latency in fp16 (else bf16) at each shape."""
    return _draw(frame, "speedup")


def precision(frame: "DataFrame") -> Figures:
    """Largest error against the fp64 reference, against the speed-up over strict fp32; one panel per dtype."""
    return _draw(frame, "precision")


def launch_overhead(frame: "DataFrame") -> Figures:
    """Latency by CUDA events against latency by graph replay (ms); the rows may be of two runs on one device."""
    return _draw(frame, "launches")


def offset_spread(frame: "DataFrame") -> Figures:
    """Median latency (ms) against the standard deviation of the offsets (pixels); needs two of them."""
    return _draw(frame, "offsets")


def resolution(frame: "DataFrame") -> Figures:
    """Median latency (ms) at each shape, by pixels per image."""
    return _draw(frame, "resolution")


def scaling(frame: "DataFrame") -> Figures:
    """Median latency (ms) against pixels, with the fitted exponent of each operator."""
    return _draw(frame, "scaling")


def _draw(frame: "DataFrame", name: str, ceilings: CeilingsByRun | None = None, **options: str | None) -> Figures:
    kind = KINDS[name]
    sources = sources_of_frame(frame, ceilings=ceilings, by="device" if kind.joins_runs else "run_id")
    figures = {}
    with plot_style():
        for source_name, source in sources.items():
            for group in group_rows(source.rows):
                figure = kind.draw(source, group, **options)
                if figure is not None:
                    figures[group.stem if len(sources) == 1 else f"{source_name}/{group.stem}"] = figure
    return figures
