"""What the site's own pages share: style, addresses of scripts, words, and how the search has a cell."""

from collections.abc import Collection, Sequence
from typing import Any

from opbench.report.layout import OPERATOR_LABELS, differing_settings
from opbench.report.page.html import STYLE
from opbench.report.site.runs import CellName, SiteRun
from opbench.report.value_text import ABSENT

__all__ = ["DOM", "SEARCH", "SITE_STYLE", "STYLES", "THEME", "cell_facts", "count", "dates", "facts", "revision"]

SITE_STYLE = "site/site.css"
STYLES = (STYLE, SITE_STYLE)
DOM, THEME, SEARCH = "page/dom.js", "page/theme.js", "site/search.js"


def cell_facts(name: CellName, settings: Collection[str] = ()) -> dict[str, Any]:
    """A cell as the search has it; `settings` are the texts of which it shows what differs."""
    return {
        "operator": name.operator,
        "label": OPERATOR_LABELS.get(name.operator, name.operator),
        "provider": name.provider,
        "shape": name.shape,
        "dtype": name.dtype,
        "kind": [name.level, name.direction, name.shape_list],
        "settings": name.settings,
        "shown": differing_settings(name.settings, settings) if len(settings) > 1 else "",
    }


def dates(runs: Sequence[SiteRun]) -> str:
    """First and last day, without the published figures', which plan no cell."""
    days = [run.date for run in runs if run.figures.cells]
    return " to ".join(dict.fromkeys((*days[:1], *days[-1:])))


def count(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def facts(*texts: str) -> str:
    """Those that are not empty, with commas."""
    return ", ".join(filter(None, texts))


def revision(run: SiteRun) -> str:
    """Short, of what was measured."""
    return run.entry.short_revision if run.entry.revision else ABSENT
