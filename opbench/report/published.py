"""The paper's own figures, as shipped in results/published."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from opbench.case import Shape
from opbench.measurement import Status

__all__ = ["PUBLISHED_LABEL", "PUBLISHED_SETUP", "PublishedCell", "published_cells"]

PUBLISHED_LABEL = "A100 2023"
"""Stands beside every published figure that is shown."""

PUBLISHED_SETUP = "A100 80GB SXM, PyTorch 1.13, CUDA 11.7, cuDNN 8.5, FlashAttention 2.3.1, timm 0.9.7"

BATCH_BY_TABLE = {2: 64, 5: 1}
"""Inferred, not printed in the paper; results/published/README.md gives the grounds."""


@dataclass(frozen=True, slots=True)
class PublishedCell:
    """One published figure, module level, forward."""

    table: int
    shape_list: str
    row_label: str
    operator: str
    shape: Shape
    dtype: str
    status: Status
    latency_ms: float | None
    """None where the paper prints N/A or OOM."""


@cache
def published_cells() -> Mapping[tuple[str, Shape, str], PublishedCell]:
    """Every published figure by operator, shape and dtype."""
    from importlib.resources import files

    text = files("opbench_published").joinpath("dcnv4_module_level.csv").read_text(encoding="utf-8")
    cells = [_cell(row) for row in csv.DictReader(text.splitlines())]
    return MappingProxyType({(cell.operator, cell.shape, cell.dtype): cell for cell in cells})


def _cell(row: Mapping[str, str]) -> PublishedCell:
    table = int(row["table"])
    return PublishedCell(
        table=table,
        shape_list=row["shape_list"],
        row_label=row["row_label"],
        operator=row["operator"],
        shape=Shape(BATCH_BY_TABLE[table], int(row["height"]), int(row["width"]), int(row["channels"])),
        dtype=row["dtype"],
        status=Status(row["status"]),
        latency_ms=float(row["latency_ms"]) if row["latency_ms"] else None,
    )
