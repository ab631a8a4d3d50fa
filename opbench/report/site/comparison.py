"""A page of a site that compares a run with the one before it."""

import math
from collections import Counter

from opbench.compare.verdicts import CellComparison, Comparison, Verdict
from opbench.report.comparison import comparison_tables, headline
from opbench.report.page.html import InSite, render
from opbench.report.site.runs import SiteRun, SiteRuns
from opbench.report.site.shared import DOM, STYLES, THEME, dates, facts, revision

__all__ = ["COMPARISON_SCRIPTS", "comparison_page", "verdict_counts"]

COMPARISON_SCRIPTS = (DOM, THEME)
SPAN = 3
"""Of the picture of a ratio: to either side, in widths of what is accepted."""


def comparison_page(found: SiteRuns, run: SiteRun, site: InSite) -> str:
    """A run against the one before: the verdict, means, each cell with its ratio, the slowest first, and notes."""
    base, comparison = found.comparisons[run.entry.run_id]
    cells, *means = comparison_tables(comparison)
    addresses = _row_addresses(found, base) | _row_addresses(found, run)
    lines = [
        (row, cell, addresses.get(cell.cell.key), _picture(cell, comparison.tolerance))
        for row, cell in zip(cells.rows, comparison.cells, strict=True)
    ]
    judged = sorted((line for line in lines if line[1].change), key=lambda line: -_ratio(line[1]))
    return render(
        "site/compare.html.j2",
        f"{run.entry.name} against {base.entry.name}",
        COMPARISON_SCRIPTS,
        site,
        STYLES,
        subtitle=facts(run.device, dates([base, run])),
        base={"name": base.entry.name, "page": f"../runs/{found.stems[base.entry.run_id]}.html"},
        head={"name": run.entry.name, "page": f"../runs/{found.stems[run.entry.run_id]}.html"},
        revisions=[revision(base), revision(run)],
        headline=headline(comparison),
        rank=str(comparison.verdict.rank),
        counts=verdict_counts(comparison),
        columns=cells.columns,
        judged=judged,
        others=[line for line in lines if not line[1].change],
        notes=cells.notes,
        means=means,
    )


def _row_addresses(found: SiteRuns, run: SiteRun) -> dict[str, str]:
    """Where a run's page shows each cell, by the cell's key."""
    page = f"../runs/{found.stems[run.entry.run_id]}.html"
    return {cell.key: f"{page}#row-{row}" for row, cell in enumerate(run.figures.cells)}


def verdict_counts(comparison: Comparison) -> str:
    """`2 slower, 68 same`"""
    counts = Counter(cell.verdict for cell in comparison.cells)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])


def _ratio(cell: CellComparison) -> float:
    return cell.change.value if cell.change else 0.0


def _picture(cell: CellComparison, tolerance: float) -> dict[str, float] | None:
    """Where a ratio, its interval and what is accepted lie on a logarithmic scale, in % of its width."""
    if cell.change is None:
        return None
    width = SPAN * math.log1p(tolerance)

    def place(ratio: float) -> float:
        log = math.log(ratio) if ratio > 0 else -math.inf
        return round(50 + 48 * max(-1.0, min(1.0, log / width)), 2)

    change = cell.change
    return {
        "low": place(change.low),
        "high": place(change.high),
        "at": place(change.value),
        "from": place(1 / (1 + tolerance)),
        "to": place(1 + tolerance),
    }
