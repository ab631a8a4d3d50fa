"""What `--ops` may name besides operators: a family of them, or all."""

from collections.abc import Iterable, Mapping

from opbench.errors import UnknownNameError
from opbench.workload.operator import Operator

__all__ = ["ALL", "chosen_operators", "default_names", "names_for_ops"]

ALL = "all"
"""Every operator but the networks, which have other levels and shapes: these have a family."""


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
        if name in operators:
            members = [name]
        else:
            members = [each for each, operator in operators.items() if name in _names_of(operator)]
        if not (name and members):
            raise UnknownNameError("operator", name, names_for_ops(operators))
        chosen |= {member: operators[member] for member in members}
    return chosen


def _names_of(operator: Operator) -> tuple[str, ...]:
    """What stands for it beside its own name."""
    return (operator.family,) if operator.is_network else (operator.family, ALL)
