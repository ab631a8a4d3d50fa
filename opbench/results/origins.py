"""The runs that a merged run was made of, or the cards of a fleet: where each of its rows was measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from opbench.device.ceilings import Ceilings

__all__ = ["Origin"]


@dataclass(frozen=True, slots=True)
class Origin:
    """One of the runs, or one of the cards that a sweep ran on.

    Attributes:
        run_id: names it, in the lines of the merged journal too.
        started_at: as in its run.json.
        shard: as `--shard` gave it; empty for a run of the whole plan.
        environment: where it was measured.
        ceilings: of its device; None where it had none.
        actor: the card of the fleet, such as `card-3`; empty of a run.
    """

    run_id: str
    started_at: str
    shard: str
    environment: Mapping[str, Any]
    ceilings: Ceilings | None
    actor: str = ""

    def to_json(self) -> dict[str, Any]:
        """A dictionary that from_json reads back."""
        return {
            "run_id": self.run_id,
            "started_at": self.started_at,
            "shard": self.shard,
            "environment": dict(self.environment),
            "ceilings": self.ceilings and self.ceilings.to_json(),
            **({"actor": self.actor} if self.actor else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The origin that to_json wrote.

        Raises:
            KeyError, TypeError, ValueError: to_json did not write that.
        """
        actor = data.get("actor", "")
        texts = (data["run_id"], data["started_at"], data["shard"], data["environment"]["device_name"], actor)
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise ValueError(f"an origin's texts must be printable, got {texts!r:.100}")
        ceilings = Ceilings.from_json(data["ceilings"]) if data["ceilings"] else None
        return cls(*texts[:3], data["environment"], ceilings, actor)
