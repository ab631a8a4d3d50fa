"""One side of a comparison: what each cell gave, and measured on what. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from opbench.compare.estimate import Estimate, Unit
from opbench.compare.verdicts import Benchmark
from opbench.device.identity import Identity
from opbench.results.measurement import Measurement, Status
from opbench.results.run import Run
from opbench.stats import median, median_interval
from opbench.workload.case import Cell
from opbench.workload.cell_warning import CellWarning

__all__ = ["Arm", "Reading", "reading_of"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one cell gave in one arm.

    Attributes:
        cell: which.
        status: as in a journal; not_run for a cell that a run planned and did not reach.
        reason: why not ok.
        median_ms, low_ms, high_ms: of the latency, with the ends of the median's 95 % interval; None unless ok.
        samples: how many there are.
        identity: what must be equal in both arms: device, versions, timer, cache.
        kernel_source_hash: hash of operator and kernel source; empty where unknown.
        warnings: what disturbed the samples.
        process_ms: medians of the processes, where there are several, in the order of the repetitions.
    """

    cell: Cell | Benchmark
    status: str
    reason: str = ""
    median_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    samples: int = 0
    identity: Identity = field(default_factory=Identity)
    kernel_source_hash: str = ""
    warnings: tuple[CellWarning, ...] = ()
    process_ms: tuple[float, ...] = ()

    @property
    def estimate(self) -> Estimate | None:
        """The median as an estimate; None where there is none, or one of 0 (below the timer's step: no ratio)."""
        if not self.median_ms or self.low_ms is None or self.high_ms is None:
            return None
        return Estimate(self.median_ms, self.low_ms, self.high_ms, Unit.MS)


@dataclass(frozen=True, slots=True)
class Arm:
    """What is compared: a name, and readings by the key of their cell, in the order of the plan.

    The environment is that of the run; None for what is no run.
    """

    name: str
    readings: Mapping[str, Reading]
    environment: Mapping[str, Any] | None = None

    @classmethod
    def of_run(cls, run: Run, name: str | None = None) -> Self:
        """The arm that a run is.

        Raises:
            ResultsError: the journal is missing or damaged.
        """
        identities = {run_id: Identity.of(origin.environment) for run_id, origin in run.origins.items()}
        own = Identity.of(run.environment)
        finished = run.finished()
        readings = {}
        for cell in run.plan():
            measurement = finished.get(cell.key) or Measurement(
                cell, Status.NOT_RUN, reason="the run ended before this cell"
            )
            timer, cache = measurement.timer or run.command["timer"], measurement.cache or run.command["cache"]
            identity = identities.get(measurement.origin, own)
            readings[cell.key] = reading_of(measurement, identity.having({"timer": timer, "cache": cache}))
        return cls(name or str(run.path), readings, run.environment)


def reading_of(measurement: Measurement, identity: Identity) -> Reading:
    """What a line of a journal says, with its median and the median's interval."""
    samples = measurement.latencies_ms if measurement.status is Status.OK else ()
    low, high = median_interval(samples, measurement.resolution_ms) if samples else (None, None)
    return Reading(
        cell=measurement.cell,
        status=measurement.status,
        reason=measurement.reason,
        median_ms=median(samples) if samples else None,
        low_ms=low,
        high_ms=high,
        samples=len(samples),
        identity=identity,
        kernel_source_hash=measurement.kernel_source_hash,
        warnings=measurement.warnings,
        process_ms=samples if measurement.processes > 1 else (),
    )
