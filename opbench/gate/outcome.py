"""From what a session's processes measured to the comparison that it ends in."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from opbench.compare.estimate import Estimate
from opbench.compare.rules import Decision, Rules, interval, moved
from opbench.compare.verdicts import CellComparison, Comparison, Verdict, overall_verdict
from opbench.gate.changes import Choice
from opbench.gate.process import ArmProcess, GateArm
from opbench.results.measurement import Measurement, Status
from opbench.stats import median
from opbench.workload.case import Cell
from opbench.workload.cell_warning import CellWarning

__all__ = ["SAME_SOURCE", "Pair", "complete", "conclude", "unchanged", "undecided"]

SAME_SOURCE = "both arms ran the same source"

Pair = Mapping[str, ArmProcess]
"""The processes of one round, by arm: base and head."""


def conclude(
    arms: Mapping[str, GateArm],
    rules: Rules,
    setup: Pair,
    cells: Sequence[Cell],
    decision: Decision,
    first_rounds: NDArray[np.float64],
    rounds: Sequence[Pair],
    choices: Mapping[str, Choice] = {},
) -> Comparison:
    """The comparison of a session whose cells were decided.

    Args:
        arms: base and head.
        rules: of the session.
        setup: the processes that made the plans.
        cells: those that were decided.
        decision: on them.
        first_rounds: log ratios of the screen, a row per round and a column per cell.
        rounds: of both stages.
        choices: which cells were measured, and why; empty where all were.
    """
    decided = {
        cell.key: (verdict, change)
        for cell, verdict, change in zip(cells, decision.verdicts, decision.changes, strict=True)
    }
    comparison = _comparison(arms, rules, setup, decided, rounds, choices)
    means = [("all cells", interval(first_rounds.mean(axis=1)))]
    for operator in dict.fromkeys(cell.case.operator for cell in cells):
        columns = [index for index, cell in enumerate(cells) if cell.case.operator == operator]
        means.append((operator, interval(first_rounds[:, columns].mean(axis=1))))
    verdict = comparison.verdict
    count = sum(row.verdict is verdict for row in comparison.cells)
    reason = f"{count} of {len(comparison.cells)} cells"
    if decision.suite_slower and verdict is not Verdict.SLOWER:
        verdict = Verdict.SLOWER
        reason = f"the geometric mean over the cells is slower: {decision.suite.value - 1:+.1%}"
    sentinels = _sentinel_ratios(rounds)
    moving = [name for name, ratios in sentinels.items() if moved(ratios, rules)]
    # What was not measured must not become a verdict that --inconclusive can accept.
    if moving and verdict is not Verdict.MISSING:
        changes = ", ".join(f"{name} {math.expm1(fmean(sentinels[name])):+.1%}" for name in moving)
        verdict = Verdict.INCONCLUSIVE
        reason = f"the sentinel moved ({changes}), which no revision touches: the arms were not measured alike"
    return replace(comparison, means=tuple(means), verdict=verdict, reason=reason)


def undecided(
    arms: Mapping[str, GateArm],
    rules: Rules,
    setup: Pair,
    verdict: Verdict,
    reason: str,
    rounds: Sequence[Pair] = (),
    choices: Mapping[str, Choice] = {},
) -> Comparison:
    """The comparison of a session that could not measure; its verdict stands above those of the cells."""
    comparison = _comparison(arms, rules, setup, rounds=rounds, choices=choices)
    if verdict is not Verdict.MISSING:
        cells = tuple(
            row if row.reason else replace(row, verdict=verdict, reason="not measured further")
            for row in comparison.cells
        )
        comparison = replace(comparison, cells=cells)
    return replace(comparison, verdict=verdict, reason=reason)


def unchanged(arms: Mapping[str, GateArm], rules: Rules, setup: Pair, choices: Mapping[str, Choice]) -> Comparison:
    """The comparison of a session that measures no cell, since both arms run the same code for all that both have."""
    comparison = _comparison(arms, rules, setup, choices=choices)
    count = sum(row.verdict is comparison.verdict for row in comparison.cells)
    reason = f"{count} of {len(comparison.cells)} cells; nothing was timed"
    return replace(comparison, reason=reason)


def _comparison(
    arms: Mapping[str, GateArm],
    rules: Rules,
    setup: Pair,
    decided: Mapping[str, tuple[Verdict, Estimate]] = {},
    rounds: Sequence[Pair] = (),
    choices: Mapping[str, Choice] = {},
) -> Comparison:
    """Every cell of the base: decided, unchanged, or missing with the reason; with the costs that the head counts."""
    base, head = setup["base"], setup["head"]
    heads = {cell.key: cell for cell in head.plan}
    planned = {arm: {cell.key for cell in process.plan} for arm, process in setup.items()}
    not_applicable = [
        cell.key for cell in base.plan if all(_status(arm, cell.key) is Status.NOT_APPLICABLE for arm in setup.values())
    ]
    rows = []
    for cell in base.plan:
        if cell.key in not_applicable:
            continue
        row = _row(heads.get(cell.key, cell), setup, rounds)
        if cell.key not in planned["head"]:
            row = replace(row, reason="the head has no such cell")
        choice = choices.get(cell.key)
        if choice and not choice.measured:
            row = replace(row, verdict=Verdict.UNCHANGED, reason=choice.reason)
        if cell.key in decided:
            cell_verdict, change = decided[cell.key]
            row = replace(row, verdict=cell_verdict, change=change, reason=_note(row, cell_verdict, choice))
        rows.append(row)
    return Comparison(
        base=arms["base"].label,
        head=arms["head"].label,
        tolerance=rules.tolerance,
        cells=tuple(rows),
        verdict=overall_verdict(row.verdict for row in rows),
        only_in_head=tuple(cell.key for cell in head.plan if cell.key not in planned["base"]),
        not_applicable=tuple(not_applicable),
        notes=tuple(_cost_notes(cell for cell in base.plan if heads.get(cell.key, cell) != cell)),
    )


def _cost_notes(differing: Iterable[Cell]) -> Iterator[str]:
    """A line where the arms count the costs of the same cells otherwise."""
    if operators := dict.fromkeys(cell.case.operator for cell in differing):
        yield f"The revisions count the costs of {', '.join(operators)} otherwise; latencies are compared all the same."


def complete(cells: Sequence[Cell], rounds: Sequence[Pair]) -> tuple[list[Cell], NDArray[np.float64]]:
    """The cells that every process measured, and their log ratios: a row per round, a column per cell."""
    table = {
        cell.key: [(pair["base"].median_ms(cell.key), pair["head"].median_ms(cell.key)) for pair in rounds]
        for cell in cells
    }
    whole = [cell for cell in cells if all(base and head for base, head in table[cell.key])]
    ratios = [[math.log(head / base) for base, head in table[cell.key] if base and head] for cell in whole]
    return whole, np.array(ratios, dtype=np.float64).reshape(len(whole), len(rounds)).T


def _sentinel_ratios(rounds: Iterable[Pair]) -> dict[str, list[float]]:
    ratios: dict[str, list[float]] = {}
    for pair in rounds:
        for name, base_ms in pair["base"].sentinel.items():
            if name in pair["head"].sentinel:
                ratios.setdefault(name, []).append(math.log(pair["head"].sentinel[name] / base_ms))
    return ratios


def _status(process: ArmProcess, key: str) -> str | None:
    measurement = process.measurements.get(key)
    return measurement.status if measurement else None


def _row(cell: Cell, setup: Pair, rounds: Sequence[Pair]) -> CellComparison:
    """A cell with its figures; missing, with the reason, until something else is decided."""
    key = cell.key
    taken: dict[str, list[Measurement]] = {
        arm: [pair[arm].measurements[key] for pair in rounds if key in pair[arm].measurements] for arm in setup
    }
    medians = {arm: [median(m.latencies_ms) for m in taken[arm] if m.status is Status.OK] for arm in setup}
    measurements = [measurement for arm in setup for measurement in taken[arm]]
    # The details differ from process to process; the kind and how often it was seen is what a reader needs.
    kinds = Counter(kind for m in measurements for kind in dict.fromkeys(warning.kind for warning in m.warnings))
    failed = [
        f"{measurement.status} in the {arm}: {measurement.reason}"
        for arm, process in setup.items()
        for measurement in (process.measurements.get(key), *taken[arm])
        if measurement and measurement.status is not Status.OK
    ]
    ended = [
        f"a process of the {arm} ended early: {process.failure}"
        for arm in setup
        for process in (setup[arm], *(pair[arm] for pair in rounds))
        if process.failure and key not in process.measurements
    ]
    return CellComparison(
        cell=cell,
        verdict=Verdict.MISSING,
        reason=next(iter([*failed, *ended]), ""),
        base_ms=median(medians["base"]) if medians["base"] else None,
        head_ms=median(medians["head"]) if medians["head"] else None,
        base_source=_source(setup["base"], key),
        head_source=_source(setup["head"], key),
        warnings=tuple(
            CellWarning(kind, f"in {count} of {len(measurements)} processes") for kind, count in kinds.items()
        ),
    )


def _source(process: ArmProcess, key: str) -> str:
    measurement = process.measurements.get(key)
    return measurement.kernel_source_hash if measurement else ""


def _note(row: CellComparison, verdict: Verdict, choice: Choice | None) -> str:
    """What a reader of a decided row should know."""
    notes = [f"measured, {choice.reason}"] if choice else []
    if row.base_source == row.head_source and verdict is Verdict.SLOWER:
        notes.append(f"{SAME_SOURCE} of this operator: look for what it shares with others, or at the device")
    return "; ".join(notes)
