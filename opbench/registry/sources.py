"""Which files make up what a provider runs, found from its imports, and their hash; none of them is imported for it."""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from opbench.registry.registry import operator_module
from opbench.workload.operator import Operator, Provider

__all__ = ["file_of", "imported_files", "source_files", "source_hash"]

KERNELS = "opbench_kernels"
OPERATORS = ("opbench.operators.", "opbench.backbones.", "opbench.models.")
Import = tuple[str, str]
"""A module, and the name that is taken from it; empty where the whole is."""


def source_hash(operator: Operator, provider: Provider) -> str:
    """16 hexadecimal digits of a SHA-256 over the files of source_files."""
    digest = hashlib.sha256()
    for path in source_files(operator, provider).values():
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def source_files(operator: Operator, provider: Provider) -> dict[str, Path]:
    """Files of what a provider runs, by module, in an order that does not depend on where they lie.

    The operator's module, that of `build`, and the modules in Provider.sources; and whatever `build`, `make_inputs`
    and `around`, the functions of their modules that they use, and these sources import of opbench_kernels, of
    opbench.operators, or of the package that `build` is in (where it is in none: of the modules in its folder), and
    what those import in turn. An import counts
    wherever it stands, but for those under TYPE_CHECKING. What is chosen at run time counts with all its choices.
    A module that was typed in has no file.
    """
    search = _Search()
    search.add(operator_module(operator))
    around = (provider.around,) if provider.around.__module__ not in sys.stdlib_module_names else ()
    for function in (each for one in (provider.build, operator.make_inputs, *around) for each in _functions(one)):
        name = str(getattr(function, "__qualname__", type(function).__qualname__))
        search.follow(function.__module__, name.partition(".")[0])
    for module in provider.sources:
        search.own.add(module.partition(".")[0])
        search.follow(module)
    return search.found


def imported_files(module: str) -> dict[str, Path]:
    """Files of a module of opbench's and of all that it imports of opbench, by module; operators are left out."""
    search = _Search({"opbench"})
    search.follow(module)
    return {name: path for name, path in search.found.items() if not f"{name}.".startswith(OPERATORS)}


class _Search:
    """What was found so far, and how far to go."""

    def __init__(self, own: Collection[str] = (KERNELS,)) -> None:
        self.found: dict[str, Path] = {}
        self.own = set(own)
        self._beside: set[Path] = set()
        self._followed: set[tuple[str, str]] = set()

    def add(self, module: str) -> Path | None:
        """Take a module's file, if it has one."""
        path = file_of(module) or next((p for folder in self._beside if (p := folder / f"{module}.py").is_file()), None)
        return self.found.setdefault(module, path) if path else None

    def follow(self, module: str, function: str = "") -> None:
        """Take a module and what it imports, or what one of its functions does."""
        path = self.add(module)
        if path is None or (module, function) in self._followed:
            return
        self._followed.add((module, function))
        top = module.partition(".")[0]
        if top != "opbench":
            self.own.add(top)
            if module == top and path.name != "__init__.py" and not {"site-packages", "dist-packages"} & {*path.parts}:
                self._beside.add(path.parent)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for name, taken in _imports(path.read_text(encoding="utf-8"), function, package):
            self._import(name, taken)

    def _import(self, name: str, taken: str) -> None:
        top = name.partition(".")[0]
        whole = f"{name}.{taken}"
        beside = any((folder / f"{name}.py").is_file() for folder in self._beside)
        if not (top in self.own or whole.startswith(OPERATORS) or beside):
            return
        if taken and file_of(whole):
            self.follow(whole)
        elif taken and (path := file_of(name)) and path.name == "__init__.py":
            self.follow(name, taken)  # what it hands on under that name, and not all that it imports
        else:
            self.follow(name)


def _functions(build: Any) -> Iterator[Callable[..., object]]:  # noqa: ANN401 - a function, or anything in a partial
    """The functions that a partial is made of; itself where it is none."""
    if isinstance(build, partial):
        for part in (build.func, *build.args, *build.keywords.values()):
            yield from _functions(part)
    elif callable(build):
        yield build


def file_of(module: str) -> Path | None:
    """File of a module, found without importing it; None where there is none."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return Path(loaded)
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ValueError, ImportError):  # a module without a specification
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.has_location else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *rest)
        for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


@cache
def _imports(text: str, function: str, package: str) -> tuple[Import, ...]:
    """What a module imports; with a function, only what that name of its stands for and uses, and its head."""
    found: dict[Import, None] = {}
    for statement in _used(ast.parse(text), function):
        for node in _run_nodes(statement):
            if isinstance(node, ast.Import):
                found |= {(alias.name, ""): None for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parts = package.split(".")[: -(node.level - 1) or None] if node.level else []
                name = ".".join([*parts, *([node.module] if node.module else [])])
                found |= {(name, alias.name): None for alias in node.names}
    return tuple(found)


def _used(module: ast.Module, function: str) -> list[ast.stmt]:
    """The statements of a module that a name of it needs; all where it has no such name."""
    defined: dict[str, ast.stmt] = {}
    handed_on: dict[str, ast.stmt] = {}
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined[statement.name] = statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            defined |= {target.id: statement for target in targets if isinstance(target, ast.Name)}
        elif isinstance(statement, ast.ImportFrom):
            handed_on |= {alias.asname or alias.name: statement for alias in statement.names}
    if function in handed_on and function not in defined:
        return [handed_on[function]]
    if function not in defined:
        return module.body
    kept = {id(statement) for statement in defined.values()}
    used = [statement for statement in module.body if id(statement) not in kept] + [defined[function]]
    for statement in used:  # grows
        names = (node.id for node in _run_nodes(statement) if isinstance(node, ast.Name))
        used += [defined[name] for name in dict.fromkeys(names) if name in defined and defined[name] not in used]
    return used


def _run_nodes(statement: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement but for what stands under TYPE_CHECKING."""
    yield statement
    children: Iterator[ast.AST] | list[ast.stmt] = ast.iter_child_nodes(statement)
    if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
        children = statement.orelse
    for child in children:
        yield from _run_nodes(child)
