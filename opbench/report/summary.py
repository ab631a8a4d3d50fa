"""One line about a run: who is fastest, what half precision gave, and how far cells are from what the device can do."""

from collections import Counter, defaultdict
from collections.abc import Sequence

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
    gains = [gain for gain in analysis.precision_gains(rows) if gain.row["dtype"] != "fp32"]
    if not gains:
        return ""
    most = max(gains, key=lambda gain: gain.speedup)
    error = ""
    if most.error and most.full_error:
        error = f", with {three_digits(most.error / most.full_error)} times the error"
    return (
        f"largest precision gain: {three_digits(most.speedup)}× from {most.row['dtype']} "
        f"({_label(most.row)} {most.row['level']} {shape_text(row_shape(most.row), batch=True)}{error})"
    )


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
