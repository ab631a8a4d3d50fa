"""How the cells of a sweep are carried out; unlike the request, it may differ when a run is resumed."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from opbench.errors import UsageError
from opbench.results.measurement import Status
from opbench.sweeps.option_fields import Options, choice, choices, option, positive, read_options

__all__ = ["DEFAULT_CONDUCT", "Conduct", "FleetMode", "Isolation", "make_conduct"]


class Isolation(StrEnum):
    """Where cells run."""

    PROCESS = "process"
    """In a worker process for each operator and shape: a crash or a hang costs one row."""
    NONE = "none"
    """In the sweep's own process, for debugging: a crash or a hang ends the sweep."""


class FleetMode(StrEnum):
    """What the cards of a fleet measure."""

    SHARE = "share"
    """Each cell on one of them."""
    REPLICATE = "replicate"
    """Each cell on every one, in a run of its own, to compare the cards."""


RETRIED = [status for status in Status if status not in (Status.OK, Status.NOT_RUN)]


def _positive_or_none(flag: str, given: float) -> float:
    """A positive number, or 0 for nothing at all."""
    return positive(flag, given) if given else 0.0


def _fleet(flag: str, given: str) -> str:
    """An engine, and perhaps its address."""
    if not isinstance(given, str) or given.partition(":")[0] != "ray":
        raise UsageError(f"{flag} must be ray or ray:ADDRESS, got {given!r:.60}")
    return given


@dataclass(frozen=True, slots=True)
class Conduct:
    """How cells are carried out.

    Attributes:
        isolation: where they run.
        cell_timeout_s: seconds after which a cell is a timeout; None for what its time budget suggests.
        retry: statuses of finished cells to measure again.
        ceilings_budget_s: seconds for the device's ceilings, 0 for none; None for what the device needs.
        fleet: the engine whose cards measure, as `ray` or `ray:ADDRESS`; None for this machine's device.
        fleet_mode: what they measure.
    """

    isolation: Isolation = field(default=Isolation.PROCESS, metadata=option("isolation", choice(Isolation)))
    cell_timeout_s: float | None = field(default=None, metadata=option("cell_timeout", positive))
    retry: tuple[Status, ...] = field(default=(), metadata=option("retry", choices(RETRIED, none=True)))
    ceilings_budget_s: float | None = field(default=None, metadata=option("ceilings_budget", _positive_or_none))

    fleet: str | None = field(default=None, metadata=option("fleet", _fleet))
    fleet_mode: FleetMode = field(default=FleetMode.SHARE, metadata=option("fleet_mode", choice(FleetMode)))

    def to_json(self) -> dict[str, Any]:
        """What run.json keeps of it."""
        engine = {"fleet": self.fleet.partition(":")[0]} if self.fleet else {}  # an address names a machine
        return {"isolation": str(self.isolation), "cell_timeout_s": self.cell_timeout_s, **engine}


DEFAULT_CONDUCT = Conduct()


def make_conduct(options: Options, *, resume: bool = False) -> Conduct:
    """How options say that cells are to be carried out.

    Args:
        options: keyword arguments as `opbench.sweep` takes them; None and missing mean the default.
        resume: the run exists already.

    Raises:
        UsageError: an option that cannot be followed; the message names it.
    """
    conduct = Conduct(**read_options(Conduct, options))
    if conduct.cell_timeout_s is not None and conduct.isolation is Isolation.NONE:
        raise UsageError("--cell-timeout needs --isolation process: in its own process the sweep cannot stop a cell")
    if conduct.fleet and conduct.isolation is Isolation.NONE:
        raise UsageError(
            "--fleet needs --isolation process: a cell that crashes must not end the process beside a card"
        )
    if conduct.fleet_mode is not FleetMode.SHARE and not conduct.fleet:
        raise UsageError(f"--fleet-mode {conduct.fleet_mode} needs --fleet")
    if options.get("retry") is not None and not resume:
        raise UsageError("--retry needs --resume: a new run has nothing to measure again")
    return conduct
