"""Published throughputs of whole networks, as shipped in results/published/networks.csv."""

import csv
from dataclasses import dataclass
from functools import cache

from opbench.results.row import Row

__all__ = ["BACKBONE", "PublishedNetwork", "published_networks"]

BACKBONE = "backbone"
"""The scope of what is a network alone; any other names the head of a detector or of a segmentation."""


@dataclass(frozen=True, slots=True)
class PublishedNetwork:
    """One published throughput, measured on an A100.

    Attributes:
        source: the paper and its table.
        scope: BACKBONE, or the head that the network was measured with.
        label: the network as the paper prints it.
        network, settings: as in opbench; empty for what it does not have.
        height, width: of the image, pixels; None where the table does not print them.
        batch: images of a launch; None where it is not printed.
        dtype: fp32 or fp16; empty where it is not printed.
        images_per_second: as printed.
        memory_gb: as printed; None where it is not.
    """

    source: str
    scope: str
    label: str
    network: str
    settings: str
    height: int | None
    width: int | None
    batch: int | None
    dtype: str
    images_per_second: float
    memory_gb: float | None

    def is_of(self, row: Row) -> bool:
        """Whether a row is of this network at this size of the image."""
        return (
            self.network == row.operator
            and (self.height, self.width) == (row.height, row.width)
            and (not self.settings or self.settings in row.settings.split(";"))
        )


@cache
def published_networks() -> tuple[PublishedNetwork, ...]:
    """Every published throughput, table by table."""
    from importlib.resources import files

    text = files("opbench_published").joinpath("networks.csv").read_text(encoding="utf-8")
    return tuple(map(_network, csv.DictReader(text.splitlines())))


def _network(row: dict[str, str]) -> PublishedNetwork:
    return PublishedNetwork(
        source=row["source"],
        scope=row["scope"],
        label=row["label"],
        network=row["network"],
        settings=row["settings"],
        height=_count(row["height"]),
        width=_count(row["width"]),
        batch=_count(row["batch"]),
        dtype=row["dtype"],
        images_per_second=float(row["images_per_second"]),
        memory_gb=float(row["memory_gb"]) if row["memory_gb"] else None,
    )


def _count(text: str) -> int | None:
    return int(text) if text else None
