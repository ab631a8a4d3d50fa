"""At 60, 80 and 120 columns help keeps every name whole, and a table folds so that every row can be told apart."""

import re
from collections import Counter

import pytest
import typer.main
from test_fuzz import call

from opbench.cli import app
from opbench.timing import TIMERS

WIDTHS = (60, 80, 120)
OPTION = re.compile(r"--[a-z][\w-]*")


def commands(command, path=()):
    """Every command and group below one, with its name as it is typed."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_keeps_names_whole(path, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    code, text, err = call(*path, "--help")
    assert code == 0, err
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    command = COMMANDS[path]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    names = [name for option in options for name in (*option.opts, *option.secondary_opts)]
    metavars = [parameter.metavar for parameter in command.params if parameter.metavar]
    words = re.findall(r"[^\s,{}]+", text)
    for name in (*names, *metavars, *getattr(command, "commands", ())):
        assert name in words, name
    helps = [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]
    written = Counter(OPTION.findall(" ".join((*helps, *names))))
    assert not written - Counter(OPTION.findall(text))
    for timer in TIMERS:
        assert text.count(timer) >= " ".join(helps).count(timer)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_list_of_commands_cuts_no_sentence(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = "".join(call("--help")[1].split())
    for (name, *below), command in list(COMMANDS.items())[1:]:
        if not below:
            assert name + "".join(command.help.partition("\n\n")[0].split()) in text


def test_every_option_with_a_value_names_it_in_a_word():
    for path, command in COMMANDS.items():
        for parameter in command.params:
            if not getattr(parameter, "is_flag", False):
                assert len(parameter.metavar) <= 16, (path, parameter.name)
