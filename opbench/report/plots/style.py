"""What every plot shares: colours and markers, page, titles, legend, tick texts and files."""

import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from opbench.files import write_whole
from opbench.report.layout import Group, Series
from opbench.report.palette import Look, identity_looks
from opbench.report.plots.source import Source
from opbench.report.value_text import count_cells, shape_text
from opbench.results.row import MeasuredRow, Row, is_ok
from opbench.workload.case import Shape

__all__ = [
    "FAINT",
    "GREY",
    "Page",
    "Point",
    "SeriesStyle",
    "dtypes_of",
    "has_latency",
    "log_axis",
    "name_top",
    "plot_style",
    "rows_of",
    "save",
    "series_styles",
    "shape_axis_name",
    "shape_ticks",
    "si",
]

MARKER_SIZES = {"*": 9.0, "D": 5.0, "P": 7.0, "X": 7.0}
"""Points, where Matplotlib's marker looks smaller or larger than the others."""
GREY = "#888888"
FAINT = "#e6e6e6"
DPI = 150
WIDTH_INCHES = 8.0
RC: Any = {
    "svg.hashsalt": "opbench",  # the same run gives the same bytes
    "text.parse_math": False,  # names of devices and operators are not formulae
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.0,  # shows the dashes
    "figure.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class SeriesStyle:
    """How one series of a group is named and drawn."""

    label: str
    look: Look

    @property
    def colour(self) -> str:
        """Of markers and lines."""
        return self.look.colour

    def options(self, *, line: bool) -> dict[str, Any]:
        """Keyword arguments of Axes.plot, with or without a line through the points."""
        look = self.look
        return {
            "color": look.colour,
            "marker": look.marker,
            "markersize": MARKER_SIZES.get(look.marker, 6.0),
            "markerfacecolor": look.colour if look.filled else "white",
            "markeredgecolor": "white" if look.filled else look.colour,
            "markeredgewidth": 0.5 if look.filled else 1.2,
            "linestyle": (0, look.dash) if line and look.dash else "-" if line else "none",
            "linewidth": 1.2,
        }


def series_styles(group: Group) -> dict[Series, SeriesStyle]:
    """A look for every series of a group, the same in every group of its run."""
    looks = identity_looks(series.identity for series in (*group.everyone, *group.series))
    return {series: SeriesStyle(group.label(series), looks[series.identity]) for series in group.series}


def has_latency(row: Row | None) -> TypeGuard[MeasuredRow]:
    """Whether a row can stand on a logarithmic latency axis."""
    return is_ok(row) and row.latency_ms > 0


@contextmanager
def plot_style() -> Iterator[None]:
    """Set the look of what is drawn inside, and put back what was set before."""
    with mpl.rc_context(RC):
        yield


class Page:
    """A figure of one group: one panel per facet, two in a row, a title above and a legend below."""

    def __init__(self, group: Group, facets: Sequence[str], *, lines: bool = False, same_y: bool = True) -> None:
        self.group = group
        self.styles = series_styles(group)
        self._lines = lines
        self._drawn: dict[Series, dict[str, Any]] = {}
        """With the options that the legend draws it by."""
        columns = min(2, len(facets))
        rows = -(-len(facets) // columns)
        self.figure = Figure((WIDTH_INCHES, 1.3 + 3.0 * rows), dpi=DPI, layout="constrained")
        panels = self.figure.subplots(rows, columns, sharex=True, sharey=same_y, squeeze=False).ravel()
        self.axes: list[Axes] = list(panels[: len(facets)])
        for unused in panels[len(facets) :]:
            unused.set_axis_off()
        for axes, facet in zip(self.axes, facets, strict=True):
            axes.set_title(facet)
            axes.grid(True, color=FAINT, linewidth=0.6)
            axes.tick_params(labelbottom=True, labelleft=True)

    def draw(self, axes: Axes, series: Series, points: Sequence[Point], **options: Any) -> None:  # noqa: ANN401
        """Draw one series in one panel, with options in place of its own; without points it is not in the legend."""
        if points:
            options = self.styles[series].options(line=self._lines) | options
            self._drawn.setdefault(series, options)
            axes.plot(*zip(*points, strict=True), **options, zorder=3)

    def used(self, series: Series) -> None:
        """Enter a series into the legend that was drawn by other means than draw."""
        self._drawn.setdefault(series, self.styles[series].options(line=self._lines))

    def label(self, x: str, y: str) -> None:
        """Name both axes of every panel."""
        for axes in self.axes:
            axes.set_xlabel(x)
            axes.set_ylabel(y)

    def finish(
        self,
        source: Source,
        title: str,
        dtypes: Iterable[str],
        *,
        missing: int = 0,
        labels: Mapping[Series, str] | None = None,
        further: Iterable[Line2D] = (),
    ) -> Figure:
        """Add title, legend (its texts replaced by `labels`, then `further`), and how many cells have no value."""
        group = self.group
        timed = [row for row in group.rows if is_ok(row)]
        how = [", ".join(sorted(found)) for found in ({row.timer for row in timed}, {row.cache for row in timed})]
        facts = f"{source.device_name} · {', '.join(dtypes)} · {group.description} · {', '.join(how)}"
        lines = [title, *textwrap.wrap(facts, 105)]
        suspicious = sum(bool(row.suspicious) for row in timed)
        if suspicious:
            lines.append(f"{count_cells(suspicious)} suspicious, faster than the measured limits allow: see the table")
        if missing:
            lines.append(f"{count_cells(missing)} without a value: see the table")
        self.figure.suptitle("\n".join(lines), x=0.01, ha="left")
        handles = [
            Line2D([], [], **self._drawn[series], label=(labels or {}).get(series, style.label))
            for series, style in self.styles.items()
            if series in self._drawn
        ]
        self.figure.legend(
            handles=[*handles, *further], loc="outside lower center", ncols=2 if labels else 4, frameon=False
        )
        return self.figure


def log_axis(axis: Axis, values: Iterable[float], *, unit: str = "", least_span: float = 10.0) -> None:
    """Make an axis logarithmic, wide enough for the values and a factor of `least_span`, with plain figures.

    With `unit`, ticks read `10 GFLOP` instead of 1e10.
    """
    found = list(values)
    low, high = min(found), max(found)
    pad = max((high / low) ** 0.06, 1.15, (least_span * low / high) ** 0.5)
    if axis is axis.axes.xaxis:
        axis.axes.set(xscale="log", xlim=(low / pad, high * pad))
    else:
        axis.axes.set(yscale="log", ylim=(low / pad, high * pad))
    between = (1.0, 3.0) if unit else (1.0, 2.0, 5.0)  # texts with a unit are wide
    subs = between if high / low < 50 else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=9))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: si(value, unit) if unit else f"{value:.6g}"))


def si(value: float, unit: str) -> str:
    """A value with its decimal prefix: 1e10 with FLOP is `10 GFLOP`."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor * (1 - 1e-9):
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def shape_ticks(axes: Axes, shapes: Sequence[Shape], *, batch: bool, room: int) -> None:
    """One tick per shape at 0, 1, 2, ...; upright in two lines where `room` shapes or fewer share it."""
    upright = len(shapes) <= room
    texts = []
    for shape in shapes:
        text = shape_text(shape, batch=batch)
        head, _, channels = text.rpartition("×")
        texts.append(f"{head}\n×{channels}" if upright else text)
    axes.set_xticks(range(len(shapes)), texts, rotation=0 if upright else 90, fontsize=7.5)
    axes.set_xlim(-0.5, len(shapes) - 0.5)


def name_top(axes: Axes, top: float, text: str) -> None:
    """Write a text on a level line at `top`, at its right end."""
    axes.annotate(
        text, (0.99, top), xycoords=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=7, color="#555555"
    )


def dtypes_of(group: Group, rows: Iterable[Row]) -> list[str]:
    """The dtypes of some of a group's rows, in the order of the group."""
    found = {row.dtype for row in rows}
    return [dtype for dtype in group.dtypes if dtype in found]


def rows_of(group: Group, series: Series) -> list[Row]:
    """The rows of one series, by shape and then by dtype."""
    cells = (group.cell(series, shape, dtype) for shape in group.shapes for dtype in group.dtypes)
    return [cell for cell in cells if cell is not None]


def shape_axis_name(group: Group) -> str:
    """What the figures at shape_ticks are."""
    return "height × width × channels" if group.common_batch else "batch × height × width × channels"


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and SVG; the SVG carries no date, so the same run gives the same bytes."""
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    for path, options in ((png, {"dpi": DPI}), (svg, {"metadata": {"Date": None}})):
        drawn = io.BytesIO()
        figure.savefig(drawn, format=path.suffix[1:], **options)
        write_whole(path, drawn.getvalue())
    return [png, svg]
