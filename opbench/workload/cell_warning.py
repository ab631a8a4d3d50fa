"""Warnings of a cell: what disturbed its samples, and what else a reader should know of them. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Self

__all__ = ["CellWarning", "Effect", "WarningKind", "disturb_comparison", "join_warnings", "split_warnings"]


class Effect(Enum):
    """What a warning means for the comparison of its cell with the same cell of another run."""

    NONE = auto()
    """It describes the device or the cell; the samples are as good as without it."""
    DISTURBED = auto()
    """Other samples would have come out a moment before or after."""
    DISTURBED_UNLESS_EQUAL = auto()
    """It holds as long as the device works: a comparison is fair where both sides have it with the same detail."""


class WarningKind(StrEnum):
    """The kinds that opbench writes; a journal may hold others, of a newer version or of a user's timer."""

    effect: Effect

    # The default is never used: with it, type checkers accept WarningKind("CPU load").
    def __new__(cls, text: str, effect: Effect = Effect.NONE) -> Self:
        """A kind with its effect on comparisons."""
        kind = str.__new__(cls, text)
        kind._value_ = text
        kind.effect = effect
        return kind

    CPU_LOAD = "CPU load", Effect.DISTURBED
    CPU_HEAT = "CPU heat", Effect.DISTURBED
    CPU_CLOCK = "CPU clock", Effect.DISTURBED
    CPU_GOVERNOR = "CPU governor", Effect.NONE
    GPU_SHARED = "GPU shared", Effect.DISTURBED
    GPU_CLOCKS_LIMITED = "GPU clocks limited", Effect.DISTURBED
    GPU_AT_POWER_LIMIT = "GPU at power limit", Effect.DISTURBED_UNLESS_EQUAL
    GPU_SM_CLOCK = "GPU SM clock", Effect.DISTURBED
    GPU_MEMORY_CLOCK = "GPU memory clock", Effect.DISTURBED
    GPU_MIG = "GPU MIG", Effect.NONE
    GPU_POWER_CAP = "GPU power cap", Effect.NONE
    HOST_TIME = "host time", Effect.NONE
    GLOBAL_STATE = "global state", Effect.NONE
    RESUMED_ELSEWHERE = "resumed elsewhere", Effect.DISTURBED
    CARD_LOST = "card lost", Effect.NONE


_EFFECTS: dict[str, Effect] = {kind: kind.effect for kind in WarningKind}


@dataclass(frozen=True, slots=True)
class CellWarning:
    """One warning; as text `kind: detail`.

    Attributes:
        kind: a WarningKind, or what a newer opbench or a user's timer calls it.
        detail: the rest, in one line.
    """

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind

    @classmethod
    def parse(cls, text: str) -> Self:
        """The warning that str() wrote; a text without `: ` and something after it is all kind.

        Raises:
            TypeError: not a text.
        """
        if not isinstance(text, str):
            raise TypeError(f"a warning must be a text, got {text!r:.60}")
        kind, _, detail = text.partition(": ")
        return cls(kind, detail) if detail else cls(text)

    @property
    def effect(self) -> Effect:
        """Of its kind; none where the kind is unknown."""
        return _EFFECTS.get(self.kind, Effect.NONE)


def disturb_comparison(base: Iterable[CellWarning], head: Iterable[CellWarning]) -> bool:
    """Whether warnings of a cell's two sides mean that a difference between them may be a disturbance.

    A card at its power limit lowers its clocks by what it runs, so that every figure it gives is at that limit: with
    the same limit on both sides the comparison is fair, with the limit on one side alone it is not.
    """
    base, head = {*base}, {*head}
    return any(warning.effect is Effect.DISTURBED for warning in base | head) or any(
        warning.effect is Effect.DISTURBED_UNLESS_EQUAL for warning in base ^ head
    )


def join_warnings(warnings: Iterable[CellWarning]) -> str:
    """Warnings as the column `warnings` holds them."""
    return "; ".join(map(str, warnings))


def split_warnings(text: str) -> tuple[CellWarning, ...]:
    """The warnings of a column `warnings`."""
    return tuple(CellWarning.parse(part) for part in text.split("; ") if part)
