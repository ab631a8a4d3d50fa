"""One gate: two arms in turns on one device, in two stages, and the comparison they end in."""

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Protocol

import numpy as np

from opbench.case import Cell
from opbench.gate.process import Arm, ArmProcess
from opbench.gate.rules import Decision, Rules, decide, interval, moved, screen
from opbench.measurement import Measurement, Status
from opbench.stats import median
from opbench.verdicts import CellComparison, Comparison, Interval, Verdict, overall_verdict

__all__ = ["Listener", "ProcessRecord", "Session", "SessionSettings", "run_session"]

FEWEST_CONFIRM_ROUNDS = 8
MOST_CONFIRM_ROUNDS = 64
SAME_SOURCE = "both arms ran the same source"


class RunProcess(Protocol):
    """Measures cells in a fresh process of an arm: Launcher.run, or a simulation."""

    def __call__(self, arm: Arm, cells: Sequence[Cell] | None) -> ArmProcess:
        """As Launcher.run."""
        ...


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process of a session, as gate.jsonl keeps it."""

    stage: str
    """setup, screen or confirm."""
    round: int
    arm: str
    """base or head."""
    process: ArmProcess

    def to_json_line(self) -> str:
        """One line of JSON: raw latencies with six digits, in milliseconds, the order of the cells kept."""
        process = self.process
        cells = {
            key: {
                "status": str(measurement.status),
                "reason": measurement.reason,
                "source": measurement.kernel_source_hash,
                "warnings": list(measurement.warnings),
                "latencies_ms": [float(f"{value:.6g}") for value in measurement.latencies_ms],
            }
            for key, measurement in process.measurements.items()
        }
        return json.dumps(
            {
                "stage": self.stage, "round": self.round, "arm": self.arm, "seconds": round(process.seconds, 3),
                "failure": process.failure, "sentinel": process.sentinel, "cells": cells,
            },
            ensure_ascii=False,
        )  # fmt: skip


class Listener(Protocol):
    """Hears how a session goes on."""

    def process_ended(self, record: ProcessRecord) -> None:
        """One process more."""

    def stage(self, name: str, processes: int, seconds: float) -> None:
        """A stage begins, of so many processes, which will take about so many seconds."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session goes.

    Attributes:
        rules: levels and numbers of rounds.
        budget_s: seconds for all of it; None for as long as the rounds take.
        settle: measure the cells on, too, that are not suspect but not shown to be the same either. Without it they
            stay inconclusive, and the session is shorter.
        same_source_allowed: go on although both arms run the same source (--aa).
        seed: of the order of the cells.
    """

    rules: Rules = field(default_factory=Rules)
    budget_s: float | None = None
    settle: bool = True
    same_source_allowed: bool = False
    seed: int = 0


@dataclass(slots=True)
class Session:
    """What a session measured and concluded."""

    comparison: Comparison
    records: list[ProcessRecord]

    @property
    def planned(self) -> tuple[Cell, ...]:
        """The base's cells."""
        return self.records[0].process.plan

    @property
    def seconds(self) -> float:
        """What its processes took."""
        return sum(record.process.seconds for record in self.records)

    def spreads(self) -> dict[str, float]:
        """Standard deviation of a round's log ratio in the first stage, by cell key."""
        pairs: dict[int, dict[str, ArmProcess]] = {}
        for record in self.records:
            if record.stage == "screen":
                pairs.setdefault(record.round, {})[record.arm] = record.process
        cells, rounds = _complete(self.planned, list(pairs.values()))
        return {cell.key: float(column.std(ddof=1)) for cell, column in zip(cells, rounds.T, strict=True)}


def run_session(
    base: Arm, head: Arm, run_process: RunProcess, settings: SessionSettings, listener: Listener | None = None
) -> Session:
    """Measure two arms in turns and compare them.

    Raises:
        GateError: an arm cannot be measured at all.
    """
    return _Run(base, head, run_process, settings, listener).run()


class _Run:
    """The state of a session while it goes on."""

    def __init__(
        self, base: Arm, head: Arm, run_process: RunProcess, settings: SessionSettings, listener: Listener | None
    ) -> None:
        self.arms = {"base": base, "head": head}
        self.settings = settings
        self.rules = settings.rules
        self.records: list[ProcessRecord] = []
        self._run_process = run_process
        self._listener = listener
        self._random = random.Random(settings.seed)  # noqa: S311 - an order, not a secret

    def run(self) -> Session:
        setup = {name: self._process("setup", 0, name, None) for name in self.arms}
        outcome = self._without_rounds(setup) or self._with_rounds(setup)
        return Session(outcome, self.records)

    # The set-up: one process of each arm, which also fills caches and is not counted.

    def _without_rounds(self, setup: Mapping[str, ArmProcess]) -> Comparison | None:
        """The comparison where nothing can be measured; else None."""
        base, head = setup["base"], setup["head"]
        differing = [
            f"{key}: {base.identity.get(key, 'none')} in the base, {head.identity.get(key, 'none')} in the head"
            for key in {**base.identity, **head.identity}
            if base.identity.get(key) != head.identity.get(key)
        ]
        cells = self._paired(setup)
        if differing:
            return self._comparison(setup, Verdict.NOT_COMPARABLE, "; ".join(differing))
        if not cells:
            return self._comparison(setup, Verdict.MISSING, "no cell was measured in both arms")
        if not self.settings.same_source_allowed and all(
            base.measurements[cell.key].kernel_source_hash == head.measurements[cell.key].kernel_source_hash
            for cell in cells
        ):
            reason = f"{SAME_SOURCE} of every operator: there is nothing to compare (--aa compares all the same)"
            return self._comparison(setup, Verdict.NOT_COMPARABLE, reason)
        return None

    def _paired(self, setup: Mapping[str, ArmProcess]) -> list[Cell]:
        """Cells that were measured in both arms."""
        return [
            cell
            for cell in setup["base"].plan
            if all(process.median_ms(cell.key) is not None for process in setup.values())
        ]

    # The rounds.

    def _with_rounds(self, setup: Mapping[str, ArmProcess]) -> Comparison:
        cells = self._paired(setup)
        per_round_s = sum(process.seconds for process in setup.values())
        first_count = self.rules.screen_rounds
        if not self._affordable(per_round_s, first_count + FEWEST_CONFIRM_ROUNDS):
            needed = math.ceil((1 + first_count + FEWEST_CONFIRM_ROUNDS) * per_round_s / 60)
            reason = f"the budget is too small: {len(cells)} cells need about {needed} minutes"
            return self._comparison(setup, Verdict.INCONCLUSIVE, reason)
        first = self._stage("screen", first_count, cells)
        cells, first_rounds = _complete(cells, first)
        if not cells:
            return self._comparison(setup, Verdict.MISSING, "no cell was measured in every round")
        kept = screen(first_rounds, self.rules).kept(settle=self.settings.settle)
        second, second_rounds = [], None
        if kept.any():
            chosen = [cell for cell, keep in zip(cells, kept, strict=True) if keep]
            second = self._stage("confirm", self._confirm_rounds(), chosen)
            still, second_rounds = _complete(chosen, second)
            left = {cell.key for cell in still}
            intact = np.array([not keep or cell.key in left for cell, keep in zip(cells, kept, strict=True)])
            cells = [cell for cell, whole in zip(cells, intact, strict=True) if whole]
            first_rounds, kept = first_rounds[:, intact], kept[intact]
            if not cells:
                return self._comparison(setup, Verdict.MISSING, "no cell was measured in every round")
        decision = decide(first_rounds, second_rounds, kept, self.rules)
        return self._conclude(setup, cells, decision, first_rounds, [*first, *second])

    def _affordable(self, per_round_s: float, rounds: int) -> bool:
        budget_s = self.settings.budget_s
        return budget_s is None or self._spent_s() + rounds * per_round_s <= budget_s

    def _confirm_rounds(self) -> int:
        """As many as the rules say or, with a budget, as it has room for; decided before any of them is measured."""
        if self.settings.budget_s is None:
            return self.rules.confirm_rounds
        screening = [record.process.seconds for record in self.records if record.stage == "screen"]
        room = int((self.settings.budget_s - self._spent_s()) / (sum(screening) / self.rules.screen_rounds))
        return max(FEWEST_CONFIRM_ROUNDS, min(room, MOST_CONFIRM_ROUNDS))

    def _spent_s(self) -> float:
        return sum(record.process.seconds for record in self.records)

    def _stage(self, name: str, rounds: int, cells: Sequence[Cell]) -> list[dict[str, ArmProcess]]:
        """Rounds of one process per arm, base first in the even ones and head first in the odd ones."""
        if self._listener:
            last = self.records[-2:]
            self._listener.stage(name, 2 * rounds, rounds * sum(record.process.seconds for record in last))
        taken = []
        for number in range(rounds):
            order = list(cells)
            self._random.shuffle(order)
            arms = ("base", "head") if number % 2 == 0 else ("head", "base")
            taken.append({arm: self._process(name, number, arm, order) for arm in arms})
        return taken

    def _process(self, stage: str, number: int, arm: str, cells: Sequence[Cell] | None) -> ArmProcess:
        process = self._run_process(self.arms[arm], cells)
        record = ProcessRecord(stage, number, arm, process)
        self.records.append(record)
        if self._listener:
            self._listener.process_ended(record)
        return process

    # The comparison.

    def _conclude(
        self,
        setup: Mapping[str, ArmProcess],
        cells: Sequence[Cell],
        decision: Decision,
        first_rounds: Any,  # noqa: ANN401 - an array
        rounds: Sequence[Mapping[str, ArmProcess]],
    ) -> Comparison:
        decided = {
            cell.key: (verdict, change)
            for cell, verdict, change in zip(cells, decision.verdicts, decision.changes, strict=True)
        }
        comparison = self._comparison(setup, None, "", decided, rounds)
        means = [("all cells", interval(first_rounds.mean(axis=1)))]
        for operator in dict.fromkeys(cell.case.operator for cell in cells):
            columns = [index for index, cell in enumerate(cells) if cell.case.operator == operator]
            means.append((operator, interval(first_rounds[:, columns].mean(axis=1))))
        verdict = comparison.verdict
        count = sum(row.verdict is verdict for row in comparison.cells)
        reason = f"{count} of {len(comparison.cells)} cells"
        if decision.suite_slower and verdict is not Verdict.SLOWER:
            verdict = Verdict.SLOWER
            reason = f"the geometric mean over the cells is slower: {decision.suite.ratio - 1:+.1%}"
        sentinels = _sentinel_ratios(rounds)
        moving = [name for name, ratios in sentinels.items() if moved(ratios, self.rules)]
        if moving:
            changes = ", ".join(f"{name} {math.expm1(fmean(sentinels[name])):+.1%}" for name in moving)
            verdict = Verdict.INCONCLUSIVE
            reason = f"the sentinel moved ({changes}), which no revision touches: the arms were not measured alike"
        return replace(comparison, means=tuple(means), verdict=verdict, reason=reason)

    def _comparison(
        self,
        setup: Mapping[str, ArmProcess],
        verdict: Verdict | None,
        reason: str,
        decided: Mapping[str, tuple[Verdict, Interval]] = {},
        rounds: Sequence[Mapping[str, ArmProcess]] = (),
    ) -> Comparison:
        """The comparison of what is decided; with a verdict on all that stands above those of the cells."""
        base, head = setup["base"], setup["head"]
        planned = {arm: {cell.key for cell in process.plan} for arm, process in setup.items()}
        not_applicable = [
            cell.key
            for cell in base.plan
            if all(_status(arm, cell.key) is Status.NOT_APPLICABLE for arm in setup.values())
        ]
        rows = []
        for cell in base.plan:
            if cell.key in not_applicable:
                continue
            row = _row(cell, setup, rounds)
            if cell.key not in planned["head"]:
                row = replace(row, reason="the head has no such cell")
            if cell.key in decided:
                cell_verdict, change = decided[cell.key]
                row = replace(row, verdict=cell_verdict, change=change, reason=_note(row, cell_verdict))
            elif verdict in (Verdict.NOT_COMPARABLE, Verdict.INCONCLUSIVE) and not row.reason:
                row = replace(row, verdict=verdict, reason="not measured further")
            rows.append(row)
        overall = overall_verdict(row.verdict for row in rows)
        return Comparison(
            base=self.arms["base"].label,
            head=self.arms["head"].label,
            tolerance=self.rules.tolerance,
            cells=tuple(rows),
            verdict=verdict or overall,
            reason=reason,
            only_in_head=tuple(cell.key for cell in head.plan if cell.key not in planned["base"]),
            not_applicable=tuple(not_applicable),
        )


def _complete(
    cells: Sequence[Cell], rounds: Sequence[Mapping[str, ArmProcess]]
) -> tuple[list[Cell], "np.ndarray[Any, np.dtype[np.float64]]"]:
    """The cells that every process measured, and their log ratios: a row per round, a column per cell."""
    table = {
        cell.key: [(pair["base"].median_ms(cell.key), pair["head"].median_ms(cell.key)) for pair in rounds]
        for cell in cells
    }
    whole = [cell for cell in cells if all(base and head for base, head in table[cell.key])]
    ratios = [[math.log(head / base) for base, head in table[cell.key] if base and head] for cell in whole]
    return whole, np.array(ratios, dtype=np.float64).reshape(len(whole), len(rounds)).T


def _sentinel_ratios(rounds: Iterable[Mapping[str, ArmProcess]]) -> dict[str, list[float]]:
    ratios: dict[str, list[float]] = {}
    for pair in rounds:
        for name, base_ms in pair["base"].sentinel.items():
            if name in pair["head"].sentinel:
                ratios.setdefault(name, []).append(math.log(pair["head"].sentinel[name] / base_ms))
    return ratios


def _status(process: ArmProcess, key: str) -> Status | None:
    measurement = process.measurements.get(key)
    return measurement.status if measurement else None


def _row(cell: Cell, setup: Mapping[str, ArmProcess], rounds: Sequence[Mapping[str, ArmProcess]]) -> CellComparison:
    """A cell with its figures; missing, with the reason, until something else is decided."""
    key = cell.key
    taken: dict[str, list[Measurement]] = {
        arm: [pair[arm].measurements[key] for pair in rounds if key in pair[arm].measurements] for arm in setup
    }
    medians = {arm: [median(m.latencies_ms) for m in taken[arm] if m.status is Status.OK] for arm in setup}
    measurements = [measurement for arm in setup for measurement in taken[arm]]
    # The details differ from process to process; the kind and how often it was seen is what a reader needs.
    kinds = Counter(kind for m in measurements for kind in {text.partition(":")[0] for text in m.warnings})
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
        warnings=tuple(f"{kind}: in {count} of {len(measurements)} processes" for kind, count in kinds.items()),
    )


def _source(process: ArmProcess, key: str) -> str:
    measurement = process.measurements.get(key)
    return measurement.kernel_source_hash if measurement else ""


def _note(row: CellComparison, verdict: Verdict) -> str:
    """What a reader of a decided row should know."""
    if row.base_source == row.head_source and verdict is Verdict.SLOWER:
        return f"{SAME_SOURCE} of this operator: look for what it shares with others, or at the device"
    return ""
