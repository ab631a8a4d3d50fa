"""What the driver of a sweep knows of its cards: it calls them, hears what they answer, and that one is lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Answer", "Event", "Fleet", "Lost", "Stage"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A call has ended.

    Attributes:
        card: by name.
        value: what it gave.
    """

    card: str
    value: Any


@dataclass(frozen=True, slots=True)
class Lost:
    """A card is gone for good, and with it what it was doing.

    Attributes:
        card: by name.
        why: in words, such as `the node died`.
    """

    card: str
    why: str


@dataclass(frozen=True, slots=True)
class Stage:
    """A card is at another stage of its call.

    Attributes:
        card: by name.
        name: as Progress.stage has it.
    """

    card: str
    name: str


Event = Answer | Lost | Stage


class Fleet(Protocol):
    """Cards that are called beside each other, each with one call at a time."""

    @property
    def cards(self) -> Sequence[str]:
        """Those that are not lost, by name."""
        ...

    @property
    def device_type(self) -> str:
        """ "cpu" or "cuda": what every card is."""
        ...

    def place(self, card: str) -> str:
        """Where a card is, for a message on the screen: never for a file."""
        ...

    def call(self, card: str, method: str, *arguments: Any) -> None:  # noqa: ANN401
        """Have a card begin one of the methods of opbench.sweeps.fleet.card_worker.CardWorker."""
        ...

    def wait(self) -> list[Event]:
        """What has happened; waits until something has, a moment at most."""
        ...

    def close(self) -> None:
        """End every card's processes."""
        ...
