"""How far the cards of a fleet are apart: a row for each operator, a mark for each card."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from opbench.compare.cards import OperatorSpread
from opbench.report.layout import OPERATOR_LABELS
from opbench.report.palette import PALETTE
from opbench.report.plots.style import DPI, FAINT, GREY, WIDTH_INCHES, SeriesStyle

__all__ = ["cards_figure"]

LEAST_SPAN = 0.02
"""Of the axis, to either side: cards that agree to 0.1 % then look alike."""


def cards_figure(spreads: Sequence[OperatorSpread], device: str) -> Figure:
    """Latency of each card against the median of all, in %; slower is right.

    Args:
        spreads: of each operator, from the top.
        device: name of the cards.
    """
    figure = Figure((WIDTH_INCHES, 1.4 + 0.36 * len(spreads)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    names = [*spreads[0].relative]
    for place, spread in enumerate(spreads):
        values = [100 * (value - 1) for value in spread.relative.values()]
        axes.plot(
            [min(values), max(values)], [place, place], color=FAINT, linewidth=6, solid_capstyle="round", zorder=1
        )
    for number, name in enumerate(names):
        look = SeriesStyle(name, PALETTE[number % len(PALETTE)])
        values = [100 * (spread.relative[name] - 1) for spread in spreads]
        axes.plot(values, range(len(spreads)), label=name, **look.options(line=False))
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    every = [100 * (value - 1) for one in spreads for value in one.relative.values()]
    axes.set_xlim(min(-100 * LEAST_SPAN, 1.1 * min(every)), max(100 * LEAST_SPAN, 1.1 * max(every)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g} %" if value else "0"))
    axes.set_yticks(range(len(spreads)), [_label(spread) for spread in spreads])
    axes.set_ylim(len(spreads) - 0.5, -0.5)
    axes.set_xlabel("latency against the median of all cards (geometric mean over the cells); right is slower")
    figure.suptitle(f"The same cells on {len(names)} cards, {device}", x=0.01, ha="left")
    figure.legend(loc="outside lower center", ncols=min(6, len(names)), frameon=False)
    return figure


def _label(spread: OperatorSpread) -> str:
    return f"{OPERATOR_LABELS.get(spread.operator, spread.operator) or 'all together'} ({spread.cells})"
