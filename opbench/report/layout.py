"""How a run's rows become lines and columns: labels, order, grouping and the text of one value."""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any

from opbench.cell_warning import split_warnings
from opbench.report.advice import cells_advice
from opbench.results.measurement import FAILURES, Status
from opbench.results.row import MeasuredRow, Row, is_ok
from opbench.results.run import Run
from opbench.stats import quantile
from opbench.workload.case import Dtype, Shape

__all__ = [
    "ABSENT",
    "OPERATOR_LABELS",
    "STATUS_TEXT",
    "Group",
    "Series",
    "advice_notes",
    "cell_text",
    "count_cells",
    "failure_lines",
    "group_rows",
    "provenance",
    "reason_notes",
    "row_shape",
    "shape_text",
    "sparkline",
    "suspicious_notes",
    "three_digits",
    "warning_notes",
    "wide_mark",
    "wide_notes",
]

ABSENT = "—"

OPERATOR_LABELS = {
    "conv3x3": "Conv (3×3)",
    "attention": "Attention (torch)",
    "flash_attention_2": "FlashAttention-2",
    "window_attention": "Window Attn (7×7)",
    "dcnv3": "DCNv3",
    "dcnv4_lightweight": "DCNv4 (lightweight)",
    "dcnv4": "DCNv4",
}
"""Row labels of the published tables, in their order."""

STATUS_TEXT: Mapping[str, str] = {Status.NOT_APPLICABLE: "N/A", Status.OUT_OF_MEMORY: "OOM", Status.NOT_RUN: ABSENT}
DTYPE_ORDER = tuple(str(dtype) for dtype in Dtype)
WIDE_INTERVAL = 0.05
"""Half width of the median's 95 % interval, as a fraction of the median, beyond which a figure is marked."""
WIDE_MARK = "~"
SUSPICIOUS_MARK = "!"
SPARKS = " ▁▂▃▄▅▆▇█"
REASON_LENGTH = 160
REASON_COUNT = 12
MAX_STEM_BYTES = 150
"""File systems take 255 bytes, and prefixes and suffixes come on top."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a table or plot: an operator under one provider."""

    operator: str
    provider: str
    settings: str = ""
    """Empty unless the run holds the same case under several settings."""

    @property
    def identity(self) -> tuple[str, str, str]:
        """What its look belongs to."""
        return self.operator, self.provider, self.settings


@dataclass(frozen=True)
class Group:
    """The rows of one shape list at one level and direction: one table, or one page of plots."""

    shape_list: str
    level: str
    direction: str
    stem: str
    """Start of a file name; no other group of the run has it."""
    rows: tuple[Row, ...]
    everyone: tuple[Series, ...] = ()
    """Every series of the run, so that one looks the same in each of its groups."""

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Every shape, in the order of the plan."""
        return tuple(dict.fromkeys(row_shape(row) for row in self.rows))

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """Every dtype, in the order fp32, tf32, fp16, bf16."""
        return tuple(sorted({row.dtype for row in self.rows}, key=DTYPE_ORDER.index))

    @cached_property
    def series(self) -> tuple[Series, ...]:
        """The paper's operators in its order, then the others in the order of the plan."""
        known = list(OPERATOR_LABELS)
        found = dict.fromkeys(self._series_of(row) for row in self.rows)
        return tuple(sorted(found, key=lambda s: known.index(s.operator) if s.operator in known else len(known)))

    @property
    def common_batch(self) -> int | None:
        """The batch of every shape, None if they differ."""
        batches = {shape.batch for shape in self.shapes}
        return batches.pop() if len(batches) == 1 else None

    @property
    def description(self) -> str:
        """Shape list, batch, level and direction in words."""
        batch = "" if self.common_batch is None else f"batch {self.common_batch}, "
        return f"{self.shape_list}, {batch}{self.level}, {self.direction}"

    def label(self, series: Series) -> str:
        """The operator's label; with the provider in brackets where it has several."""
        same = [other for other in self.series if other.operator == series.operator]
        extras = []
        if len({other.provider for other in same}) > 1:
            extras.append(series.provider)
        if len({other.settings for other in same}) > 1:
            extras.append(series.settings or "no settings")
        label = OPERATOR_LABELS.get(series.operator, series.operator)
        return f"{label} [{', '.join(extras)}]" if extras else label

    def cell(self, series: Series, shape: Shape, dtype: str) -> Row | None:
        """The row of one series, shape and dtype; None if the run never planned it."""
        return self._index.get((series, shape, dtype))

    @cached_property
    def _index(self) -> dict[tuple[Series, Shape, str], Row]:
        return {(self._series_of(row), row_shape(row), row.dtype): row for row in self.rows}

    @cached_property
    def _ambiguous_operators(self) -> frozenset[str]:
        """Operators with a case that occurs under more than one choice of settings."""
        settings = defaultdict(set)
        for row in self.rows:
            settings[row.operator, row.provider, row_shape(row), row.dtype].add(row.settings)
        return frozenset(operator for (operator, *_), texts in settings.items() if len(texts) > 1)

    def _series_of(self, row: Row) -> Series:
        operator = row.operator
        return Series(operator, row.provider, row.settings if operator in self._ambiguous_operators else "")


def group_rows(rows: Iterable[Row]) -> list[Group]:
    """Split rows by shape list, level and direction, in the order of the plan."""
    split: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        split.setdefault((row.shape_list, row.level, row.direction), []).append(row)
    groups: list[Group] = []
    stems: set[str] = set()
    for key, members in split.items():
        # A shape list's name comes from its file, which may be called anything.
        plain = re.sub(r"[^\w.]+", "-", "-".join(key)).strip("-.")
        plain = plain.encode()[:MAX_STEM_BYTES].decode(errors="ignore")
        stem, number = plain, 2
        while stem in stems:
            stem, number = f"{plain}-{number}", number + 1
        stems.add(stem)
        groups.append(Group(*key, stem, tuple(members)))
    everyone = tuple(dict.fromkeys(series for group in groups for series in group.series))
    return [replace(group, everyone=everyone) for group in groups]


def row_shape(row: Row) -> Shape:
    """The shape of one row."""
    return Shape(row.batch, row.height, row.width, row.channels)


def shape_text(shape: Shape, *, batch: bool = False) -> str:
    """`56×56×128`, or `64×56×56×128` with the batch."""
    sizes = (shape.height, shape.width, shape.channels)
    return "×".join(str(size) for size in ((shape.batch, *sizes) if batch else sizes))


def three_digits(value: float) -> str:
    """A positive number to three significant digits, never in scientific notation: 0.833, 32.0, 0.0912."""
    return format(Decimal(f"{value:.2e}"), "f")


def cell_text(row: Row | None) -> str:
    """The median latency in ms to three digits, marked where it is uncertain or beats the device's limits, or what
    stands in its place."""
    if row is None:
        return ABSENT
    if not is_ok(row):
        return STATUS_TEXT.get(row.status, row.status)
    return marks(row) + three_digits(row.latency_ms)


def marks(row: MeasuredRow) -> str:
    """What stands before the figure of an ok cell: `~` uncertain, `!` suspicious."""
    return wide_mark(row) + (SUSPICIOUS_MARK if row.suspicious else "")


def wide_mark(row: MeasuredRow) -> str:
    """`~` for an ok cell that is uncertain."""
    return WIDE_MARK if is_wide(row) else ""


def is_wide(row: MeasuredRow) -> bool:
    """The median of an ok cell is uncertain by more than WIDE_INTERVAL."""
    width = half_width(row)
    return width is not None and width > WIDE_INTERVAL


def half_width(row: MeasuredRow) -> float | None:
    """The longer arm of an ok cell's interval over its median; None for a published figure."""
    middle = row.latency_ms
    if row.ci_low_ms is None or row.ci_high_ms is None:
        return None
    longer = max(row.ci_high_ms - middle, middle - row.ci_low_ms)
    if not middle:
        return math.inf if longer else 0.0
    return longer / middle


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
        if row.status in FAILURES:
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
            found[cell_text(row), shorten(row.reason)].append(label)
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
        f"Warning, {kind}: {shorten(details[0])}"
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


def shorten(text: str) -> str:
    """Text on one line, cut to REASON_LENGTH characters, without a full stop at its end."""
    line = " ".join(text.split())
    return line.rstrip(".") if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 1].rstrip() + "…"


def sparkline(samples: Sequence[float], bins: int = 10) -> str:
    """The samples' histogram in one line of blocks, fastest left; the slowest 5 % share the last block.

    A full block is the fullest bin; a bin with any sample shows at least the lowest block, an empty one a blank.
    """
    ordered = sorted(samples)
    if not ordered:
        return ""
    low, high = ordered[0], quantile(ordered, 0.95)
    if high <= low:
        return SPARKS[-1]
    counts = [0] * bins
    for value in ordered:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    return "".join(SPARKS[math.ceil(count / max(counts) * (len(SPARKS) - 1))] for count in counts)


def count_cells(count: int) -> str:
    """`1 cell`, `2 cells`."""
    return f"{count} cell{'' if count == 1 else 's'}"
