"""What a table shows of one cell: its latency with its marks, or why it has none."""

import math
from collections.abc import Mapping

from opbench.report.value_text import ABSENT, three_digits
from opbench.results.measurement import Status
from opbench.results.row import MeasuredRow, Row, is_ok

__all__ = [
    "STATUS_TEXT",
    "SUSPICIOUS_MARK",
    "WIDE_INTERVAL",
    "WIDE_MARK",
    "cell_text",
    "half_width",
    "is_wide",
    "wide_mark",
]

STATUS_TEXT: Mapping[str, str] = {Status.NOT_APPLICABLE: "N/A", Status.OUT_OF_MEMORY: "OOM", Status.NOT_RUN: ABSENT}
WIDE_INTERVAL = 0.05
"""Half width of the median's 95 % interval, as a fraction of the median, beyond which a figure is marked."""
WIDE_MARK = "~"
SUSPICIOUS_MARK = "!"


def cell_text(row: Row | None) -> str:
    """The median latency in ms to three digits, marked where it is uncertain or beats the device's limits, or what
    stands in its place."""
    if row is None:
        return ABSENT
    if not is_ok(row):
        return STATUS_TEXT.get(row.status, row.status)
    return _marks(row) + three_digits(row.latency_ms)


def _marks(row: MeasuredRow) -> str:
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
