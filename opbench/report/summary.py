"""One line about a run: who is fastest, what half precision gave, and how far cells are from what the device can do."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal

from opbench.report import analysis
from opbench.report.layout import OPERATOR_LABELS, Row, count_cells, row_shape, shape_text, three_digits
from opbench.results import RunFolder

__all__ = ["fastest", "summary_line"]

FAR = 0.1
"""A cell is far from its limit below this share of it."""


def summary_line(run: RunFolder) -> str:
    """What was learnt: fastest per column, largest precision gain, cells far from their limit."""
    rows = run.rows()
    parts = [part for part in (_fastest_part(rows), _gain_part(rows), _limit_part(rows), _failed_part(rows)) if part]
    return "; ".join(parts) + "." if parts else "No cell has a value."


def fastest(rows: Sequence[Row]) -> list[Row]:
    """The fastest row of each column (shape and dtype of one table) that has two rows or more."""
    columns: defaultdict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in analysis.measured(rows):
        columns[tuple(row[c] for c in ("shape_list", "level", "direction", "shape", "dtype"))].append(row)
    return [min(column, key=lambda row: float(row["latency_ms"])) for column in columns.values() if len(column) > 1]


def _fastest_part(rows: Sequence[Row]) -> str:
    best = fastest(rows)
    counts = Counter(_label(row) for row in best)
    if not counts:
        return ""
    texts = ", ".join(f"{label} in {count}" for label, count in counts.most_common())
    return f"fastest of {len(best)} columns: {texts}"


def _gain_part(rows: Sequence[Row]) -> str:
    """What each dtype gives over fp32: the largest gain, or that there is none. Within the noise is no gain."""
    gains = [gain for gain in analysis.precision_gains(rows) if gain.row["dtype"] != "fp32"]
    parts = []
    if real := [gain for gain in gains if analysis.is_clear(gain)]:
        most = max(real, key=lambda gain: gain.speedup)
        parts.append(
            f"largest precision gain: {three_digits(most.speedup)}× from {most.row['dtype']} "
            f"({_label(most.row)} {most.row['level']} {shape_text(row_shape(most.row), batch=True)}{_error_text(most)})"
        )
    for dtype in dict.fromkeys(gain.row["dtype"] for gain in gains):
        speedups = [gain.speedup for gain in gains if gain.row["dtype"] == dtype]
        if not any(gain.row["dtype"] == dtype for gain in real):
            low, high = three_digits(min(speedups)), three_digits(max(speedups))
            parts.append(f"{dtype} gains nothing here: " + (f"{low}×" if low == high else f"{low}× to {high}×"))
    return "; ".join(parts)


def _error_text(gain: analysis.Gain) -> str:
    """How far the values are from exact ones, in both dtypes."""
    if not (gain.error and gain.full_error):
        return ""
    return f"; values off by at most {_two_digits(100 * gain.error)} %, in fp32 {_two_digits(100 * gain.full_error)} %"


def _two_digits(value: float) -> str:
    """To two significant digits, never in scientific notation."""
    return format(Decimal(f"{value:.1e}"), "f")


def _limit_part(rows: Sequence[Row]) -> str:
    found = [row for row in analysis.measured(rows) if row["limit_fraction"]]
    if not found:
        return ""
    far = [row for row in found if row["limit_fraction"] < FAR]
    closest = max(found, key=lambda row: float(row["limit_fraction"]))
    return (
        f"{len(far)} of {count_cells(len(found))} below {100 * FAR:g} % of their limit, closest "
        f"{_label(closest)} {closest['level']} {shape_text(row_shape(closest), batch=True)} {closest['dtype']} at "
        f"{three_digits(100 * closest['limit_fraction'])} % ({closest['bound_by']})"
    )


def _failed_part(rows: Sequence[Row]) -> str:
    suspicious = sum(bool(row["suspicious"]) for row in rows)
    return f"{count_cells(suspicious)} suspicious: faster than the measured limits allow" if suspicious else ""


def _label(row: Row) -> str:
    return OPERATOR_LABELS.get(row["operator"], str(row["operator"]))
