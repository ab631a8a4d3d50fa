"""The commands, one module each; a module that is put here is found, and its `register` adds what it brings.

Nothing heavy is imported before a command runs: `opbench --help` loads every module here.
"""

import importlib
import pkgutil

import typer

__all__ = ["register_all"]


def register_all(app: typer.Typer) -> None:
    """Let every module of this package add its commands, in the order of ORDER, then of the modules' names."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    for name in sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        importlib.import_module(f"{__name__}.{name}").register(app)


ORDER = ("sweep", "listing", "report", "compare", "gate", "baseline", "history", "export", "machine", "inspect")
"""As `opbench --help` lists them; what is not named comes last."""
