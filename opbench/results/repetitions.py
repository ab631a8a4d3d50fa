"""Cells that were measured in several fresh processes: of each process the median counts. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from opbench.results.energy import together
from opbench.results.measurement import Measurement, Status
from opbench.stats import median

__all__ = ["by_cell"]


def by_cell(lines: Iterable[Measurement]) -> dict[str, Measurement]:
    """What a journal knows of each cell, by key; of a line that was retried the last try.

    A cell that was ok in several processes has their medians for samples, in the order of the repetitions: launches of
    one process are no evidence of what another process gives. One process's samples stay as they are. A cell that
    was not ok in some process is what it was there.
    """
    found: dict[str, dict[int, Measurement]] = {}
    for line in lines:
        found.setdefault(line.cell.key, {})[line.repetition] = line
    return {key: _together(repetitions) for key, repetitions in found.items()}


def _together(repetitions: Mapping[int, Measurement]) -> Measurement:
    lines = [repetitions[number] for number in sorted(repetitions)]
    for line in lines:
        if line.status is not Status.OK:
            where = f"repetition {line.repetition}: " if line.repetition > 1 else ""
            return replace(line, reason=f"{where}{line.reason}")
    if len(lines) == 1:
        return lines[0]
    return replace(
        lines[-1],
        latencies_ms=tuple(median(line.latencies_ms) for line in lines),
        launches_per_sample=None,
        resolution_ms=max(line.resolution_ms for line in lines),
        max_rel_error=max((line.max_rel_error for line in lines if line.max_rel_error is not None), default=None),
        peak_memory_bytes=max(
            (line.peak_memory_bytes for line in lines if line.peak_memory_bytes is not None), default=None
        ),
        energy=together([line.energy for line in lines if line.energy]),
        seconds=sum(line.seconds for line in lines),
        warnings=tuple(dict.fromkeys(warning for line in lines for warning in line.warnings)),
        processes=len(lines),
    )
