"""How far the cards of a fleet are apart: by the sentinel that each measured, or by cells that all of them measured."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opbench.results.measurement import Measurement
from opbench.results.row import is_ok
from opbench.results.run import Run
from opbench.results.sentinels import AFTER, BEFORE, read_sentinels
from opbench.stats import median

__all__ = [
    "LEAST_DEVIATION",
    "OUTLIER_SCORE",
    "CardReading",
    "OperatorSpread",
    "card_readings",
    "operator_spreads",
    "outliers",
]

OUTLIER_SCORE = 3.5
"""Of the modified z-score, 0.6745 times the distance to the median over the median absolute deviation: Iglewicz and
Hoaglin, How to Detect and Handle Outliers, 1993."""
NORMAL_MAD = 0.6745
"""The median absolute deviation of a normal distribution, in standard deviations."""
LEAST_DEVIATION = 0.01
"""A card nearer to the median is no outlier, however alike the others are."""
LEAST_CARDS = 3
"""Of two cards, both are as far from their median."""


@dataclass(frozen=True, slots=True)
class CardReading:
    """What is known of a card of a run.

    Attributes:
        name: such as `card-3`.
        host, gpu_uuid, device: as in the columns of these names; the UUID is empty on a CPU.
        cells: that it measured.
        before_ms, after_ms: medians of the sentinel before and after them; None where it was not ok.
        problems: why it was not.
    """

    name: str
    host: str
    gpu_uuid: str
    device: str
    cells: int
    before_ms: float | None
    after_ms: float | None
    problems: tuple[str, ...] = ()

    @property
    def sentinel_ms(self) -> float | None:
        """Mean of both, or the one that is there."""
        found = [value for value in (self.before_ms, self.after_ms) if value is not None]
        return statistics.fmean(found) if found else None


@dataclass(frozen=True, slots=True)
class OperatorSpread:
    """How far cards that measured the same cells are apart in one operator.

    Attributes:
        operator: its name; empty for all together.
        cells: that were ok on every card.
        relative: by card the geometric mean over the cells of its latency over the median of all cards.
    """

    operator: str
    cells: int
    relative: Mapping[str, float]

    @property
    def spread(self) -> float:
        """The slowest card's over the fastest's, minus 1."""
        return max(self.relative.values()) / min(self.relative.values()) - 1


def card_readings(run: Run) -> list[CardReading]:
    """The cards of a run that a fleet measured, in the order of their names; of a sentinel measured again the last."""
    from opbench.device.identity import gpu_uuid, host_of

    last = {(line.origin, line.cell.case.shape_list): line for line in read_sentinels(run.path)}
    cells: defaultdict[str, int] = defaultdict(int)
    for row in run.rows():
        cells[row.origin] += 1
    found = []
    for origin in run.origins.values():
        if origin.actor:
            sides = [last.get((origin.run_id, when)) for when in (BEFORE, AFTER)]
            before_ms, after_ms = (_median_ms(side) for side in sides)
            problems = [one.reason for one in sides if one and not one.latencies_ms]
            found.append(
                CardReading(
                    origin.actor, host_of(origin.environment), gpu_uuid(origin.environment),
                    str(origin.environment["device_name"]), cells[origin.run_id], before_ms, after_ms,
                    tuple(dict.fromkeys(problems)),
                )
            )  # fmt: skip
    return sorted(found, key=lambda card: (len(card.name), card.name))


def outliers(values: Mapping[str, float]) -> dict[str, float]:
    """Names of the values that lie far from the others, with how far from their median, relative to it.

    Far is a modified z-score above OUTLIER_SCORE, and at least LEAST_DEVIATION. Of fewer than three values none is.
    """
    if len(values) < LEAST_CARDS:
        return {}
    middle = median([*values.values()])
    spread = median([abs(value - middle) for value in values.values()])
    return {
        name: value / middle - 1
        for name, value in values.items()
        if abs(value / middle - 1) >= LEAST_DEVIATION and NORMAL_MAD * abs(value - middle) > OUTLIER_SCORE * spread
    }


def operator_spreads(runs: Mapping[str, Run]) -> list[OperatorSpread]:
    """Of runs of one plan on several cards, each operator's spread, and last that of all together.

    Args:
        runs: by the name of the card.
    """
    by_cell: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for name, run in runs.items():
        for cell, row in zip(run.plan(), run.rows(), strict=True):
            if is_ok(row) and row.latency_ms > 0:
                by_cell[row.operator, cell.key][name] = row.latency_ms
    logs: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    for (operator, _), latencies in by_cell.items():
        if len(latencies) == len(runs):
            middle = median([*latencies.values()])
            relative = {name: math.log(value / middle) for name, value in latencies.items()}
            logs[operator].append(relative)
    found = [_spread(operator, cells) for operator, cells in logs.items()]
    every = [cell for cells in logs.values() for cell in cells]
    return [*found, _spread("", every)] if every else []


def _spread(operator: str, cells: Sequence[Mapping[str, float]]) -> OperatorSpread:
    names = cells[0].keys()
    return OperatorSpread(
        operator, len(cells), {name: math.exp(statistics.fmean(cell[name] for cell in cells)) for name in names}
    )


def _median_ms(sentinel: Measurement | None) -> float | None:
    samples = sentinel.latencies_ms if sentinel else ()
    return median(samples) if samples else None
