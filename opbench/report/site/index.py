"""The index of a site: every run, what could not be read, and the search over all cells."""

from collections import Counter, defaultdict
from typing import Any

from opbench.report.layout import OPERATOR_LABELS
from opbench.report.page.html import InSite, render, script_json
from opbench.report.site.comparison import verdict_counts
from opbench.report.site.history import has_chart
from opbench.report.site.runs import CellName, SiteRun, SiteRuns
from opbench.report.site.shared import DOM, SEARCH, STYLES, THEME, cell_facts, count, dates, facts, revision
from opbench.results.measurement import Status, is_failure

__all__ = ["INDEX_SCRIPTS", "SEARCH_INDEX", "index_page", "search_index"]

SEARCH_INDEX = "search-index.js"
"""Made of the runs; a script, because a page that is opened from disk may load no data."""
INDEX_SCRIPTS = (DOM, SEARCH_INDEX, SEARCH, "site/index.js", THEME)


def index_page(found: SiteRuns, site: InSite) -> str:
    """Every run, newest first, what could not be read, and the search over all cells."""
    devices = {run.device for run in found.runs}
    return render(
        "site/index.html.j2",
        f"Operator latencies: {count(len(found.runs), 'run')}",
        INDEX_SCRIPTS,
        site,
        STYLES,
        subtitle=facts(f"on {count(len(devices), 'device')}", dates(found.runs)),
        runs=[_run_line(found, run) for run in reversed(found.runs)],
        unread=count(len(found.problems), "run"),
        problems=[problem.shown for problem in found.problems],
        notes=found.history.notes,
    )


def _run_line(found: SiteRuns, run: SiteRun) -> dict[str, Any]:
    run_id = run.entry.run_id
    line = {
        "name": run.entry.name,
        "page": f"runs/{found.stems[run_id]}.html",
        "device": run.device,
        "date": run.date,
        "revision": revision(run),
        "cells": _cell_counts(run),
    }
    if run_id not in found.comparisons:
        return line
    base, comparison = found.comparisons[run_id]
    return line | {
        "against": f"compare/{found.stems[run_id]}.html",
        "base": base.entry.name,
        "verdict": str(comparison.verdict),
        "rank": str(comparison.verdict.rank),
        "counts": verdict_counts(comparison),
    }


def _cell_counts(run: SiteRun) -> str:
    """`68 ok, 2 failed`"""
    counts: Counter[str] = Counter()
    for status, number in run.statuses.items():
        counts["failed" if is_failure(status) else status.replace("_", " ")] += number
    order = [str(Status.OK), "failed", *(name for name in counts if name not in (Status.OK, "failed"))]
    return ", ".join(f"{counts[name]} {name}" for name in order if counts[name]) or "no cell"


def search_index(found: SiteRuns) -> str:
    """A script with every cell of every run by what it is searched by: for each its figures, newest run first."""
    runs = list(reversed(found.runs))
    cells: dict[CellName, list[tuple[int, int, str]]] = {}
    for place, run in enumerate(runs):
        for row, (name, text) in enumerate(run.cells):
            cells.setdefault(name, []).append((place, row, text))
    order = {operator: place for place, operator in enumerate(OPERATOR_LABELS)}
    settings: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for name in cells:
        settings[name.operator, name.provider].add(name.settings)
    names = sorted(cells, key=lambda name: order.get(name.operator, len(order)))
    with_history = {
        CellName.of(trend.cell) for series in found.history.series for trend in series.trends if has_chart(trend)
    }
    data = {
        "runs": [
            {"name": run.entry.name, "page": f"runs/{found.stems[run.entry.run_id]}.html", "date": run.date}
            for run in runs
        ],
        "cells": [
            cell_facts(name, settings[name.operator, name.provider])
            | {"found": cells[name], "history": name in with_history}
            for name in names
        ],
    }
    return f"const SEARCH = {script_json(data)};\n"
