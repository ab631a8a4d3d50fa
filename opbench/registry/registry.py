"""Finds operators: the files of opbench.operators, and the entry points of group `opbench.operators`."""

import importlib
import pkgutil
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from opbench import operators
from opbench.backbones.operators import OPERATORS as BACKBONES
from opbench.errors import RegistryError, UnknownNameError
from opbench.host.checkout import git_revision
from opbench.text import one_line
from opbench.workload.operator import Operator

__all__ = [
    "ENTRY_POINT_GROUP",
    "PAPER_ORDER",
    "collect",
    "find",
    "left_out",
    "operator_module",
    "registered",
    "revisions",
]

ENTRY_POINT_GROUP = "opbench.operators"

BACKBONES_MODULE = "opbench.backbones.operators"

_left_out: list[str] = []

PAPER_ORDER = (
    "conv3x3", "attention", "flash_attention_2", "window_attention", "dcnv3", "dcnv4_lightweight", "dcnv4",
)  # fmt: skip
"""The operators of the paper's tables."""


@cache
def registered() -> dict[str, Operator]:
    """Every operator by name: the paper's in its order, then others by name, and networks in the order of families.

    A plug-in that cannot be imported is left out, so that one does not stop the others; left_out says which.

    Raises:
        RegistryError: two operators share a name, or an entry point does not give an Operator.
    """
    _left_out.clear()
    found: list[tuple[str, Operator]] = []
    for module in pkgutil.iter_modules(operators.__path__):
        if not module.name.startswith("_"):
            name = f"{operators.__name__}.{module.name}"
            found.append((name, importlib.import_module(name).OPERATOR))
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = entry_point.load()
        except Exception as error:
            _left_out.append(f"plug-in {entry_point.name} ({entry_point.value}) does not load: {one_line(repr(error))}")
            continue
        found.append((entry_point.value, loaded))
    by_name = collect([*found, *((BACKBONES_MODULE, backbone) for backbone in BACKBONES)])
    order = {name: index for index, name in enumerate(PAPER_ORDER)}
    networks = {backbone.name: backbone for backbone in BACKBONES}
    others = sorted(by_name.keys() - networks.keys(), key=lambda name: (order.get(name, len(order)), name))
    return {name: by_name[name] for name in others} | networks


def left_out() -> tuple[str, ...]:
    """One line for each plug-in whose operator is not there, because it cannot be imported."""
    registered()
    return tuple(_left_out)


def collect(found: list[tuple[str, Operator]]) -> dict[str, Operator]:
    """Operators by name, each with the place it came from.

    Raises:
        RegistryError: two places give one name, or a place does not give an Operator.
    """
    by_name: dict[str, Operator] = {}
    places: dict[str, str] = {}
    for place, operator in found:
        if not isinstance(operator, Operator):
            raise RegistryError(f"{place} must give an opbench.Operator, got {type(operator).__name__}")
        if operator.name in by_name:
            raise RegistryError(f"operator {operator.name} is defined twice: {places[operator.name]} and {place}")
        by_name[operator.name] = operator
        places[operator.name] = place
    return by_name


def find(name: str) -> Operator:
    """The registered operator of that name.

    Raises:
        UnknownNameError: there is none.
    """
    known = registered()
    if name not in known:
        raise UnknownNameError("operator", name, known)
    return known[name]


def operator_module(operator: Operator) -> str:
    """Name of the module that defines the operator, from the function that makes its inputs."""
    return operator.make_inputs.__module__


def revisions(chosen: Iterable[Operator], own: str | None) -> dict[str, str | None]:
    """Of each operator by name the revision of the repository that tracks its file, as git_revision gives it.

    Args:
        chosen: which.
        own: opbench's revision, which its own operators share.
    """
    known: dict[str | None, str | None] = {None: None}
    found = {}
    for operator in chosen:
        module = operator_module(operator)
        if module.startswith((f"{operators.__name__}.", BACKBONES_MODULE)):
            found[operator.name] = own
            continue
        file = getattr(sys.modules.get(module), "__file__", None)
        if file and file not in known:
            known[file] = git_revision(Path(file))
        found[operator.name] = known[file]
    return found
