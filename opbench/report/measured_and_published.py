"""The measured and the published figures of a shape: ratios, and whether the operators' order agrees."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

from opbench.report.layout import Group, Series
from opbench.results.published import PublishedCell, published_beside
from opbench.results.row import is_ok
from opbench.workload.case import Shape

__all__ = ["PUBLISHED_DTYPE", "REFERENCE", "MeasuredAndPublished", "kendall_tau"]

PUBLISHED_DTYPE = {"fp32": "fp32", "tf32": "fp32", "fp16": "fp16", "bf16": "fp16"}
"""Which published column a run's dtype stands beside; TF32 was most likely on in the published fp32 one."""

REFERENCE = "dcnv3"


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two rankings of the same things; None below two things, or if one ranks all alike.

    scipy's kendalltau gives the same value, after two seconds of importing scipy.stats.

    Source: Kendall, The treatment of ties in ranking problems, Biometrika 33 (1945).
    """
    score = first_pairs = second_pairs = 0
    for (a, b), (c, d) in combinations(zip(first, second, strict=True), 2):
        sign_first, sign_second = (a > c) - (a < c), (b > d) - (b < d)
        score += sign_first * sign_second
        first_pairs += sign_first != 0
        second_pairs += sign_second != 0
    if not first_pairs or not second_pairs:
        return None
    return score / math.sqrt(first_pairs * second_pairs)


@dataclass(frozen=True)
class MeasuredAndPublished:
    """The measured and the published figures of one shape."""

    group: Group
    """Only rows with a published counterpart."""
    shape: Shape

    @property
    def series(self) -> list[Series]:
        """The lines of the table: every operator and provider that the run planned at this shape."""
        return [
            series
            for series in self.group.series
            if any(self.group.cell(series, self.shape, dtype) for dtype in self.group.dtypes)
        ]

    @property
    def dtypes(self) -> list[str]:
        """The run's dtypes at this shape that have a published column."""
        return [
            dtype
            for dtype in self.group.dtypes
            if any(self.group.cell(series, self.shape, dtype) for series in self.group.series)
        ]

    @property
    def chosen(self) -> dict[str, Series]:
        """Per operator the first provider with a value: it alone enters the ratios' base and the order."""
        chosen: dict[str, Series] = {}
        for series in self.series:
            if any(self.measured_ms(series, dtype) is not None for dtype in self.dtypes):
                chosen.setdefault(series.operator, series)
        return chosen

    def measured_ms(self, series: Series, dtype: str) -> float | None:
        """Median latency in ms; None unless the cell is ok."""
        row = self.group.cell(series, self.shape, dtype)
        return row.latency_ms if is_ok(row) else None

    def measured_base_ms(self, dtype: str) -> float | None:
        """Median latency of DCNv3 in ms, if it has one."""
        reference = self.chosen.get(REFERENCE)
        return None if reference is None else self.measured_ms(reference, dtype)

    def published(self, operator: str, dtype: str) -> PublishedCell | None:
        """The published figure that stands beside a run's dtype."""
        return published_beside(operator, self.shape, PUBLISHED_DTYPE[dtype])

    @property
    def published_batch(self) -> int:
        """Batch of the published figures; another than the run's where the paper has only that."""
        cells = (self.published(series.operator, dtype) for series in self.series for dtype in self.dtypes)
        return next((cell.shape.batch for cell in cells if cell), self.shape.batch)

    def published_ms(self, operator: str, dtype: str) -> float | None:
        """The published latency in ms, if the paper prints one."""
        cell = self.published(operator, dtype)
        return None if cell is None else cell.latency_ms

    def both_ms(self, dtype: str) -> dict[str, tuple[float, float]]:
        """Measured and published latency in ms of every operator that has both."""
        return {
            operator: (measured, published)
            for operator, series in self.chosen.items()
            if (measured := self.measured_ms(series, dtype)) is not None
            and (published := self.published_ms(operator, dtype)) is not None
        }

    def order(self, dtype: str) -> tuple[float | None, int]:
        """Kendall's tau between measured and published latencies, and how many operators have both."""
        pairs = self.both_ms(dtype).values()
        return kendall_tau([pair[0] for pair in pairs], [pair[1] for pair in pairs]), len(pairs)

    def reversals(self, dtype: str) -> list[tuple[str, str, float, float]]:
        """Pairs whose published order is the other way round here: faster here, slower here, both ratios of the two."""
        both = self.both_ms(dtype)
        return [
            (faster, slower, both[faster][0] / both[slower][0], both[faster][1] / both[slower][1])
            for faster, slower in permutations(both, 2)
            if both[faster][0] < both[slower][0] and both[faster][1] > both[slower][1]
        ]
