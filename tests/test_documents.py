"""Every Python line of README and docs runs."""

import inspect
import re
import shlex
from contextlib import suppress
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
import typer.main

import opbench
from opbench.cli import app as cli
from opbench.errors import ShapeFileError
from opbench.pytest_plugin.device_benchmark import DeviceBenchmark
from opbench.registry.registry import registered
from opbench.report import render, run_tables
from opbench.workload.case import Dtype
from opbench.workload.shapes import load_shape_list

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ELSEWHERE = {"operator = opbench.Operator(": "tests/test_run.py sweeps it"}


def blocks():
    """Each block of Python, with the file and line where it begins."""
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text()
        for found in re.finditer(r"^```(?:python|py|pycon)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if not any(mark in found[1] for mark in ELSEWHERE):
                yield pytest.param(found[1], id=f"{path.name}:{text[: found.start()].count(chr(10)) + 1}")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like the checkout and may be written to."""
    for name in ("results", "shapes", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    with mpl.rc_context():
        yield


class Benchmark:
    """Stands in for the fixture opbench_benchmark: its calls must be possible, and a GPU need not be there."""

    def __call__(self, *arguments, **options):
        inspect.signature(DeviceBenchmark.__call__).bind(self, *arguments, **options)
        return arguments[0]()

    def cell(self, *arguments, **options):
        bound = inspect.signature(DeviceBenchmark.cell).bind(self, *arguments, **options).arguments
        registered()[bound["operator"]].provider(bound["provider"])
        assert bound["dtype"] in list(Dtype)


@pytest.mark.parametrize("code", [*blocks()])
def test_a_block_of_python_runs(code, checkout, request):
    scope = {"__name__": "block", "layer": torch.nn.Identity(), "x": torch.ones(2), "Shape": opbench.Shape}
    exec(compile(code, request.node.name, "exec"), scope)  # noqa: S102 - our own documents
    for name, function in scope.items():
        if name.startswith("test_"):
            function(Benchmark())


def test_the_blocks_are_found():
    assert len(list(blocks())) == 5


def test_a_shape_file_with_a_character_dropped_loads_or_gives_one_line(tmp_path):
    [example] = re.findall(r"^```yaml\n(description.*?)^```", README, re.MULTILINE | re.DOTALL)
    path = tmp_path / "mine.yaml"
    said = []
    for place in range(len(example)):
        path.write_text(example[:place] + example[place + 1 :])
        try:
            load_shape_list(str(path))
        except ShapeFileError as error:
            said.append(str(error))
    assert said
    assert not [text for text in said if "\n" in text or not text.startswith(str(path))]


def test_a_command_with_a_character_dropped_parses_or_says_what_is_wrong():
    command = typer.main.get_command(cli.app)
    lines = [line.partition("  #")[0] for line in re.findall(r"^\$ opbench (.*)$", README, re.MULTILINE)]
    assert len(lines) >= 20
    for line in lines:
        for place in range(len(line)):
            words = shlex.split(line[:place] + line[place + 1 :])
            name = words[0] if words else ""
            chosen = command.commands.get(name, command)
            with suppress(typer.Exit, typer.BadParameter.__bases__[0]):  # help; a usage error
                chosen.make_context(name, words[1:] if chosen is not command else words)


@pytest.mark.parametrize(
    ("run", "name"),
    [("epyc-2core", "standard_batch1-module-fwd"), ("epyc-2core-long", "high_resolution-module-fwd")],
)
def test_the_readmes_tables_are_those_of_committed_runs(run, name):
    tables = {table.name: table for table in run_tables(opbench.Run.open(ROOT / "results" / run))}
    lines = [line for line in render(tables[name], "markdown").splitlines() if line.startswith("|")]
    assert "\n".join(lines) in README
