"""One panel per cell: medians with their intervals over the runs, levels, and the steps between them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from opbench.compare.run_figures import RunEntry
from opbench.compare.trends import History, RunSeries, Trend
from opbench.files import free_stem, storage_errors
from opbench.report.history_tables import series_name
from opbench.report.layout import OPERATOR_LABELS
from opbench.report.palette import PALETTE
from opbench.report.plots.style import DPI, FAINT, GREY, WIDTH_INCHES, plot_style, save
from opbench.report.value_text import shape_text, signed_percent
from opbench.workload.case import Shape

__all__ = ["history_figure", "write_history_plots"]

PANELS = 12
"""Of one figure."""
TICKS = 7
"""Labels under one panel, at most; the runs where a level begins come first."""
LEAST_SPAN = 0.1
"""Of a panel, relative to the median: noise of 1 % then looks like noise."""
SLOWER, FASTER = PALETTE[5].colour, PALETTE[3].colour


def write_history_plots(history: History, folder: Path) -> list[Path]:
    """Draw every cell's trend, a figure for the cells of one operator, level, direction and shape list.

    Returns:
        The files written, PNG and SVG.

    Raises:
        StorageError: one cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    stems: set[str] = set()
    for number, series in enumerate(history.series, start=1):
        for name, trends in _figures(series):
            stem = free_stem(f"series-{number}-{name}" if len(history.series) > 1 else name, stems)
            with plot_style():
                written += save(history_figure(series, trends, series_name(history, number)), folder / stem)
    return written


def history_figure(series: RunSeries, trends: Sequence[Trend], name: str = "") -> Figure:
    """A panel for each of the trends: latency in ms against the series' runs, evenly spaced.

    Filled points: undisturbed; hollow: with a warning. Grey bars: the median's 95 % interval. A gap: not measured.
    """
    rows = -(-len(trends) // 2)
    figure = Figure((WIDTH_INCHES, 1.1 + 2.6 * rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, min(2, len(trends)), squeeze=False).ravel()
    places = Counter(_place(trend) for trend in trends)
    for axes, trend in zip(panels, trends, strict=False):
        _draw(axes, series.runs, trend, trend.cell.case.settings_text if places[_place(trend)] > 1 else "")
    for unused in panels[len(trends) :]:
        unused.set_axis_off()
    case = trends[0].cell.case
    label = OPERATOR_LABELS.get(case.operator, case.operator)
    facts = ", ".join(value for key, value in series.identity.parts.items() if key in ("device", "timer", "cache"))
    head = f"{label} over {len(series.runs)} runs{f' ({name})' if name else ''}; dashed: a new level begins"
    figure.suptitle(
        f"{head}\n{facts} · {case.shape_list}, {case.level}, {case.direction}; hollow: disturbed", x=0.01, ha="left"
    )
    return figure


def _figures(series: RunSeries) -> Iterator[tuple[str, list[Trend]]]:
    groups: dict[tuple[str, ...], list[Trend]] = {}
    for trend in series.trends:
        case = trend.cell.case
        groups.setdefault((case.operator, case.level, case.direction, case.shape_list), []).append(trend)
    for key, trends in groups.items():
        for start in range(0, len(trends), PANELS):
            yield "-".join(key), trends[start : start + PANELS]


def _place(trend: Trend) -> tuple[str, Shape, str]:
    return trend.cell.provider, trend.cell.case.shape, trend.cell.case.dtype


def _draw(axes: Axes, runs: Sequence[RunEntry], trend: Trend, name: str) -> None:
    place = {run: number for number, run in enumerate(runs)}
    x = [place[point.run] for point in trend.points]
    middles = [point.latency_ms for point in trend.points]
    axes.vlines(x, [p.low_ms for p in trend.points], [p.high_ms for p in trend.points], color=GREY, linewidth=1.0)
    faces = ["white" if point.warnings else PALETTE[4].colour for point in trend.points]
    axes.scatter(x, middles, s=14, c=faces, edgecolors=PALETTE[4].colour, linewidths=0.9, zorder=3)
    for low, high, level_ms in trend.levels:
        axes.hlines(level_ms, x[low] - 0.4, x[high - 1] + 0.4, color=PALETTE[0].colour, linewidth=1.0, zorder=2)
    for step in trend.steps:
        colour = SLOWER if step.change > 0 else FASTER
        axes.axvline(x[step.index] - 0.5, color=colour, linestyle="--", linewidth=1.0)
        text = f" {signed_percent(step.change)}"
        axes.text(x[step.index] - 0.5, 1.0, text, color=colour, transform=axes.get_xaxis_transform(), va="top")
    case = trend.cell.case
    title = f"{trend.cell.provider}, {shape_text(case.shape, batch=True)}, {case.dtype}{f', {name}' if name else ''}"
    axes.set_title(title if len(title) <= 60 else f"{title[:59]}…")
    _scale(axes, trend)
    ticks = _ticks(len(runs), [x[step.index] for step in trend.steps])
    axes.set_xticks(ticks, [_tick_text(runs[tick]) for tick in ticks], fontsize=6.0)
    axes.set_xlim(-0.7, len(runs) - 0.3)
    axes.grid(True, axis="y", color=FAINT, linewidth=0.6)


def _scale(axes: Axes, trend: Trend) -> None:
    """A linear axis around the medians and levels; a wide interval may leave it, so that steps stay visible."""
    middles = [point.latency_ms for point in trend.points]
    low, high = min(middles), max(middles)
    pad = max(0.15 * (high - low), (LEAST_SPAN * high - (high - low)) / 2)
    axes.set_ylim(max(0.0, low - pad), high + 1.3 * pad)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.set_ylabel("median latency (ms)")


def _ticks(count: int, steps: Sequence[int]) -> list[int]:
    """Runs to label: where levels begin, the last, the first, and others in between, none too near to another."""
    gap = max(1, -(-count // TICKS))
    chosen: list[int] = []
    for tick in (*steps, count - 1, 0, *range(0, count, gap)):
        if all(abs(tick - other) >= gap for other in chosen):
            chosen.append(tick)
    return sorted(chosen)


def _tick_text(run: RunEntry) -> str:
    revision = run.short_revision[:7] if run.revision else run.name[-8:]
    return f"{revision}\n{run.started_at:%y-%m-%d}"
