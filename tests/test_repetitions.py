"""Cells measured in several fresh processes: the order of the work, what a journal's lines make of a row, resuming."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
from builders import doubling, make_cell
from report_fixtures import make_run, measurement
from test_fuzz import call

import opbench
from opbench.compare.benchmark_json import read_benchmark_json, run_as_benchmark_json
from opbench.compare.readings import Arm
from opbench.errors import ResultsError, UsageError
from opbench.results.measurement import Measurement, Status
from opbench.results.repetitions import by_cell
from opbench.results.run import Run
from opbench.sweeps.conduct import Conduct
from opbench.sweeps.isolation.executor import WorkerExecutor
from opbench.sweeps.progress import NullProgress
from opbench.sweeps.request import make_request
from opbench.sweeps.run_cells import run_cells
from opbench.sweeps.start import continue_run, start_run
from opbench.workload.case import Shape
from opbench.workload.cell_warning import split_warnings

SMALL = Shape(1, 28, 28, 64)


def conv(value, repetition, **changes):
    return replace(measurement("conv3x3", SMALL, "fp32", value), repetition=repetition, **changes)


def test_what_the_processes_chose_is_told_of_the_last_one():
    lines = [conv(1.0, number, configuration=f"num_warps={number}") for number in (4, 1, 2)]
    [found] = by_cell(lines).values()
    assert (found.configuration, found.repetition) == ("num_warps=4", 4)


def test_a_row_is_the_median_of_the_processes_medians(tmp_path):
    lines = [
        conv(value, number, max_rel_error=1e-7 * number, warnings=split_warnings("CPU load: 20 %" * (number == 2)))
        for number, value in enumerate((1.0, 4.0, 1.1), start=1)
    ]
    [row] = make_run(tmp_path, lines).rows()
    assert (row.latency_ms, row.latency_ms_min, row.samples, row.processes) == (1.1, 1.0, 3, 3)
    assert (row.ci_low_ms, row.ci_high_ms) == (1.0, 4.0)  # of fewer than six processes the range
    assert (row.max_rel_error, row.warnings) == (pytest.approx(3e-7), "CPU load: 20 %")
    [once] = make_run(tmp_path / "once", lines[:1]).rows()
    assert (once.samples, once.processes) == (30, 1)  # of one process its samples


def test_a_cell_that_failed_in_one_process_is_no_row_with_a_figure():
    failed = conv(Status.ERROR, 2, reason="no luck")
    [found] = by_cell([conv(1.0, 1), failed, conv(1.0, 3)]).values()
    assert (found.status, found.reason) == (Status.ERROR, "repetition 2: no luck")
    [retried] = by_cell([conv(1.0, 1), failed, conv(1.0, 3), conv(2.0, 2)]).values()
    assert (retried.status, retried.latencies_ms) == (Status.OK, (1.0, 2.0, 1.0))


def test_a_failure_in_the_first_process_keeps_its_reason_and_the_first_failure_counts():
    failures = [conv(Status.ERROR, number, reason=f"luck {number}") for number in (3, 1, 2)]
    [found] = by_cell([*failures, conv(1.0, 4)]).values()
    assert found.reason == "luck 1"
    [found] = by_cell([failures[0], conv(1.0, 1), failures[2]]).values()
    assert found.reason == "repetition 2: luck 2"


def test_processes_together_have_the_largest_error_and_memory_and_the_sum_of_the_time():
    figures = {"max_rel_error": (1e-7, None, 3e-7), "peak_memory_bytes": (10, 30, None), "seconds": (1.0, 2.0, 4.0)}
    lines = [
        conv(1.0, number, launches_per_sample=5, **{name: values[number - 1] for name, values in figures.items()})
        for number in (1, 2, 3)
    ]
    [found] = by_cell(lines).values()
    assert (found.max_rel_error, found.peak_memory_bytes, found.seconds) == (3e-7, 30, 7.0)
    assert (found.launches_per_sample, found.processes) == (None, 3)
    nothing = [replace(line, max_rel_error=None, peak_memory_bytes=None) for line in lines]
    [found] = by_cell(nothing).values()
    assert (found.max_rel_error, found.peak_memory_bytes) == (None, None)
    assert by_cell(lines[:1]) == {lines[0].cell.key: lines[0]}


def test_the_number_is_in_the_line_and_a_line_without_one_is_the_first():
    line = json.loads(conv(1.0, 3).to_json_line())
    assert line["repetition"] == 3
    assert Measurement.from_json(line).repetition == 3
    del line["repetition"]
    assert Measurement.from_json(line).repetition == 1
    with pytest.raises(ValueError, match="repetition must be a positive integer, got 0"):
        Measurement.from_json(line | {"repetition": 0})


class Recorded:
    """An executor that says ok to all but what it is told, and remembers the order and where new processes began."""

    def __init__(self, monkeypatch, failing=(), stop_after=None):
        self.events, self.failing, self.stop_after = [], failing, stop_after
        monkeypatch.setattr("opbench.sweeps.run_cells._executor", lambda *_: nullcontext(self))

    def run(self, cell, on_stage):
        if len([event for event in self.events if event != "new"]) == self.stop_after:
            raise KeyboardInterrupt
        side = cell.case.shape.height
        self.events.append(side)
        if side in self.failing:
            return Measurement(cell, Status.ERROR, "no luck")
        return Measurement(cell, Status.OK, latencies_ms=(1.0,) * 30, timer="wall-clock", cache="warm")

    def renew(self):
        self.events.append("new")

    def close(self):
        pass


@pytest.fixture
def request_of(tmp_path):
    path = tmp_path / "tiny.yaml"
    sides = "".join(f"  - {{batch: 1, height: {side}, width: 4, channels: 32}}\n" for side in (4, 6))
    path.write_text(f"shapes:\n{sides}")
    known = {"double": doubling()}
    return known, lambda **more: make_request(
        {"shapes": [str(path)], "dtypes": ["fp32"], "device": "cpu", **more}, known
    )


def test_all_cells_once_then_all_again_in_new_processes(request_of, tmp_path, monkeypatch):
    known, make = request_of
    run = start_run(make(repeat=3), known, tmp_path / "run")
    executor = Recorded(monkeypatch)
    run_cells(run, known, NullProgress())
    assert executor.events == [4, 6, "new", 4, 6, "new", 4, 6]
    assert [line.repetition for line in run.measurements()] == [1, 1, 2, 2, 3, 3]
    assert len(run.rows()) == 2


def test_a_cell_that_is_not_ok_is_not_repeated(request_of, tmp_path, monkeypatch):
    known, make = request_of
    run = start_run(make(repeat=3), known, tmp_path / "run")
    executor = Recorded(monkeypatch, failing=(4,))
    run_cells(run, known, NullProgress())
    assert executor.events == [4, 6, "new", 6, "new", 6]
    assert [row.status for row in run.rows()] == ["error", "ok"]
    again = Recorded(monkeypatch)
    run_cells(run, known, NullProgress(), Conduct(retry=frozenset({Status.ERROR})))
    assert [event for event in again.events if event != "new"] == [4, 4, 4]
    assert [row.processes for row in run.rows()] == [3, 3]


def test_a_run_that_was_stopped_resumes_at_the_repetition_that_it_lacks(request_of, tmp_path, monkeypatch):
    known, make = request_of
    run = start_run(make(repeat=2), known, tmp_path / "run")
    Recorded(monkeypatch, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        run_cells(run, known, NullProgress())
    assert [row.processes for row in run.rows()] == [2, 1]
    with pytest.raises(ResultsError, match="another repeat: 2 there, 3 now"):
        continue_run(run.path, {"repeat": 3}, known)
    executor = Recorded(monkeypatch)
    run_cells(continue_run(run.path, {}, known), known, NullProgress())
    assert executor.events == ["new", 6]
    assert [row.processes for row in run.rows()] == [2, 2]


def test_a_run_from_before_repetitions_resumes(request_of, tmp_path):
    known, make = request_of
    run = start_run(make(), known, tmp_path / "run")
    data = json.loads((run.path / "run.json").read_text())
    for name in ("repeat", "threads"):
        del data["command"][name]
    del data["environment"]["operator_revisions"]
    (run.path / "run.json").write_text(json.dumps(data))
    continue_run(run.path, {}, known)


def test_repetitions_need_processes_and_numbers_are_checked(request_of, tmp_path):
    known, make = request_of
    with pytest.raises(UsageError, match="--repeat needs --isolation process"):
        opbench.sweep(operators=[*known.values()], shapes=[str(tmp_path / "tiny.yaml")], repeat=2, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for options, message in (
        ({"repeat": 0}, "--repeat must be an integer from 1 to 1000, got 0"),
        ({"threads": -1}, "--threads must be an integer from 1 to 1024, got -1"),
        ({"threads": 1.5}, "--threads must be an integer from 1 to 1024, got 1.5"),
    ):
        with pytest.raises(UsageError, match=message):
            make(**options)


def test_a_repetition_shares_no_process_with_the_one_before():
    events = []

    class Workers:
        def __getattr__(self, name):
            return lambda *_: events.append(name)

    executor = WorkerExecutor({}, 1.0, Workers())
    executor._enter_group(make_cell())
    executor.renew()
    assert events == ["start", "send", "receive", "kill", "close"]  # close ends the supervisor
    executor._enter_group(make_cell())
    assert events[5:] == ["start", "send", "receive"]


def test_the_processes_survive_an_export(tmp_path):
    run = make_run(tmp_path / "run", [conv(value, number) for number, value in enumerate((1.0, 1.2, 1.1), start=1)])
    assert Arm.of_run(run).readings[conv(1.0, 1).cell.key].process_ms == (1.0, 1.2, 1.1)
    (tmp_path / "run.json").write_text(json.dumps(run_as_benchmark_json(run)))
    [reading] = read_benchmark_json(tmp_path / "run.json").readings.values()
    assert reading.process_ms == pytest.approx((1.0, 1.2, 1.1))


def test_a_real_sweep_with_repetitions_and_threads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("shapes:\n  - {batch: 1, height: 4, width: 4, channels: 32}\n")
    arguments = ("--shapes", "tiny.yaml", "--device", "cpu", "--time-budget", "0.02", "--no-plots", "--ops", "conv3x3",
                 "--dtypes", "fp32", "--repeat", "2", "--threads", "1", "--out", "run")  # fmt: skip
    code, out, err = call("sweep", *arguments)
    assert code == 0, err
    assert "[2/2] conv3x3" in err
    assert "1 cells: 1 ok" in out
    run = Run.open(tmp_path / "run")
    assert [line.repetition for line in run.measurements()] == [1, 2]
    assert run.environment["cpu"]["torch_threads"] == 1
