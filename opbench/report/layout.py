"""How rows become the lines and columns of tables: grouping, order and labels."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from opbench.files import free_stem
from opbench.results.row import Row
from opbench.workload.case import Dtype, Shape

__all__ = ["OPERATOR_LABELS", "PAPER_LABELS", "Group", "Series", "differing_settings", "group_rows", "row_shape"]

PAPER_LABELS = {
    "conv3x3": "Conv (3×3)",
    "attention": "Attention (torch)",
    "flash_attention_2": "FlashAttention-2",
    "window_attention": "Window Attn (7×7)",
    "dcnv3": "DCNv3",
    "dcnv4_lightweight": "DCNv4 (lightweight)",
    "dcnv4": "DCNv4",
}
"""Row labels of the DCNv4 paper's tables, in their order."""

OPERATOR_LABELS = {
    **PAPER_LABELS,
    "dcnv2": "DCNv2",
    "ms_deform_attn": "Deformable attention",
    "pconv": "PConv",
    "parc_v2": "ParC V2",
    "bgu": "BGU",
    "grouped_conv3x3": "Grouped conv (3×3)",
    "depthwise_conv": "Depthwise conv",
    "replk": "RepLKNet conv",
    "slak": "SLaK conv",
}
"""Row labels, in the order of rows; after them any of other operators."""

DTYPE_ORDER = tuple(str(dtype) for dtype in Dtype)


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a table or plot: an operator under one provider."""

    operator: str
    provider: str
    settings: str = ""
    """Empty unless the run holds the same case under several settings."""
    device: str = ""
    """Its name; empty unless the run has rows of several, as one of a fleet of unlike cards may."""

    @property
    def identity(self) -> tuple[str, ...]:
        """What its look belongs to."""
        return self.operator, self.provider, self.settings, *filter(None, (self.device,))


@dataclass(frozen=True)
class Group:
    """The rows of one shape list at one level and direction: one table, or one page of plots."""

    shape_list: str
    level: str
    direction: str
    stem: str
    """Start of a file name; no other group of the run has it."""
    rows: tuple[Row, ...]
    everyone: tuple[Series, ...] = ()
    """Every series of the run, so that one looks the same in each of its groups."""

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Every shape, in the order of the plan."""
        return tuple(dict.fromkeys(row_shape(row) for row in self.rows))

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """Every dtype, in the order fp32, tf32, fp16, bf16."""
        return tuple(sorted({row.dtype for row in self.rows}, key=DTYPE_ORDER.index))

    @cached_property
    def series(self) -> tuple[Series, ...]:
        """The paper's operators in its order, then the others in the order of the plan."""
        known = list(OPERATOR_LABELS)
        found = dict.fromkeys(self.series_of(row) for row in self.rows)
        return tuple(sorted(found, key=lambda s: known.index(s.operator) if s.operator in known else len(known)))

    @property
    def common_batch(self) -> int | None:
        """The batch of every shape, None if they differ."""
        batches = {shape.batch for shape in self.shapes}
        return batches.pop() if len(batches) == 1 else None

    @property
    def description(self) -> str:
        """Shape list, batch, level and direction in words."""
        batch = "" if self.common_batch is None else f"batch {self.common_batch}, "
        return f"{self.shape_list}, {batch}{self.level}, {self.direction}"

    def label(self, series: Series) -> str:
        """The operator's label; with the provider in brackets where it has several."""
        same = [other for other in self.series if other.operator == series.operator]
        extras = []
        if len({other.provider for other in same}) > 1:
            extras.append(series.provider)
        if len(texts := {other.settings for other in same}) > 1:
            extras.append(differing_settings(series.settings, texts))
        extras += filter(None, (series.device,))
        label = OPERATOR_LABELS.get(series.operator, series.operator)
        return f"{label} [{', '.join(extras)}]" if extras else label

    def cell(self, series: Series, shape: Shape, dtype: str) -> Row | None:
        """The row of one series, shape and dtype; None if the run never planned it."""
        return self._index.get((series, shape, dtype))

    @cached_property
    def _index(self) -> dict[tuple[Series, Shape, str], Row]:
        return {(self.series_of(row), row_shape(row), row.dtype): row for row in self.rows}

    @cached_property
    def _ambiguous_operators(self) -> frozenset[str]:
        """Operators with a case that occurs under more than one choice of settings."""
        settings = defaultdict(set)
        for row in self.rows:
            settings[row.operator, row.provider, row_shape(row), row.dtype].add(row.settings)
        return frozenset(operator for (operator, *_), texts in settings.items() if len(texts) > 1)

    def series_of(self, row: Row) -> Series:
        """The series that a row of the group belongs to."""
        operator = row.operator
        settings = row.settings if operator in self._ambiguous_operators else ""
        return Series(operator, row.provider, settings, row.device if self._has_devices else "")

    @cached_property
    def _has_devices(self) -> bool:
        """Whether its rows are of several models of a device."""
        return len({row.device for row in self.rows}) > 1


def group_rows(rows: Iterable[Row]) -> list[Group]:
    """Split rows by shape list, level and direction, in the order of the plan."""
    split: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        split.setdefault((row.shape_list, row.level, row.direction), []).append(row)
    groups: list[Group] = []
    stems: set[str] = set()
    for key, members in split.items():
        groups.append(
            Group(*key, free_stem("-".join(key), stems), tuple(members))
        )  # a list's file may be called anything
    everyone = tuple(dict.fromkeys(series for group in groups for series in group.series))
    return [replace(group, everyone=everyone) for group in groups]


def differing_settings(text: str, texts: Iterable[str]) -> str:
    """Of settings as a row has them those that do not stand in all of `texts`; `default` where that leaves none."""
    shared = set.intersection(*({*other.split(";")} for other in texts))
    return ", ".join(part for part in text.split(";") if part and part not in shared) or "default"


def row_shape(row: Row) -> Shape:
    """The shape of one row."""
    return Shape(row.batch, row.height, row.width, row.channels)
