"""Speed-up of every operator over one of them."""

import math

from matplotlib.figure import Figure

from opbench.report import analysis
from opbench.report.layout import OPERATOR_LABELS, Group
from opbench.report.plots.source import Source
from opbench.report.plots.style import Page, shape_axis_name, shape_ticks
from opbench.report.value_text import three_digits
from opbench.results.row import Row

__all__ = ["heatmap_figure"]


BASE = "dcnv3"
"""What others are compared with where nothing is chosen: as the published ratios."""


def _default_base(rows: tuple[Row, ...]) -> str | None:
    """DCNv3 where it has a value, else the first operator that has one."""
    operators = list(dict.fromkeys(row.operator for row in analysis.measured(rows)))
    return BASE if BASE in operators else next(iter(operators), None)


def heatmap_figure(source: Source, group: Group, against: str | None = None) -> Figure | None:
    """Latency of the operator `against` / latency, operators down, shapes and dtypes across; above 1 is faster."""
    against = against or _default_base(group.rows)
    ratios = {id(ratio.row): ratio.speedup for ratio in analysis.speedups(group.rows, against or "")}
    if len({series.operator for series in group.series}) < 2 or not ratios:
        return None
    label = OPERATOR_LABELS.get(against or "", against)
    page = Page(group, [f"{label} latency / latency"])
    (axes,) = page.axes
    columns = [(shape, dtype) for dtype in group.dtypes for shape in group.shapes]
    grid = [
        [ratios.get(id(group.cell(series, shape, dtype)), math.nan) for shape, dtype in columns]
        for series in group.series
    ]
    logs = [[math.log2(ratio) for ratio in line] for line in grid]
    reach = max(1.0, *(abs(value) for line in logs for value in line if not math.isnan(value)))
    axes.imshow(logs, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for down, line in enumerate(grid):
        for across, ratio in enumerate(line):
            if not math.isnan(ratio):
                ink = "white" if abs(logs[down][across]) > 0.7 * reach else "black"
                axes.text(across, down, three_digits(ratio), ha="center", va="center", fontsize=7, color=ink)
    axes.grid(False)
    axes.set_yticks(range(len(group.series)), [group.label(series) for series in group.series])
    batch = group.common_batch is None
    shape_ticks(axes, [shape for shape, _ in columns], batch=batch, room=7)
    for number, dtype in enumerate(group.dtypes):
        place = (number + 0.5) * len(group.shapes) - 0.5
        axes.annotate(
            dtype, (place, 1.0), xycoords=axes.get_xaxis_transform(), xytext=(0, 2), textcoords="offset points",
            ha="center", va="bottom",
        )  # fmt: skip
        if number:
            axes.axvline(number * len(group.shapes) - 0.5, color="black", linewidth=1.0)
    axes.set_title(f"{label} latency / latency; above 1 (blue) is faster than {label}", pad=16)
    axes.set_xlabel(shape_axis_name(group))
    missing = sum(math.isnan(ratio) for line in grid for ratio in line)
    return page.finish(source, f"Speed-up against {label}", group.dtypes, missing=missing)
