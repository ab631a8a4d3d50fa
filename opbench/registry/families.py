"""What `--ops` and `--set` may name besides operators: a family of them, or all."""

from collections.abc import Iterable, Mapping

from opbench.errors import UnknownNameError, UsageError
from opbench.workload.operator import Operator

__all__ = [
    "ALL",
    "NETWORKS",
    "are_networks",
    "chosen_operators",
    "default_names",
    "names_for_ops",
    "settings_by_operator",
]

ALL = "all"
"""Every operator but the networks, which have other levels and shapes: these have a family."""
NETWORKS = "model"
"""Every network of a sweep, in `--set`."""


def default_names(operators: Mapping[str, Operator]) -> list[str]:
    """Operators that a sweep takes where none is named."""
    return [name for name, operator in operators.items() if operator.by_default]


def names_for_ops(operators: Mapping[str, Operator]) -> list[str]:
    """Operators, families, and `all`; an operator hides a family of its name."""
    families = sorted({operator.family for operator in operators.values() if operator.family})
    return list(dict.fromkeys([*operators, *families, ALL]))


def chosen_operators(names: Iterable[str], operators: Mapping[str, Operator]) -> dict[str, Operator]:
    """The operators of these names, families, or `all`; each once, where it is first named.

    Raises:
        UnknownNameError: there is neither an operator nor a family of that name.
    """
    chosen: dict[str, Operator] = {}
    for name in names:
        members = _members(name, operators)
        if not (name and members):
            raise UnknownNameError("operator", name, names_for_ops(operators))
        chosen |= members
    return chosen


def are_networks(names: Iterable[str], operators: Mapping[str, Operator]) -> bool:
    """Whether names, one at least, stand for networks alone; a name that is not known does not."""
    chosen = [_members(name, operators) for name in names]
    return bool(chosen) and all(members and all(each.is_network for each in members.values()) for members in chosen)


def settings_by_operator(
    given: Iterable[tuple[str, str, str]], swept: Mapping[str, Operator], operators: Mapping[str, Operator]
) -> tuple[tuple[str, str, str], ...]:
    """What `--set` gives each operator: of a family, or of `model`, those of the sweep that have the setting.

    Args:
        given: (operator or family, setting, text).
        swept: the operators of the sweep.
        operators: all that there are.

    Raises:
        UnknownNameError: there is neither an operator nor a family of that name.
        UsageError: no operator of the sweep is of that family, or none of them has that setting.
    """
    found = []
    for owner, setting, text in given:
        if owner in operators:
            found.append((owner, setting, text))
            continue
        if owner != NETWORKS and not _members(owner, operators):
            raise UnknownNameError("operator in --set", owner, [*names_for_ops(operators), NETWORKS])
        networks = {name: operator for name, operator in swept.items() if operator.is_network}
        members = networks if owner == NETWORKS else _members(owner, swept)
        if not members:
            raise UsageError(f"--set names {owner}, of which nothing is swept: add it to --ops")
        takers = [name for name, operator in members.items() if setting in operator.settings]
        if not takers:
            known = sorted({name for operator in members.values() for name in operator.settings})
            raise UnknownNameError(f"setting of {', '.join(members)}", setting, known or ("(none)",))
        found += [(name, setting, text) for name in takers]
    return tuple(found)


def _members(name: str, operators: Mapping[str, Operator]) -> dict[str, Operator]:
    """The operator of that name, else those of the family."""
    if name in operators:
        return {name: operators[name]}
    return {each: operator for each, operator in operators.items() if name in _names_of(operator)}


def _names_of(operator: Operator) -> tuple[str, ...]:
    """What stands for it beside its own name."""
    return (operator.family,) if operator.is_network else (operator.family, ALL)
