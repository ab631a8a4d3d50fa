"""One gate: two arms in turns on one device, in two stages, and the comparison they end in."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from opbench.compare.rules import Rules, decide, screen
from opbench.compare.verdicts import Comparison, Verdict
from opbench.device.identity import Identity
from opbench.errors import GateError
from opbench.gate.changes import Choice
from opbench.gate.doubts import with_doubts
from opbench.gate.launcher import Planned
from opbench.gate.outcome import SAME_SOURCE, Pair, complete, conclude, unchanged, undecided
from opbench.gate.process import ArmProcess, GateArm, ProcessRecord
from opbench.workload.case import Cell

__all__ = ["RunRound", "Session", "SessionProgress", "SessionSettings", "run_session"]

FEWEST_CONFIRM_ROUNDS = 8
MOST_CONFIRM_ROUNDS = 64
UNMEASURED = "no cell was measured in every round"


class RunRound(Protocol):
    """Runs a round, a fresh process of each arm: Launcher.run, or a simulation."""

    def __call__(self, arms: Mapping[str, GateArm], cells: Sequence[Cell] | None, first: str) -> Pair:
        """As Launcher.run."""
        ...


class SessionProgress(Protocol):
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

    def to_json(self) -> dict[str, Any]:
        """What gate.json and selftest.json keep."""
        return {**asdict(self), "rules": self.rules.to_json()}


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
        cells, rounds = complete(self.planned, list(pairs.values()))
        return {cell.key: float(column.std(ddof=1)) for cell, column in zip(cells, rounds.T, strict=True)}


def run_session(
    base: GateArm,
    head: GateArm,
    run_round: RunRound,
    settings: SessionSettings,
    progress: SessionProgress | None = None,
    planned: Planned | None = None,
) -> Session:
    """Measure two arms in turns and compare them.

    Args:
        base, head: the arms.
        run_round: as Launcher.run.
        settings: how.
        progress: hears of it.
        planned: the plans, where only some of their cells are measured.

    Raises:
        GateError: an arm cannot be measured at all, or the budget is too small for any conclusion.
    """
    return _Run(base, head, run_round, settings, progress, planned).run()


class _Run:
    """The state of a session while it goes on."""

    def __init__(
        self,
        base: GateArm,
        head: GateArm,
        run_round: RunRound,
        settings: SessionSettings,
        progress: SessionProgress | None,
        planned: Planned | None,
    ) -> None:
        self.planned = planned
        self.arms = {"base": base, "head": head}
        self.settings = settings
        self.rules = settings.rules
        self.records: list[ProcessRecord] = []
        self._run_round = run_round
        self._progress = progress
        self._random = random.Random(settings.seed)  # noqa: S311 - an order, not a secret

    def run(self) -> Session:
        setup = self._set_up()
        outcome = self._without_rounds(setup) or self._with_rounds(setup)
        return Session(outcome, self.records)

    # The set-up: one process of each arm, which also fills caches and is not counted.

    def _set_up(self) -> Pair:
        if self.planned is None:
            return self._round("setup", 0, None, "base")
        plans = self.planned.processes
        self._keep("plan", 0, plans)
        if not self.planned.measured:
            return plans
        taken = self._round("setup", 0, self.planned.measured, "base")
        return {
            arm: replace(plans[arm], measurements=process.measurements, sentinel=process.sentinel,
                         seconds=process.seconds, failure=process.failure)
            for arm, process in taken.items()
        }  # fmt: skip

    def _without_rounds(self, setup: Pair) -> Comparison | None:
        """The comparison where nothing can be measured; else None."""
        base, head = setup["base"], setup["head"]
        differing = (
            Identity(base.identity).differences(Identity(head.identity), ("in the base", "in the head")).values()
        )
        cells = self._paired(setup)
        if differing:
            return self._undecided(setup, Verdict.NOT_COMPARABLE, "; ".join(differing))
        if self.planned and self.planned.choices and not self.planned.measured:
            return unchanged(self.arms, self.rules, setup, self._choices)
        if not cells:
            return self._undecided(setup, Verdict.MISSING, "no cell was measured in both arms")
        if self.planned or self.settings.same_source_allowed:
            return None
        if all(
            base.measurements[cell.key].kernel_source_hash == head.measurements[cell.key].kernel_source_hash
            for cell in cells
        ):
            reason = f"{SAME_SOURCE} of every operator: there is nothing to compare (--aa compares all the same)"
            return replace(self._undecided(setup, Verdict.NOT_COMPARABLE, reason), same_source=True)
        return None

    def _paired(self, setup: Pair) -> list[Cell]:
        """Cells that were measured in both arms."""
        return [
            cell
            for cell in setup["base"].plan
            if all(process.median_ms(cell.key) is not None for process in setup.values())
        ]

    def _undecided(self, setup: Pair, verdict: Verdict, reason: str, rounds: Sequence[Pair] = ()) -> Comparison:
        return undecided(self.arms, self.rules, setup, verdict, reason, rounds, self._choices)

    @property
    def _choices(self) -> Mapping[str, Choice]:
        return self.planned.choices if self.planned else {}

    # The rounds.

    def _with_rounds(self, setup: Pair) -> Comparison:
        cells = self._paired(setup)
        per_round_s = sum(process.seconds for process in setup.values())
        first_count = self.rules.screen_rounds
        if not self._affordable(per_round_s, first_count + FEWEST_CONFIRM_ROUNDS):
            needed = math.ceil((1 + first_count + FEWEST_CONFIRM_ROUNDS) * per_round_s / 60)
            # Not a verdict: --inconclusive pass would accept a gate that measured nothing.
            raise GateError(f"the budget is too small: {len(cells)} cells need about {needed} minutes")
        first = self._stage("screen", first_count, cells)
        cells, first_rounds = complete(cells, first)
        if not cells:
            return self._undecided(setup, Verdict.MISSING, UNMEASURED, first)
        kept = screen(first_rounds, self.rules).kept(settle=self.settings.settle)
        second, second_rounds = [], None
        if kept.any():
            chosen = [cell for cell, keep in zip(cells, kept, strict=True) if keep]
            second = self._stage("confirm", self._confirm_rounds(), chosen)
            still, second_rounds = complete(chosen, second)
            left = {cell.key for cell in still}
            intact = np.array([not keep or cell.key in left for cell, keep in zip(cells, kept, strict=True)])
            cells = [cell for cell, whole in zip(cells, intact, strict=True) if whole]
            first_rounds, kept = first_rounds[:, intact], kept[intact]
            if not cells:
                return self._undecided(setup, Verdict.MISSING, UNMEASURED, [*first, *second])
        decision = decide(first_rounds, second_rounds, kept, self.rules)
        rounds = [*first, *second]
        comparison = conclude(self.arms, self.rules, setup, cells, decision, first_rounds, rounds, self._choices)
        suspects = int(screen(first_rounds, self.rules).suspect.sum())
        return with_doubts(comparison, rounds, suspects, self.rules)

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

    def _stage(self, name: str, rounds: int, cells: Sequence[Cell]) -> list[Pair]:
        """Rounds; in the even ones the base measures the first cell first, in the odd ones the head."""
        if self._progress:
            last = self.records[-2:]
            self._progress.stage(name, 2 * rounds, rounds * sum(record.process.seconds for record in last))
        taken: list[Pair] = []
        for number in range(rounds):
            order = list(cells)
            self._random.shuffle(order)
            taken.append(self._round(name, number, order, ("base", "head")[number % 2]))
        return taken

    def _round(self, stage: str, number: int, cells: Sequence[Cell] | None, first: str) -> Pair:
        pair = self._run_round(self.arms, cells, first)
        self._keep(stage, number, pair)
        return pair

    def _keep(self, stage: str, number: int, pair: Pair) -> None:
        for arm, process in pair.items():
            record = ProcessRecord(stage, number, arm, process)
            self.records.append(record)
            if self._progress:
                self._progress.process_ended(record)
