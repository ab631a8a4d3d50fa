"""Where a cell's own code raised: its place in the row, the traceback in the journal and, where asked for, printed."""

import json

import pytest
from builders import make_case
from test_runner import run

from opbench.cli import app as cli
from opbench.cli.shared import TRACEBACK_VARIABLE, shows_tracebacks
from opbench.registry.raised import LONGEST_TEXT, place_of, traceback_text
from opbench.results.measurement import Measurement, Status
from opbench.results.run import Run

FILE = """\
import torch
from builders import doubling
from opbench import Provider

def helper(x):
    return torch.nn.functional.linear(x, torch.ones(3, 3))

operator = doubling(name="mine", providers=(Provider("torch", lambda case, tensors: lambda: helper(tensors["x"]), ""),))
"""
TINY = "shapes:\n  - {batch: 1, height: 4, width: 4, channels: 8}\n"


def caught(function):
    with pytest.raises(Exception) as raised:  # noqa: PT011 - of any kind
        function()
    return raised.value


def test_the_reason_ends_with_the_place_and_the_row_has_the_traceback():
    measurement, _ = run("raising")
    assert measurement.status is Status.ERROR
    assert measurement.reason.startswith("ValueError in check: no such luck, at builders.py:")
    assert measurement.traceback.startswith("Traceback (most recent call last):\n")
    assert "in build_raising" in measurement.traceback
    assert measurement.traceback.endswith("ValueError: no such\nluck")
    again = Measurement.from_json(json.loads(measurement.to_json_line()))
    assert again.traceback == measurement.traceback


def test_an_older_journal_has_no_traceback_and_an_unprintable_one_is_refused():
    line = json.loads(run("raising")[0].to_json_line())
    del line["traceback"]
    assert Measurement.from_json(line).traceback == ""
    with pytest.raises(ValueError, match="traceback must be printable lines"):
        Measurement.from_json({**line, "traceback": "\x1b[2J"})


def test_frames_of_torch_and_of_the_harness_are_not_the_users():
    import torch

    def mine():
        torch.nn.functional.linear(torch.ones(2, 2), torch.ones(3, 3))

    assert place_of(caught(mine)).startswith("test_raised.py:")
    assert place_of(caught(lambda: json.loads("{"))).startswith("test_raised.py:")
    assert place_of(caught(lambda: make_case().setting("none"))).startswith("test_raised.py:")
    assert place_of(ValueError("raised nowhere")) == ""


def test_a_file_of_a_package_is_the_users_only_where_it_defines_the_operator(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages" / "someones"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("def fail():\n    raise ValueError\n")
    monkeypatch.syspath_prepend(folder.parent)
    import someones

    error = caught(someones.fail)
    assert place_of(error).startswith("test_raised.py:")
    assert place_of(error, ["someones.operators"]) == "__init__.py:2"


def test_a_traceback_is_printable_and_not_longer_than_it_may_be():
    def fail():
        raise ValueError("bad \udcff\x1b[2J " + "long " * 100_000)

    text = traceback_text(caught(fail))
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text) <= LONGEST_TEXT
    assert "in fail" in text


def test_without_isolation_the_traceback_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.setattr(
        "sys.argv",
        ["opbench", "sweep", "--ops", "mine.py", "--shapes", "tiny.yaml", "--dtypes", "fp32", "--device", "cpu",
         "--isolation", "none", "--no-plots", "--out", "run"],
    )  # fmt: skip
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    shown = capsys.readouterr().err
    assert "in helper\n    return torch.nn.functional.linear" in shown
    [measurement] = Run.open(tmp_path / "run").measurements()
    assert measurement.reason.endswith(", at mine.py:6")
    assert measurement.traceback in shown


def test_the_variable_asks_for_tracebacks_of_isolated_cells(monkeypatch):
    monkeypatch.delenv(TRACEBACK_VARIABLE, raising=False)
    assert not shows_tracebacks("process")
    assert shows_tracebacks("none")
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    assert shows_tracebacks(None)
