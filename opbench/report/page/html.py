"""The page of one or several runs: one HTML file that asks no other host for anything."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from opbench.report.page.data import page_data
from opbench.report.summary import summary_line
from opbench.results.run import Run

__all__ = ["page"]

SCRIPTS = ("tables.js", "filters.js", "echarts/echarts.min.js", "scales.js", "charts.js", "panels.js")
"""In the order in which they run."""


def page(runs: Sequence[Run]) -> str:
    """Runs side by side as one self-contained HTML page; whatever stands in a run folder is text on it, never markup.

    The content security policy lets the page's own scripts run, named by their hashes, and nothing else load or run.
    """
    from markupsafe import Markup

    files = resources.files("opbench.report.page")
    scripts = [files.joinpath(name).read_text("utf-8") for name in SCRIPTS]
    if any("</script" in script.lower() or "<!--" in script for script in scripts):
        raise AssertionError("a script that cannot stand inside a page")
    data = page_data(runs)
    shown = [entry | {"summary": summary_line(run)} for run, entry in zip(runs, data["runs"], strict=True)]
    facts = [
        ("Device and versions", _side_by_side(entry["environment"] for entry in shown)),
        ("Command", _side_by_side(entry["command"] for entry in shown)),
    ]
    nothing_in = [name for name, found in (("Failed", data["failed"]), ("Suspicious", data["suspicious"])) if not found]
    silent = [entry for entry in shown if not entry["warnings"]]
    if len(silent) == len(shown):
        nothing_in.append("Warnings")
    else:
        nothing_in += [f"Warnings of {entry['tag']}" for entry in silent]
    keep = ("tag", "name", "device")
    data["runs"] = [{name: entry[name] for name in keep} for entry in data["runs"]]
    text: str = _template().render(
        title="Operator latencies: " + " beside ".join(dict.fromkeys(entry["device"] for entry in shown)),
        version=_version(),
        runs=shown,
        facts=facts,
        nothing_in=nothing_in,
        css=Markup(files.joinpath("page.css").read_text("utf-8")),  # noqa: S704 - our own file
        data=Markup(_script_json(data)),  # noqa: S704 - escaped for its place by _script_json
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - our own files and the kept library's
        script_hashes=Markup(" ".join(_hash_source(script) for script in scripts)),  # noqa: S704 - base64
    )
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair, from a damaged run.json


def _template() -> Any:  # noqa: ANN401 - jinja2 is imported when a page is made, not before
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("opbench.report", "page")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html.j2")


def _script_json(data: Mapping[str, Any]) -> str:
    """JSON that no text in it can end the script element of, or start a comment in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace").decode()  # lone surrogates, as JSON escapes them


def _hash_source(script: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _side_by_side(runs: Iterable[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Name and each run's value of every name that any run has."""
    found = list(runs)
    names = dict.fromkeys(name for values in found for name in values)
    return [(name, [values.get(name, "") for values in found]) for name in names]


def _version() -> str:
    from importlib.metadata import version

    return version("opbench")
