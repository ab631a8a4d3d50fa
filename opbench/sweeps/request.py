"""What a sweep was asked for.

Each option is one field here and one flag in opbench/cli/sweep_flags.py. `opbench.sweep` names it once more, in its
signature and docstring, for editors; tests/test_sweep_options.py demands both.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Self

from opbench.device.resolve import resolve_device
from opbench.registry.families import are_networks, chosen_operators, default_names, settings_by_operator
from opbench.results.shards import shard_text
from opbench.sweeps.native_dtypes import default_dtypes
from opbench.sweeps.option_fields import (
    Options,
    as_given,
    choices,
    integer,
    items,
    option,
    options_of,
    parts,
    positive,
    read_options,
    repeated,
    switch,
)
from opbench.timing import resolve_timer
from opbench.workload.case import Direction, Dtype, Level
from opbench.workload.operator import Operator
from opbench.workload.shapes import load_shape_lists

__all__ = [
    "RunOptions",
    "SweepRequest",
    "make_request",
    "request_differences",
    "request_of_command",
]

DEFAULT_SHAPES = {"cuda": ("standard", "high_resolution"), "cpu": ("standard_batch1",)}
NETWORK_SHAPES = {"cuda": ("backbone",), "cpu": ("backbone_smoke",)}
"""Of a sweep of networks alone, whose level is model where none is named."""
DEFAULT_TIME_BUDGET_S = {"cuda": 1.0, "cpu": 0.5}
"""A CPU's 70 cells are to end within the first minute."""
MAX_SEED = 2**62
"""Leaves room below what torch takes for what each case adds."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How every cell of a run is measured: what each process that measures is told.

    Attributes:
        device: torch device, "cpu" or "cuda:N".
        timer, cache: resolved names.
        time_budget_s: sampling time per cell, seconds.
        memory_limit_gib: per-process limit, GiB (2**30 bytes); None for none.
        seed: of inputs and parameters.
        threads: of torch on the CPU; None for torch's own choice.
        energy: whether the energy of each cell is measured after its timing.
    """

    device: str = field(metadata=option("device", as_given))
    timer: str = field(metadata=option("timer", as_given))
    cache: str = field(metadata=option("cache", as_given))
    time_budget_s: float = field(metadata=option("time_budget", positive, by_device=DEFAULT_TIME_BUDGET_S))
    memory_limit_gib: float | None = field(default=None, metadata=option("memory_limit", positive))
    seed: int = field(default=0, metadata=option("seed", integer(0, MAX_SEED)))
    threads: int | None = field(default=None, metadata=option("threads", integer(1, 1024), added_later=True))
    energy: bool = field(default=False, metadata=option("energy", switch, added_later=True))

    @property
    def device_type(self) -> str:
        """ "cpu" or "cuda"."""
        return self.device.partition(":")[0]

    def to_json(self) -> dict[str, Any]:
        """A dictionary that the constructor takes back."""
        return asdict(self)

    @classmethod
    def of(cls, command: Mapping[str, Any]) -> Self:
        """The options in a run's command."""
        return cls(**{part.name: command[part.name] for part in fields(cls) if part.name in command})


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRequest(RunOptions):
    """What `opbench sweep` was asked for, every default filled in but the operators' own settings.

    Attributes:
        shapes: shape lists, by name or path.
        ops: operators by name.
        dtypes, levels, directions: in the order in which they run.
        compile: whether each cell is also measured under torch.compile.
        providers: (operator, provider) pairs; "all" as a provider takes every one. Operators that are not named
            use their first provider that works for the case.
        settings: (operator, setting, text) triples.
        repeat: fresh processes in which each cell is measured.
        shard: which part of the plan is measured, as K/N; None for all of it.
        sources: places of operators that are not registered: files, or MODULE:OPERATOR; workers load them too.
    """

    shapes: tuple[str, ...] = field(metadata=option("shapes", repeated, by_device=DEFAULT_SHAPES))
    ops: tuple[str, ...] = field(metadata=option("ops", items))
    dtypes: tuple[Dtype, ...] = field(metadata=option("dtypes", choices(Dtype)))
    levels: tuple[Level, ...] = field(default=(Level.MODULE,), metadata=option("level", choices(Level)))
    directions: tuple[Direction, ...] = field(
        default=(Direction.FWD,), metadata=option("direction", choices(Direction))
    )
    providers: tuple[tuple[str, str], ...] = field(
        default=(), metadata=option("providers", parts("op=provider", "([^=]+)=(.+)", items))
    )
    settings: tuple[tuple[str, str, str], ...] = field(
        default=(),
        metadata=option("settings", parts("op.param=value", r"([^.=]+)\.([^=]+)=(.+)", repeated), flag="--set"),
    )
    compile: bool = field(default=False, metadata=option("compile", switch, added_later=True))
    repeat: int = field(default=1, metadata=option("repeat", integer(1, 1000), added_later=True))
    shard: str | None = field(default=None, metadata=option("shard", shard_text, added_later=True))
    sources: tuple[str, ...] = field(default=(), metadata=option("sources", repeated, flag="--ops", added_later=True))

    def to_json(self) -> dict[str, Any]:
        """The request as run.json keeps it."""
        values = asdict(self)
        for name in ("sources", "shard", "compile", "energy"):
            if not values[name]:
                del values[name]
        return values


def make_request(options: Options, operators: Mapping[str, Operator]) -> SweepRequest:
    """The request that options stand for, each default filled in for the device.

    Args:
        options: keyword arguments as `opbench.sweep` takes them; None and missing mean the default.
        operators: those that can be swept.

    Raises:
        UsageError: an option that cannot be followed; the message names it.
    """
    # First what needs no torch: such a mistake is then said at once.
    values = read_options(SweepRequest, options)
    swept = chosen_operators(values.get("ops") or default_names(operators), operators)
    values["ops"] = tuple(swept)
    values["settings"] = settings_by_operator(values.get("settings", ()), swept, operators)
    if "shapes" in values:
        load_shape_lists(values["shapes"])
    values["device"] = resolve_device(values.get("device", "auto"))
    device_type = values["device"].partition(":")[0]
    values["timer"], values["cache"] = resolve_timer(values.get("timer", "auto"), values.get("cache"), device_type)
    if "dtypes" not in values:
        values["dtypes"] = default_dtypes(device_type).dtypes
    by_device = {name: option.by_device for name, option in options_of(SweepRequest).items() if option.by_device}
    if are_networks(values["ops"], operators):
        by_device["shapes"] = NETWORK_SHAPES
        values.setdefault("levels", (Level.MODEL,))
    return SweepRequest(**{name: choice[device_type] for name, choice in by_device.items()} | values)


def request_of_command(command: Mapping[str, Any], options: Options, operators: Mapping[str, Operator]) -> SweepRequest:
    """The request that a run's command stands for, with the options that were given again in place of its own.

    Raises:
        UsageError: an option that cannot be followed.
        KeyError, TypeError, ValueError, AttributeError: the command is damaged.
    """
    stored = {
        option.keyword: command[name]
        for name, option in options_of(SweepRequest).items()
        if name in command or not option.added_later
    }
    again = {keyword: value for keyword, value in options.items() if value is not None}
    return make_request({**stored, **again}, operators)


def request_differences(request: SweepRequest, command: Mapping[str, Any]) -> list[str]:
    """One line for each part of the request that a run's command has otherwise."""
    later = _plain(
        {part.name: part.default for part in fields(request) if options_of(SweepRequest)[part.name].added_later}
    )
    there = {**later, **command}
    # Through JSON's types, as the stored one went.
    return [
        f"{name}: {there.get(name)!r} there, {value!r} now"
        for name, value in {**later, **_plain(request.to_json())}.items()
        if there.get(name) != value
    ]


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Tuples as lists and enumerations as texts, as JSON gives them back."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value
