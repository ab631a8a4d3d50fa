"""What of the files that a provider runs is code: digests that tell comments from code, and kernels from their host."""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from opbench.registry.sources import file_of, source_files
from opbench.workload.operator import Operator, Provider

__all__ = ["FileDigest", "digest", "file_name", "run_files"]

NO_DATA = {".pyc", ".pyi", ".pyo", ".md", ".rst", ".typed"}
"""Suffixes of files of a package that no provider reads; whatever is neither these nor Python may be read by any."""
DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
KERNEL_DECORATORS = ("triton.jit", "jit")


class FileDigest(NamedTuple):
    """SHA-256 of a file, 16 hexadecimal digits each; all three are the same where it is not Python.

    Attributes:
        text: of its bytes.
        code: of its syntax tree without docstrings: comments and layout do not change it.
        host: of the tree without the bodies of Triton's kernels, the functions under `triton.jit` alone: what changes
            code and not this changes nothing but what the kernels compute.
    """

    text: str
    code: str
    host: str


def digest(path: Path) -> FileDigest:
    """The digests of a file."""
    data = path.read_bytes()
    text = _digest(data)
    if path.suffix != ".py":
        return FileDigest(text, text, text)
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError):
        return FileDigest(text, text, text)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    code = _digest(ast.dump(tree).encode())
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef) and _is_kernel(statement):
            statement.body = []
    return FileDigest(text, code, _digest(ast.dump(tree).encode()))


def run_files(operator: Operator, provider: Provider) -> dict[str, Path]:
    """The files of source_files, the packages around them, and what they hold beside Python.

    By path, which starts at the folder that holds the package, as `opbench_kernels/deform/launch.py`. Of opbench itself
    the sources alone count: its packages run nothing, and its data are shapes and pages.
    """
    modules = source_files(operator, provider)
    for module in [name for name in modules if not name.startswith("opbench.")]:
        while module := module.rpartition(".")[0]:
            if module not in modules and (path := file_of(module)):
                modules[module] = path
    found = {file_name(module, path): path for module, path in modules.items()}
    for module, path in modules.items():
        if "." not in module and module != "opbench" and path.name == "__init__.py":
            found |= {file.relative_to(path.parents[1]).as_posix(): file for file in _data(path.parent)}
    return found


def _data(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in {".py", *NO_DATA}:
            yield path


def file_name(module: str, path: Path) -> str:
    """A module's file by its path from the folder that holds its package."""
    place = module.replace(".", "/")
    return f"{place}/__init__.py" if path.name == "__init__.py" else f"{place}{path.suffix}"


def _is_kernel(function: ast.FunctionDef) -> bool:
    names = [
        ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)
        for decorator in function.decorator_list
    ]
    return bool(names) and all(name in KERNEL_DECORATORS for name in names)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
