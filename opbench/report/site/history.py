"""The history of a site: the series of runs on one device each, with step changes and charts."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opbench.compare.causes import Cause, Shift, shifts
from opbench.compare.change_points import LEAST_RUNS
from opbench.compare.trends import RunSeries, Trend
from opbench.report.history_tables import cell_names, history_tables
from opbench.report.page.html import InSite, render, script_json
from opbench.report.site.runs import CellName, SiteRuns
from opbench.report.site.shared import DOM, SEARCH, STYLES, THEME, cell_facts, count, dates, facts
from opbench.report.value_text import signed_percent

__all__ = ["HISTORY_SCRIPTS", "has_chart", "history_page"]

HISTORY_SCRIPTS = (DOM, "page/echarts/echarts.min.js", "page/scales.js", SEARCH, "site/history.js", THEME)
DIGITS = 5
"""Of a figure in a chart."""


def history_page(found: SiteRuns, site: InSite) -> str:
    """The series of runs on one device each: step changes, and a chart of every cell that two runs measured."""
    history = found.history
    tables = {table.name: table for table in history_tables(history)}
    places = {run.entry.run_id: place for place, run in enumerate(found.runs)}
    rows = {run.entry.run_id: {cell.key: row for row, cell in enumerate(run.figures.cells)} for run in found.runs}
    data = {
        "runs": [
            {
                "name": run.entry.name,
                "page": f"runs/{found.stems[run.entry.run_id]}.html",
                "date": run.date,
                "revision": run.entry.revision and run.entry.short_revision,
            }
            for run in found.runs
        ],
        "series": [
            {
                "runs": [places[entry.run_id] for entry in series.runs],
                "cells": _history_cells(series, rows),
            }
            for series in history.series
        ],
    }
    return render(
        "site/history.html.j2",
        "History",
        HISTORY_SCRIPTS,
        site,
        STYLES,
        subtitle=facts(count(len(found.runs), "run"), dates(found.runs)),
        series=[
            {
                "title": title,
                "runs": len(one.runs),
                "charts": any(map(has_chart, one.trends)),
                "few": len(one.runs) < LEAST_RUNS,
                "steps": tables.get(f"steps-{number}"),
                "trends": tables[f"trends-{number}"],
            }
            for number, (one, title) in enumerate(
                zip(history.series, _series_titles(history.series), strict=True), start=1
            )
        ],
        least_runs=LEAST_RUNS,
        unread=count(len(found.problems), "run") if found.problems else "",
        data=script_json(data),
    )


def has_chart(trend: Trend) -> bool:
    """Whether a cell was measured more than once in a series."""
    return len(trend.points) > 1


def _series_titles(series: Sequence[RunSeries]) -> list[str]:
    """Device, timer and cache of each, with what else sets it apart from others of the same."""
    alike: defaultdict[str, list[Mapping[str, str]]] = defaultdict(list)
    named = [facts(*(one.identity.parts.get(name, "") for name in ("device", "timer", "cache"))) for one in series]
    for title, one in zip(named, series, strict=True):
        alike[title].append(one.identity.parts)

    def apart(title: str, parts: Mapping[str, str]) -> Iterator[str]:
        for name, value in parts.items():
            if any(other.get(name) != value for other in alike[title]):
                yield f"{name} {value}"

    return [facts(title, *apart(title, one.identity.parts)) for title, one in zip(named, series, strict=True)]


def _history_cells(series: RunSeries, rows: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    names = cell_names(series)
    places = {entry.run_id: place for place, entry in enumerate(series.runs)}
    causes = {(trend.cell.key, step.index): shift for shift in shifts(series) for trend, step in shift.steps}

    def cell_data(trend: Trend) -> dict[str, Any]:
        cell = trend.cell
        x = [places[point.run.run_id] for point in trend.points]
        return {
            **cell_facts(CellName.of(cell)),
            "name": names[cell.key],
            "noise": trend.noise if trend.is_long_enough else None,
            "points": [
                [place, *map(_rounded, (point.latency_ms, point.low_ms, point.high_ms)), point.warnings,
                 rows[point.run.run_id][cell.key]]
                for place, point in zip(x, trend.points, strict=True)
            ],
            "levels": [[x[low], x[high - 1], _rounded(level_ms)] for low, high, level_ms in trend.levels]
            if trend.is_long_enough
            else [],
            "steps": [
                [x[step.index], step.change, f"{signed_percent(step.change)}: {causes[cell.key, step.index].cause}"]
                for step in trend.steps
            ],
        }  # fmt: skip

    shown = filter(has_chart, series.trends)
    return [cell_data(trend) for trend in sorted(shown, key=lambda trend: _rank(trend, causes))]


def _rank(trend: Trend, causes: Mapping[tuple[str, int], Shift]) -> int:
    """First what moved by itself, then what moved with the machine, then the rest."""
    found = {causes[trend.cell.key, step.index].cause for step in trend.steps}
    return 0 if found - {Cause.MACHINE} else 1 if found else 2


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
