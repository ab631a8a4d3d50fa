"""Finds the commands: a module that is put into opbench/cli/commands, whose `register` adds what it brings.

Nothing heavy is imported before a command runs: `opbench --help` loads every module there.
"""

import importlib
import pkgutil
from inspect import cleandoc

import typer

from opbench.cli import commands

__all__ = ["register_all"]


def register_all(app: typer.Typer) -> None:
    """Let every module of opbench.cli.commands add its commands, in the order of ORDER, then of the modules' names."""
    names = [module.name for module in pkgutil.iter_modules(commands.__path__) if not module.name.startswith("_")]
    for name in sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        importlib.import_module(f"{commands.__name__}.{name}").register(app)
    _list_whole_sentences(app)


def _list_whole_sentences(app: typer.Typer) -> None:
    """Let the list of commands show the whole first sentence of each, which click would cut where the line ends."""
    for command in app.registered_commands:
        command.short_help = cleandoc(command.callback.__doc__ or "").partition("\n\n")[0]
    for group in app.registered_groups:
        if group.typer_instance:
            group.short_help = str(group.typer_instance.info.help)
            _list_whole_sentences(group.typer_instance)


ORDER = (
    "sweep",
    "merge",
    "check",
    "listing",
    "report",
    "compare",
    "gate",
    "baseline",
    "history",
    "export",
    "machine",
    "noise",
    "inspect",
    "profile",
    "reproduce",
)
"""As `opbench --help` lists them; what is not named comes last."""
