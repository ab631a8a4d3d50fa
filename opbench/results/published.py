"""The paper's own figures, as shipped in results/published: by cell, and as a run that reports can show."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

from opbench.errors import UsageError
from opbench.results.journal import Journal
from opbench.results.measurement import Status
from opbench.results.row import Row
from opbench.results.run import Run
from opbench.workload.case import Shape

__all__ = [
    "PUBLISHED_LABEL",
    "PUBLISHED_SETUP",
    "PublishedCell",
    "PublishedRun",
    "open_run",
    "published_beside",
    "published_cells",
]

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


class PublishedRun(Run):
    """The published figures as a run: latencies as printed, and nothing that the paper does not print."""

    def __init__(self) -> None:
        environment = {"device_name": f"{PUBLISHED_LABEL} (published)", "set-up": PUBLISHED_SETUP}
        run = {"run_id": "published", "started_at": "2023", "environment": environment, "command": {}}
        super().__init__(Path("published"), run, ())

    def rows(self) -> list[Row]:
        """One per published cell; samples, intervals, costs and rates are None."""
        return [_row(cell, self.run_id, self.device_name) for cell in published_cells().values()]

    def journal(self) -> Journal:
        """An empty one: there are no samples."""
        return Journal()

    def write_measurements_csv(self) -> Path:
        """Refused: the published figures are no folder of this user's."""
        raise UsageError("--write is for runs; the published figures have no folder to write to")


def open_run(path: Path) -> Run:
    """The run in a folder; a folder called `published` that holds no run means the published figures.

    Raises:
        ResultsError: as Run.open.
    """
    if path.name == "published" and not (path / "run.json").exists():
        return PublishedRun()
    return Run.open(path)


@cache
def published_cells() -> Mapping[tuple[str, Shape, str], PublishedCell]:
    """Every published figure by operator, shape and dtype."""
    from importlib.resources import files

    text = files("opbench_published").joinpath("dcnv4_module_level.csv").read_text(encoding="utf-8")
    cells = [_cell(row) for row in csv.DictReader(text.splitlines())]
    return MappingProxyType({(cell.operator, cell.shape, cell.dtype): cell for cell in cells})


def published_beside(operator: str, shape: Shape, dtype: str) -> PublishedCell | None:
    """The published figure of this shape, or of one that differs in its batch alone; None where the paper has none."""
    cells = published_cells()
    if found := cells.get((operator, shape, dtype)):
        return found
    others = (cells.get((operator, replace(shape, batch=batch), dtype)) for batch in BATCH_BY_TABLE.values())
    return next(filter(None, others), None)


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


def _row(cell: PublishedCell, run_id: str, device: str) -> Row:
    return Row(
        run_id=run_id,
        operator=cell.operator,
        provider="published",
        level="module",
        direction="fwd",
        shape_list=cell.shape_list,
        shape=str(cell.shape),
        batch=cell.shape.batch,
        height=cell.shape.height,
        width=cell.shape.width,
        channels=cell.shape.channels,
        dtype=cell.dtype,
        device=device,
        timer="not stated",
        cache="not stated",
        status=str(cell.status),
        reason="" if cell.status is Status.OK else f"the paper prints {cell.status}",
        latency_ms=cell.latency_ms,
    )
