"""What a cell gave: a status, the raw latencies, and what was learnt on the way."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from opbench.results.energy import EnergyWindow
from opbench.text import one_line
from opbench.timing.stopping import StopReason
from opbench.workload.case import MAX_COUNT, Cell
from opbench.workload.cell_warning import CellWarning

__all__ = ["FAILURES", "Measurement", "Status", "is_failure", "known_name"]


SHORTEST_MS = 1e-9
LONGEST_MS = 1e12
"""A picosecond and thirty years, in milliseconds: no latency lies beyond."""
MAX_REASON_LENGTH = 500
NAME = re.compile("[a-z][a-z0-9_]{0,39}")
"""What a status or a stop reason is called in every version."""


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


def is_failure(status: str) -> bool:
    """Whether a status is one of FAILURES, or one that only another version of opbench knows."""
    return status in FAILURES or status not in set(Status)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the journal."""

    cell: Cell
    status: str
    """A Status; of a journal that another version of opbench wrote perhaps another name, which is none of being ok."""
    reason: str = ""
    """Why not ok; for an ok cell, what a reader should know (a check on a cropped shape)."""
    latencies_ms: tuple[float, ...] = ()
    """Raw samples, in order, milliseconds per launch; none removed, none rounded."""
    launches_per_sample: int | None = None
    resolution_ms: float = 0.0
    """The timer's step per launch: a latency may be half of it away. 0 where it is far below, and in older journals."""
    stop_reason: str | None = None
    """A StopReason, or likewise another name."""
    timer: str = ""
    cache: str = ""
    max_rel_error: float | None = None
    """Largest error against the fp64 reference; None where there was no comparison or no finite value."""
    tolerance: float | None = None
    """The largest one allowed."""
    mean_rel_error: float | None = None
    """Mean of the signed errors, of the output or the gradient where it is the largest part of what is allowed."""
    mean_tolerance: float | None = None
    """The largest size of it allowed."""
    checked_shape: str = ""
    result_dtype: str = ""
    """torch's name of the dtype that the provider's output had in the comparison."""
    peak_memory_bytes: int | None = None
    kernel_source_hash: str = ""
    configuration: str = ""
    """What the provider tuned or chose, as it says; empty where there is nothing to choose."""
    seconds: float = 0.0
    """Wall-clock time of the whole cell: build, check, warm-up and samples."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Clocks, power, load and throttling around the samples, where the device reports them."""
    warnings: tuple[CellWarning, ...] = ()
    """What disturbed the samples, and what the cell left changed; the figures stand."""
    repetition: int = 1
    """Which of the fresh processes that a cell is measured in, from 1."""
    processes: int = 1
    """Above 1 the latencies are this many processes' medians: opbench.results.repetitions. Never in a journal."""
    warp_instructions: int | None = None
    """That the warps of one launch issue, as counted in the kernel's machine code; None where nobody counted."""
    first_call_ms: float | None = None
    """Building the closure and its first launch, at the checked shape: with what is compiled."""
    cached_call_ms: float | None = None
    """The same once more, at the cell's shape, before it is timed."""
    kernels_compiled: int | None = None
    """In both."""
    energy: EnergyWindow | None = None
    """What the device used while launches ran; None where it was not asked for, or the reason says why not."""
    traceback: str = ""
    """Of a cell that raised: printable lines."""
    origin: str = ""
    """In a merged run, the run_id of the run that wrote the line."""

    def __post_init__(self) -> None:
        if self.status is not Status.OK and not self.reason:
            raise ValueError(f"a cell that is {self.status} needs a reason")
        if isinstance(self.reason, str) and not self.reason.isprintable():  # it may quote what a cell printed
            object.__setattr__(self, "reason", one_line(self.reason, MAX_REASON_LENGTH) or "unprintable")

    @property
    def other_dtype(self) -> str:
        """That the output has another dtype than the case, in words; empty where it has not."""
        asked = self.cell.case.dtype.torch_name
        return f"the output is {self.result_dtype}, not {asked}" if self.result_dtype not in ("", asked) else ""

    @property
    def sm_clocks_mhz(self) -> tuple[float | None, float | None]:
        """The GPU's SM clock before and after the samples; None where it was not told."""
        before, after = (self.conditions.get(side) or {} for side in ("before", "after"))
        return before.get("sm_clock_mhz"), after.get("sm_clock_mhz")

    def to_json_line(self) -> str:
        """One line of strict JSON; a non-finite error becomes null (the reason says what it was)."""
        data = asdict(self) | {"cell": self.cell.to_json(), "warnings": [*map(str, self.warnings)]}
        del data["processes"]
        if not self.origin:
            del data["origin"]
        for name in ("max_rel_error", "mean_rel_error"):
            if data[name] is not None and not math.isfinite(data[name]):
                data[name] = None
        return json.dumps(data, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The measurement that to_json_line wrote; fields that only a newer opbench knows are left out.

        What a newer opbench writes under a name of today means the same; otherwise run.json has another schema_version.

        Raises:
            KeyError, TypeError, ValueError: to_json_line did not write that.
        """
        values = {name: data[name] for name in cls.__slots__ if name in data and name != "processes"}
        values["cell"] = Cell.from_json(data["cell"])
        values["status"] = known_name(Status, data["status"])
        if not isinstance(values["status"], Status):
            told = ("another version of opbench wrote this status", values.get("reason", ""))
            values["reason"] = ": ".join(filter(None, told))
        values["latencies_ms"] = _latencies(data["latencies_ms"])
        values["stop_reason"] = known_name(StopReason, data["stop_reason"]) if data["stop_reason"] else None
        values["warnings"] = tuple(map(CellWarning.parse, data.get("warnings", ())))
        values["energy"] = EnergyWindow.from_json(energy) if (energy := data.get("energy")) is not None else None
        measurement = cls(**values)
        measurement._check_types()
        return measurement

    def _check_types(self) -> None:
        """Refuse what a journal that was not written by this class may hold."""
        names = (self.timer, self.cache, self.checked_shape, self.result_dtype, self.kernel_source_hash, self.origin)
        texts = (self.reason, *names, *map(str, self.warnings))
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise ValueError(f"must be printable texts: {texts!r:.100}")
        if not (isinstance(self.traceback, str) and all(map(str.isprintable, self.traceback.split("\n")))):
            raise ValueError(f"traceback must be printable lines, got {self.traceback!r:.60}")
        errors = (self.max_rel_error, self.tolerance, self.mean_rel_error, self.mean_tolerance)
        numbers = (*errors, self.seconds, self.first_call_ms, self.cached_call_ms)
        if not (_is_number(self.resolution_ms) and self.resolution_ms >= 0):
            raise ValueError(f"resolution_ms must be a number of at least 0, got {self.resolution_ms!r:.60}")
        for number in numbers:
            if number is not None and not _is_number(number):
                raise ValueError(f"must be a number, got {number!r:.60}")
        counts = (self.launches_per_sample, self.peak_memory_bytes, self.warp_instructions, self.kernels_compiled)
        for count in counts:
            if count is not None and not (type(count) is int and 0 <= count < MAX_COUNT):
                raise ValueError(f"must be a count, got {count!r:.60}")
        if not (type(self.repetition) is int and self.repetition >= 1):
            raise ValueError(f"repetition must be a positive integer, got {self.repetition!r:.60}")
        if not isinstance(self.conditions, dict):
            raise TypeError(f"conditions must be an object, got {self.conditions!r:.60}")
        for side in ("before", "after"):
            if not isinstance(self.conditions.get(side) or {}, dict):
                raise TypeError(f"conditions {side} must be an object, got {self.conditions[side]!r:.60}")
        if self.status is Status.OK and not self.latencies_ms:
            raise ValueError("a cell that is ok needs samples")


def known_name(known: type[StrEnum], name: object) -> str:
    """A member by its name, or the name itself where only another version of opbench knows it.

    Raises:
        ValueError: no version would write that.
    """
    if isinstance(name, str) and NAME.fullmatch(name):
        return known(name) if name in {*known} else name
    raise ValueError(f"must be a name, got {name!r:.60}")


def _latencies(values: Any) -> tuple[float, ...]:  # noqa: ANN401 - of unknown origin
    if not isinstance(values, list | tuple):
        raise TypeError(f"latencies must be a list, got {values!r:.60}")
    # Whole lists at a time, for journals of 100,000 cells; nan and inf show in the sum.
    if not {*map(type, values)} <= {float, int} or not math.isfinite(sum(values)):
        raise ValueError(f"latencies must be numbers, got {values!r:.60}")
    positive = [value for value in values if value]  # an event timer's step is coarse enough for a 0
    if positive and not (min(positive) >= SHORTEST_MS and max(positive) <= LONGEST_MS):
        raise ValueError(f"a latency must be 0 or from {SHORTEST_MS:g} to {LONGEST_MS:g} ms, got {values!r:.60}")
    return tuple(values)


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < math.inf
