"""A figure with its interval and its unit, so that milliseconds, ratios and logarithms are never mixed. Pure."""

import math
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Estimate", "Unit"]


class Unit(StrEnum):
    """What an estimate is of."""

    MS = "ms"
    """A time, milliseconds per launch."""
    RATIO = "ratio"
    """Of times, head / base: above 1 the head is slower."""
    LOG = "log"
    """The natural logarithm of either."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the ends of its confidence interval."""

    value: float
    low: float
    high: float
    unit: Unit

    def require(self, unit: Unit) -> None:
        """Refuse another unit.

        Raises:
            ValueError: it has another one.
        """
        if self.unit is not unit:
            raise ValueError(f"must be an estimate in {unit}, got one in {self.unit}")

    def log(self) -> "Estimate":
        """Its logarithm; -inf where it is 0.

        Raises:
            ValueError: it is one already.
        """
        if self.unit is Unit.LOG:
            raise ValueError("must be a time or a ratio, got a logarithm")
        value, low, high = (math.log(x) if x > 0 else -math.inf for x in (self.value, self.low, self.high))
        return Estimate(value, low, high, Unit.LOG)

    def exp(self, unit: Unit) -> "Estimate":
        """What it is the logarithm of, in that unit; inf where it is too large.

        Raises:
            ValueError: it is no logarithm, or the unit is one.
        """
        self.require(Unit.LOG)
        if unit is Unit.LOG:
            raise ValueError("must become a time or a ratio, not a logarithm")
        return Estimate(_exp(self.value), _exp(self.low), _exp(self.high), unit)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
