"""At 60, 80 and 120 columns help keeps every name whole, and a table folds so that every row can be told apart."""

import io
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer.main
from rich.console import Console
from test_fuzz import call

from opbench.cli.app import app
from opbench.compare.open_arm import open_arm
from opbench.compare.runs import compare_runs
from opbench.device.ceilings import Ceilings
from opbench.gate.selftest import Rate
from opbench.gate.selftest_table import selftest_table
from opbench.inspection.comparison import stored_tables
from opbench.inspection.tables import class_table, estimate_table, variant_table
from opbench.registry import registry
from opbench.report import ceiling_table, paper_tables, print_tables, run_tables, sample_table, speedup_tables
from opbench.report.comparison import comparison_tables
from opbench.report.plan_table import plan_table
from opbench.report.table import Table
from opbench.results.published import open_run
from opbench.sweeps.request import make_request
from opbench.sweeps.start import plan
from opbench.timing import TIMERS
from opbench.workload.case import Dtype

RESULTS = Path(__file__).parents[1] / "results"

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


def inspection_tables():
    document = json.loads((RESULTS / "static" / "sm_90.json").read_text())
    variants = [SimpleNamespace(**variant, local_loads=0) for variant in document["variants"]]
    estimates = [SimpleNamespace(**estimate) for estimate in document["estimates"]]
    return [table("sm_90", [(v, estimates[:9]) for v in variants]) for table in (variant_table, class_table)] + [
        estimate_table("sm_90", [(variants[0], estimates)]),
        *stored_tables(RESULTS / "static", "sm_90"),
    ]


def plan_of_everything():
    known = registry.registered()
    options = {"device": "cpu", "shapes": ["standard", "high_resolution"], "dtypes": list(Dtype)}
    return plan(make_request({**options, "level": ["module", "core"]}, known), known)


@cache
def every_table():
    run, published = open_run(RESULTS / "xeon-2core"), open_run(Path("published"))
    arms = [open_arm(RESULTS / "compare" / name) for name in ("main", "branch")]
    rates = dict.fromkeys((0.0, 0.05), Rate(3, 10, 0.07, 0.65))
    ceilings = Ceilings.from_json(json.loads((RESULTS / "xeon-2core" / "ceilings.json").read_text()))
    return [
        *run_tables(run), *run_tables(published), *speedup_tables(run), *paper_tables(published), sample_table(run),
        *comparison_tables(compare_runs(*arms, 0.1, ())), plan_table(plan_of_everything()), ceiling_table(ceilings),
        *inspection_tables(),
        selftest_table(
            SimpleNamespace(alarms=rates, caught=rates, inconclusive=rates),
            [SimpleNamespace(inject=fraction, seconds=90.0) for fraction in rates],
        ),
        Table("steps", "Three names, the last long", ("Revision", "Run", "Cell", "before, ms", "after,\nms"),
              (("abc1234", "2026-11-21 cpu-1", f"DCNv4 [torch] 64×56×56×128 fp32 {'long-name/' * 9}", "1.25", "2.5"),),
              text_columns=3),
    ]  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_keeps_every_name_and_figure(width):
    for table in every_table():
        console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
        print_tables([table], "terminal", console)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width, table.name
        assert not any(line.endswith("…") for line in lines), table.name
        names = ["".join("".join(row[: table.text_columns]).split()) for row in table.rows]
        assert len(set(names)) == len(names), table.name
        text = "".join("".join(lines).split())
        for name, row in zip(names, table.rows, strict=True):
            assert name in text, (table.name, name)
            assert all(any(figure in line for line in lines) for figure in row[table.text_columns :]), (
                table.name,
                name,
            )


@pytest.mark.parametrize("width", WIDTHS)
def test_names_that_leave_no_room_stand_above_their_figures(width):
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
    rows = tuple((f"dcnv4/module/fwd/{shape}/{'x' * 30}", "torch", "1.25", "30") for shape in ("one", "two"))
    print_tables([Table("plan", "Plan", ("cell", "provider", "GFLOP", "MB"), rows)], "terminal", console)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    if width == 60:
        assert lines[1:] == [
            "cell  provider", "  GFLOP  MB", "──────────────────────────────",
            f"dcnv4/module/fwd/one/{'x' * 30}  torch", "   1.25  30",
            f"dcnv4/module/fwd/two/{'x' * 30}  torch", "   1.25  30",
        ]  # fmt: skip
    else:
        assert re.fullmatch(r"dcnv4/module/fwd/one/x{30}  torch +1\.25  30", lines[3])
