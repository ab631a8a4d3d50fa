"""What a cell gave: a status, the raw latencies, and what was learnt on the way."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from opbench.case import Cell

__all__ = ["FAILURES", "Measurement", "Status", "StopReason"]


class Status(StrEnum):
    """How a cell ended; always with a reason when not ok."""

    OK = "ok"
    NOT_APPLICABLE = "not_applicable"
    UNAVAILABLE = "unavailable"
    OUT_OF_MEMORY = "out_of_memory"
    WRONG = "wrong"
    ERROR = "error"
    TIMEOUT = "timeout"
    NOT_RUN = "not_run"
    """Planned, but the run ended first; never in a journal, only on reading."""


FAILURES = frozenset({Status.WRONG, Status.ERROR, Status.TIMEOUT, Status.UNAVAILABLE})
"""Statuses that make `opbench sweep` exit with 1: something that was asked for was not measured."""


class StopReason(StrEnum):
    """Why sampling ended."""

    CONVERGED = "converged"
    """The 95 % interval of the median was within 1 % of it."""
    TIME_BUDGET = "time_budget"
    """The cell's time budget was spent first."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the journal."""

    cell: Cell
    status: Status
    reason: str = ""
    """Why not ok; for an ok cell, what a reader should know (a check on a cropped shape)."""
    latencies_ms: tuple[float, ...] = ()
    """Raw samples, in order, milliseconds per launch; none removed, none rounded."""
    launches_per_sample: int | None = None
    stop_reason: StopReason | None = None
    timer: str = ""
    cache: str = ""
    max_rel_error: float | None = None
    """Largest error against the fp64 reference; None where there was no comparison or no finite value."""
    tolerance: float | None = None
    checked_shape: str = ""
    peak_memory_bytes: int | None = None
    kernel_source_hash: str = ""
    configuration: str = ""
    """What the provider tuned or chose, as it says; empty where there is nothing to choose."""
    seconds: float = 0.0
    """Wall-clock time of the whole cell: build, check, warm-up and samples."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Clocks, power and throttling around the samples, where the device reports them."""

    def __post_init__(self) -> None:
        if self.status is not Status.OK and not self.reason:
            raise ValueError(f"a cell that is {self.status} needs a reason")

    def to_json_line(self) -> str:
        """One line of strict JSON; a non-finite error becomes null (the reason says what it was)."""
        data = asdict(self) | {"cell": self.cell.to_json()}
        if self.max_rel_error is not None and not math.isfinite(self.max_rel_error):
            data["max_rel_error"] = None
        return json.dumps(data, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The measurement that to_json_line wrote."""
        values = dict(data)
        values["cell"] = Cell.from_json(data["cell"])
        values["status"] = Status(data["status"])
        values["latencies_ms"] = tuple(data["latencies_ms"])
        values["stop_reason"] = StopReason(data["stop_reason"]) if data["stop_reason"] else None
        return cls(**values)
