"""A comparison as people and machines read it: a terminal, Markdown, CSV, JUnit, GitHub."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opbench.compare.estimate import Estimate
from opbench.compare.verdicts import CellComparison, Comparison, Rank, Verdict
from opbench.errors import UnknownNameError
from opbench.files import storage_errors, write_whole
from opbench.report.annotations import append_job_summary, workflow_commands
from opbench.report.junit import junit_xml
from opbench.report.render import Table, markdown_escape, print_tables, render
from opbench.report.value_text import count_cells, sparklines, three_digits
from opbench.text import one_line, percent_text
from opbench.workload.case import Cell

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["COLUMNS", "COMPARISON_FORMATS", "ComparisonFormat", "show_comparison"]

COLUMNS = (
    "operator", "provider", "level", "direction", "shape_list", "shape", "dtype", "settings", "base_ms", "head_ms",
    "ratio", "ratio_low", "ratio_high", "verdict", "reason", "base_source", "head_source", "warnings",
)  # fmt: skip
LISTED = 5
"""Cells named in a note; the rest are counted."""


@dataclass(frozen=True, slots=True)
class ComparisonFormat:
    """A form that a comparison can have; both functions get the verdicts that must not fail a build.

    Attributes:
        show: prints it.
        file: its name in the folder of --out; empty where it is always printed.
        text: what the file holds.
    """

    show: "Callable[[Comparison, Collection[Verdict], Console], None]"
    file: str = ""
    text: Callable[[Comparison, Collection[Verdict]], str] = lambda comparison, accepted: ""


def in_file(file: str, text: Callable[[Comparison, Collection[Verdict]], str]) -> ComparisonFormat:
    """A form that is a text, which --out writes to a file and which is printed without it."""
    return ComparisonFormat(lambda found, accepted, console: _print(text(found, accepted), console), file, text)


def show_comparison(
    comparison: Comparison,
    formats: Sequence[str],
    out: Path | None,
    console: "Console",
    *,
    accepted: Collection[Verdict] = (),
) -> list[Path]:
    """Print a comparison, or write it.

    Args:
        comparison: what to show.
        formats: of COMPARISON_FORMATS. `terminal` is printed always; `github` prints workflow commands and appends
            Markdown to the file that GITHUB_STEP_SUMMARY names.
        out: a folder for the files of the others, made if it is not there; None prints them.
        console: where printing goes.
        accepted: verdicts that must not fail a build although they are neither same nor faster.

    Returns:
        The files written.

    Raises:
        UnknownNameError: a format that is not known.
        StorageError: a file cannot be written.
    """
    for format_ in formats:
        if format_ not in COMPARISON_FORMATS:
            raise UnknownNameError("format", format_, COMPARISON_FORMATS)
    written = []
    for format_ in formats:
        form = COMPARISON_FORMATS[format_]
        if out is None or not form.file:
            form.show(comparison, accepted, console)
            continue
        with storage_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        write_whole(out / form.file, form.text(comparison, accepted))
        written.append(out / form.file)
    return written


def headline(comparison: Comparison) -> str:
    """The verdict on all cells in one line."""
    return f"{comparison.verdict}: {one_line(comparison.reason)}" if comparison.reason else str(comparison.verdict)


def markdown(comparison: Comparison) -> str:
    """The verdict, the cells, the means and the notes."""
    parts = (render(table, "markdown") for table in comparison_tables(comparison))
    return "\n".join((f"**{markdown_escape(headline(comparison))}**\n", *parts))


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Cells, with what a reader must know as notes, the samples of those in doubt, and geometric means."""
    tables = [_cell_table(comparison), *_doubt_tables(comparison)]
    if comparison.means:
        rows = ((one_line(name), *_figures(change)) for name, change in comparison.means)
        tables.append(
            Table(
                name="means",
                title="Geometric means of head / base",
                columns=("Cells", "Ratio", "interval"),
                rows=tuple(rows),
                text_columns=1,
            )
        )
    return tables


def _cell_table(comparison: Comparison) -> Table:
    names = _names(comparison)
    return Table(
        name="comparison",
        title=f"{one_line(comparison.head)} against {one_line(comparison.base)}, "
        f"accepted change {percent_text(comparison.tolerance)}",
        columns=("Verdict", "Cell", "base, ms", "head, ms", "head / base", "interval"),
        rows=tuple(
            (
                str(cell.verdict),
                names[number],
                _number(cell.base_ms),
                _number(cell.head_ms),
                *_figures(cell.change),
            )
            for number, cell in enumerate(comparison.cells)
        ),
        notes=tuple(_notes(comparison)),
        ranks={
            (number, 0, 0): str(rank)
            for number, cell in enumerate(comparison.cells)
            if (rank := cell.verdict.rank) is not Rank.PLAIN
        },
    )


def _doubt_tables(comparison: Comparison) -> list[Table]:
    """Both arms of each cell that a gate left inconclusive, on one axis; none where there is no such cell."""
    rows: list[tuple[str, ...]] = []
    for name, cell in zip(_names(comparison), comparison.cells, strict=True):
        if doubt := cell.doubt:
            (base, head), low, high = sparklines((doubt.base_ms, doubt.head_ms))
            more = "beyond 1000 rounds" if doubt.more_s is None else f"{doubt.more_s / 60:.1f} min"
            axis = f"{three_digits(low)} to {three_digits(high)}"
            rows.append((name, "base", base, axis, _number(cell.base_ms), f"{doubt.spread:.1%}", more))
            rows.append(("", "head", head, "", _number(cell.head_ms), "", ""))
    if not rows:
        return []
    title = "Inconclusive cells: the samples of all processes, both arms on one axis"
    columns = ("Cell", "Arm", "Samples", "axis, ms", "median, ms", "scatter", "more to decide")
    note = "Scatter: standard deviation of a round's log ratio. The last block holds what is beyond the axis."
    return [Table("inconclusive", title, columns, tuple(rows), notes=(note,), text_columns=3)]


def _names(comparison: Comparison) -> list[str]:
    """What a cell is called in a table: without its settings, unless another is called the same."""
    short = [_short_name(cell) for cell in comparison.cells]
    counts = Counter(short)
    return [
        name if counts[name] == 1 else one_line(cell.cell.key)
        for name, cell in zip(short, comparison.cells, strict=True)
    ]


def _short_name(cell: CellComparison) -> str:
    if not isinstance(cell.cell, Cell):
        return one_line(cell.cell.fullname)
    case = cell.cell.case
    parts = (
        case.operator,
        cell.cell.provider,
        case.level,
        case.direction,
        case.shape_list,
        str(case.shape),
        case.dtype,
    )
    return " ".join(parts)


def _notes(comparison: Comparison) -> list[str]:
    reasons: defaultdict[tuple[Verdict, str], list[str]] = defaultdict(list)
    warnings: defaultdict[str, dict[str, None]] = defaultdict(dict)  # a cell once, for both arms
    for name, cell in zip(_names(comparison), comparison.cells, strict=True):
        if cell.reason:
            reasons[cell.verdict, _note(cell.reason)].append(name)
        for warning in cell.warnings:
            warnings[one_line(warning.kind)][name] = None
    notes = [
        f"{verdict.capitalize()}, {count_cells(len(keys))}: {reason}: {_listed(keys)}."
        for (verdict, reason), keys in reasons.items()
    ]
    notes += [f"Warning, {kind}: {count_cells(len(keys))}: {_listed([*keys])}." for kind, keys in warnings.items()]
    if comparison.only_in_head:
        keys = comparison.only_in_head
        notes.append(f"Only in the head, not judged: {count_cells(len(keys))}: {_listed(keys)}.")
    if comparison.not_applicable:
        notes.append(f"Not applicable in either: {count_cells(len(comparison.not_applicable))}.")
    return [*notes, *map(_note, comparison.notes)]


def _note(text: str) -> str:
    return one_line(text, 1000)


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return ", ".join(map(one_line, keys[:LISTED])) + more


def _figures(change: Estimate | None) -> tuple[str, str]:
    if change is None:
        return "", ""
    return f"{change.value:.3f}", f"{change.low:.3f} to {change.high:.3f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def comparison_csv(comparison: Comparison) -> str:
    """One row per cell of the base under COLUMNS, unrounded; empty where there is no value."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(cell) for cell in comparison.cells)
    return stream.getvalue()


def _row(cell: CellComparison) -> dict[str, Any]:
    values: dict[str, Any] = {
        "base_ms": cell.base_ms,
        "head_ms": cell.head_ms,
        "verdict": str(cell.verdict),
        "reason": one_line(cell.reason),
        "base_source": cell.base_source,
        "head_source": cell.head_source,
        "warnings": "; ".join(one_line(str(warning)) for warning in cell.warnings),
    }
    if cell.change:
        values |= {"ratio": cell.change.value, "ratio_low": cell.change.low, "ratio_high": cell.change.high}
    if not isinstance(cell.cell, Cell):
        return values | {"operator": one_line(cell.cell.fullname)}
    case = cell.cell.case
    return values | {
        "operator": case.operator,
        "provider": cell.cell.provider,
        "level": str(case.level),
        "direction": str(case.direction),
        "shape_list": case.shape_list,
        "shape": str(case.shape),
        "dtype": str(case.dtype),
        "settings": case.settings_text,
    }


def _print(text: str, console: "Console") -> None:
    from rich.text import Text

    console.print(Text(text), soft_wrap=True, end="")


def _print_terminal(comparison: Comparison, _: Collection[Verdict], console: "Console") -> None:
    print_tables(comparison_tables(comparison), "terminal", console)
    _print(f"\n{headline(comparison)}\n", console)


def _print_github(comparison: Comparison, accepted: Collection[Verdict], console: "Console") -> None:
    _print(workflow_commands(comparison, accepted), console)
    append_job_summary(markdown(comparison))


COMPARISON_FORMATS = {
    "terminal": ComparisonFormat(_print_terminal),
    "markdown": in_file("comparison.md", lambda comparison, _: markdown(comparison)),
    "csv": in_file("comparison.csv", lambda comparison, _: comparison_csv(comparison)),
    "junit": in_file("junit.xml", junit_xml),
    "github": ComparisonFormat(_print_github),
}
"""By name; a new form is an entry here."""
