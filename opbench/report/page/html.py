"""The page of one or several runs: one HTML file that asks no other host for anything, or a page of a site."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from opbench.report.page.data import page_data
from opbench.report.summary import summary_line
from opbench.results.run import Run

__all__ = ["SCRIPTS", "STYLE", "InSite", "page", "render", "script_json"]

STYLE = "page/page.css"
SCRIPTS = tuple(
    f"page/{name}.js"
    for name in ("dom", "tables", "filters", "echarts/echarts.min", "scales", "charts", "panels", "theme")
)
"""Files of opbench.report, in the order in which they run."""


@dataclass(frozen=True, slots=True)
class InSite:
    """The place of a page that takes style and scripts from a site's files, not along.

    Attributes:
        address: of each of these files, from the page.
        links: names and addresses of pages, from the page.
        current: the page's own among these addresses.
    """

    address: Mapping[str, str]
    links: Sequence[tuple[str, str]]
    current: str


def page(runs: Sequence[Run], site: InSite | None = None) -> str:
    """Runs side by side as one HTML page; whatever stands in a run folder is text on it, never markup.

    Without a site it is self-contained.
    """
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
    title = "Operator latencies: " + " beside ".join(dict.fromkeys(entry["device"] for entry in shown))
    template = "page/page.html.j2"
    return render(
        template, title, SCRIPTS, site, runs=shown, facts=facts, nothing_in=nothing_in, data=script_json(data)
    )


def render(
    template: str,
    title: str,
    scripts: Sequence[str],
    site: InSite | None = None,
    styles: Sequence[str] = (STYLE,),
    **values: Any,  # noqa: ANN401 - the template's
) -> str:
    """A page from a template of opbench.report.

    The content security policy lets the page's own scripts run, named by their hashes, and nothing else load or run;
    in a site the scripts beside it.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader("opbench.report", ""), autoescape=True, undefined=StrictUndefined)
    inline = [] if site else [_own_file(name) for name in scripts]
    if any("</script" in script.lower() or "<!--" in script for script in inline):
        raise AssertionError("a script that cannot stand inside a page")
    text: str = environment.get_template(template).render(
        title=title,
        version=_version(),
        site=site,
        linked_styles=[site.address[name] for name in styles] if site else [],
        linked_scripts=[site.address[name] for name in scripts] if site else [],
        styles=[] if site else [Markup(_own_file(name)) for name in styles],  # noqa: S704 - our own file
        scripts=[Markup(script) for script in inline],  # noqa: S704 - our own files and the kept library's
        script_sources=Markup("'self'" if site else " ".join(map(_hash_source, inline))),  # noqa: S704 - base64
        **values,
    )
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair, from a damaged run.json


def script_json(data: Mapping[str, Any]) -> str:
    """JSON, as markup, that no text in it can end the script element of, or start a comment in."""
    from markupsafe import Markup

    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text.encode("utf-8", "backslashreplace").decode())  # noqa: S704 - lone surrogates, as JSON has them


def _own_file(name: str) -> str:
    return resources.files("opbench.report").joinpath(name).read_text("utf-8")


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
