"""Compares two stored runs: for each cell the ratio of the medians with its interval, and a verdict. Pure.

If both runs measured a cell in several processes (`sweep --repeat`), the verdict comes from the gate's statistics,
which compare the processes. Otherwise each median comes from one process. Two processes of the same code differ, by
memory layout, clocks and caches, and the interval of the ratio does not contain this difference. So a ratio that is
within the difference between processes, as `opbench noise` measured it or as it is assumed, is never called slower or
faster.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from opbench.compare.estimate import Estimate, Unit
from opbench.compare.noise import ASSUMED_SPREAD, Noise
from opbench.compare.readings import Arm, Reading
from opbench.compare.verdicts import CellComparison, Comparison, Verdict, overall_verdict
from opbench.device.identity import Identity
from opbench.results.measurement import Status
from opbench.text import percent_text
from opbench.workload.case import Case, Cell
from opbench.workload.cell_warning import disturb_comparison

__all__ = ["ALL_CELLS", "DEFAULT_TOLERANCE", "compare_runs", "geometric_mean", "judge", "ratio_interval"]

DEFAULT_TOLERANCE = 0.1
ALL_CELLS = "all cells"
LEAST_SAMPLES = 6
"""With fewer samples the median has no 95 % interval: opbench.stats.median_interval_ranks."""

LEAST_PROCESSES = 3
"""Fewest processes of each run from which the variation between processes is estimated."""

WEAK_CASE = (
    "Intervals are 95 %. One stored run against another: each figure is from one process, and the variation between "
    "processes (memory layout, clocks, caches) is in the ratios but not in their intervals. Hence the wide default "
    "threshold; smaller changes need `opbench sweep --repeat 5` for both runs, or `opbench gate`."
)
BETWEEN_PROCESSES = (
    "Intervals are 95 %. {cells} judged between processes, by the tests of the gate: the processes of one run in the "
    "order of their repetitions against those of the other, t-tests of the log ratios, Holm over the cells at 1 %."
)
DISTURBED = (
    "something else disturbed the samples of one or both (see the warnings): measure again when it has ended, or with "
    "`sweep --repeat 5`"
)
SAME_SOURCE = "Every compared cell ran the same operator and kernel source in both: what differs is not the code."


def compare_runs(
    base: Arm,
    head: Arm,
    tolerance: float = DEFAULT_TOLERANCE,
    allow: Collection[str] = (),
    noise: Noise | None = None,
) -> Comparison:
    """Compare every cell of the base with the same cell of the head.

    Args:
        base: what is compared with.
        head: what is judged.
        tolerance: relative change that is accepted, 0.1 for 10 %.
        allow: parts of the identity that may differ, by name, such as `gpu uuid` for another card of the same model,
            and settings as operator.name; `-` and `_` stand for blanks.
        noise: how far two processes of the same code differ on this device; None where that was not measured.

    Returns:
        Verdicts as opbench.compare.verdicts says; a cell with no meaning in either arm is only counted.
    """
    partners = _partners(base, head)
    cells: list[CellComparison] = []
    not_applicable = []
    tolerated: dict[str, str] = {}
    spread = noise.spread if noise else ASSUMED_SPREAD
    repeated: dict[int, tuple[Reading, Reading]] = {}
    for key, reading in base.readings.items():
        partner = head.readings.get(partners.get(key, ""))
        if partner and reading.status is partner.status is Status.NOT_APPLICABLE:
            not_applicable.append(key)
            continue
        found = _differences(reading, partner) if partner else {}
        strict = _differences(reading, partner, allow) if partner else {}
        tolerated |= {name: text for name, text in found.items() if name not in strict}
        if partner and not strict and _can_judge_between_processes(reading, partner):
            repeated[len(cells)] = (reading, partner)
        cells.append(_compare(reading, partner, list(strict.values()), tolerance, spread))
    _judge_between_processes(cells, repeated, tolerance)
    taken = set(partners.values())
    return Comparison(
        base=base.name,
        head=head.name,
        tolerance=tolerance,
        cells=tuple(cells),
        verdict=(verdict := overall_verdict(cell.verdict for cell in cells)),
        reason=_reason(cells, verdict, tolerance),
        means=_means(cells),
        only_in_head=tuple(
            key for key, r in head.readings.items() if key not in taken and r.status is not Status.NOT_APPLICABLE
        ),
        not_applicable=tuple(not_applicable),
        notes=(
            *_how(cells, repeated, noise),
            *([SAME_SOURCE] if _same_source(cells) else []),
            *(f"Allowed to differ: {text}." for text in tolerated.values()),
        ),
    )


def judge(change: Estimate, tolerance: float) -> Verdict:
    """What a ratio's interval shows: wholly above 1 + tolerance, wholly below its inverse, wholly between, or nothing.

    The bounds are 1 + tolerance and 1 / (1 + tolerance), so that swapping the arms mirrors the verdict.

    Raises:
        ValueError: not a ratio.
    """
    change.require(Unit.RATIO)
    if change.low > 1 + tolerance:
        return Verdict.SLOWER
    if change.high < 1 / (1 + tolerance):
        return Verdict.FASTER
    if change.high <= 1 + tolerance and change.low >= 1 / (1 + tolerance):
        return Verdict.SAME
    return Verdict.INCONCLUSIVE


def ratio_interval(base: Estimate, head: Estimate) -> Estimate:
    """Head over base, from two independent estimates of times.

    Log(head) - log(base) lies between its estimate less and plus the root of the summed squares of the arms of the two
    intervals that point that way; this keeps the coverage of the two, and needs no normal distribution.

    Source: Zou and Donner, Construction of confidence limits about effect measures: a general approach, Statistics
        in Medicine 27 (2008), 1693 (MOVER).

    Raises:
        ValueError: not times.
    """
    base.require(Unit.MS)
    head.require(Unit.MS)
    a, b = base.log(), head.log()
    difference = b.value - a.value
    return Estimate(
        difference,
        difference - math.hypot(b.value - b.low, a.high - a.value),
        difference + math.hypot(b.high - b.value, a.value - a.low),
        Unit.LOG,
    ).exp(Unit.RATIO)


def geometric_mean(changes: Sequence[Estimate]) -> Estimate:
    """The geometric mean of independent ratios, its interval combined as in ratio_interval.

    Raises:
        ValueError: no ratios, or something else among them.
    """
    if not changes:
        raise ValueError("a mean of no ratios")
    for change in changes:
        change.require(Unit.RATIO)
    logs = [change.log() for change in changes]
    count = len(logs)
    mean = math.fsum(log.value for log in logs) / count
    return Estimate(
        mean,
        mean - math.hypot(*(log.value - log.low for log in logs)) / count,
        mean + math.hypot(*(log.high - log.value for log in logs)) / count,
        Unit.LOG,
    ).exp(Unit.RATIO)


def _can_judge_between_processes(base: Reading, head: Reading) -> bool:
    """Whether both arms have enough processes, each with a median that has a logarithm."""
    enough = min(len(base.process_ms), len(head.process_ms)) >= LEAST_PROCESSES
    return enough and min(*base.process_ms, *head.process_ms) > 0


def _judge_between_processes(
    cells: list[CellComparison], repeated: Mapping[int, tuple[Reading, Reading]], tolerance: float
) -> None:
    """Replace verdicts and changes of the cells that both arms measured in several processes, by their place."""
    pairs = {
        place: [math.log(b / a) for a, b in zip(base.process_ms, head.process_ms, strict=False)]
        for place, (base, head) in repeated.items()
    }
    if not pairs:
        return
    from opbench.compare.rules import Rules, settle

    for place, verdict, change in zip(pairs, *settle([*pairs.values()], Rules(tolerance=tolerance)), strict=True):
        count = len(pairs[place])
        reason = f"{count} processes of each do not settle it" if verdict is Verdict.INCONCLUSIVE else ""
        cells[place] = replace(cells[place], verdict=verdict, change=change, reason=reason)


def _how(cells: Sequence[CellComparison], repeated: Collection[int], noise: Noise | None) -> list[str]:
    """How the figures came about, and how far to trust them."""
    notes = []
    if repeated:
        every = len(repeated) == sum(cell.change is not None for cell in cells)
        notes.append(BETWEEN_PROCESSES.format(cells="All cells are" if every else f"{len(repeated)} cells are"))
        if every:
            return notes
    if noise:
        known = (
            f"Two processes of the same code differ by up to {percent_text(noise.spread)} on this device, as `opbench "
            f"noise` measured it {noise.measured_at[:10]} in {noise.processes} processes"
        )
    else:
        known = (
            f"It was not measured how far two processes of the same code differ on this device: "
            f"{percent_text(ASSUMED_SPREAD)} are assumed, and `opbench noise` measures it"
        )
    return [*notes, WEAK_CASE, f"{known}. A ratio within that is never called slower or faster."]


def _compare(
    base: Reading, head: Reading | None, differences: Sequence[str], tolerance: float, spread: float
) -> CellComparison:
    if head is None:
        return CellComparison(
            base.cell, Verdict.MISSING, "the head does not have it", base.median_ms,
            base_source=base.kernel_source_hash, warnings=base.warnings,
        )  # fmt: skip

    def outcome(verdict: Verdict, reason: str = "", change: Estimate | None = None) -> CellComparison:
        return CellComparison(
            base.cell, verdict, reason, base.median_ms, head.median_ms, change,
            base.kernel_source_hash, head.kernel_source_hash,
            tuple(dict.fromkeys((*base.warnings, *head.warnings))),
        )  # fmt: skip

    failures = [
        f"{reading.status} in the {name}: {reading.reason}"
        for name, reading in (("base", base), ("head", head))
        if reading.status is not Status.OK
    ]
    if failures:
        return outcome(Verdict.MISSING, "; ".join(failures))
    if differences:
        return outcome(Verdict.NOT_COMPARABLE, "; ".join(differences))
    a, b = base.estimate, head.estimate
    if a is None or b is None:
        return outcome(Verdict.INCONCLUSIVE, "a median of 0: shorter than the timer's step")
    change = ratio_interval(a, b)
    if few := _too_few(base, head):
        return outcome(Verdict.INCONCLUSIVE, few, replace(change, low=0.0, high=math.inf))
    disturbed = disturb_comparison(base.warnings, head.warnings)
    return outcome(*_weak_verdict(change, tolerance, spread, disturbed=disturbed), change)


def _too_few(base: Reading, head: Reading) -> str:
    """Why there is no interval; empty where there is one."""
    if min(base.samples, head.samples) >= LEAST_SAMPLES:
        return ""
    if 0 in (*base.process_ms, *head.process_ms):
        return "a process's median of 0: shorter than the timer's step"
    if base.process_ms or head.process_ms:
        counts = " and ".join(str(len(one.process_ms) or 1) for one in (base, head))
        return f"{counts} processes: a verdict between processes needs {LEAST_PROCESSES} of each"
    return f"{base.samples} and {head.samples} samples: a 95 % interval needs {LEAST_SAMPLES}"


def _weak_verdict(change: Estimate, tolerance: float, spread: float, *, disturbed: bool) -> tuple[Verdict, str]:
    """The verdict on one process against one, with its reason: what processes of the same code do is no finding."""
    verdict = judge(change, tolerance)
    if verdict is Verdict.INCONCLUSIVE:
        return verdict, f"the interval reaches across a bound of ±{percent_text(tolerance)}"
    if verdict is Verdict.SAME:
        return verdict, ""
    if disturbed:
        return Verdict.INCONCLUSIVE, DISTURBED
    if 1 / (1 + spread) <= change.value <= 1 + spread:
        return (
            Verdict.INCONCLUSIVE,
            f"within ±{percent_text(spread)}, by which two processes of the same code may differ",
        )
    return verdict, ""


def _partners(base: Arm, head: Arm) -> dict[str, str]:
    """Which cell of the head stands for one of the base: the same, else the only one that differs by settings alone."""
    partners = {key: key for key in base.readings if key in head.readings}
    candidates: defaultdict[str, list[str]] = defaultdict(list)
    for key, reading in head.readings.items():
        if key not in base.readings:
            candidates[_without_settings(reading)].append(key)
    for key, reading in base.readings.items():
        others = candidates.get(_without_settings(reading), [])
        if key not in partners and others:
            partners[key] = others.pop(0)
    return partners


def _without_settings(reading: Reading) -> str:
    if not isinstance(reading.cell, Cell):
        return reading.cell.key
    case = reading.cell.case
    bare = Case(case.operator, case.level, case.direction, case.shape_list, case.shape, case.dtype)
    return f"{bare.key}@{reading.cell.provider}"


def _differences(base: Reading, head: Reading, allowed: Collection[str] = ()) -> dict[str, str]:
    """One line for each part of the identity and each setting that differs, by the name that allows it."""

    def with_settings(reading: Reading) -> Identity:
        case = reading.cell.case if isinstance(reading.cell, Cell) else None
        settings = {f"{case.operator}.{name}": str(value) for name, value in case.settings} if case else {}
        return reading.identity.having(settings)

    return with_settings(base).differences(with_settings(head), ("in the base", "in the head"), allowed)


def _means(cells: Iterable[CellComparison]) -> tuple[tuple[str, Estimate], ...]:
    groups: defaultdict[str, list[Estimate]] = defaultdict(list)
    for cell in cells:
        if cell.change and cell.verdict is not Verdict.NOT_COMPARABLE:
            groups[ALL_CELLS].append(cell.change)
            if isinstance(cell.cell, Cell):
                groups[cell.cell.case.operator].append(cell.change)
    return tuple((name, geometric_mean(changes)) for name, changes in groups.items())


def _same_source(cells: Iterable[CellComparison]) -> bool:
    compared = [cell for cell in cells if cell.change]
    return bool(compared) and all(cell.base_source and cell.base_source == cell.head_source for cell in compared)


def _reason(cells: Sequence[CellComparison], verdict: Verdict, tolerance: float) -> str:
    if not cells:
        return "the base has no cell to compare"
    if not any(cell.base_ms for cell in cells):
        return "the base has no measured cell"
    count = sum(cell.verdict is verdict for cell in cells)
    what = verdict.words.format(tolerance=percent_text(tolerance))
    return f"{count} of {len(cells)} cells: {what}"
