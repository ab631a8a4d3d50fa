"""Lines of latency against the spread of offsets: which rows are measured alike but for how far their points lie."""

from collections import defaultdict
from dataclasses import dataclass, replace

from opbench.report.layout import Group, Series, row_shape
from opbench.results.row import MeasuredRow, Row, is_ok
from opbench.workload.case import Shape

__all__ = ["SpreadLine", "distributions", "spread_group", "spread_lines", "spread_px"]

SPREAD, DISTRIBUTION = "offset_std_px", "offset_distribution"
NORMAL, ZERO = "normal", "zero"


@dataclass(frozen=True, slots=True)
class SpreadLine:
    """Rows of one operator, provider, distribution, shape and dtype that differ in the spread of their offsets alone.

    Attributes:
        series: its settings are without the spread and the distribution.
        distribution: of the offsets; zero ones are normal ones of spread 0.
        shape, dtype: of every row.
        rows: by spread.
    """

    series: Series
    distribution: str
    shape: Shape
    dtype: str
    rows: tuple[MeasuredRow, ...]


def spread_px(row: Row) -> float:
    """Standard deviation of a row's offsets, pixels; KeyError if its operator has none."""
    return float(_settings(row)[SPREAD])


def spread_group(group: Group) -> Group:
    """The ok rows of a group's operators that were measured at two spreads or more.

    Their settings are without the spread and the distribution.
    """

    def bare(row: MeasuredRow) -> MeasuredRow:
        kept = (f"{name}={value}" for name, value in _settings(row).items() if name not in (SPREAD, DISTRIBUTION))
        return replace(row, settings=";".join(kept))

    return replace(group, rows=tuple(map(bare, _chosen(group))), everyone=())


def spread_lines(group: Group) -> list[SpreadLine]:
    """The lines through the rows of spread_group, in the order of its series."""
    bare = spread_group(group)
    lines: defaultdict[tuple[Series, str, Shape, str], list[MeasuredRow]] = defaultdict(list)
    for row, without in zip(_chosen(group), bare.rows, strict=True):
        distribution = _settings(row).get(DISTRIBUTION, NORMAL)
        key = (bare.series_of(without), NORMAL if distribution == ZERO else distribution, row_shape(row), row.dtype)
        lines[key].append(row)
    return [
        SpreadLine(*key, rows=tuple(sorted(lines[key], key=spread_px)))
        for key in sorted(lines, key=lambda key: bare.series.index(key[0]))
    ]


def distributions(lines: list[SpreadLine]) -> dict[str, str]:
    """The distributions of some lines, normal ones first, with what each is called: a file without its hash."""
    found = sorted(dict.fromkeys(line.distribution for line in lines), key=lambda text: text != NORMAL)
    short = [text.partition("@")[0] for text in found]
    return {text: name if short.count(name) == 1 else text for text, name in zip(found, short, strict=True)}


def _settings(row: Row) -> dict[str, str]:
    return dict(part.split("=", 1) for part in row.settings.split(";") if "=" in part)


def _chosen(group: Group) -> list[MeasuredRow]:
    rows = [row for row in group.rows if is_ok(row) and row.latency_ms > 0 and SPREAD in _settings(row)]
    spreads: defaultdict[tuple[object, ...], set[float]] = defaultdict(set)
    for row in rows:
        spreads[_place(row)].add(spread_px(row))
    return [row for row in rows if len(spreads[_place(row)]) > 1]


def _place(row: Row) -> tuple[object, ...]:
    return row.operator, row.provider, row_shape(row), row.dtype
