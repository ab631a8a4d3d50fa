"""A run that another version of opbench wrote: what this one does not know is shown by its name."""

import csv
import json

import pytest
from report_fixtures import make_run, measurement
from typer.testing import CliRunner

from opbench.cli.app import app
from opbench.cli.sweep_end import conclude
from opbench.compare.benchmark_json import read_benchmark_json, run_as_benchmark_json
from opbench.errors import ResultsError
from opbench.results.run import Run
from opbench.workload.case import Shape

SMALL, LARGE = Shape(1, 8, 8, 16), Shape(1, 16, 16, 16)


@pytest.fixture
def changed(tmp_path):
    """The path of a run of three cells, once its journal's first line has been changed."""

    def change(**values):
        made = [measurement("conv3x3", SMALL, "fp32", 1.0), measurement("conv3x3", LARGE, "fp32", 2.0),
                measurement("dcnv4", SMALL, "fp32", 3.0)]  # fmt: skip
        path = make_run(tmp_path / "run", made).path
        journal = path / "journal.jsonl"
        first, *others = journal.read_text().splitlines()
        journal.write_text("\n".join([json.dumps(json.loads(first) | values), *others, ""]))
        return path

    return change


NEWER = {"status": "preempted", "reason": "the machine was taken away", "latencies_ms": []}
WHY = "another version of opbench wrote this status: the machine was taken away"


def test_a_status_of_another_version_keeps_its_name_and_says_who_wrote_it(changed):
    path = changed(**NEWER)
    first, *others = Run.open(path).rows()
    assert (first.status, first.reason, first.latency_ms, first.samples) == ("preempted", WHY, None, None)
    assert [row.status for row in others] == ["ok", "ok"]
    done = CliRunner().invoke(app, ["report", str(path), "--write", "--format", "markdown"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "| preempted | 2.00" in done.stdout
    assert f"preempted: {WHY} (Conv (3×3); 1 cell)." in done.stdout
    rows = list(csv.DictReader((path / "measurements.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["preempted", "ok", "ok"]


def test_a_sweep_that_goes_on_with_such_a_cell_ends_with_the_code_of_a_failure(changed, capsys):
    run = Run.open(changed(**NEWER))
    with pytest.raises(SystemExit) as ended:
        conclude(run, interrupted=False, refused=None, quiet=True)
    assert ended.value.code == 1
    assert f"preempted: conv3x3 module fwd 1x8x8x16 fp32 (torch): {WHY}" in capsys.readouterr().err


def test_a_status_of_another_version_needs_no_reason(changed):
    assert Run.open(changed(**NEWER | {"reason": ""})).rows()[0].reason == WHY.partition(": ")[0]


def test_samples_beside_a_status_of_another_version_are_no_figures(changed):
    row = Run.open(changed(status="ok_on_battery")).rows()[0]
    assert (row.status, row.latency_ms, row.tflops) == ("ok_on_battery", None, None)


def test_a_status_of_another_version_is_compared_and_exported_as_not_measured(changed, tmp_path):
    path = changed(**NEWER)
    file = tmp_path / "run-benchmarks.json"
    file.write_text(json.dumps(run_as_benchmark_json(Run.open(path))))
    readings = read_benchmark_json(file).readings
    assert sorted(reading.status for reading in readings.values()) == ["ok", "ok", "preempted"]
    done = CliRunner().invoke(app, ["compare", str(path), str(path)])
    assert "preempted" in done.output
    assert "Traceback" not in done.output


def test_a_stop_reason_of_another_version_keeps_its_name_and_the_figures_stand(changed):
    row = Run.open(changed(stop_reason="precision_reached")).rows()[0]
    assert (row.status, row.latency_ms, row.stop_reason) == ("ok", 1.0, "precision_reached")


@pytest.mark.parametrize("name", ["", "OK", "two words", "x" * 41, "a\nb", "<b>", 3, None, ["ok"]])
def test_what_no_version_would_write_is_damaged(changed, name):
    with pytest.raises(ResultsError, match=r"journal\.jsonl:1: damaged line"):
        Run.open(changed(status=name, reason="why")).rows()


def test_a_damaged_stop_reason_is_damaged(changed):
    with pytest.raises(ResultsError, match="damaged line"):
        Run.open(changed(stop_reason="two words")).rows()
