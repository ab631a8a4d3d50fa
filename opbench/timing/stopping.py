"""When to stop sampling: enough samples, then a narrow interval or a spent budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from opbench.stats import median, median_interval, relative_half_width
from opbench.timing.timer import Timer

__all__ = ["MIN_SAMPLES", "Samples", "StopReason", "StoppingRule", "collect_samples"]


MIN_SAMPLES = 30
"""Of a timer that needs no more."""

LONG_LAUNCH_SHARE = 0.2
"""Of the budget: launches that take longer are timed LEAST_SAMPLES times and no more."""

LEAST_SAMPLES = 6
"""The fewest whose range is a distribution-free 95 % interval of the median: 1 - 2 / 2**6 is 0.969, with 5 0.938."""


class StopReason(StrEnum):
    """Why sampling ended."""

    CONVERGED = "converged"
    """The 95 % interval of the median was within 1 % of it."""
    RESOLUTION = "resolution"
    """The interval was within one step of the timer, but a step is more than 1 %: more samples would not narrow it."""
    TIME_BUDGET = "time_budget"
    """The cell's time budget was spent first."""
    LONG_LAUNCH = "long_launch"
    """A launch takes more than a fifth of the budget, so few samples were taken: six, the fewest that give an interval,
    or 30 by `launch-sync`."""


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """At least min_samples; then until the median's 95 % interval is narrow or the budget is spent.

    The interval is as wide as the timer's step at least: identical samples of a coarse clock say no more than that.
    Where a launch takes more than LONG_LAUNCH_SHARE of the budget, least_samples are taken and no more.

    Attributes:
        time_budget_s: seconds of sampling, warm-up not included.
        min_samples: taken even where the budget is spent before.
        relative_half_width: of the 95 % interval, as a fraction of the median; negative to spend all of the budget.
        least_samples: of a long launch.
    """

    time_budget_s: float
    min_samples: int = MIN_SAMPLES
    relative_half_width: float = 0.01
    least_samples: int = LEAST_SAMPLES

    def settled(self, latencies_ms: Sequence[float], resolution_ms: float) -> StopReason | None:
        """Why these samples are enough, or None.

        Args:
            latencies_ms: at least one.
            resolution_ms: the timer's step.
        """
        if relative_half_width(latencies_ms, resolution_ms) <= self.relative_half_width:
            return StopReason.CONVERGED
        low, high = median_interval(latencies_ms)
        neighbours = high - low < 1.5 * resolution_ms  # readings are whole steps, but for their rounding
        return StopReason.RESOLUTION if neighbours and self.relative_half_width >= 0 else None


@dataclass(frozen=True, slots=True)
class Samples:
    """Latencies in milliseconds per launch, in order, and why there are no more."""

    latencies_ms: tuple[float, ...]
    stop_reason: StopReason


def collect_samples(timer: Timer, launch: Callable[[], object], rule: StoppingRule) -> Samples:
    """Sample a prepared timer until the rule says stop. No sample is removed."""
    started = timer.now()
    latencies = timer.sample(launch, min(rule.least_samples, rule.min_samples))
    if median(latencies) / 1e3 > LONG_LAUNCH_SHARE * rule.time_budget_s:
        return Samples(tuple(latencies), StopReason.LONG_LAUNCH)
    latencies += timer.sample(launch, rule.min_samples - len(latencies))
    while True:
        if reason := rule.settled(latencies, timer.resolution_ms):
            return Samples(tuple(latencies), reason)
        spent = timer.now() - started
        if spent >= rule.time_budget_s:
            return Samples(tuple(latencies), StopReason.TIME_BUDGET)
        # A quarter more at a time: few enough looks at the interval, and no overshoot of the budget.
        affordable = int((rule.time_budget_s - spent) / spent * len(latencies)) if spent > 0 else len(latencies)
        latencies += timer.sample(launch, max(1, min(len(latencies) // 4, affordable)))
