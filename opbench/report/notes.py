"""Sentences about a table's rows: where they were measured, why cells have no value, what to be wary of."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from opbench.report.advice import cells_advice
from opbench.report.cell_text import SUSPICIOUS_MARK, WIDE_INTERVAL, WIDE_MARK, cell_text, half_width, is_wide
from opbench.report.layout import OPERATOR_LABELS, Group, row_shape
from opbench.report.value_text import count_cells, shape_text
from opbench.results.measurement import Status, is_failure
from opbench.results.row import Row, is_ok
from opbench.results.run import Run
from opbench.workload.cell_warning import split_warnings

__all__ = [
    "advice_notes",
    "failure_lines",
    "origin_notes",
    "provenance",
    "reason_notes",
    "suspicious_notes",
    "warning_notes",
    "wide_notes",
]

REASON_LENGTH = 160
REASON_COUNT = 12


def provenance(run: Run, rows: Sequence[Row]) -> str:
    """One line: device, timer, cache and date of the run."""
    timed = [row for row in rows if is_ok(row)] or rows
    timers = ", ".join(sorted({row.timer for row in timed}))
    caches = ", ".join(sorted({row.cache for row in timed}))
    date = run.started_at[:10] or "date unknown"
    return f"Device: {run.device_name}; timer: {timers}; cache: {caches}; {date}."


def failure_lines(rows: Iterable[Row]) -> list[str]:
    """Why cells failed: a line per status and reason, with the cell or the first of several."""
    found: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if is_failure(row.status):
            found[row.status, row.reason].append(row)
    lines = []
    for (status, reason), failed in found.items():
        row = failed[0]
        cell = f"{row.operator} {row.level} {row.direction} {row.shape} {row.dtype} ({row.provider})"
        several = f"{count_cells(len(failed))}, first " if len(failed) > 1 else ""
        lines.append(f"{status}: {several}{cell}: {reason}")
    if len(lines) > REASON_COUNT:
        lines = [*lines[:REASON_COUNT], f"{len(lines) - REASON_COUNT} more reasons: see the column `reason`."]
    return lines


def reason_notes(group: Group, without: Collection[Status] = ()) -> list[str]:
    """Why cells have no value, one line per distinct status and reason; and which values are uncertain."""
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in group.rows:
        if row.status not in (Status.OK, Status.NOT_RUN, *without):
            label = OPERATOR_LABELS.get(row.operator, row.operator)
            found[cell_text(row), _shorten(row.reason)].append(label)
    notes = [
        f"{status}: {reason} ({', '.join(dict.fromkeys(labels))}; {count_cells(len(labels))})."
        for (status, reason), labels in found.items()
    ]
    if len(notes) > REASON_COUNT:
        hidden = len(notes) - REASON_COUNT
        notes = [
            *notes[:REASON_COUNT],
            f"{hidden} more reasons: see the column `reason` of measurements.csv.",
        ]
    notes += suspicious_notes(group.rows)
    notes += wide_notes(group.rows)
    not_run = sum(row.status == Status.NOT_RUN for row in group.rows)
    if not_run:
        notes.append(f"{count_cells(not_run)} planned but not run: the run ended before.")
    return notes


def wide_notes(rows: Iterable[Row]) -> list[str]:
    """What `~` means, where a cell has it."""
    wide = sum(is_ok(row) and is_wide(row) for row in rows)
    if not wide:
        return []
    return [
        f"{WIDE_MARK}: the median's 95 % interval is wider than ±{100 * WIDE_INTERVAL:g} % ({count_cells(wide)}): "
        "a busy machine, or too small a time budget."
    ]


def origin_notes(rows: Iterable[Row]) -> list[str]:
    """Of a merged run or one that a fleet measured, how many runs, hosts and cards the rows are from."""
    merged = [row for row in rows if row.origin]
    if not merged:
        return []
    counts = [
        f"{len(found)} {name}{'' if len(found) == 1 else 's'}"
        for name, found in (
            ("run", {row.origin.partition(".")[0] for row in merged}),
            ("host", {row.host for row in merged} - {""}),
            ("card", {row.origin if row.actor else row.gpu_uuid for row in merged} - {""}),
        )
        if found
    ]
    by_fleet = all(row.actor and row.origin.startswith(row.run_id) for row in merged)
    from_ = f"Measured by a fleet: {', '.join(counts[1:])}" if by_fleet else f"Merged from {', '.join(counts)}"
    columns = "`actor`, `host`" if by_fleet else "`origin`, `host`"
    return [f"{from_}; the columns {columns} and `gpu_uuid` have each row's."]


def advice_notes(rows: Iterable[Row], environment: Mapping[str, Any]) -> list[str]:
    """What helps where samples scatter or other programs used the CPU."""
    cells = [(half_width(row), split_warnings(row.warnings)) for row in rows if is_ok(row)]
    text = cells_advice(cells, environment)
    return [f"{text[0].upper()}{text[1:]}."] if text else []


def warning_notes(group: Group) -> list[str]:
    """What disturbed the cells, or what they left changed, one line per kind; their figures stand all the same."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in group.rows:
        for warning in dict.fromkeys(split_warnings(row.warnings)):
            found[warning.kind].append(warning.detail)
    return [
        f"Warning, {kind}: {_shorten(details[0])}"
        + (f" ({count_cells(len(details))}; see the column `warnings`)." if len(details) > 1 else ".")
        for kind, details in found.items()
    ]


def suspicious_notes(rows: Iterable[Row]) -> list[str]:
    """One line per row that implies more than the device's measured ceilings allow, with the figures."""
    found = [row for row in rows if row.suspicious]
    notes = [
        f"{SUSPICIOUS_MARK}: suspicious: {OPERATOR_LABELS.get(row.operator, row.operator)} [{row.provider}] "
        f"{shape_text(row_shape(row), batch=True)} {row.dtype}: {row.suspicious}."
        for row in found[:REASON_COUNT]
    ]
    if len(found) > REASON_COUNT:
        notes.append(f"{len(found) - REASON_COUNT} more: see the column `suspicious` of measurements.csv.")
    return notes


def _shorten(text: str) -> str:
    """Text on one line, cut to REASON_LENGTH characters, without a full stop at its end."""
    line = " ".join(text.split())
    return line.rstrip(".") if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 1].rstrip() + "…"
