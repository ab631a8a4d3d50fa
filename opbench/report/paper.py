"""Tables of a run beside the published figures."""

from collections.abc import Sequence

from opbench.report.cell_text import STATUS_TEXT, cell_text
from opbench.report.layout import OPERATOR_LABELS, Group, Series, group_rows, row_shape
from opbench.report.measured_and_published import PUBLISHED_DTYPE, REFERENCE, MeasuredAndPublished
from opbench.report.notes import provenance, suspicious_notes
from opbench.report.render import SEPARATOR, Table
from opbench.report.value_text import ABSENT, shape_text, three_digits
from opbench.results.published import (
    PUBLISHED_LABEL,
    PUBLISHED_SETUP,
    PublishedCell,
    published_beside,
    published_cells,
)
from opbench.results.row import Row
from opbench.results.run import Run
from opbench.workload.case import Direction, Level

__all__ = ["matched_tables", "paper_tables"]


def paper_tables(run: Run) -> list[Table]:
    """One table per published shape that the run has, or a single table that lists the published shapes.

    Only module-level forward rows have a published counterpart, of the same batch or, where the paper has none, of
    its own. Latencies in ms; a ratio is the latency divided by that of the DCNv3 row of the same column.
    """
    return matched_tables(run) or [_nothing_matches()]


def matched_tables(run: Run) -> list[Table]:
    """The comparisons alone, each list's ratios before its shapes; empty if the run has no published shape."""
    tables = []
    for group in group_rows(row for row in run.rows() if _has_counterpart(row)):
        comparisons = [MeasuredAndPublished(group, shape) for shape in group.shapes]
        tables += [_ratio_table(run, group, comparisons, dtype) for dtype in group.dtypes]
        tables += [_shape_table(run, comparison) for comparison in comparisons]
    return tables


def _has_counterpart(row: Row) -> bool:
    if row.level != Level.MODULE or row.direction != Direction.FWD:
        return False
    dtype = PUBLISHED_DTYPE.get(row.dtype)
    return dtype is not None and published_beside(row.operator, row_shape(row), dtype) is not None


def _shape_table(run: Run, comparison: MeasuredAndPublished) -> Table:
    columns = ["Operator", "Provider"]
    for dtype in comparison.dtypes:
        beside = PUBLISHED_DTYPE[dtype]
        columns += [
            f"measured\n{dtype} (ms)",
            f"{PUBLISHED_LABEL}\n{beside} (ms)",
            f"measured\n{dtype} / DCNv3",
            f"{PUBLISHED_LABEL}\n{beside} / DCNv3",
        ]
    rows = []
    for series in comparison.series:
        cells = [comparison.group.label(series), series.provider]
        for dtype in comparison.dtypes:
            cells += _cells(comparison, series, dtype)
        rows.append(tuple(cells))
    group, shape = comparison.group, comparison.shape
    names = f"{shape_text(shape, batch=True)} ({group.shape_list}, {group.level}, {group.direction})"
    shape_rows = [row for row in group.rows if row_shape(row) == shape]
    return Table(
        name=f"paper-{group.stem}-{shape}",
        title=f"Measured beside {PUBLISHED_LABEL}: {names}",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(
            *_order_notes(comparison),
            provenance(run, shape_rows),
            *suspicious_notes(shape_rows),
            *_source_notes(comparison),
        ),
    )


def _ratio_table(run: Run, group: Group, comparisons: Sequence[MeasuredAndPublished], dtype: str) -> Table:
    """Measured and published ratio to DCNv3 of every operator and shape, and how well the orders agree."""
    beside = PUBLISHED_DTYPE[dtype]
    series = {series.operator: series for comparison in comparisons for series in comparison.chosen.values()}
    rows = []
    for operator, chosen in series.items():
        cells = [
            f"{_ratio(comparison.measured_ms(chosen, dtype), comparison.measured_base_ms(dtype))}{SEPARATOR}"
            f"{_ratio(comparison.published_ms(operator, dtype), comparison.published_ms(REFERENCE, dtype))}"
            for comparison in comparisons
        ]
        rows.append((_label(operator), *cells))
    orders = [comparison.order(dtype)[0] for comparison in comparisons]
    rows.append(("Kendall's tau of the order", *(ABSENT if tau is None else f"{tau:.2f}" for tau in orders)))
    return Table(
        name=f"paper-ratios-{group.stem}-{dtype}",
        title=f"Latency / DCNv3's, measured {dtype}{SEPARATOR}{PUBLISHED_LABEL} {beside}: {group.shape_list}",
        columns=("Operator", *(shape_text(comparison.shape) for comparison in comparisons)),
        rows=tuple(rows),
        notes=(
            provenance(run, group.rows),
            "Kendall's tau: 1 where the operators' order is the published one, -1 where it is reversed.",
            *_source_notes(comparisons[0]),
        ),
        text_columns=1,
    )


def _cells(comparison: MeasuredAndPublished, series: Series, dtype: str) -> list[str]:
    """Measured ms, published ms, and the two ratios to DCNv3."""
    published = comparison.published(series.operator, dtype)
    return [
        cell_text(comparison.group.cell(series, comparison.shape, dtype)),
        _published_text(published),
        _ratio(comparison.measured_ms(series, dtype), comparison.measured_base_ms(dtype)),
        _ratio(comparison.published_ms(series.operator, dtype), comparison.published_ms(REFERENCE, dtype)),
    ]


def _published_text(cell: PublishedCell | None) -> str:
    if cell is None:
        return ABSENT
    return STATUS_TEXT[cell.status] if cell.latency_ms is None else three_digits(cell.latency_ms)


def _ratio(latency_ms: float | None, base_ms: float | None) -> str:
    return ABSENT if latency_ms is None or base_ms is None else three_digits(latency_ms / base_ms)


def _order_notes(comparison: MeasuredAndPublished) -> list[str]:
    notes = []
    for dtype in comparison.dtypes:
        tau, count = comparison.order(dtype)
        text = ABSENT if tau is None else f"{tau:.2f}"
        notes.append(
            f"Kendall's tau of the operators' order, {dtype} measured against {PUBLISHED_DTYPE[dtype]} "
            f"{PUBLISHED_LABEL}: {text} (n = {count})."
        )
        if reversals := comparison.reversals(dtype):
            pairs = "; ".join(
                f"{_label(faster)} before {_label(slower)} (ratio {three_digits(here)}, {PUBLISHED_LABEL} "
                f"{three_digits(there)})"
                for faster, slower, here, there in reversals
            )
            notes.append(f"Reversed order, {dtype}: {pairs}.")
    if len(comparison.series) > len({series.operator for series in comparison.series}):
        used = ", ".join(f"{_label(series.operator)} [{series.provider}]" for series in comparison.chosen.values())
        notes.append(f"Ratios to DCNv3 and tau take one provider per operator: {used}.")
    return notes


def _label(operator: str) -> str:
    return OPERATOR_LABELS.get(operator, operator)


def _source_notes(comparison: MeasuredAndPublished) -> list[str]:
    tables = {
        cell.table
        for series in comparison.series
        for dtype in comparison.dtypes
        if (cell := comparison.published(series.operator, dtype))
    }
    source = " and ".join(f"Table {table}" for table in sorted(tables))
    notes = [
        f"{PUBLISHED_LABEL}: DCNv4 paper, supplement, {source}; {PUBLISHED_SETUP}. Its batch of "
        f"{comparison.published_batch} is inferred."
    ]
    if comparison.published_batch != comparison.shape.batch:
        notes.append(
            f"Measured with batch {comparison.shape.batch}: compare ratios and the order, not latencies; with fewer "
            "pixels fixed costs weigh more."
        )
    if "bf16" in comparison.dtypes:
        notes.append(f"bf16 stands beside the fp16 of {PUBLISHED_LABEL}: both take half of fp32's bytes.")
    if {"fp32", "tf32"} & set(comparison.dtypes):
        notes.append(
            f"{PUBLISHED_LABEL} fp32 most likely had TF32 on (inferred): tf32 here is the nearer match, "
            "fp32 here is strict."
        )
    return notes


def _nothing_matches() -> Table:
    published = published_cells().values()
    shapes = dict.fromkeys((cell.table, cell.shape_list, cell.shape) for cell in published)
    operators = dict.fromkeys(cell.operator for cell in published)
    return Table(
        name="paper",
        title=f"No row of this run has a published counterpart ({PUBLISHED_LABEL})",
        columns=("Published in", "Shape list", "Shape (batch inferred)"),
        rows=tuple((f"Table {table}", name, shape_text(shape, batch=True)) for table, name, shape in shapes),
        notes=(
            f"A counterpart needs level module, direction fwd, dtype {', '.join(PUBLISHED_DTYPE)}, one of the "
            f"operators {', '.join(operators)}, and one of the shapes above, with any batch.",
        ),
    )
