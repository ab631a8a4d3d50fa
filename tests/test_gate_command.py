"""`opbench gate` as a command: revisions of a repository of a user's own, exit codes, and nothing left behind."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from gate_simulation import ENVIRONMENT, Noise, SimulatedProcesses, simulated_cells
from typer.testing import CliRunner

from opbench.cli.app import app
from opbench.errors import GateError, UsageError
from opbench.gate import arm as arm_program
from opbench.gate import command as gate_command
from opbench.gate.changes import Choice
from opbench.gate.command import with_defaults
from opbench.gate.launcher import Planned
from opbench.gate.process import GateArm
from opbench.gate.revision import find_source, installed, other_requirements, require_clean
from opbench.registry.registry import registered
from opbench.sweeps.native_dtypes import DefaultDtypes
from opbench.sweeps.request import make_request
from opbench.sweeps.start import plan
from opbench.workload.case import Dtype

# Its processes are real and their clock is not: it moves by the work that a launch says it does, within a percent, so
# that what the gate finds does not hang on what else the machine does.
OPERATOR = '''
"""An operator of a user's own."""
import os
import random
import time

import torch
from opbench import Operator, Provider
from opbench.timing.wall_clock import WallClockTimer

WORK = 20
seconds, noise = 0.0, random.Random(os.getpid())


def advance(step):
    global seconds
    seconds += step * noise.gauss(1, 0.01)
    return seconds


def read():
    return advance(1e-7)


time.perf_counter = read
WallClockTimer.__init__.__defaults__ = (read, None)


def build(case, tensors):
    x = tensors["x"]

    def forward():
        advance(1e-5 * WORK)
        return x.sin()

    return forward


def make(name):
    return Operator(
        name=name,
        summary="sine",
        timed="everything",
        make_inputs=lambda case, generator: {
            "x": torch.randn(
                case.shape.batch, case.shape.height, case.shape.width, case.shape.channels,
                generator=generator, device=generator.device,
            )
        },
        reference=lambda case, tensors: tensors["x"].sin(),
        flop_count=lambda case: case.shape.elements,
        bytes_moved=lambda case: 8 * case.shape.elements,
        memory_bytes=lambda case: 8 * case.shape.elements,
        reference_elements=lambda case: 2 * case.shape.elements,
        tolerance=lambda case: 1e-5,
        providers=(Provider("torch", build, "a loop"),),
    )


OPERATOR = make("toy_sine")
'''
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "toy-operators"
version = "1"
[project.entry-points."opbench.operators"]
toy_sine = "toy_operators:OPERATOR"
[tool.setuptools]
py-modules = ["toy_operators"]
"""


def git(folder, *arguments):
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository whose branches are main, slow (more work), comment and broken; on main, nothing dirty."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "main")
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "toy_operators.py").write_text(OPERATOR)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "An operator")
    for branch, before, after in (
        ("slow", "WORK = 20", "WORK = 30"),
        ("comment", "WORK = 20", "WORK = 20  # as often as it takes"),
        ("broken", "import torch", "import torch_of_another_name"),
    ):
        git(folder, "switch", "--quiet", "-c", branch, "main")
        (folder / "toy_operators.py").write_text(OPERATOR.replace(before, after))
        git(folder, "commit", "--quiet", "-a", "-m", branch)
    git(folder, "switch", "--quiet", "main")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def left_behind(folder):
    return git(folder, "worktree", "list").splitlines()[1:] + git(folder, "status", "--porcelain").splitlines()


# Revisions and folders.


def test_a_revision_is_installed_as_it_was_committed(repository, tmp_path):
    sources = {"base": find_source("main", repository), "head": find_source("slow", repository)}
    with installed(sources, tmp_path) as places:
        texts = {name: (place / "toy_operators.py").read_text() for name, place in places.items()}
    assert texts == {"base": OPERATOR, "head": OPERATOR.replace("WORK = 20", "WORK = 30")}
    assert left_behind(repository) == []


def test_a_folder_is_installed_as_it_is(repository, tmp_path):
    (repository / "toy_operators.py").write_text(OPERATOR + "# not committed\n")
    (repository / ".venv").mkdir()
    (repository / ".venv" / "pyvenv.cfg").touch()
    before = sorted(path.name for path in repository.iterdir())
    with installed({"head": find_source(".", repository)}, tmp_path) as places:
        assert (places["head"] / "toy_operators.py").read_text().endswith("# not committed\n")
    assert sorted(path.name for path in repository.iterdir()) == before


@pytest.mark.parametrize("text", ["nowhere", "--upload-pack=x", "./nowhere", "main~99"])
def test_what_is_neither_a_revision_nor_a_folder(repository, text):
    with pytest.raises(UsageError, match="revision"):
        find_source(text, repository)


def test_changes_that_are_not_committed_are_not_silently_left_out(repository):
    source = find_source("HEAD", repository)
    require_clean(source)
    (repository / "new.txt").touch()  # untracked files change no revision
    require_clean(source)
    (repository / "toy_operators.py").write_text("")
    with pytest.raises(UsageError, match=r"not committed \(toy_operators.py, ...\).*--head \."):
        require_clean(source)
    require_clean(find_source("slow", repository))  # is not what is checked out


def test_no_git(repository, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="git is not installed"):
        find_source("main", repository)


def test_no_repository(tmp_path):
    with pytest.raises(UsageError, match="not a git repository"):
        find_source("main", tmp_path)


def test_a_revision_that_does_not_install(repository, tmp_path):
    (repository / "pyproject.toml").write_text("[project]\nname = 1\n")
    git(repository, "commit", "--quiet", "-a", "-m", "unbuildable")
    with (
        pytest.raises(GateError, match="HEAD: cannot be installed"),
        installed({"head": find_source("HEAD", repository)}, tmp_path),
    ):
        pass
    assert left_behind(repository) == []


def test_a_build_backend_that_is_not_here_is_named_with_what_installs_it(repository, tmp_path):
    (repository / "pyproject.toml").write_text(
        PROJECT.replace('["setuptools"]', '["no-such-backend >=1.2", "setuptools"]').replace(
            "setuptools.build_meta", "no_such_backend.build"
        )
    )
    git(repository, "commit", "--quiet", "-a", "-m", "another backend")
    with (
        pytest.raises(GateError) as error,
        installed({"head": find_source("HEAD", repository)}, tmp_path),
    ):
        pass
    assert str(error.value).startswith("HEAD: cannot be installed: ")
    assert str(error.value).endswith(
        "; the gate builds with what is installed here: pip install 'no-such-backend >=1.2'"
    )


def test_dependencies_that_only_one_revision_declares_are_named(tmp_path):
    for name, needed in (("base", ("torch>=2.10", "numpy")), ("head", ("numpy", "torch>=2.11"))):
        metadata = tmp_path / name / "toy-1.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        lines = "".join(f"Requires-Dist: {text}\n" for text in needed)
        metadata.write_text(f"Metadata-Version: 2.1\nName: toy\nVersion: 1\n{lines}")
    places = {name: tmp_path / name for name in ("base", "head")}
    assert other_requirements(places) == ["torch>=2.10", "torch>=2.11"]
    assert other_requirements({**places, "head": tmp_path / "base"}) == []


# Exit codes, on simulated processes.

CELLS = simulated_cells(4)
QUIET = Noise(0.001, 0.001)


@contextmanager
def nothing_installed(sources, work):
    yield dict.fromkeys(sources, work)


def simulated(monkeypatch, processes):
    """The command with simulated processes; HEAD is the head."""
    processes.head = "slow"

    class Launcher:
        def __init__(self, options):
            self.run = self

        def __call__(self, arms, cells, first):
            short = {name: replace(arm, label=arm.label.split(" ")[0]) for name, arm in arms.items()}
            return processes(short, cells, first)

    monkeypatch.setattr(gate_command, "Launcher", Launcher)
    monkeypatch.setattr(gate_command, "installed", nothing_installed)


def gate(*arguments):
    return CliRunner().invoke(app, ["gate", *arguments], catch_exceptions=True)


def slower(size):
    return {CELLS[0].key: math.log1p(size)}


@pytest.mark.parametrize(
    ("processes", "arguments", "code"),
    [
        (SimulatedProcesses(CELLS, QUIET), [], 0),
        (SimulatedProcesses(CELLS, QUIET, slower=slower(-0.1)), [], 0),
        (SimulatedProcesses(CELLS, QUIET, slower=slower(0.1)), [], 1),
        (SimulatedProcesses(CELLS, QUIET, slower=slower(0.1)), ["--tolerance", "20%"], 0),
        (SimulatedProcesses(CELLS, Noise(0.1, 0.1)), [], 3),
        (SimulatedProcesses(CELLS, Noise(0.1, 0.1)), ["--inconclusive", "pass"], 0),
        (SimulatedProcesses(CELLS, QUIET, sources={"main": "a", "slow": "a"}), [], 4),
        (SimulatedProcesses(CELLS, QUIET, sources={"main": "a", "slow": "a"}), ["--aa"], 0),
        (SimulatedProcesses((), QUIET), [], 5),
    ],
    ids=["same", "faster", "slower", "tolerated", "noise", "noise-accepted", "same-source", "aa", "nothing"],
)
def test_exit_codes(repository, tmp_path, monkeypatch, processes, arguments, code):
    simulated(monkeypatch, processes)
    done = gate("--base", "main", "--head", "slow", "--quiet", "--out", str(tmp_path / "out"), *arguments)
    assert done.exit_code == code, done.output
    kept = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert kept["arms"]["head"]["commit"] == git(repository, "rev-parse", "slow")
    count = len((tmp_path / "out" / "processes.jsonl").read_text().splitlines())
    assert count >= 2
    changes = [cell["change"] for cell in kept["cells"] if cell["change"]]
    assert all(set(change) == {"ratio", "low", "high"} for change in changes)
    assert bool(changes) == (code != 4 and len(processes.cells) > 0)
    assert (tmp_path / "out" / "comparison.csv").exists()


def planned(cells, measured=()):
    """Plans of simulated processes; the cells of these keys are measured."""
    process = SimulatedProcesses(cells, QUIET).process(GateArm("any"), None)
    choices = {
        cell.key: Choice(cell.key in measured, "a.py differs" if cell.key in measured else "same source")
        for cell in cells
    }
    return Planned(dict.fromkeys(("base", "head"), replace(process, measurements={})), choices)


def changed_only(monkeypatch, tmp_path, processes, plans, *arguments):
    simulated(monkeypatch, processes)
    monkeypatch.setattr(gate_command.Launcher, "plan", lambda launcher, arms: plans, raising=False)
    out = tmp_path / "out"
    words = ("--base", "main", "--head", "slow", "--changed-only", "--out", str(out))
    return gate(*words, *arguments), json.loads((out / "gate.json").read_text())


def test_where_no_code_differs_nothing_is_timed_and_it_passes(repository, tmp_path, monkeypatch):
    processes = SimulatedProcesses(CELLS, QUIET)
    formats = ("--format", "terminal,junit,csv,github")
    done, kept = changed_only(monkeypatch, tmp_path, processes, planned(CELLS), *formats)
    assert done.exit_code == 0
    assert processes.count == 0
    assert (kept["verdict"], kept["reason"]) == ("unchanged", "4 of 4 cells; nothing was timed")
    assert {cell["verdict"] for cell in kept["cells"]} == {"unchanged"}
    assert kept["choices"] == {cell.key: {"measured": False, "reason": "same source"} for cell in CELLS}
    assert kept["notes"] == []
    assert "unchanged, same source: op0 fake (4)" in done.stderr
    assert "::notice title=opbench nothing to measure::4 of 4 cells" in done.stdout
    junit = (tmp_path / "out" / "junit.xml").read_text()
    assert junit.count('<skipped message="unchanged: same source" />') == 4


def test_only_cells_whose_code_differs_are_measured_and_judged(repository, tmp_path, monkeypatch):
    changes = slower(0.1) | {CELLS[1].key: math.log1p(0.5)}
    processes = SimulatedProcesses(CELLS, QUIET, slower=changes)
    chosen = {CELLS[0].key, CELLS[2].key}
    done, kept = changed_only(monkeypatch, tmp_path, processes, planned(CELLS, chosen))
    assert done.exit_code == 1
    verdicts = [(cell["verdict"], cell["reason"]) for cell in kept["cells"]]
    measured = "measured, a.py differs"
    assert verdicts == [("slower", measured), ("unchanged", "same source"), ("same", measured), verdicts[1]]
    records = [json.loads(line) for line in (tmp_path / "out" / "processes.jsonl").read_text().splitlines()]
    assert {key for record in records for key in record["cells"]} == chosen
    assert kept["reason"] == "1 of 4 cells"


def test_unchanged_code_does_not_hide_a_cell_that_the_head_lacks(repository, tmp_path, monkeypatch):
    plans = planned(CELLS)
    fewer = replace(plans.processes["head"], plan=CELLS[:3])
    choices = {cell.key: Choice(False, "same source") for cell in CELLS[:3]}
    plans = Planned({**plans.processes, "head": fewer}, choices)
    done, kept = changed_only(monkeypatch, tmp_path, SimulatedProcesses(CELLS, QUIET), plans)
    assert (done.exit_code, kept["verdict"], kept["reason"]) == (5, "missing", "1 of 4 cells; nothing was timed")


def test_unchanged_code_on_other_software_is_not_comparable(repository, tmp_path, monkeypatch):
    plans = planned(CELLS)
    other = replace(plans.processes["head"], identity={"device": "simulated", "torch": "9.9"})
    plans = Planned({**plans.processes, "head": other}, plans.choices)
    done, _ = changed_only(monkeypatch, tmp_path, SimulatedProcesses(CELLS, QUIET), plans)
    assert done.exit_code == 4


@pytest.mark.parametrize("answer", ["pass", "fail"])
def test_nothing_to_measure_can_pass(repository, tmp_path, monkeypatch, answer):
    words = ("--base", "main", "--head", "slow", "--quiet", "--nothing-to-measure", answer)
    simulated(monkeypatch, SimulatedProcesses(CELLS, QUIET, sources={"main": "a", "slow": "a"}))
    done = gate(*words, "--out", str(tmp_path / "out"))
    assert done.exit_code == (0 if answer == "pass" else 4)
    assert "both arms ran the same source of every operator" in done.output
    # It accepts nothing else: neither a slow-down nor another device.
    simulated(monkeypatch, SimulatedProcesses(CELLS, QUIET, slower=slower(0.1)))
    assert gate(*words, "--out", str(tmp_path / "slower")).exit_code == 1
    assert gate("--base", "main", "--nothing-to-measure", "perhaps").exception.args == (
        "--nothing-to-measure must be fail or pass, got 'perhaps'",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --base"),
        (["--base", "main", "--selftest"], "give --base"),
        (["--base", "nowhere"], "nowhere"),
        (["--base", "main", "--tolerance", "3"], "--tolerance"),
        (["--base", "main", "--tolerance", "nan"], "--tolerance"),
        (["--base", "main", "--budget", "-1"], "--budget"),
        (["--base", "main", "--rounds", "2+16"], "--rounds"),
        (["--base", "main", "--rounds", "many"], "--rounds"),
        (["--base", "main", "--inconclusive", "maybe"], "--inconclusive"),
        (["--base", "main", "--format", "latex"], "latex"),
        (["--base", "main", "--changed-only", "--aa"], "--changed-only leaves out the same code, which --aa measures"),
        (["--selftest", "--changed-only"], "--changed-only leaves out the same code, which --selftest measures"),
        (["--selftest", "--inject", "5"], "--inject"),
        (["--selftest", "--direction", "bwd"], "--direction"),
    ],
)
def test_bad_usage(repository, arguments, message):
    error = gate(*arguments).exception
    assert isinstance(error, UsageError)
    assert message in str(error)
    assert not (repository / "results").exists()


def test_bad_usage_is_one_line_and_2(repository):
    done = subprocess.run(
        [sys.executable, "-m", "opbench", "gate", "--base", "nowhere"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "opbench: nowhere: neither a revision of repository nor a folder with a project; " + (
        "in a shallow clone fetch the whole history first\n"
    )


def test_a_folder_that_holds_a_gate_is_not_overwritten(repository, tmp_path, monkeypatch):
    simulated(monkeypatch, SimulatedProcesses(CELLS, QUIET))
    arguments = ("--base", "main", "--head", "slow", "--quiet", "--out", str(tmp_path / "out"))
    assert gate(*arguments).exit_code == 0
    before = (tmp_path / "out" / "processes.jsonl").read_bytes()
    again = gate(*arguments)
    assert again.exit_code != 0
    assert "already" in str(again.exception)
    assert (tmp_path / "out" / "processes.jsonl").read_bytes() == before


def test_the_github_format_names_the_failing_cell(repository, tmp_path, monkeypatch):
    simulated(monkeypatch, SimulatedProcesses(CELLS, QUIET, slower=slower(0.1)))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    done = gate("--base", "main", "--head", "slow", "--quiet", "--format", "github", "--out", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert "::error" in done.stdout
    assert "op0" in done.stdout
    assert "slower" in (tmp_path / "summary.md").read_text()


# The self-test.


def test_a_selftest_finds_its_rates_and_goes_on_where_it_was(repository, tmp_path, monkeypatch):
    class Injected(SimulatedProcesses):
        def process(self, arm, cells):
            self.slower = {
                cell.key: math.log1p(fraction)
                for name, fraction in arm.inject.items()
                for cell in self.cells
                if cell.case.operator == name
            }
            self.head = arm.label
            return super().process(arm, cells)

    processes = Injected(CELLS, Noise(0.005, 0.005))

    class Launcher:
        def __init__(self, options):
            self.run = processes

    monkeypatch.setattr(gate_command, "Launcher", Launcher)
    out = tmp_path / "out"
    arguments = ("--selftest", "--inject", "5%,10%", "--device", "cpu", "--quiet", "--out", str(out))
    first = gate(*arguments, "--sessions", "2")
    assert first.exit_code == 0, first.output
    assert "5 of" not in first.stdout
    done = gate(*arguments, "--sessions", "5")
    assert done.exit_code == 0
    assert "5 of 5" in done.stdout
    assert "--tolerance" in done.stdout
    sessions = [json.loads(line) for line in (out / "sessions.jsonl").read_text().splitlines()]
    assert len(sessions) == 15
    assert all(entry["verdict"] == "slower" for entry in sessions if entry["inject"])
    assert not any(entry["verdict"] == "slower" for entry in sessions if not entry["inject"])
    assert len(list(out.glob("session-*.jsonl.gz"))) == 15
    other = gate(*arguments, "--sessions", "5", "--tolerance", "2%")
    assert "other options" in str(other.exception)


def test_a_gate_says_when_the_selftest_knows_that_it_asks_too_much(repository, tmp_path, monkeypatch):
    processes = SimulatedProcesses(CELLS, Noise(0.02, 0.02))
    simulated(monkeypatch, processes)
    # The self-test speaks of this machine, the simulated gate of the simulated one.
    monkeypatch.setattr(gate_command, "collect_environment", lambda device, threads=None: ENVIRONMENT)

    def notes(*arguments):
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        gate("--base", "main", "--head", "slow", "--quiet", "--out", str(out), *arguments)
        return "\n".join(json.loads((out / "gate.json").read_text())["notes"])

    assert "no self-test on this machine yet" in notes()
    assert (
        gate("--selftest", "--sessions", "2", "--inject", "10%", "--quiet", "--out", str(tmp_path / "s")).exit_code == 0
    )
    asked_too_much = notes("--tolerance", "0.1%", "--budget", "2.2")
    assert "warning: a tolerance of 0.1%" in asked_too_much
    assert "warning: the budget is below" in asked_too_much
    assert "warning" not in notes("--tolerance", "30%")


# Real processes; the long ones with `make test-slow`.


def real_gate(repository, head, *arguments, **options):
    (repository.parent / "one.yaml").write_text("shapes:\n  - {batch: 1, height: 32, width: 32, channels: 32}\n")
    return subprocess.run(
        [
            sys.executable, "-m", "opbench", "gate", "--base", "main", "--head", head, "--ops", "toy_sine", "--device",
            "cpu", "--dtypes", "fp32", "--time-budget", "0.05", "--shapes", str(repository.parent / "one.yaml"),
            "--out", str(repository.parent / "out"), *arguments,
        ],
        capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_a_slower_operator_on_a_branch_is_caught(repository):
    done = real_gate(repository, "slow", "--rounds", "3+5")
    assert done.returncode == 1, done.stdout + done.stderr
    assert left_behind(repository) == []


@pytest.mark.slow
def test_a_comment_is_unchanged_code_and_more_work_is_not(repository):
    done = real_gate(repository, "comment", "--changed-only")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "only comments, docstrings or layout: toy_operators.py differs: toy_sine torch (1)" in done.stderr
    records = (repository.parent / "out" / "processes.jsonl").read_text().splitlines()
    assert [json.loads(line)["cells"] for line in records] == [{}, {}]
    shutil.rmtree(repository.parent / "out")
    done = real_gate(repository, "slow", "--changed-only", "--rounds", "3+5")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "measured, toy_operators.py differs: toy_sine torch (1)" in done.stderr


@pytest.mark.slow
def test_a_comment_is_not_a_slow_down(repository):
    done = real_gate(repository, "comment", "--rounds", "3+5", "--inconclusive", "pass")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_revision_that_does_not_start_is_named(repository):
    done = real_gate(repository, "broken")
    assert done.returncode == 2
    assert "torch_of_another_name" in done.stderr.splitlines()[-1]
    assert left_behind(repository) == []


def test_an_arm_whose_device_broke_ends_and_says_so(tmp_path, monkeypatch):
    """Each cell after it would be an error that the revision did not make."""
    from opbench.sweeps.runner import CellRunner

    whole = CellRunner.run

    def run(runner, cell):
        runner.device_broken = True
        return whole(runner, cell)

    monkeypatch.setattr(CellRunner, "run", run)
    shapes = tmp_path / "one.yaml"
    shapes.write_text("shapes:\n  - {batch: 1, height: 4, width: 4, channels: 32}\n")
    options = {"shapes": [str(shapes)], "ops": ["conv3x3"], "dtypes": ["fp32", "bf16"], "device": "cpu",
               "time_budget": 0.001}  # fmt: skip
    cells = plan(make_request(options, registered()), registered())
    requests = [{"do": "cell", "key": cell.key} for cell in cells]
    out = io.StringIO()
    with pytest.raises(SystemExit, match=f"^cpu no longer answers this process since {re.escape(cells[0].key)}$"):
        arm_program._serve({"options": options, "inject": {}}, requests, out)
    assert [next(iter(json.loads(line))) for line in out.getvalue().splitlines()] == ["ready", "measurement"]


def test_an_interrupt_leaves_no_worktree_and_no_process(repository, tmp_path):
    (tmp_path / "one.yaml").write_text("shapes:\n  - {batch: 1, height: 8, width: 8, channels: 32}\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "opbench", "gate", "--base", "main", "--head", "slow", "--ops", "toy_sine",
            "--device", "cpu", "--dtypes", "fp32", "--shapes", str(tmp_path / "one.yaml"), "--out", str(tmp_path / "o"),
        ],
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(scratch.glob("*/errors")):  # a process of an arm is running
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert left_behind(repository) == []
    assert not list(scratch.iterdir())
    running = Path("/proc").glob("[0-9]*/cmdline")
    assert not [path for path in running if str(scratch).encode() in _read(path)]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_both_arms_are_told_what_to_measure_where_a_revision_could_choose_otherwise(monkeypatch):
    monkeypatch.setattr("opbench.gate.command.default_dtypes", lambda device_type: DefaultDtypes((Dtype.FP32,)))
    assert with_defaults({"device": "cpu", "ops": ["dcnv4"]}) == {
        "device": "cpu", "ops": ["dcnv4"], "shapes": ["smoke"], "dtypes": ["fp32"],
    }  # fmt: skip
    given = {"device": "cpu", "shapes": ["standard"], "dtypes": ["fp16"]}
    assert with_defaults(given) == given
    for ops in (["internimage_t"], ["backbone"], ["internimage_t", "fasternet_t0"]):
        assert with_defaults({"device": "cpu", "ops": ops})["shapes"] == ["backbone_smoke"]
    for ops in (["internimage_t", "dcnv4"], ["all"], ["mine"], []):
        assert with_defaults({"device": "cpu", "ops": ops})["shapes"] == ["smoke"]
