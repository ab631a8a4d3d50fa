"""Tables of one run: latencies in the paper's layout, fp32 against half precision, and energy."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from opbench.report.cards import card_tables
from opbench.report.cell_text import cell_text, wide_mark
from opbench.report.layout import Group, Series, group_rows
from opbench.report.networks import network_tables, published_network_tables
from opbench.report.notes import (
    advice_notes,
    origin_notes,
    provenance,
    reason_notes,
    suspicious_notes,
    warning_notes,
    wide_notes,
)
from opbench.report.paper import matched_tables
from opbench.report.render import SEPARATOR, Table, write_table_files
from opbench.report.value_text import ABSENT, count_cells, shape_text, sparkline, three_digits
from opbench.results.measurement import Status
from opbench.results.row import Row, is_ok
from opbench.results.run import Run
from opbench.workload.case import Shape

__all__ = [
    "energy_tables",
    "half_precision",
    "result_tables",
    "run_tables",
    "sample_table",
    "speedup",
    "speedup_tables",
    "write_tables",
]

NO_ENERGY = "no energy: "
"""Begins the part of a reason that says why."""


def run_tables(run: Run, *, without_reasons_of: Collection[Status] = ()) -> list[Table]:
    """One table per shape list, level and direction: operators down, shapes across, median latencies in ms.

    Every dtype of the run stands in each cell, in the order fp32, tf32, fp16, bf16; a cell without a value
    says why: N/A, OOM, its status, or a dash where nothing was run.

    Args:
        run: whose tables.
        without_reasons_of: statuses whose reasons are said elsewhere, and not in the notes.
    """
    return [_latency_table(run, group, without_reasons_of) for group in group_rows(run.rows())]


def sample_table(run: Run) -> Table:
    """Every ok cell with the spread of its samples and their histogram, fastest left."""
    finished = run.finished()
    rows = []
    for cell, row in zip(run.plan(), run.rows(), strict=False):
        if is_ok(row):
            samples = finished[cell.key].latencies_ms
            figures = (row.latency_ms_min or 0.0, row.latency_ms, row.latency_ms_p80 or 0.0)
            name = f"{row.operator} {row.level} {row.direction} {row.shape} {row.dtype}"
            rows.append((name, row.provider, sparkline(samples), *map(three_digits, figures), str(len(samples))))
    return Table(
        name="samples",
        title="Samples per cell",
        columns=("Cell", "Provider", "Samples, ms", "min", "median", "80 %", "count"),
        rows=tuple(rows),
        notes=("Histogram: from the fastest sample, left, to the slowest twentieth, in the last block.",),
        text_columns=3,
    )


def speedup_tables(run: Run) -> list[Table]:
    """One table per shape list, level and direction: fp32 latency divided by fp16 latency.

    Where the run has no fp16, bf16 stands in its place and the table says so; groups that lack fp32 or
    both are left out.
    """
    return [_speedup_table(run, group, half) for group in group_rows(run.rows()) if (half := half_precision(group))]


def energy_tables(run: Run) -> list[Table]:
    """One table per shape list, level and direction in the layout of run_tables: energy of a launch in mJ.

    None of a run that was not asked for energy.
    """
    groups = group_rows(run.rows())
    return [_energy_table(run, group) for group in groups if any(map(_told_of_energy, group.rows))]


def result_tables(run: Run, *, without_reasons_of: Collection[Status] = ()) -> list[Table]:
    """What is printed of a run: latencies, speed-ups, energy, networks, and the cards of a fleet.

    Args:
        run, without_reasons_of: as of run_tables.
    """
    latencies = run_tables(run, without_reasons_of=without_reasons_of)
    return [*latencies, *speedup_tables(run), *energy_tables(run), *network_tables(run), *card_tables(run)]


def write_tables(run: Run) -> list[Path]:
    """Write every table of a run into its folder `tables`, each as .md, .csv and .tex; returns the files."""
    tables = [*result_tables(run), *matched_tables(run), *published_network_tables(run)]
    return write_table_files(tables, run.path / "tables")


def half_precision(group: Group) -> str | None:
    """The dtype that fp32 is compared with: fp16, else bf16; None if the group lacks fp32 or both."""
    if "fp32" not in group.dtypes:
        return None
    return next((dtype for dtype in ("fp16", "bf16") if dtype in group.dtypes), None)


def speedup(full: Row | None, half: Row | None) -> float | None:
    """Latency in fp32 divided by latency in half precision; None unless both cells are ok."""
    return full.latency_ms / half.latency_ms if is_ok(full) and is_ok(half) else None


def _latency_table(run: Run, group: Group, without_reasons_of: Collection[Status]) -> Table:
    dtypes = SEPARATOR.join(group.dtypes)
    return Table(
        name=group.stem,
        title=f"Latency in ms, {dtypes}: {group.description}",
        columns=(
            "Operator",
            "Provider",
            *(f"{_heading(group, shape)}\n{dtypes} (ms)" for shape in group.shapes),
        ),
        rows=_lines(group, cell_text),
        notes=(
            provenance(run, group.rows),
            *origin_notes(group.rows),
            *reason_notes(group, without_reasons_of),
            *warning_notes(group),
            *advice_notes(group.rows, run.environment),
        ),
        ranks=_ranks(group, first_column=2),
    )


def _lines(group: Group, text: Callable[[Row | None], str]) -> tuple[tuple[str, ...], ...]:
    """A line per series, with the text of each dtype's row in a column per shape."""
    return tuple(
        (
            group.label(series),
            series.provider,
            *(
                SEPARATOR.join(text(group.cell(series, shape, dtype)) for dtype in group.dtypes)
                for shape in group.shapes
            ),
        )
        for series in group.series
    )


def _ranks(group: Group, *, first_column: int) -> dict[tuple[int, int, int], str]:
    """The fastest and the slowest cell of each shape and dtype that has two different latencies or more."""
    ranks = {}
    for column, shape in enumerate(group.shapes, start=first_column):
        for place, dtype in enumerate(group.dtypes):
            cells = [group.cell(series, shape, dtype) for series in group.series]
            found = {n: row.latency_ms for n, row in enumerate(cells) if is_ok(row)}
            if len(set(found.values())) > 1:
                ranks[min(found, key=found.__getitem__), column, place] = "best"
                ranks[max(found, key=found.__getitem__), column, place] = "worst"
    return ranks


def _speedup_table(run: Run, group: Group, half: str) -> Table:
    def values(series: Series) -> Iterator[str]:
        for shape in group.shapes:
            yield _speedup_text(group.cell(series, shape, "fp32"), group.cell(series, shape, half))

    return Table(
        name=f"speedup-{group.stem}-fp32-{half}",
        title=f"Speed-up of {half} over fp32 (fp32 latency / {half} latency): {group.description}",
        columns=(
            "Operator",
            "Provider",
            *(f"{_heading(group, shape)}\nfp32 / {half} (×)" for shape in group.shapes),
        ),
        rows=tuple((group.label(series), series.provider, *values(series)) for series in group.series),
        notes=(
            provenance(run, [row for row in group.rows if row.dtype in ("fp32", half)]),
            f"Above 1: {half} is faster. Where a cell has no value, the dtype without one says why.",
            *suspicious_notes(row for row in group.rows if row.dtype in ("fp32", half)),
            *wide_notes(row for row in group.rows if row.dtype in ("fp32", half)),
        ),
    )


def _speedup_text(full: Row | None, half: Row | None) -> str:
    """The speed-up to three digits, marked where either figure is uncertain, or why there is none."""
    if is_ok(full) and is_ok(half):
        return (wide_mark(full) or wide_mark(half)) + three_digits(full.latency_ms / half.latency_ms)
    if full is None or half is None:
        return ABSENT
    without = {dtype: row for dtype, row in (("fp32", full), (half.dtype, half)) if not is_ok(row)}
    texts = [f"{dtype} {text}" for dtype, row in without.items() if (text := cell_text(row)) != ABSENT]
    return ", ".join(texts) or ABSENT


def _told_of_energy(row: Row) -> bool:
    return row.energy_mj is not None or NO_ENERGY in row.reason


def _energy_table(run: Run, group: Group) -> Table:
    def text(row: Row | None) -> str:
        if row is None or not is_ok(row):
            return cell_text(row)
        return ABSENT if row.energy_mj is None else three_digits(row.energy_mj)

    dtypes = SEPARATOR.join(group.dtypes)
    measured = [row for row in group.rows if row.energy_mj is not None]
    sources = ", ".join(dict.fromkeys(row.energy_source or "" for row in measured))
    idle = sorted(row.idle_power_w or 0.0 for row in measured)
    counted = f"Counter: {sources}. Idle power, which is included: {idle[0]:.3g} to {idle[-1]:.3g} W." if idle else ""
    missing = Counter(row.reason.partition(NO_ENERGY)[2] for row in group.rows if NO_ENERGY in row.reason)
    return Table(
        name=f"energy-{group.stem}",
        title=f"Energy of a launch in mJ, {dtypes}: {group.description}",
        columns=("Operator", "Provider", *(f"{_heading(group, shape)}\n{dtypes} (mJ)" for shape in group.shapes)),
        rows=_lines(group, text),
        notes=(
            provenance(run, group.rows),
            "Launches back to back with a warm cache, whatever the timer.",
            *filter(None, [counted]),
            *(f"No energy: {reason} ({count_cells(count)})." for reason, count in missing.items()),
        ),
    )


def _heading(group: Group, shape: Shape) -> str:
    return shape_text(shape, batch=group.common_batch is None)
