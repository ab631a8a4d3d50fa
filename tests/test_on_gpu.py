"""tools/gpu/on_gpu.sh: its steps, what becomes of one that fails, and that every option in it exists."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opbench.cli.app import app
from opbench.registry import registry
from opbench.sweeps.reproduction import parts_for

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "gpu" / "on_gpu.sh"
LINE = re.compile(r"(\S+): about (\d+) s, at most (\d+) s: (.*)")


def run(out, *, python="/bin/false", **variables):
    return subprocess.run(
        ["bash", str(SCRIPT), str(out)],
        capture_output=True, text=True, env={**os.environ, "PYTHON": str(python), **variables}, cwd=ROOT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Every step: name, estimate, limit, command."""
    listed = run(tmp_path_factory.mktemp("list"), LIST="1")
    assert listed.returncode == 0
    return [LINE.fullmatch(line).groups() for line in listed.stdout.splitlines()]


@pytest.fixture
def python(tmp_path):
    """A program in Python's place that says its arguments and ends as it is told."""

    def make(code, text=""):
        path = tmp_path / "python"
        path.write_text(f'#!/bin/sh\necho "$@"\necho "{text}"\nexit {code}\n')
        path.chmod(0o755)
        return path

    return make


def test_every_step_has_a_name_of_its_own_and_ends_within_ten_minutes(steps):
    names = [name for name, *_ in steps]
    assert len(set(names)) == len(names)
    for _, estimate, limit, _ in steps:
        assert int(estimate) < int(limit) < 600
    assert {"official-dcnv4-cuda-event", "timing-check", "sanitize-memcheck", "gate-selftest"} <= set(names)


def test_every_part_of_the_reproduction_is_a_step(steps):
    parts = [command.split("--parts ")[1].split()[0] for *_, command in steps if "opbench reproduce" in command]
    assert parts == [part.name for part in parts_for("cuda")]


def test_every_command_and_option_exists(steps):
    for name, _, _, command in steps:
        words = shlex.split(command)[1:]
        if words[:2] == ["-m", "opbench"]:
            shown = CliRunner().invoke(app, [words[2], "--help"], env={"COLUMNS": "300"})
            text = shown.output
            assert shown.exit_code == 0, name
        else:
            target = Path(words[0])
            text = target.read_text() if target.suffix == ".py" else ""
        if words[:2] == ["-m", "opbench"] or text:
            for option in [word for word in words if word.startswith("--")]:
                assert option in text, (name, option)
        for operator in re.search(r"--ops (\S+)", command)[1].split(",") if "--ops" in command else ():
            assert operator in registry.registered(), name


@pytest.mark.parametrize(
    ("code", "said", "exit_code"),
    [(0, "   ok, ", 0), (1, "   exit 1; see env.log", 1), (77, "   NOT RUN: no GPU here", 1)],
)
def test_what_becomes_of_a_step(tmp_path, python, code, said, exit_code):
    done = run(tmp_path / "out", python=python(code, "no GPU here"), STEPS="env")
    assert said in done.stdout
    assert done.returncode == exit_code
    assert "-m opbench env" in (tmp_path / "out" / "env.log").read_text()
    assert done.stdout.count("==") == 1


def test_a_step_that_does_not_exist_is_no_success(tmp_path, python):
    done = run(tmp_path / "out", python=python(0), STEPS="evn")
    assert done.returncode == 1
    assert "no step is called evn; known: env gpu-tests" in done.stdout
