"""Tables of whole networks: throughput, what an operator costs in one, and published throughputs beside ours."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from opbench.report.cell_text import STATUS_TEXT, is_wide, wide_mark
from opbench.report.layout import Group, Series, group_rows
from opbench.report.measured_and_published import PUBLISHED_DTYPE
from opbench.report.notes import provenance, reason_notes
from opbench.report.table import SEPARATOR, Table
from opbench.report.value_text import ABSENT, shape_text, three_digits
from opbench.results.published_networks import BACKBONE, PublishedNetwork, published_networks
from opbench.results.row import MeasuredRow, Row, is_ok
from opbench.results.run import Run
from opbench.workload.case import Direction, Level, Shape

__all__ = ["network_tables", "published_network_tables"]

LEFT_OUT = "none"
"""The operator of a network whose blocks have none."""


def network_tables(run: Run) -> list[Table]:
    """Of each group of whole networks: throughput, and what the operators cost that were put into one network."""
    tables = []
    for group in group_rows(row for row in run.rows() if row.level == Level.MODEL):
        tables += [_throughput(run, group), *_swaps(run, group)]
    return tables


def _throughput(run: Run, group: Group) -> Table:
    dtypes = SEPARATOR.join(group.dtypes)
    rows = []
    for series in group.series:
        cells = [group.label(series), series.provider, _millions(group, series)]
        for shape in group.shapes:
            found = [group.cell(series, shape, dtype) for dtype in group.dtypes]
            macs = next((row.mac_count for row in found if row and row.mac_count), None)
            cells += [three_digits(macs / 1e9) if macs else ABSENT, SEPARATOR.join(map(_images, found))]
            if _has_memory(group):
                cells.append(SEPARATOR.join(map(_gib, found)))
        rows.append(tuple(cells))
    columns = ["Network", "Provider", "parameters\n(M)"]
    for shape in group.shapes:
        heading = shape_text(shape, batch=group.common_batch is None)
        columns += [f"{heading}\nMAC / image (G)", f"{heading}\n{dtypes} (images/s)"]
        if _has_memory(group):
            columns.append(f"{heading}\nmemory {dtypes} (GiB)")
    return Table(
        name=f"networks-{group.stem}",
        title=f"Networks, images per second: {group.description}",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(provenance(run, group.rows), *reason_notes(group)),
    )


def _swaps(run: Run, group: Group) -> list[Table]:
    """A table for each network that was measured with several operators."""
    by_network: defaultdict[tuple[str, str], dict[str, Series]] = defaultdict(dict)
    for series in group.series:
        if operator := _setting(series.settings, "operator"):
            by_network[series.operator, series.provider].setdefault(operator, series)
    return [
        _swap_table(run, group, network, provider, by_operator)
        for (network, provider), by_operator in by_network.items()
        if len(by_operator) > 1
    ]


def _swap_table(run: Run, group: Group, network: str, provider: str, by_operator: dict[str, Series]) -> Table:
    columns = ["Operator"]
    pairs = [(shape, dtype) for shape in group.shapes for dtype in group.dtypes]
    for shape, dtype in pairs:
        heading = f"{shape_text(shape, batch=group.common_batch is None)} {dtype}"
        columns += [f"{heading}\nnetwork (ms)", "its modules\n(ms)", "share of\nnetwork", "images/s"]
    rows = [
        (operator, *(text for pair in pairs for text in _swap_cells(group, by_operator, operator, *pair)))
        for operator in by_operator
    ]
    notes = [provenance(run, group.rows)]
    if LEFT_OUT in by_operator:
        notes.append(
            "Its modules: latency of the network less that of the same network without the operator (none), over all "
            "blocks, projections included; share: of the network's latency."
        )
    else:
        notes.append(f"What they cost needs {network} without one: --set {network}.operator=...,{LEFT_OUT}.")
    return Table(
        name=f"operators-in-{network}-{provider}-{group.stem}",
        title=f"Operators in {network} ({provider}): {group.description}",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=tuple(notes),
        text_columns=1,
    )


def _swap_cells(
    group: Group, by_operator: dict[str, Series], operator: str, shape: Shape, dtype: str
) -> tuple[str, str, str, str]:
    """Latency of the network, of the operator's modules in it, their share, and images per second."""
    row = group.cell(by_operator[operator], shape, dtype)
    if not is_ok(row):
        return _images(row), ABSENT, ABSENT, ABSENT
    without = group.cell(by_operator[LEFT_OUT], shape, dtype) if LEFT_OUT in by_operator else None
    modules, share = ABSENT, ABSENT
    if is_ok(without) and without is not row:
        rest = row.latency_ms - without.latency_ms
        mark = wide_mark(row) or wide_mark(without)
        modules = mark + (three_digits(rest) if rest > 0 else f"{rest:.3g}")
        share = f"{mark}{100 * rest / row.latency_ms:.0f} %"
    return wide_mark(row) + three_digits(row.latency_ms), modules, share, _images(row)


def published_network_tables(run: Run) -> list[Table]:
    """One table for each published table, size of the image and dtype of which the run has two networks or more."""
    measured = [row for row in run.rows() if row.level == Level.MODEL and row.direction == Direction.FWD and is_ok(row)]
    by_table: defaultdict[tuple[str, str, int, int, str], list[PublishedNetwork]] = defaultdict(list)
    for published in published_networks():
        for dtype in dict.fromkeys(row.dtype for row in measured):
            if published.height and published.width and published.dtype in ("", PUBLISHED_DTYPE[dtype]):
                place = (published.source, published.scope, published.height, published.width, dtype)
                by_table[place].append(published)
    tables = []
    for (source, scope, height, width, dtype), beside in by_table.items():
        pairs = [(network, row) for network in beside if (row := _row_of(network, measured, dtype))]
        if len(pairs) > 1:
            tables.append(_published_table(run, f"{source}, {height}×{width}", scope, dtype, pairs))
    return tables


def _row_of(published: PublishedNetwork, rows: Iterable[MeasuredRow], dtype: str) -> MeasuredRow | None:
    """The row that stands beside it: of its batch, else of the largest."""
    found = [row for row in rows if row.dtype == dtype and published.is_of(row)]
    return max(found, key=lambda row: (row.batch == published.batch, row.batch), default=None)


def _published_table(
    run: Run, place: str, scope: str, dtype: str, pairs: Sequence[tuple[PublishedNetwork, MeasuredRow]]
) -> Table:
    first, base = pairs[0]
    rows = tuple(
        (
            published.label,
            row.operator,
            row.provider,
            _images(row),
            three_digits(published.images_per_second),
            three_digits((row.images_per_second or 0.0) / (base.images_per_second or 1.0)),
            three_digits(published.images_per_second / first.images_per_second),
        )
        for published, row in pairs
    )
    batch = "batch not stated" if first.batch is None else f"batch {first.batch}"
    notes = [
        provenance(run, [row for _, row in pairs]),
        f"Published: A100, {batch}, {first.dtype or 'dtype not stated'}. Measured: batch "
        f"{', '.join(sorted({str(row.batch) for _, row in pairs}))}, {dtype}. Compare ratios, not images per second.",
    ]
    if scope != BACKBONE:
        notes.append(f"Published with {scope}: its head takes time too, so that a backbone alone differs by more.")
    if any(is_wide(row) for _, row in pairs):
        notes.append("~: uncertain by more than 5 %.")
    return Table(
        name=f"published-{place.lower().replace(', ', '-').replace(' ', '-').replace('×', 'x')}-{dtype}",
        title=f"Measured beside {place}, {dtype}",
        columns=(
            "Published as", "Network", "Provider", "measured\n(images/s)", "A100\n(images/s)",
            f"measured\n/ {first.label}", f"A100\n/ {first.label}",
        ),
        rows=rows,
        notes=tuple(notes),
        text_columns=3,
    )  # fmt: skip


def _setting(settings: str, name: str) -> str:
    return next((part.partition("=")[2] for part in settings.split(";") if part.startswith(f"{name}=")), "")


def _images(row: Row | None) -> str:
    """Images per second, or what stands in their place."""
    if row is None:
        return ABSENT
    if not is_ok(row):
        return STATUS_TEXT.get(row.status, row.status)
    return wide_mark(row) + three_digits(row.images_per_second) if row.images_per_second else ABSENT


def _gib(row: Row | None) -> str:
    return three_digits(row.peak_memory_bytes / 2**30) if row and row.peak_memory_bytes else ABSENT


def _has_memory(group: Group) -> bool:
    return any(row.peak_memory_bytes for row in group.rows)


def _millions(group: Group, series: Series) -> str:
    counts = (
        row.parameter_count
        for shape in group.shapes
        for dtype in group.dtypes
        if (row := group.cell(series, shape, dtype)) and row.parameter_count
    )
    count = next(counts, None)
    return three_digits(count / 1e6) if count else ABSENT
