"""Trends and step changes as tables, and every point as CSV."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator

from opbench.compare.causes import Cause, Shift, shifts
from opbench.compare.change_points import LEAST_RUNS, MIN_SEGMENT
from opbench.compare.run_figures import RunEntry
from opbench.compare.trends import History, RunSeries, Trend
from opbench.device.identity import HOST
from opbench.report.layout import OPERATOR_LABELS
from opbench.report.render import Table
from opbench.report.value_text import ABSENT, count_cells, shape_text, signed_percent, three_digits
from opbench.stats import median
from opbench.workload.case import Cell

__all__ = ["HISTORY_COLUMNS", "cell_names", "history_csv", "history_tables", "series_name"]

HISTORY_COLUMNS = (
    "series", "operator", "provider", "level", "direction", "shape_list", "shape", "dtype", "settings", "run", "run_id",
    "started_at", "git_revision", "latency_ms", "ci_low_ms", "ci_high_ms", "warnings", "level_ms", "step_change",
    "opbench_revision", "host", "cause", "why",
)  # fmt: skip
"""Of history.csv: `level_ms` is the median of the level that the run belongs to; `step_change`, relative (0.05 is 5 %
slower), its `cause` and `why` are empty but in the run where a level begins."""


def history_tables(history: History) -> list[Table]:
    """For each series its step changes, where there are any, and a line per cell."""
    tables = []
    for number, series in enumerate(history.series, start=1):
        if series.steps:
            tables.append(_step_table(series, number, history))
        tables.append(_trend_table(series, number, history))
    return tables


def history_csv(history: History) -> str:
    """One row per cell and run, with HISTORY_COLUMNS."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for number, series in enumerate(history.series, start=1):
        told = {(trend.cell.key, step.index): shift for shift in shifts(series) for trend, step in shift.steps}
        hosts = {run: set_up.parts.get(HOST, "") for run, set_up in zip(series.runs, series.set_ups, strict=True)}
        for trend in series.trends:
            writer.writerows({"series": number, **row} for row in _csv_rows(trend, hosts, told))
    return text.getvalue()


def series_name(history: History, number: int) -> str:
    """`series 2 of 3`; empty where there is one."""
    return f"series {number} of {len(history.series)}" if len(history.series) > 1 else ""


def cell_names(series: RunSeries) -> dict[str, str]:
    """A name for each cell's key: operator, provider, shape, dtype, level and direction; more where that is no name."""
    cells = [trend.cell for trend in series.trends]
    short = {cell.key: _cell_name(cell) for cell in cells}
    counts = Counter(short.values())
    return {
        cell.key: short[cell.key]
        if counts[short[cell.key]] == 1
        else " ".join(filter(None, (short[cell.key], cell.case.shape_list, cell.case.settings_text)))
        for cell in cells
    }


def _cell_name(cell: Cell) -> str:
    case = cell.case
    label = OPERATOR_LABELS.get(case.operator, case.operator)
    return f"{label} [{cell.provider}] {shape_text(case.shape, batch=True)} {case.dtype} {case.level} {case.direction}"


def _step_table(series: RunSeries, number: int, history: History) -> Table:
    rows: list[tuple[str, ...]] = []
    ranks, names = {}, cell_names(series)
    for shift in shifts(series):
        for change, row in _step_rows(shift, names):
            ranks[len(rows), 4, 0] = "worst" if change > 0 else "best"
            rows.append(row)
    return Table(
        name=f"steps-{number}",
        title=_title("Step changes of the median latency", history, number),
        columns=("From revision", "Run", "Cell", "Cause", "Change", "before, ms", "after, ms", "runs before / after"),
        rows=tuple(rows),
        text_columns=4,
        ranks=ranks,
    )


def _step_rows(shift: Shift, names: dict[str, str]) -> Iterator[tuple[float, tuple[str, ...]]]:
    """Each step's change and row; one row for all that the machine made."""
    cause = f"{shift.cause}: {shift.why}" if shift.why else str(shift.cause)
    if shift.cause is Cause.MACHINE and len(shift.steps) > 1:
        run = Counter(step.run for _, step in shift.steps).most_common(1)[0][0]
        change = math.expm1(median([math.log1p(step.change) for _, step in shift.steps]))
        cells = f"{len(shift.steps)} cells, in the median"
        yield change, (*_run_texts(run), cells, cause, signed_percent(change), ABSENT, ABSENT, ABSENT)
        return
    for trend, step in shift.steps:
        levels = (three_digits(step.before_ms), three_digits(step.after_ms))
        counts = f"{step.runs_before} / {step.runs_after}"
        cell = names[trend.cell.key]
        yield step.change, (*_run_texts(step.run), cell, cause, signed_percent(step.change), *levels, counts)


def _trend_table(series: RunSeries, number: int, history: History) -> Table:
    names = cell_names(series)
    return Table(
        name=f"trends-{number}",
        title=_title("Median latency over time", history, number),
        columns=("Cell", "runs", "first, ms", "last, ms", "noise", "steps"),
        rows=tuple((names[trend.cell.key], *_trend_figures(trend)) for trend in series.trends),
        notes=tuple(_notes(series, number, history)),
        text_columns=1,
    )


def _trend_figures(trend: Trend) -> tuple[str, ...]:
    ends = (three_digits(trend.points[0].latency_ms), three_digits(trend.points[-1].latency_ms))
    noise = ABSENT if trend.noise is None else f"{100 * trend.noise:.1f} %"
    steps = ", ".join(signed_percent(step.change) for step in trend.steps) or (
        "none" if trend.is_long_enough else ABSENT
    )
    return (str(len(trend.points)), *ends, noise, steps)


def _notes(series: RunSeries, number: int, history: History) -> Iterator[str]:
    first, last = series.runs[0], series.runs[-1]
    yield (
        f"{_count_runs(len(series.runs))} from {first.started_at:%Y-%m-%d} ({first.short_revision}) to "
        f"{last.started_at:%Y-%m-%d} ({last.short_revision}); "
        + ", ".join(f"{name}: {value}" for name, value in series.identity.parts.items())
        + "."
    )
    for change in series.set_up_changes:
        run = series.runs[change.index]
        yield f"From {_run_text(run)} on: {change}."
    if len(history.series) > 1:
        yield f"Not comparable with the other {len(history.series) - 1} series: " + "; ".join(
            _difference(series, other) for other in history.series if other is not series
        )
    short = sum(not trend.is_long_enough for trend in series.trends)
    if short:
        yield (
            f"{ABSENT}: no step can be shown in fewer than {LEAST_RUNS} runs, {MIN_SEGMENT} before it and "
            f"{MIN_SEGMENT} from it on ({count_cells(short)})."
        )
    yield "noise: standard deviation from run to run. A step is a change of level; a single odd run is none."
    if number == 1:
        yield from history.notes
        if history.problems:
            yield f"{_count_runs(len(history.problems))} could not be read and are left out: standard error names them."


def _difference(one: RunSeries, other: RunSeries) -> str:
    here, there = one.identity.parts, other.identity.parts
    names = [name for name in dict.fromkeys([*here, *there]) if here.get(name) != there.get(name)]
    return ", ".join(f"{name} {here.get(name, 'none')} here, {there.get(name, 'none')} there" for name in names)


def _title(what: str, history: History, number: int) -> str:
    name = series_name(history, number)
    return f"{what}, {name}" if name else what


def _count_runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _run_texts(run: RunEntry) -> tuple[str, str]:
    return run.short_revision, _run_text(run)


def _run_text(run: RunEntry) -> str:
    return f"{run.started_at:%Y-%m-%d} {run.name}"


def _csv_rows(
    trend: Trend, hosts: dict[RunEntry, str], told: dict[tuple[str, int], Shift]
) -> Iterator[dict[str, object]]:
    case = trend.cell.case
    same = {
        "operator": case.operator, "provider": trend.cell.provider, "level": case.level, "direction": case.direction,
        "shape_list": case.shape_list, "shape": case.shape, "dtype": case.dtype, "settings": case.settings_text,
    }  # fmt: skip
    changes = {step.index: step.change for step in trend.steps}
    level_ms = {index: middle for low, high, middle in trend.levels for index in range(low, high)}
    for index, point in enumerate(trend.points):
        shift = told.get((trend.cell.key, index))
        yield same | {
            "run": point.run.name,
            "run_id": point.run.run_id,
            "started_at": point.run.started_at.isoformat(),
            "git_revision": point.run.revision,
            "opbench_revision": point.run.opbench_revision,
            "host": hosts[point.run],
            "latency_ms": point.latency_ms,
            "ci_low_ms": point.low_ms,
            "ci_high_ms": point.high_ms,
            "warnings": point.warnings,
            "level_ms": level_ms[index],
            "step_change": changes.get(index, ""),
            "cause": shift.cause if shift else "",
            "why": shift.why if shift else "",
        }
