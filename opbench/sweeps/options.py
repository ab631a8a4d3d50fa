"""From options, as the command line and `opbench.sweep` take them, to what was asked and how to carry it out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from opbench.device.resolve import resolve_device
from opbench.errors import UsageError
from opbench.results.measurement import Status
from opbench.sweeps.native_dtypes import default_dtypes
from opbench.sweeps.plan import DEFAULT_SHAPES, DEFAULT_TIME_BUDGET_S, SweepRequest, swept_operators
from opbench.timing import resolve_timer
from opbench.workload.case import Direction, Dtype, Level
from opbench.workload.operator import Operator
from opbench.workload.shapes import load_shape_lists

__all__ = [
    "DEFAULT_CONDUCT",
    "Conduct",
    "Isolation",
    "make_conduct",
    "make_request",
    "request_differences",
    "request_of_command",
    "require_threads",
]

Options = Mapping[str, Any]
Choice = TypeVar("Choice", bound=StrEnum)
MAX_SEED = 2**62
"""Leaves room below what torch takes for what each case adds."""
MAX_THREADS = 1024
MAX_REPEAT = 1000
LATER_PARTS: dict[str, Any] = {"threads": None, "repeat": 1, "sources": []}
"""Of a request, with what runs have whose command is from before them."""


class Isolation(StrEnum):
    """Where cells run."""

    PROCESS = "process"
    """In a worker process for each operator and shape: a crash or a hang costs one row."""
    NONE = "none"
    """In the sweep's own process, for debugging: a crash or a hang ends the sweep."""


RETRIED = tuple(status for status in Status if status not in (Status.OK, Status.NOT_RUN))


@dataclass(frozen=True, slots=True)
class Conduct:
    """How cells are carried out; unlike the request, it may differ when a run is resumed.

    Attributes:
        isolation: where they run.
        cell_timeout_s: seconds after which a cell is a timeout; None for what its time budget suggests.
        retry: statuses of finished cells to measure again.
        ceilings_budget_s: seconds for the device's ceilings, 0 for none; None for what the device needs.
    """

    isolation: Isolation = Isolation.PROCESS
    cell_timeout_s: float | None = None
    retry: frozenset[Status] = frozenset()
    ceilings_budget_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What run.json keeps of it."""
        return {"isolation": str(self.isolation), "cell_timeout_s": self.cell_timeout_s}


DEFAULT_CONDUCT = Conduct()


def make_conduct(options: Options, *, resume: bool = False) -> Conduct:
    """How options say that cells are to be carried out.

    Args:
        options: keyword arguments as `opbench.sweep` takes them; None and missing mean the default.
        resume: the run exists already.

    Raises:
        UsageError: an option that cannot be followed; the message names it.
    """
    [isolation] = _choices("--isolation", Isolation, [options.get("isolation") or Isolation.PROCESS])
    timeout_s = options.get("cell_timeout")
    _require_positive("--cell-timeout", timeout_s)
    if timeout_s is not None and isolation is Isolation.NONE:
        raise UsageError("--cell-timeout needs --isolation process: in its own process the sweep cannot stop a cell")
    budget_s = options.get("ceilings_budget")
    if budget_s:
        _require_positive("--ceilings-budget", budget_s)
    retry = options.get("retry")
    if retry is None:
        return Conduct(isolation, timeout_s, ceilings_budget_s=budget_s)
    if not resume:
        raise UsageError("--retry needs --resume: a new run has nothing to measure again")
    for text in retry:
        if text not in RETRIED:
            raise UsageError(f"--retry must be of {', '.join(RETRIED)}, got {text!r}")
    return Conduct(isolation, timeout_s, frozenset(map(Status, retry)), budget_s)


def make_request(options: Options, operators: Mapping[str, Operator]) -> SweepRequest:
    """The request that options stand for, each default filled in for the device.

    Args:
        options: keyword arguments as `opbench.sweep` takes them; None and missing mean the default.
        operators: those that can be swept.

    Raises:
        UsageError: an option that cannot be followed; the message names it.
    """
    given = {name: value for name, value in options.items() if value is not None}
    # First what needs no torch: such a mistake is then said at once.
    ops = tuple(swept_operators(given.get("ops", operators), operators))
    if "shapes" in given:
        load_shape_lists(given["shapes"])
    dtypes = _choices("--dtypes", Dtype, given["dtypes"]) if "dtypes" in given else None
    _require_positive("--time-budget", given.get("time_budget"))
    _require_positive("--memory-limit", given.get("memory_limit"))
    require_threads(given.get("threads"))
    _require_count("--repeat", given.get("repeat"), MAX_REPEAT)
    device = resolve_device(given.get("device", "auto"))
    device_type = device.partition(":")[0]
    timer, cache = resolve_timer(given.get("timer", "auto"), given.get("cache"), device_type)
    request = SweepRequest(
        shapes=tuple(given.get("shapes", DEFAULT_SHAPES[device_type])),
        ops=ops,
        dtypes=dtypes or default_dtypes(device_type).dtypes,
        levels=_choices("--level", Level, given.get("level", (Level.MODULE,))),
        directions=_choices("--direction", Direction, given.get("direction", (Direction.FWD,))),
        device=device,
        timer=timer,
        cache=cache,
        providers=tuple(_assignment("--providers", text, "op=provider") for text in given.get("providers", ())),
        settings=tuple(_setting(text) for text in given.get("settings", ())),
        time_budget_s=float(given.get("time_budget", DEFAULT_TIME_BUDGET_S[device_type])),
        memory_limit_gib=given.get("memory_limit"),
        seed=int(given.get("seed", 0)),
        threads=given.get("threads"),
        repeat=given.get("repeat", 1),
        sources=tuple(given.get("sources", ())),
    )
    if not 0 <= request.seed <= MAX_SEED:
        raise UsageError(f"--seed must be an integer from 0 to {MAX_SEED}, got {request.seed}")
    return request


def _choices(option: str, kind: type[Choice], given: Sequence[str]) -> tuple[Choice, ...]:
    """Members of an enumeration by name, each once."""
    known = [str(member) for member in kind]
    for text in given:
        if text not in known:
            raise UsageError(f"{option} must be of {', '.join(known)}, got {text!r}")
    if not given:
        raise UsageError(f"{option} must name at least one of {', '.join(known)}")
    return tuple(dict.fromkeys(kind(text) for text in given))


def _require_positive(option: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise UsageError(f"{option} must be a positive number, got {value:g}")


def require_threads(value: object) -> None:
    """Refuse what is no number of threads; None means torch's own choice.

    Raises:
        UsageError: it is none.
    """
    _require_count("--threads", value, MAX_THREADS)


def _require_count(option: str, value: object, most: int) -> None:
    if value is not None and not (type(value) is int and 1 <= value <= most):
        raise UsageError(f"{option} must be an integer from 1 to {most}, got {value!r:.60}")


def _assignment(option: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"{option} must be {form}, got {text!r}")
    return name, value


def _setting(text: str) -> tuple[str, str, str]:
    place, value = _assignment("--set", text, "op.param=value")
    operator, dot, name = place.partition(".")
    if not (operator and dot and name):
        raise UsageError(f"--set must be op.param=value, got {text!r}")
    return operator, name, value


def request_of_command(command: Mapping[str, Any], options: Options, operators: Mapping[str, Operator]) -> SweepRequest:
    """The request that a run's command stands for, with the options that were given again in place of its own."""
    again = {name: value for name, value in options.items() if value is not None}
    return make_request({**_options_of(command), **again}, operators)


def request_differences(request: SweepRequest, command: Mapping[str, Any]) -> list[str]:
    """One line for each part of the request that a run's command has otherwise."""
    # Through JSON's types, as the stored one went.
    asked = {name: _plain(value) for name, value in request.to_json().items()}
    stored = {**LATER_PARTS, **command}
    return [
        f"{name}: {stored.get(name)!r} there, {value!r} now"
        for name, value in asked.items()
        if stored.get(name) != value
    ]


def _options_of(command: Mapping[str, Any]) -> dict[str, Any]:
    """The options that make_request turns into this command."""
    options = {name: command[name] for name in ("shapes", "ops", "dtypes", "device", "timer", "cache", "seed")}
    return options | {
        "level": command["levels"],
        "direction": command["directions"],
        "providers": ["=".join(pair) for pair in command["providers"]],
        "settings": [f"{operator}.{name}={text}" for operator, name, text in command["settings"]],
        "time_budget": command["time_budget_s"],
        "memory_limit": command["memory_limit_gib"],
        **{name: command.get(name, value) for name, value in LATER_PARTS.items()},
    }


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Tuples as lists and enumerations as texts, as JSON gives them back."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value
