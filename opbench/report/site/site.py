"""Writes a site: index, a page a run, history, comparisons, and the files that they share."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

from opbench.report.page.html import SCRIPTS, STYLE, InSite, page
from opbench.report.site.comparison import COMPARISON_SCRIPTS, comparison_page
from opbench.report.site.folder import SiteFolder
from opbench.report.site.history import HISTORY_SCRIPTS, history_page
from opbench.report.site.index import INDEX_SCRIPTS, SEARCH_INDEX, index_page, search_index
from opbench.report.site.runs import SiteRun, SiteRuns, read_runs
from opbench.report.site.shared import SITE_STYLE
from opbench.results.published import open_run

__all__ = ["write_site"]

OWN_FILES = tuple(dict.fromkeys((STYLE, SITE_STYLE, *SCRIPTS, *INDEX_SCRIPTS, *HISTORY_SCRIPTS, *COMPARISON_SCRIPTS)))


def write_site(paths: Sequence[Path], folder: Path) -> tuple[Path, list[str]]:
    """As opbench.report.write_site says."""
    found = read_runs(paths)
    shared = dict(_shared_files(found))
    pages = {f"runs/{stem}.html" for stem in found.stems.values()}
    compared = {f"compare/{found.stems[head]}.html" for head in found.comparisons}
    site = SiteFolder(folder, {"index.html", "history.html", *pages, *compared, *(name for name, _ in shared.values())})
    for name, text in shared.values():
        site.write(name, text)
    top, below = _addresses(shared, ""), _addresses(shared, "../")
    for run in found.runs:
        stem, links = found.stems[run.entry.run_id], _links(found, run)
        site.write(f"runs/{stem}.html", page([open_run(run.path)], InSite(below, links, f"../runs/{stem}.html")))
        if run.entry.run_id in found.comparisons:
            place = InSite(below, links, f"../compare/{stem}.html")
            site.write(f"compare/{stem}.html", comparison_page(found, run, place))
    site.write("history.html", history_page(found, InSite(top, LINKS, "history.html")))
    site.write("index.html", index_page(found, InSite(top, LINKS, "index.html")))
    site.finish()
    return folder / "index.html", [problem.told for problem in found.problems]


LINKS = (("All runs", "index.html"), ("History", "history.html"))


def _links(found: SiteRuns, run: SiteRun) -> list[tuple[str, str]]:
    """From a page of a run."""
    stem = found.stems[run.entry.run_id]
    links = [(name, f"../{address}") for name, address in LINKS]
    links.append(("This run", f"../runs/{stem}.html"))
    if run.entry.run_id in found.comparisons:
        links.append(("Against the run before", f"../compare/{stem}.html"))
    return links


def _shared_files(found: SiteRuns) -> Iterator[tuple[str, tuple[str, str]]]:
    """Files that pages load, by the names that pages have for them: the name in the site, and the text."""
    for name in OWN_FILES:
        if name != SEARCH_INDEX:
            text = resources.files("opbench.report").joinpath(name).read_text("utf-8")
            yield name, (f"assets/{name.rpartition('/')[2]}", text)
    yield SEARCH_INDEX, ("assets/search-index.js", search_index(found))


def _addresses(shared: Mapping[str, tuple[str, str]], up: str) -> dict[str, str]:
    """Each with a digest of what it holds, so that no page gets an older one from a browser's cache."""
    return {
        name: f"{up}{place}?{hashlib.sha256(text.encode()).hexdigest()[:8]}" for name, (place, text) in shared.items()
    }
