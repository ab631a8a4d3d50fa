"""The gate judged by sessions whose truth is known: A against A, and operators that were really slowed."""

import gzip
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from opbench.compare.effort import SHARE
from opbench.compare.rules import Rules
from opbench.compare.verdicts import Verdict
from opbench.errors import GateError, ResultsError
from opbench.files import write_whole
from opbench.gate.process import GateArm
from opbench.gate.session import RunRound, Session, SessionProgress, SessionSettings, run_session
from opbench.text import one_line

__all__ = ["Rate", "SelfTest", "SessionOutcome", "rate", "read_outcomes", "run_sessions", "summarise"]

OUTCOMES = "sessions.jsonl"
TOLERANCE_STEP = 0.005


@dataclass(frozen=True, slots=True)
class SessionOutcome:
    """One session of a self-test, without its raw data.

    Attributes:
        number: of the session, from 0; also the seed of its order.
        inject: fraction by which an operator was slowed; 0 for A/A.
        operator: which; empty for A/A.
        verdict: on all.
        reason: of it.
        cells: verdict and ratio by cell key.
        spreads: standard deviation of the rounds' log ratio by cell key.
        rounds: of the second stage.
        process_s: seconds per process of the first stage.
        seconds: the session took.
    """

    number: int
    inject: float
    operator: str
    verdict: Verdict
    reason: str
    cells: Mapping[str, tuple[Verdict, float | None]]
    spreads: Mapping[str, float]
    rounds: int
    process_s: float
    seconds: float

    @property
    def alarmed(self) -> bool:
        """The gate would have failed the revision."""
        return self.verdict is Verdict.SLOWER

    @property
    def caught(self) -> bool:
        """An alarm that names the slowed operator."""
        return self.alarmed and any(
            verdict is Verdict.SLOWER and key.startswith(f"{self.operator}/")
            for key, (verdict, _) in self.cells.items()
        )

    def to_json_line(self) -> str:
        """One line that from_json reads back."""
        names = type(self).__slots__
        return json.dumps({name: getattr(self, name) for name in names}, ensure_ascii=False)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SessionOutcome":
        """The outcome that to_json_line wrote; KeyError, TypeError or ValueError where it did not."""
        cells = {key: (Verdict(verdict), ratio) for key, (verdict, ratio) in data["cells"].items()}
        return cls(**{**data, "verdict": Verdict(data["verdict"]), "cells": cells})


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something happened, with the Clopper-Pearson 95 % interval."""

    count: int
    total: int
    low: float
    high: float

    def __str__(self) -> str:
        digits = 0 if self.total < 200 else 1
        return f"{self.count} of {self.total} ({self.low:.{digits}%} to {self.high:.{digits}%})"


def rate(count: int, total: int) -> Rate:
    """The exact binomial interval (Clopper and Pearson 1934)."""
    interval = stats.binomtest(count, total).proportion_ci(method="exact")
    return Rate(count, total, float(interval.low), float(interval.high))


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What the sessions show, and what to ask of the gate on this machine.

    Attributes:
        alarms: sessions with an alarm by injected fraction; false ones at 0.
        caught: sessions whose alarm names the slowed operator, likewise.
        inconclusive: sessions without a verdict, likewise.
        spread: standard deviation of a round's log ratio, the median over cells and the largest.
        detectable: slow-down that is caught in 80 % of the sessions, in the median cell and in the noisiest one.
        tolerance: the smallest, in steps of 0.5 %, within which all cells are shown to be the same in 80 % of the
            sessions where nothing changed.
        rounds: of both stages, that this takes.
        minutes: that such a gate takes at most for this many cells.
        cells: how many.
    """

    alarms: Mapping[float, Rate]
    caught: Mapping[float, Rate]
    inconclusive: Mapping[float, Rate]
    spread: tuple[float, float]
    detectable: tuple[float, float]
    tolerance: float
    rounds: tuple[int, int]
    minutes: float
    cells: int

    def to_json(self) -> dict[str, Any]:
        """What is kept for this machine, for the warnings of later gates."""
        return {
            "tolerance": self.tolerance, "detectable": list(self.detectable), "rounds": list(self.rounds),
            "minutes": self.minutes, "cells": self.cells, "spread": list(self.spread),
            "sessions": sum(entry.total for entry in self.alarms.values()),
        }  # fmt: skip


def run_sessions(
    run_round: RunRound,
    inject: Sequence[float],
    sessions: int,
    settings: SessionSettings,
    out: Path,
    on_session: Callable[[int, float, str], SessionProgress | None] = lambda number, fraction, operator: None,
) -> list[SessionOutcome]:
    """Run A/A sessions and sessions with each injected slow-down, in turns; those that `out` holds are kept.

    Args:
        run_round: as Launcher.run.
        inject: fractions by which an operator is slowed, 0.05 for 5 %.
        sessions: of each kind.
        settings: of every session.
        out: folder; gets sessions.jsonl and a file of raw data per session.
        on_session: called at the start of each; gives what listens to it.

    Raises:
        GateError: an arm cannot be measured.
        ResultsError: `out` holds another self-test, or a damaged one.
        StorageError: it cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    done = {(outcome.number, outcome.inject): outcome for outcome in read_outcomes(out)}
    operators: list[str] = []
    for number in range(sessions):
        for fraction in (0.0, *inject):
            if (number, fraction) in done:
                continue
            if not operators:
                plan = run_round({"base": GateArm("plan")}, None, "base")["base"].plan
                operators = list(dict.fromkeys(cell.case.operator for cell in plan))
                if not operators:
                    raise GateError("a self-test needs at least one cell")
            chosen = random.Random(f"{number} {fraction}").choice(operators) if fraction else ""  # noqa: S311
            head = (
                GateArm(f"{chosen} slowed by {fraction:.0%}", inject={chosen: fraction})
                if chosen
                else GateArm("the same")
            )
            session = run_session(
                GateArm("this opbench"),
                head,
                run_round,
                replace(settings, same_source_allowed=True, seed=number),
                on_session(number, fraction, chosen),
            )
            outcome = _outcome(number, fraction, chosen, session)
            _write_raw(session, out / f"session-{number:02}-{fraction:g}.jsonl.gz")
            done[number, fraction] = outcome
            lines = [entry.to_json_line() for _, entry in sorted(done.items())]
            write_whole(out / OUTCOMES, "\n".join(lines) + "\n")
    return [outcome for _, outcome in sorted(done.items())]


def read_outcomes(out: Path) -> Iterator[SessionOutcome]:
    """The sessions that a folder holds.

    Raises:
        ResultsError: a line is not a session.
    """
    path = out / OUTCOMES
    if not path.exists():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield SessionOutcome.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultsError(f"{path}:{number}: damaged line: {one_line(repr(error))}") from None


def summarise(outcomes: Sequence[SessionOutcome], rules: Rules) -> SelfTest:
    """Rates of the sessions, and from their spread what this machine can detect.

    Args:
        outcomes: at least one.
        rules: the sessions' rules.
    """
    kinds = {
        fraction: [o for o in outcomes if o.inject == fraction] for fraction in sorted({o.inject for o in outcomes})
    }
    spreads = _spreads(outcomes)
    rounds = (rules.screen_rounds, rules.confirm_rounds)
    low, high = (detectable(float(np.quantile(spreads, q)), rounds[1], len(spreads), rules) for q in (0.5, 1.0))
    process_s = float(np.median([outcome.process_s for outcome in outcomes]))
    return SelfTest(
        alarms={fraction: rate(sum(o.alarmed for o in kind), len(kind)) for fraction, kind in kinds.items()},
        caught={fraction: rate(sum(o.caught for o in kind), len(kind)) for fraction, kind in kinds.items()},
        inconclusive={
            fraction: rate(sum(o.verdict is Verdict.INCONCLUSIVE for o in kind), len(kind))
            for fraction, kind in kinds.items()
        },
        spread=(float(np.median(spreads)), float(spreads.max())),
        detectable=(low, high),
        tolerance=_showable(spreads, rules),
        rounds=rounds,
        minutes=2 * (1 + sum(rounds)) * process_s / 60,
        cells=len(spreads),
    )


def detectable(spread: float, rounds: int, cells: int, rules: Rules) -> float:
    """The slow-down that a paired t-test of `rounds` rounds finds in 80 % of the sessions, as a fraction.

    Args:
        spread: standard deviation of a round's log ratio.
        rounds: of the second stage.
        cells: that share the family-wise level, at worst.
        rules: level and tolerance.
    """
    quantiles = stats.t.ppf(1 - rules.level / cells, rounds - 1) + stats.t.ppf(SHARE, rounds - 1)
    return float(math.expm1(math.log1p(rules.tolerance) + quantiles * spread / rounds**0.5))


def _showable(spreads: NDArray[np.float64], rules: Rules) -> float:
    """The tolerance at which all cells pass the test of sameness with a probability of 80 %, if none changed."""
    count = rules.screen_rounds + rules.confirm_rounds
    errors = spreads / count**0.5
    half_widths = stats.t.ppf(1 - rules.same_level / 2, count - 1) * errors
    steps = 1
    while steps * TOLERANCE_STEP < 1:
        inside = stats.norm.cdf((math.log1p(steps * TOLERANCE_STEP) - half_widths) / errors)
        if float(np.prod(np.maximum(2 * inside - 1, 0))) >= SHARE:
            break
        steps += 1
    return steps * TOLERANCE_STEP


def _spreads(outcomes: Sequence[SessionOutcome]) -> NDArray[np.float64]:
    """Per cell, the root mean square of its spread over the sessions."""
    squares: dict[str, list[float]] = {}
    for outcome in outcomes:
        for key, spread in outcome.spreads.items():
            squares.setdefault(key, []).append(spread**2)
    if not squares:
        raise GateError("no session of the self-test measured a cell")
    return np.sqrt([float(np.mean(values)) for values in squares.values()])


def _outcome(number: int, fraction: float, operator: str, session: Session) -> SessionOutcome:
    comparison = session.comparison
    screening = [record for record in session.records if record.stage == "screen"]
    return SessionOutcome(
        number=number,
        inject=fraction,
        operator=operator,
        verdict=comparison.verdict,
        reason=comparison.reason,
        cells={row.cell.key: (row.verdict, row.change.value if row.change else None) for row in comparison.cells},
        spreads=session.spreads(),
        rounds=sum(record.stage == "confirm" for record in session.records) // 2,
        process_s=float(np.median([record.process.seconds for record in screening])) if screening else 0.0,
        seconds=session.seconds,
    )


def _write_raw(session: Session, path: Path) -> None:
    lines = "\n".join(record.to_json_line() for record in session.records) + "\n"
    write_whole(path, gzip.compress(lines.encode(), mtime=0))
