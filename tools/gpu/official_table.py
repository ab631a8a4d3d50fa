"""Ratios of two providers over the rounds of a comparison, in Markdown."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from official_ops import DEFAULT_PROVIDER, PROVIDER

from opbench.compare.estimate import Estimate, Unit
from opbench.compare.readings import Arm, Reading
from opbench.compare.runs import geometric_mean, ratio_interval
from opbench.results.measurement import Status
from opbench.results.run import Run
from opbench.workload.case import Case

THEIRS = {PROVIDER: "the fastest right launch of each shape", DEFAULT_PROVIDER: "the launch of the official function"}
"""By provider, what its launches are."""

Pair = tuple[Reading, Reading]
"""Ours and theirs of one case in one round."""


def pairs_by_case(runs: Iterable[Run], ours: str, theirs: str = PROVIDER) -> dict[Case, list[Pair]]:
    """Every case that both have, with its pairs, one a round."""
    pairs: defaultdict[Case, list[Pair]] = defaultdict(list)
    for run in runs:
        readings = Arm.of_run(run).readings
        by_place = {(reading.cell.case, reading.cell.provider): reading for reading in readings.values()}
        for case in dict.fromkeys(case for case, _ in by_place):
            if (case, theirs) in by_place:
                pairs[case].append((by_place[case, ours], by_place[case, theirs]))
    return dict(pairs)


def has_failures(runs: Sequence[Run], ours: str) -> bool:
    """Whether a cell is not measured that should be."""
    pairs = [pair for theirs in THEIRS for found in pairs_by_case(runs, ours, theirs).values() for pair in found]
    readings = [reading for pair in pairs for reading in pair]
    return not readings or any(reading.status not in (Status.OK, Status.NOT_APPLICABLE) for reading in readings)


def ratio(pairs: Sequence[Pair]) -> Estimate | None:
    """Ours over theirs: the geometric mean of the rounds; the interval reaches from the lowest end to the highest.

    So it covers what differs from round to round as well as the samples' own spread.
    """
    ratios = []
    for ours, theirs in pairs:
        if ours.status is not Status.OK or theirs.status is not Status.OK:
            return None
        ratios.append(ratio_interval(theirs.estimate, ours.estimate))
    if not ratios:
        return None
    lowest, highest = min(each.low for each in ratios), max(each.high for each in ratios)
    return Estimate(geometric_mean(ratios).value, lowest, highest, Unit.RATIO)


def comparison_markdown(runs: Sequence[Run], ours: str, sources: Mapping[str, str]) -> str:
    """The tables of each official provider: geometric means, every cell, and why cells have no ratio."""
    run = runs[0]
    digests = ", ".join(f"{name} {digest}" for name, digest in sources.items())
    lines = [
        f"# {ours} against the official CUDA kernels",
        "",
        f"{run.device_name}, {run.started_at}, {len(runs)} rounds, timer {run.command['timer']}, cache "
        f"{run.command['cache']}. Ratio: latency of {ours} / latency of the official kernel, below 1 where {ours} "
        "is faster. In brackets the range of the rounds' 95 % intervals. All in one process. Every value was checked "
        f"against the float64 reference before timing. SHA-256 of the official sources: {digests}.",
    ]
    for theirs, what in THEIRS.items():
        if cases := pairs_by_case(runs, ours, theirs):
            lines += ["", f"## {theirs}: {what}", *_means(cases), *_cells(cases, ours, theirs), *_reasons(cases)]
    return "\n".join(lines) + "\n"


def _means(cases: Mapping[Case, Sequence[Pair]]) -> list[str]:
    """Geometric means over the cells that have a ratio."""
    lines = ["", "| operator | level | direction | dtype | cells | ratio |", "|---|---|---|---|---|---|"]
    groups: defaultdict[tuple[str, ...], list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.operator, str(case.level), str(case.direction), str(case.dtype)].append(case)
    for group, members in groups.items():
        found = [each for case in members if (each := ratio(cases[case]))]
        mean = _text(geometric_mean(found)) if found else "none"
        lines.append(f"| {' | '.join(group)} | {len(found)} of {len(members)} | {mean} |")
    return lines


def _cells(cases: Mapping[Case, Sequence[Pair]], ours: str, theirs: str) -> list[str]:
    lines = [
        "",
        f"| operator | level | direction | dtype | shape | {ours}, ms | {theirs}, ms | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, pairs in cases.items():
        found = ratio(pairs)
        latencies = " | ".join(_latencies(pairs, index) for index in (0, 1))
        place = f"{case.operator} | {case.level} | {case.direction} | {case.dtype} | {case.shape}"
        lines.append(f"| {place} | {latencies} | {_text(found) if found else 'none'} |")
    return lines


def _reasons(cases: Mapping[Case, Sequence[Pair]]) -> list[str]:
    """Why cells have no ratio."""
    reasons = dict.fromkeys(
        f"- {reading.cell.key}: {reading.status}, {reading.reason}"
        for pairs in cases.values()
        for pair in pairs
        for reading in pair
        if reading.status is not Status.OK
    )
    return ["", "Without a ratio:", "", *reasons] if reasons else []


def _latencies(pairs: Sequence[Pair], index: int) -> str:
    """The medians of the rounds, or why there is none."""
    return ", ".join(
        f"{pair[index].median_ms:.4g}" if pair[index].status is Status.OK else str(pair[index].status) for pair in pairs
    )


def _text(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
