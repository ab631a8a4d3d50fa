"""Endings that nobody plans: kill -9 at any moment, two sweeps in one folder, a full disk; and going on after them."""

import errno
import json
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import psutil
import pytest
from builders import doubling, make_case, make_cell
from test_results import CELLS, COMMAND, ENVIRONMENT, ok

from opbench import files
from opbench.errors import ResultsError, StorageError, UsageError
from opbench.results.frames import load_results
from opbench.results.measurement import Measurement, Status
from opbench.results.run import Run
from opbench.results.run_json import free_run_path
from opbench.sweeps.conduct import Conduct, Isolation
from opbench.sweeps.isolation.executor import InProcessExecutor
from opbench.sweeps.request import make_request
from opbench.sweeps.run_cells import run_cells
from opbench.sweeps.start import continue_run, start_run

SHAPES = "shapes:\n" + "".join(f"  - {{batch: 1, height: {side}, width: 4, channels: 32}}\n" for side in range(4, 12))
SWEEP = (
    "sweep", "--shapes", "eight.yaml", "--ops", "conv3x3", "--dtypes", "fp32,bf16", "--device", "cpu",
    "--time-budget", "0.02", "--no-plots", "--quiet",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "eight.yaml").write_text(SHAPES)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def start(folder, *arguments, **options):
    variables = {"TMPDIR": str(folder / "tmp"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "opbench", *arguments], cwd=folder, env={**os.environ, **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def wait_for_rows(folder, count):
    journal = folder / "run" / "journal.jsonl"
    for _ in range(4800):
        if journal.exists() and journal.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError("the sweep never came that far")


def nothing_runs(folder):
    """Within a while, no process with this folder as its place for temporary files, and no file there."""
    for _ in range(500):
        if not processes_of(folder) and not list((folder / "tmp").iterdir()):
            return True
        time.sleep(0.02)
    return False


def processes_of(folder):
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and str(folder / "tmp") in process.environ().get("TMPDIR", ""):
                found.append(process)
        except (psutil.Error, OSError):
            pass
    return found


def check_kills(folder, seed, kills, dtypes="fp32,bf16"):
    """Kill a sweep at random moments until it is done; no finished cell is ever lost or measured twice."""
    draw = random.Random(seed)  # noqa: S311 - moments, no secrets
    journal = folder / "run" / "journal.jsonl"
    kept = b""
    for number in range(kills):
        ways = ("--resume",) if (folder / "run" / "run.json").exists() else ()
        process = start(folder, *SWEEP, "--dtypes", dtypes, "--out", "run", *ways)
        if number == 0:  # the moments that matter are after torch is imported
            wait_for_rows(folder, draw.randrange(1, 4))
        else:
            time.sleep(draw.uniform(0, 9))
        process.kill()
        process.communicate()
        assert nothing_runs(folder)
        whole = journal.read_bytes() if journal.exists() else b""
        whole = whole[: whole.rfind(b"\n") + 1]
        assert whole.startswith(kept)
        kept = whole
        if (folder / "run" / "run.json").exists():
            assert (load_results(folder / "run").status == "ok").sum() == kept.count(b"\n")
    last = start(folder, *SWEEP, "--dtypes", dtypes, "--out", "run", "--resume")
    out, err = last.communicate(timeout=240)
    assert last.returncode == 0, err
    cells = 8 * len(dtypes.split(","))
    assert out.startswith(f"{cells} cells: {cells} ok")
    assert journal.read_bytes().startswith(kept)
    assert journal.read_bytes().count(b"\n") == cells
    assert not list((folder / "run").rglob("*.part"))
    assert nothing_runs(folder)


def test_kill_9_loses_at_most_the_cell_in_flight(folder):
    check_kills(folder, seed=1, kills=1, dtypes="fp32")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 4))
def test_kill_9_at_many_random_moments(folder, seed):
    check_kills(folder, seed, kills=6)


HOLD = """
import sys, time
from pathlib import Path
from opbench.results.run import Run

with Run.open(Path(sys.argv[1])).append():
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_sweep_into_a_folder_is_refused_while_the_first_lives(mended):
    run, _ = mended
    holder = subprocess.Popen([sys.executable, "-c", HOLD, run.path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ResultsError, match="another sweep is writing there; wait for it, or choose another --out"):
            run_cells(run, {"double": doubling()}, Quiet(), Conduct(Isolation.NONE))
    finally:
        holder.kill()
        holder.communicate()
    run_cells(run, {"double": doubling()}, Quiet(), Conduct(Isolation.NONE))  # a dead process holds nothing


def test_two_sweeps_that_start_at_once_never_share_a_folder(tmp_path):
    assert free_run_path(tmp_path, "cpu") != free_run_path(tmp_path, "cpu")
    run = Run.create(tmp_path / "run", command=COMMAND, environment=ENVIRONMENT, plan=CELLS)
    with run.append(), pytest.raises(ResultsError, match="another sweep is writing there"):
        Run.create(tmp_path / "run", command=COMMAND, environment=ENVIRONMENT, plan=CELLS)
    with run.append(), pytest.raises(ResultsError, match="another sweep"), run.append():
        pass


def file_size_limit():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000))


def test_a_file_system_that_takes_no_more_is_one_line_and_exit_code_3(folder):
    # A limit on the size of files cuts writes short as a full disk does, and needs no rights to set up.
    process = start(folder, *SWEEP, "--out", "run", preexec_fn=file_size_limit)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 3, err
    assert err == (
        "opbench: run/journal.jsonl: cannot be written: File too large; what was written before stays readable\n"
    )
    rows = (folder / "run" / "journal.jsonl").read_bytes()
    assert 0 < rows.count(b"\n") < 16
    assert rows.endswith(b"\n")
    assert (load_results(folder / "run").status == "ok").sum() == rows.count(b"\n")
    assert nothing_runs(folder)


@pytest.fixture
def full_disk(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(os, "fsync", refuse)


def test_a_full_disk_leaves_the_rows_before_and_the_old_files(tmp_path, full_disk):
    run = Run.create(tmp_path / "run", command=COMMAND, environment=ENVIRONMENT, plan=CELLS)
    with run.append() as journal:
        journal.write(ok(CELLS[0]))
    old = run.write_measurements_csv().read_bytes()
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    full_disk()
    with (
        pytest.raises(StorageError, match=r"journal\.jsonl: cannot be written: No space left"),
        run.append() as journal,
    ):
        journal.write(ok(CELLS[1]))
    with pytest.raises(StorageError, match=r"measurements\.csv: cannot be written: No space left"):
        run.write_measurements_csv()
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
    assert before["measurements.csv"] == old
    with pytest.raises(StorageError, match="No space left"):
        Run.create(tmp_path / "other", command=COMMAND, environment=ENVIRONMENT, plan=CELLS)


def test_whole_files_are_replaced_whole_and_leftovers_go(tmp_path, monkeypatch):
    path = tmp_path / "file.csv"
    files.write_whole(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        files.write_whole(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["file.csv"]
    assert path.read_text() == "old"
    (tmp_path / "tables").mkdir()
    for left in (tmp_path / "run.json.17.part", tmp_path / "tables" / "a.md.17.part"):
        left.write_text("half")
    files.remove_leftovers(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


class Quiet:
    def __init__(self):
        self.ends = []

    def started(self, cell, number, total):
        pass

    def stage(self, name):
        pass

    def note(self, text):
        pass

    def ended(self, measurement):
        self.ends.append(measurement)


@pytest.fixture
def mended(tmp_path):
    """A run with rows of every status, and the operator that would now do all of them right."""
    (tmp_path / "eight.yaml").write_text(SHAPES)
    known = {"double": doubling()}
    request = make_request({"shapes": [str(tmp_path / "eight.yaml")], "dtypes": ["fp32"], "time_budget": 0.01}, known)
    run = start_run(request, known, tmp_path / "run")
    statuses = (Status.ERROR, Status.TIMEOUT, Status.OUT_OF_MEMORY, Status.WRONG, Status.UNAVAILABLE)
    with run.append() as journal:
        for cell, status in zip(run.plan(), statuses, strict=False):
            journal.write(Measurement(cell, status, "as made"))
    return run, known


@pytest.mark.parametrize(
    ("retry", "measured"),
    [((), 3), (("error",), 4), (("error", "timeout"), 5), (("out_of_memory", "wrong", "unavailable"), 6)],
)
def test_a_resumed_run_measures_what_is_missing_and_what_it_is_told_to_retry(mended, retry, measured):
    run, known = mended
    before = (run.path / "journal.jsonl").read_bytes()
    resumed, quiet = continue_run(run.path, {}, known), Quiet()
    conduct = Conduct(Isolation.NONE, retry=frozenset(map(Status, retry)))
    run_cells(resumed, known, quiet, conduct)
    assert len(quiet.ends) == measured
    assert {m.status for m in quiet.ends} == {Status.OK}
    frame = load_results(run.path)
    assert len(frame) == 8
    assert (frame.status == "ok").sum() == measured
    assert not set(retry) & set(frame.status)
    assert (run.path / "journal.jsonl").read_bytes().startswith(before)  # what failed first is not rewritten
    run_cells(resumed, known, again := Quiet(), conduct)
    assert not again.ends


def change_run(run, **environment):
    data = json.loads((run.path / "run.json").read_text())
    data["environment"].update(environment)
    (run.path / "run.json").write_text(json.dumps(data))


def test_another_environment_is_refused_by_name_unless_accepted_and_then_said(mended):
    run, known = mended
    change_run(run, device_name="Abacus")
    with pytest.raises(ResultsError, match=r"another set-up: device: Abacus there, .* here .--accept-differences goes"):
        continue_run(run.path, {}, known)
    resumed = continue_run(run.path, {}, known, accept_differences=True)
    run_cells(resumed, known, Quiet(), Conduct(Isolation.NONE, ceilings_budget_s=0.0))
    frame = load_results(run.path)
    assert frame.warnings[frame.status == "ok"].str.contains("resumed elsewhere: device: Abacus there").all()
    assert not frame.warnings[frame.status != "ok"].str.contains("resumed").any()
    [noted] = json.loads((run.path / "run.json").read_text())["resumed"]
    assert "Abacus" in noted["differences"][0]


@pytest.mark.slow
def test_a_difference_may_be_accepted_by_its_name(mended):
    run, known = mended
    change_run(run, packages={"torch": "0.1", "triton": "0.2"})
    with pytest.raises(ResultsError, match=r"another set-up: triton: 0.2 there, \S+ here .--accept") as refused:
        continue_run(run.path, {}, known, accept_differences=["torch"])
    assert "torch: 0.1" not in str(refused.value)
    with pytest.raises(
        UsageError, match=r"unknown part of the environment 'drivers'; known: device, .*, driver, gpu uuid"
    ):
        continue_run(run.path, {}, known, accept_differences=["drivers"])
    resumed = continue_run(run.path, {}, known, accept_differences=["torch", "triton", "driver", "gpu-uuid"])
    run_cells(resumed, known, Quiet(), Conduct(Isolation.NONE, ceilings_budget_s=0.0))
    frame = load_results(run.path)
    assert frame.warnings[frame.status == "ok"].str.contains("resumed elsewhere: torch: 0.1 there").all()


SWEEP_THAT_ENDS = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from builders import doubling
from opbench.sweeps.conduct import Conduct, Isolation
from opbench.sweeps.progress import NULL_PROGRESS
from opbench.sweeps.run_cells import run_cells
from opbench.sweeps.start import continue_run
from opbench.workload.operator import Provider

def build(case, tensors):
    if case.shape.height == 10:
        os._exit(7)
    return lambda: tensors["x"] * 2

known = {"double": doubling(providers=(Provider("right", build, "ends the process at one shape"),))}
run_cells(continue_run(Path(sys.argv[2]), {}, known), known, NULL_PROGRESS, Conduct(Isolation.NONE))
"""


def test_without_isolation_a_cell_that_ended_the_process_is_a_row_of_the_resumed_run(mended):
    run, _known = mended  # what lacks a row are the heights 9 to 11
    command = [sys.executable, "-c", SWEEP_THAT_ENDS, str(Path(__file__).parent), str(run.path)]
    assert subprocess.run(command, timeout=300).returncode == 7
    assert len(run.measurements()) == 6
    assert json.loads((run.path / "started.json").read_text())["stage"] == "check"
    assert subprocess.run(command, timeout=300).returncode == 0  # would end again, if the cell were tried again
    *_, left, last = run.measurements()
    assert (left.cell.case.shape.height, left.status) == (10, Status.ERROR)
    assert left.reason == "the process that measured it ended in check, without a row"
    assert (last.cell.case.shape.height, last.status) == (11, Status.OK)
    assert not (run.path / "started.json").exists()


def test_what_interrupts_a_cell_without_ending_the_process_blames_none(mended):
    run, known = mended

    class Interrupts(Quiet):
        def stage(self, name):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(run, known, Interrupts(), Conduct(Isolation.NONE))
    assert not (run.path / "started.json").exists()
    run_cells(run, known, quiet := Quiet(), Conduct(Isolation.NONE))
    assert {m.status for m in quiet.ends} == {Status.OK}


def test_other_code_is_another_set_up(mended):
    run, known = mended
    change_run(run, git_revision="0123abc")
    with pytest.raises(ResultsError, match=r"another set-up: git revision: 0123abc there, .* here"):
        continue_run(run.path, {}, known)


def test_another_plan_is_refused_by_name_unless_accepted(mended, tmp_path):
    run, known = mended
    more = SHAPES.replace("height: 4,", "height: 40,")
    (tmp_path / "eight.yaml").write_text(more)
    cell = r"double/module/fwd/eight/1x4x4x32/fp32/factor=2@right"
    with pytest.raises(
        ResultsError, match=rf"plan: 1 cells no longer planned, first {cell}; plan: 1 cells not in the run"
    ):
        continue_run(run.path, {}, known)
    (tmp_path / "eight.yaml").write_text(SHAPES)
    dearer = {"double": doubling(flop_count=lambda case: 7)}
    with pytest.raises(ResultsError, match=rf"plan: 8 cells with other costs, first {cell}"):
        continue_run(run.path, {}, dearer)
    assert continue_run(run.path, {}, dearer, accept_differences=True).plan() == run.plan()
    with pytest.raises(ResultsError, match="cannot resume with another seed: 0 there, 5 now"):
        continue_run(run.path, {"seed": 5}, known, accept_differences=True)


def test_a_cell_that_forks_does_not_sweep_twice(mended):
    run, _ = mended

    def forks(cell, on_stage):
        with warnings.catch_warnings(action="ignore"):  # of threads in this process
            os.fork()
        return Measurement(cell, Status.ERROR, "forked")

    executor, count = InProcessExecutor(forks), len(list(run.measurements()))
    with run.append() as journal:
        for cell in run.plan():
            journal.write(executor.run(cell, lambda stage: None))
    assert len(list(run.measurements())) == count + 8


def test_the_measurement_of_a_cell_is_written_whatever_its_text(tmp_path):
    cell = make_cell(make_case())
    run = Run.create(tmp_path / "run", command=COMMAND, environment=ENVIRONMENT, plan=[cell])
    with run.append() as journal:
        journal.write(Measurement(cell, Status.ERROR, "bad \udcff\x1b[2J\x00\n" * 1000))
    [row] = Run.open(run.path).rows()
    assert row.reason.startswith(r"bad \udcff\x1b[2J\x00 bad")
    assert row.reason.isprintable()
    assert len(row.reason) <= 500
