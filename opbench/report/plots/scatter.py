"""One marker per cell, one panel per dtype, both axes logarithmic: what throughput and cost have in common."""

from dataclasses import dataclass
from typing import TypeGuard

from opbench.device.ceilings import Ceilings
from opbench.report.layout import Group
from opbench.report.plots.style import Page, dtypes_of, has_latency, log_axis
from opbench.results.row import MeasuredRow, Row

__all__ = ["FLOP_COUNT", "LATENCY", "THROUGHPUT", "Axis", "Scatter", "scatter"]


@dataclass(frozen=True, slots=True)
class Axis:
    """What a scatter plot shows along one axis."""

    column: str
    """Of measurements.csv."""
    name: str
    unit: str = ""
    """Written at the ticks with a decimal prefix; empty where the name holds it."""

    def of(self, row: Row) -> float:
        """The value of a row that has one."""
        return float(getattr(row, self.column))


LATENCY = Axis("latency_ms", "median latency (ms)")
THROUGHPUT = Axis("tflops", "TFLOP/s")
FLOP_COUNT = Axis("flop_count", "FLOP count of one pass", "FLOP")


@dataclass(frozen=True, slots=True)
class Scatter:
    """A page with its markers and axes drawn, and without its title and legend: Page.finish.

    Attributes:
        page: what is drawn on.
        rows: what is drawn.
        dtypes: one a panel.
        missing: cells of the group that have no value.
    """

    page: Page
    rows: list[MeasuredRow]
    dtypes: list[str]
    missing: int


def scatter(group: Group, x: Axis, y: Axis, ceilings: Ceilings | None = None) -> Scatter | None:
    """Draw the cells that have a value; None where there is none.

    Args:
        group: one table's rows.
        x, y: what stands across and up.
        ceilings: whose matrix throughput the axis upwards leaves room for.
    """
    rows = [row for row in group.rows if _has_rate(row)]
    if not rows:
        return None
    dtypes = dtypes_of(group, rows)
    page = Page(group, dtypes)
    tops = [top for dtype in dtypes if ceilings and (top := ceilings.compute_tflops(dtype))]
    for axes, dtype in zip(page.axes, dtypes, strict=True):
        for series in group.series:
            cells = [group.cell(series, shape, dtype) for shape in group.shapes]
            page.draw(axes, series, [(x.of(cell), y.of(cell)) for cell in cells if _has_rate(cell)])
        log_axis(axes.xaxis, [x.of(row) for row in rows], unit=x.unit)
        log_axis(axes.yaxis, [*(y.of(row) for row in rows), *tops], unit=y.unit)
    page.label(x.name, y.name)
    return Scatter(page, rows, dtypes, missing=len(group.rows) - len(rows))


def _has_rate(row: Row | None) -> TypeGuard[MeasuredRow]:
    """Whether a row can stand on logarithmic axes of latency, FLOP count and throughput."""
    return has_latency(row) and bool(row.flop_count)
