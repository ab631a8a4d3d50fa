"""One line about a run: who is fastest, what half precision gave, and how far cells are from what the device can do."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from decimal import Decimal

from opbench.report import analysis
from opbench.report.cell_text import WIDE_MARK, is_wide
from opbench.report.layout import OPERATOR_LABELS, differing_settings, row_shape
from opbench.report.value_text import count_cells, shape_text, three_digits
from opbench.results.row import MeasuredRow, Row
from opbench.results.run import Run

__all__ = ["fastest", "summary_line"]

FAR = 0.1
"""A cell is far from its limit below this share of it."""


def summary_line(run: Run) -> str:
    """What was learnt: fastest per column, largest precision gain, cells far from their limit.

    A cell is named for what sets it apart only where its interval lies apart from the others'.
    """
    rows = run.rows()
    label = _labels(rows)
    found = (_fastest_part(rows, label), _gain_part(rows, label), _limit_part(rows, label), _failed_part(rows))
    parts = [part for part in found if part]
    if parts:
        return "; ".join(parts) + "."
    count = len(analysis.measured(rows))
    return f"{count_cells(count)} with a value, and nothing to compare." if count else "No cell has a value."


def fastest(rows: Sequence[Row]) -> list[MeasuredRow | None]:
    """The fastest row of each column (shape and dtype of one table) that has two rows or more.

    None where the intervals of the two best overlap: which is faster was not found out.
    """
    columns: defaultdict[tuple[object, ...], list[MeasuredRow]] = defaultdict(list)
    for row in analysis.measured(rows):
        columns[row.shape_list, row.level, row.direction, row.shape, row.dtype].append(row)
    best: list[MeasuredRow | None] = []
    for column in columns.values():
        if len(column) > 1:
            first, second = sorted(column, key=lambda row: row.latency_ms)[:2]
            best.append(first if analysis.is_faster(first, second) else None)
    return best


def _fastest_part(rows: Sequence[Row], label: Callable[[Row], str]) -> str:
    best = fastest(rows)
    if not best:
        return ""
    counts = Counter(label(row) for row in best if row)
    texts = [f"{name} in {count}" for name, count in counts.most_common()]
    if undecided := best.count(None):
        texts.append(f"undecided in {undecided}")
    of_one = len({row.operator for row in rows}) == 1 and len({row.provider for row in rows}) > 1
    columns = f"{len(best)} column{'' if len(best) == 1 else 's'}"
    return f"fastest{' provider' if of_one else ''} of {columns}: {', '.join(texts)}"


def _gain_part(rows: Sequence[Row], label: Callable[[Row], str]) -> str:
    """What each dtype gives over fp32: the largest gain, or that there is none. Within the noise is no gain."""
    gains = [gain for gain in analysis.precision_gains(rows) if gain.row.dtype != "fp32"]
    parts = []
    if real := [gain for gain in gains if analysis.is_clear(gain)]:
        # A gain of an uncertain cell is largest by chance: it is named only where there is no other.
        most = max(real, key=lambda gain: (not _is_uncertain(gain), gain.speedup))
        mark = WIDE_MARK if _is_uncertain(most) else ""
        shape = shape_text(row_shape(most.row), batch=True)
        parts.append(
            f"largest precision gain: {mark}{three_digits(most.speedup)}× from {most.row.dtype} "
            f"({label(most.row)} {most.row.level} {shape}{_error_text(most)})"
        )
    for dtype in dict.fromkeys(gain.row.dtype for gain in gains):
        speedups = [gain.speedup for gain in gains if gain.row.dtype == dtype]
        if not any(gain.row.dtype == dtype for gain in real):
            low, high = three_digits(min(speedups)), three_digits(max(speedups))
            parts.append(f"{dtype} gains nothing here: " + (f"{low}×" if low == high else f"{low}× to {high}×"))
    return "; ".join(parts)


def _is_uncertain(gain: analysis.Gain) -> bool:
    return is_wide(gain.row) or is_wide(gain.full)


def _error_text(gain: analysis.Gain) -> str:
    """How far the values are from exact ones, in both dtypes."""
    if not (gain.error and gain.full_error):
        return ""
    return f"; values off by at most {_two_digits(100 * gain.error)} %, in fp32 {_two_digits(100 * gain.full_error)} %"


def _two_digits(value: float) -> str:
    """To two significant digits, never in scientific notation."""
    return format(Decimal(f"{value:.1e}"), "f")


def _limit_part(rows: Sequence[Row], label: Callable[[Row], str]) -> str:
    found = [(row.limit_fraction, row) for row in analysis.measured(rows) if row.limit_fraction]
    if not found:
        return ""
    far = [fraction for fraction, _ in found if fraction < FAR]
    ordered = sorted(found, key=lambda pair: pair[0], reverse=True)
    fraction, closest = ordered[0]
    text = f"{len(far)} of {count_cells(len(found))} below {100 * FAR:g} % of their limit, closest "
    share = f"{three_digits(100 * fraction)} %"
    if len(ordered) > 1 and not _is_closer(closest, ordered[1][1]):
        return f"{text}at about {share}"
    name = f"{label(closest)} {closest.level} {shape_text(row_shape(closest), batch=True)} {closest.dtype}"
    return f"{text}{name} at {share} ({closest.bound_by})"


def _is_closer(row: MeasuredRow, other: MeasuredRow) -> bool:
    """Whether a row is closer to its limit than another beyond the noise of both."""
    high, low = row.ci_high_ms, other.ci_low_ms
    if high is None or not low or row.limit_ms is None or other.limit_ms is None:
        return True
    return row.limit_ms / high > other.limit_ms / low


def _failed_part(rows: Sequence[Row]) -> str:
    suspicious = sum(bool(row.suspicious) for row in rows)
    return f"{count_cells(suspicious)} suspicious: faster than the measured limits allow" if suspicious else ""


def _labels(rows: Sequence[Row]) -> Callable[[Row], str]:
    """What a row is called: its operator, with the provider where that has several; of one operator the provider."""
    providers: defaultdict[str, set[str]] = defaultdict(set)
    settings: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        providers[row.operator].add(row.provider)
        settings[row.operator].add(row.settings)

    def label(row: Row) -> str:
        several = len(providers[row.operator]) > 1
        texts = settings[row.operator]
        extra = differing_settings(row.settings, texts) if len(texts) > 1 else ""
        if len(providers) == 1 and several:
            return " ".join(filter(None, (row.provider, extra)))
        extras = ", ".join(filter(None, (row.provider if several else "", extra)))
        name = OPERATOR_LABELS.get(row.operator, row.operator)
        return f"{name} [{extras}]" if extras else name

    return label
