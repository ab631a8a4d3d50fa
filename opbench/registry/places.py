"""Operators that are named by where they are: a Python file, or MODULE:OPERATOR."""

import importlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from opbench.errors import RegistryError, UsageError
from opbench.registry import registry
from opbench.registry.raised import place_of
from opbench.text import one_line
from opbench.workload.operator import Operator

__all__ = ["is_place", "load", "ops_option", "resolve_ops", "same_place"]


def is_place(text: str) -> bool:
    """Whether a text of `--ops` names a place, and not a registered operator."""
    return text.endswith(".py") or ":" in text


def same_place(text: str) -> str:
    """A place as any process finds it: a file's path from the root."""
    return os.path.abspath(text) if text.endswith(".py") else text


@cache
def load(place: str) -> tuple[Operator, ...]:
    """The operators of a place, as same_place gives it; its code runs, once per process.

    Raises:
        UsageError: there is no such file, or a place is not of either form.
        RegistryError: its code raises, or gives no operator.
    """
    if place.endswith(".py"):
        return _of_file(Path(place))
    name, _, attribute = place.partition(":")
    if not (name and attribute):
        raise UsageError(f"operators must be named FILE.py or MODULE:OPERATOR, got {place!r}")
    _find_modules_in(os.getcwd())
    module = _run(place, lambda: importlib.import_module(name))
    found = getattr(module, attribute, None)
    if not isinstance(found, Operator):
        what = "nothing of that name" if found is None else type(found).__name__
        raise RegistryError(f"{place} must give an opbench.Operator, got {what}")
    return (found,)


def resolve_ops(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Operator]]:
    """Options whose `ops` are names, with the places of those that are not registered; and every operator by name.

    Args:
        options: keyword arguments as `opbench.sweep` takes them.

    Raises:
        UsageError, RegistryError: as load, and where two places give one name.
    """
    ops: Sequence[str] | None = options.get("ops")
    known = registry.registered()
    if ops is None or not any(map(is_place, ops)):
        return {**options}, known
    by_place = {place: load(place) for place in dict.fromkeys(same_place(text) for text in ops if is_place(text))}
    added = [(place, found) for place, operators in by_place.items() for found in operators]
    added = [(place, found) for place, found in added if known.get(found.name) is not found]
    every = registry.collect([*((registry.operator_module(found), found) for found in known.values()), *added])
    names: list[str] = []
    for text in ops:
        names += [found.name for found in by_place[same_place(text)]] if is_place(text) else [text]
    return {**options, "ops": names, "sources": list(by_place)}, every


def ops_option(command: Mapping[str, Any]) -> str:
    """` --ops LIST` that names the operators of a run's command again, once they are loaded; empty without places."""
    by_name = {found.name: place for place in command.get("sources", ()) for found in load(place)}
    texts = dict.fromkeys(by_name.get(name, name) for name in command["ops"])
    return f" --ops {','.join(texts)}" if by_name else ""


def _of_file(path: Path) -> tuple[Operator, ...]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    name = f"{path.stem}_{zlib.crc32(str(path).encode()):08x}"  # two files may have one name, or that of a package
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: cannot be loaded as a Python file")
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    _find_modules_in(str(path.parent))
    sys.modules[name] = module
    try:
        _run(str(path), lambda: loader.exec_module(module))
    except RegistryError:
        del sys.modules[name]
        raise
    return _of_module(module, path)


def _of_module(module: ModuleType, path: Path) -> tuple[Operator, ...]:
    """The operators that a file defines, each once; not those that it imports from where they are registered."""
    found = [value for value in vars(module).values() if isinstance(value, Operator)]
    registered = registry.registered()
    own = {id(value): value for value in found if registered.get(value.name) is not value}
    if not own:
        raise RegistryError(f"{path}: no opbench.Operator at the top level of the file")
    return tuple(own.values())


def _run(place: str, code: Any) -> Any:  # noqa: ANN401 - a module, or nothing
    try:
        return code()
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError):
            where = f"{Path(error.filename or place).name}:{error.lineno}"
        else:
            where = place_of(error)
        what = one_line(f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}")
        raise RegistryError(f"{place} does not load: {what}" + (f", at {where}" if where else "")) from error


def _find_modules_in(folder: str) -> None:
    """Let what is loaded import what lies beside it; last, so that a file there hides no package."""
    if folder not in sys.path:
        sys.path.append(folder)
