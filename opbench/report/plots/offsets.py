"""Latency against the spread of the offsets."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from matplotlib.typing import FillStyleType, LineStyleType

from opbench.report.layout import Group
from opbench.report.plots.source import Source
from opbench.report.plots.style import GREY, Page, log_axis
from opbench.report.spreads import distributions, spread_group, spread_lines, spread_px
from opbench.report.value_text import shape_text

__all__ = ["offsets_figure"]

LOOKS: tuple[tuple[FillStyleType, LineStyleType], ...] = (
    ("full", "-"),
    ("none", (0, (5.0, 2.0))),
    ("left", (0, (1.0, 1.5))),
    ("bottom", (0, (6.0, 1.5, 1.0, 1.5))),
)
"""Fill of the markers and dashes of the lines of each distribution; the colour is the operator's."""
CLOSEST_TICKS = 1.25
"""Ratio of spreads below which the second has no tick: a file's stands beside round ones."""


def offsets_figure(source: Source, group: Group) -> Figure | None:
    """Median latency (ms) against the standard deviation of the offsets (pixels); a panel per dtype and shape.

    Operators that were measured at one spread alone are left out.
    """
    lines = spread_lines(group)
    if not lines:
        return None
    places = [
        (shape, dtype)
        for dtype in group.dtypes
        for shape in group.shapes
        if any((line.shape, line.dtype) == (shape, dtype) for line in lines)
    ]
    facets = [f"{dtype}, {shape_text(shape, batch=group.common_batch is None)}" for shape, dtype in places]
    page = Page(spread_group(group), facets, lines=True, same_y=False)
    names = distributions(lines)
    looks = dict(zip(names, cycle(LOOKS), strict=False))
    spreads = sorted({spread_px(row) for line in lines for row in line.rows})
    for axes, place in zip(page.axes, places, strict=True):
        here = [line for line in lines if (line.shape, line.dtype) == place]
        for line in here:
            points = [(spread_px(row), row.latency_ms) for row in line.rows]
            page.draw(axes, line.series, points, **_options(page.styles[line.series].colour, looks[line.distribution]))
        log_axis(axes.yaxis, [row.latency_ms for line in here for row in line.rows], least_span=3.0)
        _spread_axis(axes, spreads)
    page.label("standard deviation of the offsets (pixels)", "median latency (ms)")
    told = [
        Line2D([], [], marker="o", label=names[text], color=GREY, **_options(GREY, look))
        for text, look in looks.items()
    ]
    title = "Latency against the spread of the offsets"
    dtypes = list(dict.fromkeys(dtype for _, dtype in places))
    return page.finish(source, title, dtypes, further=told if len(told) > 1 else ())


def _options(colour: str, look: tuple[FillStyleType, LineStyleType]) -> dict[str, Any]:
    """Of a line and its markers: their outline has the line's colour, for that the empty half is seen."""
    fill, dashes = look
    return {
        "fillstyle": fill, "markerfacecolor": colour, "markerfacecoloralt": "white", "markeredgecolor": colour,
        "markeredgewidth": 1.0, "linestyle": dashes,
    }  # fmt: skip


def _spread_axis(axes: Axes, spreads: Sequence[float]) -> None:
    """Logarithmic from the smallest spread above 0 on, and linear below it; ticks at what was measured."""
    least = next(spread for spread in spreads if spread)
    axes.set_xscale("symlog", base=2, linthresh=least)
    axes.set_xlim(-0.3 * least if not spreads[0] else least / 1.3, spreads[-1] * 1.3)
    ticks: list[float] = []
    for spread in spreads:
        if not ticks or spread >= CLOSEST_TICKS * ticks[-1]:
            ticks.append(spread)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
