"""What GitHub Actions shows of a comparison: annotations by workflow commands, and the job's summary.

Source: GitHub's documentation, "Workflow commands for GitHub Actions".
"""

import os
from collections.abc import Collection
from pathlib import Path

from opbench.compare.verdicts import CellComparison, Comparison, Verdict
from opbench.files import storage_errors
from opbench.text import one_line

__all__ = ["SUMMARY_VARIABLE", "append_job_summary", "workflow_commands"]

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
MOST_ANNOTATIONS = 10
"""GitHub shows no more errors, and no more warnings, of one step."""


def workflow_commands(comparison: Comparison, accepted: Collection[Verdict] = ()) -> str:
    """An `::error` for each cell that fails the comparison, a `::warning` where its verdict is accepted.

    The worst come first; beyond MOST_ANNOTATIONS of a kind the last one says how many there are in all. A comparison
    without a failing cell that did not pass either has one for itself. Where there was nothing to measure, and
    that is no failure, a `::notice` says so.
    """
    nothing = comparison.same_source and comparison.verdict in accepted
    if nothing or comparison.verdict is Verdict.UNCHANGED:
        return _command("notice", "nothing to measure", comparison.reason) + "\n"
    found: dict[str, list[CellComparison]] = {"error": [], "warning": []}
    for cell in comparison.cells:
        if not cell.verdict.passed:
            found["warning" if cell.verdict in accepted else "error"].append(cell)
    lines = []
    for kind, cells in found.items():
        cells.sort(key=lambda cell: -(cell.change.value if cell.change else 0))
        shown = cells if len(cells) <= MOST_ANNOTATIONS else cells[: MOST_ANNOTATIONS - 1]
        lines += [_command(kind, f"{cell.verdict}: {cell.cell.key}", _detail(cell)) for cell in shown]
        if len(cells) > len(shown):
            lines.append(_command(kind, "and more", f"{len(cells)} cells in all; the job's summary lists them"))
    if not lines and not comparison.verdict.passed:
        kind = "warning" if comparison.verdict in accepted else "error"
        lines.append(_command(kind, str(comparison.verdict), comparison.reason))
    return "".join(f"{line}\n" for line in lines)


def append_job_summary(markdown: str) -> None:
    """Add Markdown to the job's summary, where there is a job.

    Raises:
        StorageError: the file cannot be written.
    """
    name = os.environ.get(SUMMARY_VARIABLE)
    if not name:
        return
    with storage_errors(Path(name)), Path(name).open("a", encoding="utf-8") as file:
        file.write(f"{markdown}\n")


def _detail(cell: CellComparison) -> str:
    parts = []
    if cell.change:
        parts.append(f"head / base {cell.change.value:.3f} ({cell.change.low:.3f} to {cell.change.high:.3f})")
    if cell.base_ms and cell.head_ms:
        parts.append(f"{cell.base_ms:.4g} ms, now {cell.head_ms:.4g} ms")
    remedy = cell.doubt.remedy if cell.doubt else ""
    return "; ".join(part for part in (*parts, cell.reason, remedy) if part) or str(cell.verdict)


def _command(kind: str, title: str, message: str) -> str:
    safe_title = _escaped(one_line(f"opbench {title}")).replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={safe_title}::{_escaped(one_line(message, 1000))}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
