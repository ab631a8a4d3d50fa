"""Each option of a sweep is declared once: its field, its flag and its argument agree, and run.json reads back."""

import inspect
import json
import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import pytest
import typer
from builders import doubling
from typer.testing import CliRunner

import opbench
from opbench.cli.sweep_flags import SWEEP_FLAGS, takes_sweep_flags
from opbench.errors import UsageError
from opbench.registry import registry
from opbench.sweeps.conduct import Conduct, Isolation, make_conduct
from opbench.sweeps.option_fields import integer, option, options_of, read_options
from opbench.sweeps.request import RunOptions, SweepRequest, make_request, request_differences, request_of_command

OPTIONS = {**options_of(SweepRequest), **options_of(Conduct)}
NO_OPTION = {"sources"}
"""Of a request, what is found out and not given: `--ops` names it."""
OWN_FLAG = {"retry"}
"""It belongs to --resume, whose flags the command itself declares."""
ROOT = Path(__file__).parents[1]

GIVEN = {
    "shapes": ["smoke"], "ops": ["double"], "dtypes": ["bf16", "fp32"], "level": ["core"], "direction": ["bwd"],
    "device": "cpu", "timer": "wall-clock", "cache": "warm", "providers": ["double=torch"],
    "settings": ["double.window=a.b=3"], "time_budget": 0.25, "memory_limit": 1.5, "seed": 7, "threads": 2,
    "compile": True, "energy": True, "repeat": 3, "shard": "2/3", "sources": ["/somewhere/mine.py"],
}  # fmt: skip


def test_every_field_is_an_option():
    for kind in (RunOptions, SweepRequest, Conduct):
        assert set(options_of(kind)) == {part.name for part in fields(kind)}


def test_every_option_is_an_argument_of_the_function_with_its_line():
    text = inspect.getdoc(opbench.sweep)
    for found in OPTIONS.values():
        if found.keyword not in NO_OPTION:
            parameter = inspect.signature(opbench.sweep).parameters.get(found.keyword)
            assert parameter, f"{found.keyword} is no argument of opbench.sweep"
            assert parameter.default is None, found.keyword
            assert re.search(rf"^    {found.keyword}: \S", text, re.MULTILINE), found.keyword


def test_every_option_is_a_flag_of_the_sweep_and_the_other_way_round():
    shown = CliRunner().invoke(typer_app(), ["sweep", "--help"]).output
    expected = {found.keyword: found.flag for found in OPTIONS.values() if found.keyword not in NO_OPTION}
    for keyword, flag in expected.items():
        assert re.search(rf"^  {flag} ", shown, re.MULTILINE), keyword
    assert {flag.keyword for flag in SWEEP_FLAGS} == set(expected) - OWN_FLAG


def typer_app():
    from opbench.cli.app import app

    return app


def test_what_is_given_comes_back_from_run_json():
    known = {"double": doubling()}
    request = make_request(GIVEN, known)
    assert set(GIVEN) == {found.keyword for found in options_of(SweepRequest).values()}
    for part in fields(request):  # nothing in this test is a default
        assert part.default is MISSING or getattr(request, part.name) != part.default, part.name
    command = json.loads(json.dumps(request.to_json()))
    assert request_of_command(command, {}, known) == request
    assert request_differences(request, command) == []
    assert request.settings == (("double", "window", "a.b=3"),)
    told = RunOptions.of(command)
    assert told == RunOptions(**{part.name: getattr(request, part.name) for part in fields(RunOptions)})


@pytest.mark.parametrize("part", fields(SweepRequest), ids=lambda part: part.name)
def test_an_option_that_is_given_otherwise_is_one_difference(part):
    request = make_request(GIVEN, {"double": doubling()})
    command = json.loads(json.dumps(request.to_json()))
    [line] = request_differences(request, {**command, part.name: "other"})
    assert line.startswith(f"{part.name}: 'other' there, ")


def test_an_older_run_lacks_what_was_added_later():
    known = {"double": doubling()}
    request = make_request({"ops": ["double"], "device": "cpu", "dtypes": ["fp32"]}, known)
    command = json.loads(json.dumps(request.to_json()))
    for name in ("threads", "repeat"):
        del command[name]
    assert request_of_command(command, {}, known) == request
    assert request_differences(request, command) == []
    repeated = make_request({"ops": ["double"], "device": "cpu", "dtypes": ["fp32"], "repeat": 2}, known)
    assert request_differences(repeated, command) == ["repeat: 1 there, 2 now"]
    del command["seed"]
    with pytest.raises(KeyError):
        request_of_command(command, {}, known)


@pytest.mark.parametrize("path", sorted((ROOT / "results").rglob("run.json")), ids=lambda path: path.parent.name)
def test_a_stored_command_is_the_request_that_it_was(path, monkeypatch):
    monkeypatch.setattr(
        "opbench.sweeps.request.load_shape_lists", lambda names: []
    )  # a run outlives its file of shapes
    command = json.loads(path.read_text())["command"]
    try:
        request = request_of_command(command, {}, registry.registered())
    except KeyError as missing:
        pytest.fail(f"runs from before the option {missing} lack it: declare it with added_later=True")
    assert request_differences(request, command) == []


def test_lists_are_given_as_one_text_too():
    known = {"double": doubling()}
    request = make_request({**GIVEN, "dtypes": "bf16, fp32", "shapes": "smoke", "settings": "double.window=1,2"}, known)
    assert [str(dtype) for dtype in request.dtypes] == ["bf16", "fp32"]
    assert (request.shapes, request.settings) == (("smoke",), (("double", "window", "1,2"),))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_budget": "soon"}, "--time-budget must be a positive number, got 'soon'"),
        ({"memory_limit": 10**400}, "--memory-limit must be a positive number, got 1000"),
        ({"seed": 1.5}, r"--seed must be an integer from 0 to \d+, got 1.5"),
        ({"threads": True}, "--threads must be an integer from 1 to 1024, got True"),
        ({"providers": [["double", "torch", "x"]]}, "--providers must be op=provider, got "),
        ({"settings": ["double.=3"]}, "--set must be op.param=value, got 'double.=3'"),
    ],
)
def test_what_cannot_be_followed_is_said_with_the_flag(options, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        make_request({"device": "cpu", **options}, {"double": doubling()})


def test_how_cells_are_carried_out_is_read_the_same_way():
    given = {"isolation": "process", "cell_timeout": 3, "retry": "error,timeout", "ceilings_budget": 0}
    conduct = make_conduct(given, resume=True)
    assert (conduct.isolation, conduct.cell_timeout_s, conduct.ceilings_budget_s) == (Isolation.PROCESS, 3.0, 0.0)
    assert [str(status) for status in conduct.retry] == ["error", "timeout"]
    assert make_conduct({"retry": []}, resume=True) == Conduct()


def test_a_new_field_is_read_and_checked_without_another_edit():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Wider(SweepRequest):
        warm_up: int = field(default=2, metadata=option("warm_up", integer(0, 9), added_later=True))

    assert read_options(Wider, {"warm_up": 3, "seed": 1}) == {"warm_up": 3, "seed": 1}
    with pytest.raises(UsageError, match="--warm-up must be an integer from 0 to 9, got 10"):
        read_options(Wider, {"warm_up": 10})


def test_a_command_gets_the_options_that_were_given(monkeypatch):
    seen = []
    app = typer.Typer()

    def gate(*, options: dict[str, object], quiet: bool = False) -> None:
        seen.append((options, quiet))

    app.command()(takes_sweep_flags(gate))
    assert CliRunner().invoke(app, ["--quiet"]).exit_code == 0
    arguments = ["--dtypes", "fp32, bf16", "--set", "a.b=1", "--set", "a.c=2", "--shapes", "x", "--seed", "3"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, ["--repeat", "2"]).exit_code == 2  # a gate has no such option
    given = {"shapes": ["x"], "dtypes": ["fp32", "bf16"], "settings": ["a.b=1", "a.c=2"], "time_budget": 0.1, "seed": 3}
    assert seen == [({"time_budget": 0.1}, True), (given, False)]
