"""What `opbench check` found, as tables and lines."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opbench.report.table import Table
from opbench.results.measurement import FAILURES, Measurement, Status

if TYPE_CHECKING:
    from opbench.contract.contract import Finding

__all__ = ["faults", "finding_table", "provider_table"]

_FIGURES = re.compile(r"[-+]?\d[\d.e+-]*")


def finding_table(operator: str, findings: "Sequence[Finding]") -> Table:
    """The parts of an operator's contract."""
    rows = tuple((found.part, "wrong" if found.reason else "ok") for found in findings)
    return Table("contract", f"{operator}: contract", ("part", "result"), rows)


def provider_table(operator: str, measurements: Sequence[Measurement]) -> Table:
    """Every provider, level, direction and dtype with its worst shape."""
    groups: dict[tuple[str, ...], list[Measurement]] = {}
    providers = list(dict.fromkeys(measurement.cell.provider for measurement in measurements))
    for measurement in sorted(measurements, key=lambda m: providers.index(m.cell.provider)):
        case = measurement.cell.case
        key = (measurement.cell.provider, str(case.level), str(case.direction), str(case.dtype))
        groups.setdefault(key, []).append(measurement)
    return Table(
        name="providers",
        title=f"{operator}: providers, worst of {len({str(m.cell.case.shape) for m in measurements})} shapes",
        columns=("provider", "level", "direction", "dtype", "result", "max error", "allowed", "mean error", "allowed"),
        rows=tuple((*key, _result(group), *_errors(group)) for key, group in groups.items()),
        text_columns=5,
    )


def faults(measurements: Sequence[Measurement]) -> Iterator[tuple[str, str]]:
    """Each kind of fault in one line, with the first cell that has it and how many more; and its traceback.

    Reasons that differ in their figures alone are of one kind.
    """
    kinds: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in measurements:
        if reason := _fault(measurement):
            kinds.setdefault((measurement.cell.provider, _FIGURES.sub("", reason)), []).append(measurement)
    for group in kinds.values():
        more = f", and {len(group) - 1} more cells" if len(group) > 1 else ""
        yield f"{_fault(group[0])} ({group[0].cell.key}{more})", group[0].traceback


def _fault(measurement: Measurement) -> str:
    """What is wrong with a cell; a provider that this machine lacks, and a case that does not apply, are not."""
    if measurement.status is Status.OK:
        return measurement.other_dtype
    broken = FAILURES - {Status.UNAVAILABLE} | {Status.OUT_OF_MEMORY}
    return f"{measurement.status}: {measurement.reason}" if measurement.status in broken else ""


def _result(group: Sequence[Measurement]) -> str:
    found = [measurement for measurement in group if _fault(measurement)]
    if found:
        return "other dtype" if found[0].status is Status.OK else str(found[0].status)
    return "ok" if any(measurement.status is Status.OK for measurement in group) else str(group[0].status)


def _errors(group: Sequence[Measurement]) -> tuple[str, ...]:
    compared = [m for m in group if m.tolerance and m.mean_tolerance and m.max_rel_error is not None]
    if not compared:
        return ("",) * 4
    worst = max(compared, key=lambda m: (m.max_rel_error or 0) / (m.tolerance or 1))
    biased = max(compared, key=lambda m: abs(m.mean_rel_error or 0) / (m.mean_tolerance or 1))
    figures = (worst.max_rel_error, worst.tolerance, biased.mean_rel_error, biased.mean_tolerance)
    return tuple(f"{figure or 0:{sign}.2g}" for figure, sign in zip(figures, ("", "", "+", ""), strict=True))
