"""From what was asked to the list of cells: which operators, shapes, dtypes and providers, and what each needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from operator import index
from typing import Any

from opbench.errors import OperatorError, UnknownNameError, UsageError
from opbench.registry.families import chosen_operators
from opbench.registry.raised import place_of
from opbench.results.measurement import Status
from opbench.sweeps.option_fields import items
from opbench.sweeps.request import SweepRequest
from opbench.text import one_line
from opbench.workload.case import MAX_COUNT, NETWORK_COUNTS, Case, Cell, Direction, Dtype, SettingValue
from opbench.workload.operator import TORCH_COMPILE, Operator, Provider
from opbench.workload.shapes import ShapeList

__all__ = [
    "applicability",
    "cost",
    "costs",
    "plan_cells",
    "plan_differences",
    "settings_choices",
]


Settings = tuple[tuple[str, SettingValue], ...]
"""As a Case has them."""

COSTS = ("flop_count", "bytes_moved", "memory_bytes", "gathered_bytes", *NETWORK_COUNTS)
"""That a cell keeps of its operator."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An operator with one choice of its settings and the providers that were named for it."""

    operator: Operator
    settings: Settings
    providers: tuple[Provider, ...] = field(default=())


def applicability(operator: Operator, provider: Provider, case: Case, device_type: str) -> tuple[Status, str] | None:
    """Why a provider does not run a case on a kind of device: not_applicable or unavailable, with the reason.

    Raises:
        OperatorError: a cost of the operator is no count, or what says whether it applies raises.
    """
    if reason := _not_applicable(operator, case, device_type):
        return Status.NOT_APPLICABLE, reason
    name = f"provider {provider.name}: "
    if reason := _answer(operator, f"{name}unavailable", partial(provider.unavailable, device_type), case):
        return Status.UNAVAILABLE, str(reason)
    if reason := _answer(operator, f"{name}not_applicable", partial(provider.not_applicable, case, device_type), case):
        return Status.NOT_APPLICABLE, str(reason)
    return None


def _not_applicable(operator: Operator, case: Case, device_type: str) -> str:
    """Why no provider of the operator runs a case; empty where nothing is against it."""
    if case.level not in operator.levels:
        others = " or ".join(operator.levels)
        only = "it is timed as" if len(operator.levels) > 1 else "all of it is timed as"
        return f"{operator.name} has no such level: {only} {others}"
    if case.direction is Direction.TRAIN and not operator.is_network:
        return "a step of training is measured of networks"
    if reason := _answer(operator, "not_applicable", partial(operator.not_applicable, case), case):
        return str(reason)
    if case.dtype is Dtype.TF32 and device_type != "cuda":
        return f"tf32 is a mode of CUDA devices, this is {device_type}"
    for name, count in costs(operator, case).items():
        if count >= MAX_COUNT:
            shown = f"{min(count, 10**300):.3g}"
            return f"{name} would be {shown}, and 2**63 - 1 is the largest count that is kept"
    return ""


def cost(operator: Operator, name: str, case: Case) -> int:
    """What a cost function of an operator says of a case.

    Args:
        operator: whose it is.
        name: one of COSTS, or reference_elements.
        case: of which.

    Raises:
        OperatorError: it raises, or gives something else than a whole number of at least 0.
    """
    value = _answer(operator, name, partial(getattr(operator, name), case), case)
    try:
        count = None if isinstance(value, bool) else index(value)  # NumPy's integers are whole numbers too
    except TypeError:
        count = None
    if count is None or count < 0:
        raise OperatorError(
            f"operator {operator.name}: {name} of {case.key} must be a whole number of at least 0, "
            f"got {one_line(repr(value), 60)}"
        )
    return count


def costs(operator: Operator, case: Case) -> dict[str, int]:
    """The costs of a case that its cell keeps, however large.

    Raises:
        OperatorError: as cost.
    """
    found = {name: cost(operator, name, case) for name in COSTS}
    if case.direction is not Direction.FWD:
        # Autograd keeps the forward's activations while the backward makes gradients of about the same size.
        found["memory_bytes"] *= 2
    return found


def _answer(operator: Operator, name: str, function: Callable[[], Any], case: Case) -> Any:  # noqa: ANN401
    """What a function of the user's gives, before any cell runs that could be the row of what it raises."""
    try:
        return function()
    except Exception as error:
        place = place_of(error, (operator.make_inputs.__module__,))
        raised = one_line(f"{type(error).__name__}: {error}") + (f", at {place}" if place else "")
        raise OperatorError(f"operator {operator.name}: {name} of {case.key} raises {raised}") from error


def plan_cells(
    request: SweepRequest, shape_lists: Sequence[ShapeList], operators: Mapping[str, Operator]
) -> list[Cell]:
    """Every cell of a sweep, operators outermost and choices of their settings next.

    Raises:
        UnknownNameError: an operator, provider or setting that does not exist.
        UsageError: a setting or provider for an operator that is not swept, or a value that is not allowed.
        OperatorError: a cost of an operator is no count.
    """
    cells: dict[Cell, None] = {}  # two choices are one at a level where the settings that differ have no meaning
    for choice in _choices(request, operators):
        for level in request.levels:
            settings = choice.operator.settings_at(level, choice.settings)
            for direction in request.directions:
                for shape_list in shape_lists:
                    for shape in shape_list.shapes:
                        for dtype in request.dtypes:
                            case = Case(
                                choice.operator.name,
                                level,
                                direction,
                                shape_list.name,
                                shape,
                                dtype,
                                settings,
                            )
                            for provider in _providers(choice, case, request):
                                cells.setdefault(_cell(choice.operator, provider, case))
    return list(cells)


def plan_differences(there: Sequence[Cell], now: Sequence[Cell]) -> list[str]:
    """One line for each way in which a run's plan is not what the same request gives now."""
    stored, planned = ({cell.key: cell for cell in cells} for cells in (there, now))
    kinds = {
        "no longer planned": [key for key in stored if key not in planned],
        "not in the run's plan": [key for key in planned if key not in stored],
        "with other costs": [key for key, cell in stored.items() if planned.get(key, cell) != cell],
    }
    return [f"plan: {len(keys)} cells {kind}, first {keys[0]}" for kind, keys in kinds.items() if keys]


def _choices(request: SweepRequest, operators: Mapping[str, Operator]) -> list[Choice]:
    chosen = chosen_operators(request.ops, operators)
    for option, names in (
        ("--set", [operator for operator, _, _ in request.settings]),
        ("--providers", [operator for operator, _ in request.providers]),
    ):
        for name in names:
            if name not in operators:
                raise UnknownNameError(f"operator in {option}", name, operators)
            if name not in chosen:
                raise UsageError(f"{option} names {name}, which is not swept: add it to --ops")
    choices = []
    for name, operator in chosen.items():
        named: list[Provider] = []
        for owner, provider in request.providers:
            if owner == name:
                named += operator.providers if provider == "all" else [operator.provider(provider)]
        unique = tuple(dict.fromkeys(named))
        choices += [Choice(operator, settings, unique) for settings in settings_choices(operator, request)]
    return choices


def settings_choices(operator: Operator, request: SweepRequest) -> list[Settings]:
    """Every combination of the values that a request gives an operator's settings, the last setting's innermost.

    Raises:
        UnknownNameError, UsageError: as Operator.resolve_settings.
    """
    given: dict[str, list[str]] = {}
    for owner, name, text in request.settings:
        if owner == operator.name:
            given.setdefault(name, []).extend(items("--set", text))
    combinations = (dict(zip(given, texts, strict=True)) for texts in product(*given.values()))
    return list(dict.fromkeys(map(operator.resolve_settings, combinations)))


def _providers(choice: Choice, case: Case, request: SweepRequest) -> Sequence[Provider]:
    """As _uncompiled, and torch_compile where it is asked for too."""
    found = _uncompiled(choice, case, request.device_type)
    if request.compile and all(provider.name != TORCH_COMPILE for provider in found):
        return [*found, choice.operator.provider(TORCH_COMPILE)]
    return found


def _uncompiled(choice: Choice, case: Case, device_type: str) -> Sequence[Provider]:
    """Those that were named; else the first that runs the case, or failing that the one that says most of why not."""
    if choice.providers:
        return choice.providers
    refusals = {}
    for provider in choice.operator.providers:
        refusal = applicability(choice.operator, provider, case, device_type)
        if refusal is None:
            return [provider]
        refusals[provider.name] = refusal[0]
    every = choice.operator.providers
    here = [provider for provider in every if provider.unavailable(device_type) is None]
    for provider in (*here, *every):  # no row of a CPU names a provider that needs a GPU where another says the same
        if refusals[provider.name] is Status.NOT_APPLICABLE:
            return [provider]
    return choice.operator.providers[:1]


def _cell(operator: Operator, provider: Provider, case: Case) -> Cell:
    try:
        counts = costs(operator, case)
    except OperatorError:
        if not operator.not_applicable(case):
            raise
        counts = dict.fromkeys(COSTS, 0)  # of what has no meaning
    return Cell(case, provider.name, **{name: min(count, MAX_COUNT - 1) for name, count in counts.items()})
