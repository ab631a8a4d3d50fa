"""What is said where samples scatter on a busy CPU, how many threads a sweep uses, and what ran beside the ceilings."""

import os
from dataclasses import replace

import pytest
import torch
from builders import doubling, make_case, make_cell
from report_fixtures import make_run, measurement
from test_run import Recorder

from opbench.device.environment import collect_environment
from opbench.device.identity import Identity
from opbench.device.interference import others_share
from opbench.report import run_tables, speedup_tables
from opbench.report.advice import cells_advice, way_out
from opbench.report.page.warnings import run_warnings
from opbench.results.measurement import Measurement, Status
from opbench.sweeps.conduct import Conduct, Isolation
from opbench.sweeps.isolation import worker
from opbench.sweeps.process_limits import torch_threads
from opbench.sweeps.request import RunOptions, make_request, request_of_command
from opbench.sweeps.run_cells import run_cells
from opbench.sweeps.runner import CellRunner
from opbench.sweeps.start import start_run
from opbench.workload.case import Shape
from opbench.workload.cell_warning import CellWarning

TWO = {"device": "cpu", "cpu": {"torch_threads": 2}}
LOADED = CellWarning.parse("CPU load: other processes used 83% of all cores during warm-up and samples")
SMALL = Shape(1, 28, 28, 64)


def test_the_way_out_depends_on_the_threads_and_the_device():
    assert way_out(TWO) == (
        "close the other program, or measure with --threads 1: the 2 threads of an operator wait for each other "
        "whenever another program has a core"
    )
    assert way_out({"device": "cpu", "cpu": {"torch_threads": 1}}) == (
        "close the other program, or take a larger --time-budget"
    )
    assert way_out({"device": "cuda:0", "cpu": {"torch_threads": 2}}) == ""
    assert way_out({"device_name": "from before"}) == ""


def test_what_was_seen_is_said_in_one_line():
    assert cells_advice([(0.01, ()), (None, ()), (0.25, ())], TWO) == ""
    seen = cells_advice([(0.3, ()), (152.46, ()), (0.01, (LOADED, CellWarning("CPU governor", "powersave")))], TWO)
    assert seen.startswith("samples scatter by up to ±15246 % and other programs used the CPU: close the other program")
    assert cells_advice([(0.3, (LOADED,))], {"device": "cuda:0"}) == ""


def test_the_advice_is_below_the_tables_and_on_the_page(tmp_path):
    run = make_run(tmp_path, [measurement("conv3x3", SMALL, "fp32", 1.0, wide=True)])
    assert not any("--threads" in note for note in (*run_tables(run)[0].notes, *run_warnings(run)))
    run.environment = {**run.environment, **TWO}
    for notes in (run_tables(run)[0].notes, run_warnings(run)):
        [note] = [note for note in notes if "--threads 1" in note]
        assert note.startswith("Samples scatter by up to ±50 %: close the other program")


def test_a_speed_up_of_uncertain_cells_is_marked(tmp_path):
    cells = [
        measurement("conv3x3", SMALL, "fp32", 2.0, wide=True), measurement("conv3x3", SMALL, "fp16", 1.0),
        measurement("dcnv4", SMALL, "fp32", 2.0), measurement("dcnv4", SMALL, "fp16", 1.0),
    ]  # fmt: skip
    [table] = speedup_tables(make_run(tmp_path, cells))
    assert [row[2] for row in table.rows] == ["~2.00", "2.00"]
    assert any(note.startswith("~: the median's 95 % interval is wider than ±5 % (1 cell)") for note in table.notes)


class Notes(Recorder):
    """Progress that keeps the notes."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Sweeps two cells without isolation under given circumstances; the notes that were given."""
    (tmp_path / "tiny.yaml").write_text(
        "shapes:\n" + "".join(f"  - {{batch: 1, height: {side}, width: 4, channels: 8}}\n" for side in (4, 6))
    )
    known = {"double": doubling()}
    monkeypatch.setattr(
        "opbench.sweeps.runner.interference", lambda before, after: ()
    )  # of the machine that tests run on

    def run(*, load, share):
        monkeypatch.setattr("opbench.sweeps.run_cells.others_now", lambda: share)
        shapes = [str(tmp_path / "tiny.yaml")]
        request = make_request({"shapes": shapes, "dtypes": ["fp32"], "device": "cpu", "time_budget": 0.01}, known)
        made = start_run(request, known, tmp_path / f"run{len([*tmp_path.iterdir()])}")
        made.environment["cpu"].update(load_average=[load, 0.0, 0.0], torch_threads=2)
        made.write_ceilings("none here")
        progress = Notes()
        run_cells(made, known, progress, Conduct(Isolation.NONE))
        return progress.notes

    return run


def test_a_machine_that_is_busy_at_the_start_is_said_once(sweep):
    assert sweep(load=3.0, share=0.45) == [f"other programs use 45% of all cores: {way_out(TWO)}"]


def test_a_load_that_has_ended_is_no_busy_machine(sweep, monkeypatch):
    monkeypatch.setattr("opbench.sweeps.run_cells.relative_half_width", lambda *_: 0.01)
    assert sweep(load=3.0, share=0.01) == []
    assert sweep(load=0.1, share=None) == []


def test_samples_that_scatter_are_said_once(sweep, monkeypatch):
    monkeypatch.setattr("opbench.sweeps.run_cells.relative_half_width", lambda *_: 4.0)
    assert sweep(load=0.1, share=None) == [f"samples scatter by up to ±400 %: {way_out(TWO)}"]


def test_the_others_share_of_the_cores():
    before = {"clock_s": 0.0, "busy_s": 10.0, "own_busy_s": 1.0, "cores": 4}
    assert others_share(before, {**before, "clock_s": 1.0, "busy_s": 12.0, "own_busy_s": 2.0}) == 0.25
    # The system counts in steps of 0.01 s.
    assert others_share(before, {**before, "clock_s": 0.1, "busy_s": 10.04}) == 0.0
    assert others_share({}, before) is None


# Threads.


def test_the_threads_of_a_run_are_in_its_identity_and_its_command():
    known = {"double": doubling()}
    request = make_request({"device": "cpu", "threads": 3}, known)
    assert Identity.of(collect_environment("cpu", request.threads)).parts["torch threads"] == "3"
    command = request.to_json()
    assert RunOptions.of(command).threads == request_of_command(command, {}, known).threads == 3
    del command["threads"]
    assert RunOptions.of(command).threads is None


def test_cells_run_with_the_threads_that_were_asked_for(tmp_path):
    (tmp_path / "tiny.yaml").write_text("shapes:\n  - {batch: 1, height: 4, width: 4, channels: 8}\n")
    before, seen = torch.get_num_threads(), []

    def make_inputs(case, generator):
        seen.append(torch.get_num_threads())
        return doubling().make_inputs(case, generator)

    known = {"double": doubling(make_inputs=make_inputs)}
    request = make_request({"shapes": [str(tmp_path / "tiny.yaml")], "dtypes": ["fp32"], "device": "cpu",
                            "time_budget": 0.01, "threads": before + 1}, known)  # fmt: skip
    run = start_run(request, known, tmp_path / "run")
    # No ceilings: none are kept for that number of threads.
    run_cells(run, known, Recorder(), Conduct(Isolation.NONE, ceilings_budget_s=0.0))
    assert [row.status for row in run.rows()] == ["ok"]
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
    assert run.environment["cpu"]["torch_threads"] == before + 1
    with torch_threads(None):
        assert torch.get_num_threads() == before


def test_a_worker_uses_the_threads_that_it_is_told(monkeypatch):
    import json
    import socket

    seen = []

    def run(runner, cell, on_stage):
        seen.append((torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]))
        return Measurement(cell, Status.ERROR, "enough")

    monkeypatch.setattr(CellRunner, "run", run)
    monkeypatch.setattr(worker, "_be_killed_first", lambda: None)
    monkeypatch.setattr(worker, "_limit_gib", lambda options: None)
    for name in worker.THREAD_VARIABLES:
        monkeypatch.setenv(name, "7")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        options = RunOptions("cpu", "wall-clock", "warm", 0.1, None, 0, threads=5)
        for message in (options.to_json(), make_cell(make_case()).to_json()):
            ours.sendall(json.dumps(message).encode() + b"\n")
        ours.shutdown(socket.SHUT_WR)
        worker.serve(theirs)
    assert seen == [(5, "5", "5")]


def test_rows_of_before_read_as_one_process():
    old = measurement("conv3x3", SMALL, "fp32", 1.0)
    assert (old.repetition, old.processes) == (1, 1)
    assert replace(old, processes=3).to_json_line() == old.to_json_line()
