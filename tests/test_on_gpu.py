"""tools/gpu/on_gpu.py: its table, what becomes of a step that fails, hangs or does not fit, how a command goes on."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import on_gpu
import pytest
from gpu_folder import ARCHIVE, ARCHIVE_LIMIT_BYTES, LOG_BYTES, WorkFolder
from gpu_plan import planned_cells, reproducing_steps
from gpu_steps import PARTS, SPARE, STEPS, Step, chosen
from on_gpu import DEADLINE_S, RESERVE_S, Command, main
from rehearsal import PLANTED, rehearsed
from typer.testing import CliRunner

from opbench.cli.app import app
from opbench.registry import registry
from opbench.results.journal import JOURNAL
from opbench.results.measurement import Measurement, Status
from opbench.results.run import Run
from opbench.timing.stopping import StopReason

ROOT = Path(__file__).parents[1]


def seconds(part, cells):
    """Of a part: launches one at a time take 0.5 s a cell, events 0.2 s."""
    return len(cells) * (0.5 if part.startswith("as-paper") else 0.2)


@cache
def pytest_help():
    return subprocess.run([sys.executable, "-m", "pytest", "--help"], cwd=ROOT, capture_output=True, text=True).stdout


@pytest.fixture
def planned(monkeypatch):
    """The cells of a step by part, as a machine with a GPU plans them."""
    monkeypatch.setattr("opbench.sweeps.request.resolve_device", lambda name: name)
    return lambda step: dict(planned_cells(step))


# The table


def test_every_step_has_a_name_of_its_own_and_ends_within_ten_minutes():
    assert len({step.name for step in STEPS}) == len(STEPS)
    for step in STEPS:
        assert step.estimate_s < step.limit_s < 600
        assert set(step.parts) <= set(PARTS)
        assert step.needs in {"", *(step.name for step in STEPS)}


def test_each_part_fits_one_command_after_those_before_it():
    done = set()
    for part in PARTS:
        steps = [step for step in chosen([part], []) if step.name not in done and step.rank < SPARE]
        assert sum(step.estimate_s for step in steps) <= DEADLINE_S - RESERVE_S, part
        done |= {step.name for step in steps if step.local}


def test_an_estimate_has_room_for_every_cell(planned):
    for step in reproducing_steps():
        assert sum(seconds(*part) for part in planned(step).items()) <= step.estimate_s, step.name


def test_no_cell_is_measured_twice(planned):
    seen = set()
    for step in reproducing_steps():
        for part, cells in planned(step).items():
            keys = {(part, cell.key) for cell in cells}
            assert not keys & seen, step.name
            seen |= keys


@pytest.mark.parametrize("change", [lambda step: step, rehearsed])
def test_every_command_and_option_exists(change):
    for step in map(change, STEPS):
        words = list(step.command)
        if words[:2] == ["-m", "opbench"]:
            shown = CliRunner().invoke(app, [words[2], "--help"], env={"COLUMNS": "300"})
            known = shown.output
            assert shown.exit_code == 0, step.name
        elif words[:2] == ["-m", "pytest"]:
            known = pytest_help()
        else:
            known = (ROOT / words[0]).read_text()
        if words[0] != "tools/gpu/rehearsal.py":  # it hands its options on
            for option in [word for word in words if word.startswith("--")]:
                assert option in known, (step.name, option)
        for operator in words[words.index("--ops") + 1].split(",") if "--ops" in words else ():
            assert operator in registry.registered(), step.name
        for file in [word for word in words if word.startswith(("tests/", "tools/"))]:
            assert (ROOT / file).exists(), (step.name, file)


def test_every_test_that_needs_a_gpu_belongs_to_a_step():
    named = {word for step in STEPS if "pytest" in step.command for word in step.command}
    marked = {path.name for path in (ROOT / "tests").glob("test_*.py") if "mark" + ".gpu" in path.read_text()}
    assert {f"tests/{name}" for name in marked} <= named
    assert {f"tests/test_{name}.py" for name in ("kernels", "modules", "fused", "tuning", "operators")} <= named


def test_what_is_asked_for_and_does_not_exist_is_named():
    assert [step.name for step in chosen([], ["compile", "environment"])] == ["environment", "compile"]  # by rank
    with pytest.raises(ValueError, match="no step is called evn; known: environment"):
        chosen(["A"], ["evn"])
    with pytest.raises(ValueError, match="no part is called D; known: A, B, C"):
        chosen(["A", "D"], [])


def test_the_list_names_every_step_and_runs_nothing(capsys):
    assert main(["--list", "--part", "C,A"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1].strip(":") for line in lines] == [step.name for step in chosen(["A", "C"], [])]
    assert any("OMP_NUM_THREADS=1 -m pytest" in line for line in lines)


# Steps that are made up


def program(name, text="", rank=None, **changes):
    """A step that runs a line of Python in the root of the tests' folder."""
    values = {"parts": "A", "estimate_s": 10, "limit_s": 10**9, **changes}
    return Step(name, rank=rank or len(name), command=("-c", text), **values)


class Bench:
    """Commands over made-up steps, by a clock that stands in a file and moves when a program writes there."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = folder / "clock"
        self.at(0)
        self.said = []

    def at(self, seconds):
        self.clock.write_text(str(seconds))

    def now(self):
        while not (text := self.clock.read_text()):
            pass  # another process is writing it
        return float(text)

    def command(self, steps, *, work="work", out="out", deadline_s=10**6, terminated_by_signal=False, **options):
        """The exit code; what was printed is in `said`."""
        (self.folder / out).mkdir(exist_ok=True)
        self.work = WorkFolder(self.folder / work)
        carried = self.work.path / ARCHIVE
        if self.work.is_new and carried.exists():
            self.work.restore(carried)
        command = Command(
            self.work, self.folder / out, deadline_s + RESERVE_S, {**os.environ, "CLOCK": str(self.clock)},
            clock=self.now, **options,
        )  # fmt: skip
        if terminated_by_signal:
            signal.signal(signal.SIGTERM, command.terminate)
        code = command.carry_out(sorted(steps, key=lambda step: step.rank))
        self.said = (self.folder / out / "on_gpu.log").read_text().splitlines()
        return code

    def archived(self, out="out"):
        """Names in the archive."""
        with tarfile.open(self.folder / out / ARCHIVE) as packed:
            return set(packed.getnames())

    def carry(self, out, work):
        """What a person does between two machines."""
        (self.folder / work).mkdir()
        (self.folder / work / ARCHIVE).write_bytes((self.folder / out / ARCHIVE).read_bytes())


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield Bench(tmp_path)
    signal.signal(signal.SIGTERM, before)


TAKES = "import os; f = open(os.environ['CLOCK'], 'w'); f.write('{}'); f.close(); print('done')"


def test_steps_go_by_rank_and_one_that_no_longer_fits_is_skipped_and_named(bench):
    steps = [
        program("small", TAKES.format(95), rank=4, estimate_s=5),
        program("first", TAKES.format(50), rank=1, estimate_s=50),
        program("large", rank=2, estimate_s=60),
        program("exact", TAKES.format(90), rank=3, estimate_s=50),
    ]
    assert bench.command(steps, deadline_s=100) == 1
    heads = [line.split()[1] for line in bench.said if line.startswith("==")]
    assert heads == ["first", "large", "exact", "small"]
    assert "large: SKIPPED: 50 s are left, it takes about 60 s" in bench.said
    assert bench.said[-1] == "3 of 4 steps are complete and well"
    assert {"logs/first.log", "logs/exact.log", "logs/small.log", "steps.jsonl"} <= bench.archived()
    assert "logs/large.log" not in bench.archived()


@pytest.mark.parametrize(
    ("text", "said", "exit_code"),
    [
        ("", "   ok, 0 s", 0),
        ("import sys; print('two cells failed'); sys.exit(1)", "   exit code 1, 0 s: two cells failed", 1),
        ("import sys; print('no GPU here'); sys.exit(77)", "   NOT RUN, 0 s: no GPU here", 1),
        ("import os; os.kill(os.getpid(), 9)", "   exit code -9, 0 s: $ ", 1),
    ],
)
def test_what_becomes_of_a_step(bench, text, said, exit_code):
    assert bench.command([program("one", text), program("after", "open('after', 'w')")]) == exit_code
    assert any(line.startswith(said) for line in bench.said)
    assert Path("after").exists()


def test_a_second_command_elsewhere_goes_on_from_the_archive(bench):
    note = "open('{out}/ran', 'a').write('x')"
    steps = [
        program("done", note + "; import os; assert os.environ['MINE'] == '1'", variables={"MINE": "1"}),
        program("failed", note + "; raise SystemExit(1)"),
        program("could_not_run", note + "; raise SystemExit(77)"),
        program("not_in_time", note, estimate_s=10**9),
        program("stays_on_the_machine", note, local=True),
    ]
    assert bench.command(steps) == 1
    bench.carry("out", "elsewhere")
    steps[3] = program("not_in_time", note)
    assert bench.command(steps, work="elsewhere", out="second") == 1  # of what failed
    ran = {step.name: len((bench.folder / "elsewhere" / step.name / "ran").read_text()) for step in steps}
    assert ran == {"done": 1, "failed": 1, "could_not_run": 2, "not_in_time": 1, "stays_on_the_machine": 2}
    assert "failed: complete since" in " ".join(bench.said)
    assert bench.command(steps, work="elsewhere", again=["failed", "done"]) == 1
    assert (bench.folder / "elsewhere" / "done" / "ran").read_text() == "xx"  # named, so done again


def test_a_step_without_what_it_needs_is_skipped(bench):
    steps = [program("build", "raise SystemExit(1)", local=True), program("compare", "open('ran', 'w')", needs="build")]
    assert bench.command(steps) == 1
    assert "compare: SKIPPED: it needs build, which is not done here" in bench.said
    assert bench.command([program("build", local=True), steps[1]], again=["build"]) == 0
    assert Path("ran").exists()


CELLS = """
import os, pathlib, sys
journal, started = pathlib.Path('{out}/journal.jsonl'), pathlib.Path('{out}/started.json')
done = journal.read_text().split() if journal.exists() else []
if started.exists():
    done.append(started.read_text() + ':error')
for cell in 'abcd':
    if not any(row[0] == cell for row in done):
        started.write_text(cell)
        if cell == 'b':
            journal.write_text('\\n'.join(done))
            ENDING
        done.append(cell + ':ok')
journal.write_text('\\n'.join(done))
started.unlink()
"""
STALLS = """
            import time
            for tick in range(10**6):
                pathlib.Path(os.environ['CLOCK']).write_text(str(100 * tick))
                time.sleep(0.02)
"""


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("sys.exit(2)", "ended, exit code 2"),
        ("os.abort()", "ended, exit code -6"),
        (STALLS.strip(), "stalled, exit code -9"),
    ],
)
def test_a_sweep_goes_on_after_the_cell_that_ended_it(bench, ending, said):
    cells = program("cells", CELLS.replace("ENDING", ending), resumes=True)
    assert bench.command([cells], stall_s=90.0, deadline_s=10**9) == 0
    assert (bench.work.path / "cells" / "journal.jsonl").read_text() == "a:ok\nb:error\nc:ok\nd:ok"
    assert f"   {said}: again, after the cell that ended it (1)" in bench.said


def test_what_makes_no_progress_is_not_run_again(bench):
    text = "open('ran', 'a').write('x'); raise SystemExit(2)"
    assert bench.command([program("usage", text, resumes=True)]) == 1
    assert Path("ran").read_text() == "x"


def test_a_step_is_stopped_at_its_limit_and_what_it_started_goes_with_it(bench):
    text = (
        "import subprocess, sys, os, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open('child', 'w').write(str(child.pid)); f = open(os.environ['CLOCK'], 'w'); f.write('50'); f.close()\n"
        "time.sleep(600)"
    )
    assert bench.command([program("slow", text, limit_s=20), program("after it", "open('after', 'w')")]) == 1
    assert "slow: STOPPED, out of time after 50 s; see slow.log" in bench.said
    assert Path("after").exists()
    stopped = int(Path("child").read_text())
    assert not Path(f"/proc/{stopped}").exists() or "Z" in Path(f"/proc/{stopped}/stat").read_text()


def test_terminated_in_the_middle_it_keeps_what_is_there_and_goes_on_later(bench):
    ends = "import os, signal, time; open('{out}/half', 'w'); os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)"
    steps = [program("one", "open('{out}/whole', 'w')"), program("two", ends, rank=4), program("three", rank=5)]
    assert bench.command(steps, terminated_by_signal=True) == 128 + signal.SIGTERM
    assert bench.said[-1] == "terminated; not begun: three"
    assert {"one/whole", "two/half", "steps.jsonl", "logs/on_gpu.log"} <= bench.archived()
    bench.carry("out", "elsewhere")
    assert bench.command([steps[0], program("two", rank=4), steps[2]], work="elsewhere", out="second") == 0
    assert [entry.step for entry in bench.work.entries() if entry.event == "started"] == ["one", "two", "two", "three"]


def test_the_archive_leaves_out_what_stays_and_what_can_be_made_again(tmp_path):
    work = WorkFolder(tmp_path / "work")
    for name in ("local/triton/kernel", "part/run/journal.jsonl", "part/run/measurements.csv", "part/run/tables/a.md",
                 "part/run/run.json.12.part", "results.tgz", "cache/opbench/x"):  # fmt: skip
        path = work.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    work.log("part").write_text("start" + "x" * 2 * LOG_BYTES + "end")
    work.note("part", "ended", 0)
    work.pack(tmp_path / ARCHIVE)
    other = WorkFolder(tmp_path / "other")
    assert other.is_new
    other.restore(tmp_path / ARCHIVE)
    assert not other.is_new
    assert other.completed("part", here=False).code == 0
    assert other.completed("part", here=True) is None
    files = {str(path.relative_to(other.path)) for path in other.path.rglob("*") if path.is_file()}
    assert files == {"local/machine", "part/run/journal.jsonl", "cache/opbench/x", "logs/part.log", "steps.jsonl"}
    kept = other.log("part").read_text()
    assert (len(kept), kept[-3:]) == (LOG_BYTES, "end")


def test_a_copy_without_git_gets_the_revision(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(on_gpu, "ROOT", tmp_path)
    monkeypatch.setattr("opbench.host.checkout.git_revision", lambda file: "0123456789" * 4)
    assert main(["--prepare"]) == 0
    assert (tmp_path / ".opbench-revision").read_text() == "0123456789" * 4 + "\n"
    monkeypatch.setattr("opbench.host.checkout.git_revision", lambda file: None)
    assert main(["--prepare"]) == 2
    assert "no git revision" in capsys.readouterr().err


# All of it


def rehearse(work, out, deadline_s, faults):
    """A command of part B without a GPU, started."""
    command = [
        sys.executable, "tools/gpu/on_gpu.py", "--rehearse", "--part", "B", "--deadline", str(deadline_s),
        "--stall", "25", "--work", str(work), "--out", str(out),
    ]  # fmt: skip
    variables = {**os.environ, PLANTED: json.dumps(faults), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)


def carry(out, work):
    work.mkdir()
    (work / ARCHIVE).write_bytes((out / ARCHIVE).read_bytes())


def journals(work):
    return {str(path.parent.relative_to(work)): path.read_text() for path in work.rglob(JOURNAL)}


@pytest.mark.slow
def test_a_rehearsal_of_the_papers_tables_with_faults_a_deadline_and_a_termination(tmp_path):
    places = [tmp_path / name for name in ("first", "second", "third")]
    outs = [tmp_path / f"{place.name}-out" for place in places]
    faults = {
        "conv3x3/module/fwd/rehearsal_shape/2x5x7x64/fp16": "illegal access",
        "flash_attention_2/core/fwd/rehearsal_shape/2x5x7x64/fp16": "crash",
        "dcnv4/core/fwd/rehearsal_shape/2x5x7x64/fp32": "hang",
    }
    said, _ = rehearse(places[0], outs[0], 60, faults).communicate(timeout=120)
    assert "SKIPPED" in said
    assert "again, after the cell that ended it" in said

    carry(outs[0], places[1])
    second, finished = rehearse(places[1], outs[1], 600, faults), journals(places[0])
    while len(journals(places[1])) <= len(finished):  # until it has begun a run that the first had not
        assert second.poll() is None
        time.sleep(0.05)
    second.send_signal(signal.SIGTERM)
    assert "terminated; not begun: " in second.communicate(timeout=120)[0]
    assert second.returncode == 128 + signal.SIGTERM

    carry(outs[1], places[2])
    said, _ = rehearse(places[2], outs[2], 1200, faults).communicate(timeout=1200)
    ended, between = journals(places[2]), journals(places[1])
    assert "SKIPPED" not in said
    planted_in = {step.name for step in reproducing_steps() if "B" in step.parts and step.rank < SPARE}
    assert {name.split("/")[0] for name in ended} >= planted_in
    for earlier in (finished, between):
        for name, text in earlier.items():
            assert ended[name].startswith(text), name  # nothing is lost, and nothing written again
    reasons = Counter()
    for name in ended:
        run = Run.open(places[2] / name)
        assert Counter(line.cell.key for line in run.measurements()) == {cell.key: 1 for cell in run.plan()}, name
        for line in run.measurements():
            here = faults if name.split("/")[0] in planted_in else {}
            planted = [fault for place, fault in here.items() if place in line.cell.key]
            assert (line.status is Status.ERROR) == bool(planted), line.reason
            reasons.update((fault, "without a row" in line.reason) for fault in planted)
    assert set(reasons) == {("illegal access", False), ("crash", True), ("hang", True)}


@pytest.mark.slow
def test_the_archive_of_every_cell_comes_back_whole(tmp_path, planned):
    """1000 samples a cell, as many as fit in the time budget of a launch of 50 us, none like another."""
    random = np.random.default_rng(0)
    work, count = WorkFolder(tmp_path / "work"), 0
    for step in reproducing_steps():
        for part, cells in planned(step).items():
            folder = work.step(step.name) / part
            folder.mkdir()
            with (folder / JOURNAL).open("w") as journal:
                for cell in cells:
                    samples = np.float32(0.05 * random.lognormal(sigma=0.03, size=1000)).astype(float)
                    measurement = Measurement(
                        cell, Status.OK, latencies_ms=tuple(samples.tolist()), launches_per_sample=1,
                        stop_reason=StopReason.TIME_BUDGET, timer="cuda-event", cache="cold",
                    )  # fmt: skip
                    journal.write(measurement.to_json_line() + "\n")
                    count += 1
    assert count > 1000
    size = work.pack(tmp_path / ARCHIVE)
    print(f"{count} cells, {size / 2**20:.1f} MiB")
    assert size < ARCHIVE_LIMIT_BYTES
