"""What the page shows, as plain JSON values: rows, tables that point at rows, charts that point at rows, samples.

Every figure on the page is a column of a row, or a quotient or difference of two rows that is named as such, so that it
can be traced: rows are kept whole and in the order of measurements.csv.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from opbench.device.ceilings import Ceilings
from opbench.device.identity import measured_revision
from opbench.report import analysis
from opbench.report.layout import OPERATOR_LABELS, Group, Series, differing_settings, group_rows
from opbench.report.page.environment import in_words
from opbench.report.page.warnings import run_warnings
from opbench.report.palette import DASH_DOTTED, DASHED, DOTTED, identity_looks
from opbench.report.spreads import distributions, spread_group, spread_lines, spread_px
from opbench.report.value_text import shape_text
from opbench.results.measurement import Status, is_failure
from opbench.results.row import COLUMN_NAMES, Row
from opbench.results.run import Run
from opbench.stats import quantile

__all__ = ["page_data"]

MOST_SAMPLES = 200
"""Samples of a cell that the page takes along as they are; of more it takes the percentiles 0 to 100."""

SAMPLE_DIGITS = 5
PUBLISHED = "published"
"""The published figures' provider."""
DASHES = ((), DASHED, DOTTED, DASH_DOTTED)
"""Of the first distribution of offsets, and of further ones."""
DTYPES = ("fp32", "tf32", "fp16", "bf16")


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """All that the page's scripts read.

    Args:
        runs: shown side by side, tagged A, B, ...; ratios are to the first.
    """
    per_run = [run.rows() for run in runs]
    rows = [row for run_rows in per_run for row in run_rows]
    index = {id(row): number for number, row in enumerate(rows)}
    owner = [number for number, run_rows in enumerate(per_run) for _ in run_rows]
    tags = [_tag(number) for number in range(len(runs))]
    operators = _operators(row.operator for row in rows)
    return {
        "columns": list(COLUMN_NAMES),
        "rows": [list(row.values()) for row in rows],
        "owner": owner,
        "base": _bases(rows, owner),
        "runs": [_run(run, tag) for run, tag in zip(runs, tags, strict=True)],
        "labels": {operator: OPERATOR_LABELS.get(operator, operator) for operator in operators},
        "facets": _facets(rows),
        **_series(per_run, index),
        "tables": _tables(per_run, index),
        "samples": _samples(runs, per_run, index),
        "charts": _charts(per_run, index),
        "ceilings": [line for run, tag in zip(runs, tags, strict=True) for line in _ceiling_lines(run.ceilings, tag)],
        "failed": [index[id(row)] for row in rows if is_failure(row.status) or row.status == Status.OUT_OF_MEMORY],
        "suspicious": [index[id(row)] for row in rows if row.suspicious],
    }


def _tag(number: int) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def _run(run: Run, tag: str) -> dict[str, Any]:
    return {
        "tag": tag,
        "name": run.path.resolve().name if run.path.exists() else str(run.path),
        "run_id": run.run_id,
        "device": run.device_name,
        "started": run.started_at[:10],
        "revision": measured_revision(run.environment)[:12],
        "environment": in_words(run.environment),
        "command": in_words(run.command),
        "warnings": run_warnings(run),
    }


def _series(per_run: Sequence[Sequence[Row]], index: Mapping[int, int]) -> dict[str, Any]:
    """Each series with its name and look, and per row its series.

    A series is an operator under one provider, and of one choice of settings and one device where a run holds several.
    The published figures look like the operator's first provider: they stand beside it, in a run of their own.
    """
    numbers: dict[tuple[str, str, str, str], int] = {}
    of_row = dict.fromkeys(range(len(index)), 0)
    for rows in per_run:
        for group in group_rows(rows):
            for series in group.series:
                numbers.setdefault((series.operator, series.provider, series.settings, series.device), len(numbers))
            for row in group.rows:
                name, device = (row.operator, row.provider), group.series_of(row).device
                of_row[index[id(row)]] = numbers.get((*name, row.settings, device), numbers.get((*name, "", device), 0))
    own: dict[str, list[tuple[str, str, str, str]]] = {}
    for identity in numbers:
        own.setdefault(identity[0], [])
        if identity[1] != PUBLISHED:
            own[identity[0]].append(identity)
    looks_of = {i: own[i[0]][0] if i[1] == PUBLISHED and own[i[0]] else i for i in numbers}
    looks = identity_looks(looks_of.values())

    def name_of(operator: str, provider: str, settings: str, device: str) -> str:
        label = OPERATOR_LABELS.get(operator, operator)
        if provider == PUBLISHED:
            return label
        _, providers, texts, _ = (set(column) for column in zip(*own[operator], strict=True))
        extras = [provider] if len(providers) > 1 else []
        if settings and len(texts) > 1:  # without: of a group that holds one choice
            extras.append(differing_settings(settings, filter(None, texts)))
        extras += filter(None, (device,))
        return f"{label} [{', '.join(extras)}]" if extras else label

    return {
        "series": [
            {
                "name": name_of(*identity),
                "operator": identity[0],
                "light": look.colour,
                "dark": look.on_dark,
                "symbol": look.symbol,
                "dash": list(look.dash),
                "filled": look.filled,
            }
            for identity in numbers
            for look in (looks[looks_of[identity]],)
        ],
        "series_of": list(of_row.values()),
    }


def _operators(names: Iterable[str]) -> list[str]:
    """The paper's operators in its order, then the others in the order given."""
    found = dict.fromkeys(names)
    known = [operator for operator in OPERATOR_LABELS if operator in found]
    return [*known, *(operator for operator in found if operator not in OPERATOR_LABELS)]


def _facets(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Values to filter by, per column."""
    columns = ("dtype", "level", "direction", "provider", "shape_list", "timer")
    facets = {column: list(dict.fromkeys(str(getattr(row, column)) for row in rows)) for column in columns}
    facets["dtype"].sort(key=lambda dtype: DTYPES.index(dtype) if dtype in DTYPES else len(DTYPES))
    return {"operator": _operators(row.operator for row in rows)} | facets


def _bases(rows: Sequence[Row], owner: Sequence[int]) -> list[int | None]:
    """Per row the one of the first run that it is compared with: the same cell, whatever device or timer.

    The published figures have a provider of their own: they stand beside the other side's first provider.
    """
    exact: dict[tuple[Any, ...], int] = {}
    by_any_provider: dict[tuple[Any, ...], int] = {}
    for number, row in enumerate(rows):
        if owner[number] == 0:
            exact.setdefault((*_cell(row), row.provider, row.settings), number)
            by_any_provider.setdefault(_cell(row), number)

    def base(row: Row) -> int | None:
        found = exact.get((*_cell(row), row.provider, row.settings))
        other = by_any_provider.get(_cell(row))
        if found is None and other is not None and PUBLISHED in (row.provider, rows[other].provider):
            return other
        return found

    return [base(row) for row in rows]


def _cell(row: Row) -> tuple[Any, ...]:
    return row.operator, row.level, row.direction, row.shape_list, row.shape, row.dtype


def _tables(per_run: Sequence[Sequence[Row]], index: Mapping[int, int]) -> list[dict[str, Any]]:
    """The paper's layout: one table per shape list, level and direction; a line per operator, provider and run."""
    groups: dict[tuple[str, str, str], list[tuple[int, Group]]] = {}
    for number, rows in enumerate(per_run):
        for group in group_rows(rows):
            groups.setdefault((group.shape_list, group.level, group.direction), []).append((number, group))
    return [_table(members, index) for members in groups.values()]


def _table(members: Sequence[tuple[int, Group]], index: Mapping[int, int]) -> dict[str, Any]:
    shapes = list(dict.fromkeys(shape for _, group in members for shape in group.shapes))
    dtypes = sorted({dtype for _, group in members for dtype in group.dtypes}, key=DTYPES.index)
    batches = {shape.batch for shape in shapes}
    lines: list[dict[str, Any]] = [
        {
            "operator": series.operator,
            "provider": series.provider,
            "label": group.label(series),
            "run": number,
            "cells": [
                [index[id(row)] if (row := group.cell(series, shape, dtype)) else None for dtype in dtypes]
                for shape in shapes
            ],
        }
        for number, group in members
        for series in group.series
    ]
    operators = _operators(line["operator"] for line in lines)
    providers = list(dict.fromkeys(line["provider"] for line in lines))
    lines.sort(key=lambda line: (operators.index(line["operator"]), providers.index(line["provider"]), line["run"]))
    first = members[0][1]
    batch = f", batch {batches.pop()}" if len(batches) == 1 else ""
    return {
        "list": first.shape_list,
        "level": first.level,
        "direction": first.direction,
        "title": f"{first.shape_list}: {first.level}, {first.direction}{batch}",
        "shapes": [shape_text(shape, batch=not batch) for shape in shapes],
        "dtypes": dtypes,
        "lines": lines,
    }


def _samples(runs: Sequence[Run], per_run: Sequence[Sequence[Row]], index: Mapping[int, int]) -> dict[str, list[float]]:
    """Per ok row its samples in ms, in order of time; where they are more than MOST_SAMPLES, the percentiles."""
    samples = {}
    for run, rows in zip(runs, per_run, strict=True):
        finished = run.finished()
        for cell, row in zip(run.plan(), rows, strict=False):
            if (measurement := finished.get(cell.key)) and (latencies := measurement.latencies_ms):
                kept: Iterable[float] = latencies
                if len(latencies) > MOST_SAMPLES:
                    ordered = sorted(latencies)
                    kept = (quantile(ordered, percent / 100) for percent in range(101))
                samples[str(index[id(row)])] = [float(f"{value:.{SAMPLE_DIGITS}g}") for value in kept]
    return samples


def _ceiling_lines(ceilings: Ceilings | None, tag: str) -> list[dict[str, Any]]:
    """Per dtype the compute ceiling (TFLOP/s) with the memory and cache ones (GB/s) of one run."""
    if ceilings is None:
        return []
    return [
        {
            "run": tag,
            "dtype": dtype,
            "tflops": ceilings.compute_tflops(dtype),
            "memory": ceilings.bandwidth_gbps("memory"),
            "cache": ceilings.bandwidth_gbps("cache"),
        }
        for dtype in dict.fromkeys(probe.name for probe in ceilings.of("compute"))
    ]


def _charts(per_run: Sequence[Sequence[Row]], index: Mapping[int, int]) -> dict[str, Any]:
    """Per chart its points: figures and the rows that they come from."""
    rows = [row for run_rows in per_run for row in run_rows]
    groups = [group for run_rows in per_run for group in group_rows(run_rows)]

    def at(row: Row) -> int:
        return index[id(row)]

    found = analysis.measured(rows)
    ratios = {
        operator: [[at(ratio.row), at(ratio.base)] for ratio in analysis.speedups(rows, operator)]
        for operator in _operators(row.operator for row in found)
    }
    return {
        "roofline": [[at(row), x] for row in found if (x := analysis.intensity(row)) is not None],
        "throughput": [at(row) for row in found if row.tflops],
        "split": [[at(split.module), at(split.core)] for split in analysis.time_splits(rows)],
        "speedup": ratios,
        "precision": [[at(gain.row), at(gain.full)] for gain in analysis.precision_gains(rows)],
        "launches": [[at(pair.event), at(pair.graph)] for pair in analysis.launches(rows)],
        "scaling": [
            {
                "rows": [at(row) for row in fit.rows],
                "exponent": fit.exponent,
                "r_squared": fit.r_squared,
                "channels": fit.channels,
            }
            for fit in analysis.scaling_fits(rows)
        ],
        "offsets": [line for group in groups for line in _spreads(group, at)],
    }


def _spreads(group: Group, at: Callable[[Row], int]) -> list[dict[str, Any]]:
    """Lines of latency against the spread of offsets; `look` is the row whose series gives a line its colour."""
    lines, label = spread_lines(group), spread_group(group).label
    names = distributions(lines)
    several = len({line.shape for line in lines}) > 1
    looks: dict[Series, int] = {}
    for line in lines:
        looks[line.series] = min(looks.get(line.series, sys.maxsize), *map(at, line.rows))  # has the operator's colour
    found = []
    for line in lines:
        extras = [names[line.distribution]] if len(names) > 1 else []
        extras += [shape_text(line.shape, batch=group.common_batch is None)] if several else []
        found.append(
            {
                "name": label(line.series) + (f" [{', '.join(extras)}]" if extras else ""),
                "look": looks[line.series],
                "dash": DASHES[list(names).index(line.distribution) % len(DASHES)],
                "points": [[spread_px(row), at(row)] for row in line.rows],
            }
        )
    return found
