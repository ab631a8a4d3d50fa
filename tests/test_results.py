"""The results folder: written once, appended safely, and read back without loss."""

import csv
import json

import numpy as np
import pytest
from builders import make_case, make_cell

from opbench.case import Cell, Dtype
from opbench.errors import ResultsError, StorageError
from opbench.measurement import Measurement, Status, StopReason
from opbench.results import COLUMNS, RunFolder, free_run_path, load_results

COMMAND = {"timer": "wall-clock", "cache": "warm"}
ENVIRONMENT = {"device_name": "A CPU"}
CELLS = [
    make_cell(make_case(dtype=dtype, settings=(("group_channels", 32), ("offset_std_px", 0.5)))) for dtype in Dtype
]
LATENCIES = tuple(np.random.default_rng(1).lognormal(size=41).tolist())


def ok(cell, latencies=LATENCIES):
    return Measurement(
        cell, Status.OK, latencies_ms=latencies, stop_reason=StopReason.CONVERGED, timer="fake", cache="cold",
        max_rel_error=1e-7, launches_per_sample=3, kernel_source_hash="abc", conditions={"before": {"sm_mhz": 1000}},
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    folder = RunFolder.create(tmp_path / "run", command=COMMAND, environment=ENVIRONMENT, plan=CELLS)
    with folder.append() as journal:
        journal.write(ok(CELLS[0]))
        journal.write(Measurement(CELLS[1], Status.OUT_OF_MEMORY, "too big"))
    return folder


def test_cells_and_measurements_survive_json(run):
    assert run.plan() == CELLS
    assert Cell.from_json(json.loads(json.dumps(CELLS[0].to_json()))) == CELLS[0]
    assert next(RunFolder.open(run.path).measurements()) == ok(CELLS[0])


def test_fields_that_only_a_newer_opbench_knows_are_left_out(run):
    before = RunFolder.open(run.path).rows()
    journal = run.path / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[0] |= {"energy_j": 3.5, "": None, "cell": lines[0]["cell"] | {"layout": "nhwc"}}
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert RunFolder.open(run.path).rows() == before


def test_the_frame_has_every_planned_cell_and_derives_from_raw_samples(run):
    frame = load_results(run.path)
    assert tuple(frame.columns) == COLUMNS
    assert frame.status.tolist() == ["ok", "out_of_memory", "not_run", "not_run"]
    first = frame.iloc[0]
    assert first.latency_ms == pytest.approx(np.median(LATENCIES), rel=1e-15)
    assert first.latency_ms_p20 == pytest.approx(np.quantile(LATENCIES, 0.2), rel=1e-15)
    assert first.latency_ms_p80 == pytest.approx(np.quantile(LATENCIES, 0.8), rel=1e-15)
    assert first.latency_ms_min == min(LATENCIES)
    assert first.ci_low_ms < first.latency_ms < first.ci_high_ms
    assert first.samples == 41
    assert first.tflops == pytest.approx(1000 / (first.latency_ms * 1e-3) / 1e12)
    assert first.gbps == pytest.approx(4000 / (first.latency_ms * 1e-3) / 1e9)
    assert (first.batch, first.height, first.width, first.channels) == (1, 4, 4, 8)
    assert (first["shape"], first.settings) == ("1x4x4x8", "group_channels=32;offset_std_px=0.5")
    assert (first.timer, first.cache, first.device) == ("fake", "cold", "A CPU")


def test_missing_values_are_missing_and_never_zero(run):
    frame = load_results(run.path)
    empty = frame.iloc[1:][["latency_ms", "samples", "tflops", "gbps", "ci_low_ms", "peak_memory_bytes"]]
    assert empty.isna().all(axis=None)
    assert frame.iloc[1:].reason.ne("").all()
    assert frame.flop_count.eq(1000).all()


def test_measurements_csv_is_the_same_table_unrounded(run):
    with run.write_measurements_csv().open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert float(rows[0]["latency_ms"]) == load_results(run.path).latency_ms[0]
    assert rows[1]["latency_ms"] == ""
    assert rows[0]["samples"] == "41"


def test_an_interrupt_while_the_disk_is_waited_for_keeps_the_line(run, monkeypatch):
    before = len(list(run.measurements()))
    measurement = next(iter(run.measurements()))

    def interrupted(descriptor):
        raise KeyboardInterrupt

    with run.append() as journal:
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", interrupted)
            with pytest.raises(KeyboardInterrupt):
                journal.write(measurement)
        journal.write(measurement)
    assert len(list(run.measurements())) == before + 2


def test_a_line_cut_short_is_left_out_and_then_overwritten(run):
    journal_path = run.path / "journal.jsonl"
    whole = journal_path.read_bytes()
    journal_path.write_bytes(whole + ok(CELLS[2]).to_json_line().encode()[:200])
    assert len(list(run.measurements())) == 2
    with run.append() as journal:
        journal.write(ok(CELLS[2]))
    assert [m.cell for m in run.measurements()] == CELLS[:3]
    assert journal_path.read_bytes().startswith(whole)


def test_other_damage_names_the_line(run):
    path = run.path / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{}\n" + lines[1])
    with pytest.raises(ResultsError, match=r"journal\.jsonl:2: damaged line"):
        list(run.measurements())


def test_a_folder_that_holds_a_run_is_refused(run):
    with pytest.raises(ResultsError, match="already holds a run"):
        RunFolder.create(run.path, command=COMMAND, environment=ENVIRONMENT, plan=CELLS)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        RunFolder.create(tmp_path / "file", command=COMMAND, environment=ENVIRONMENT, plan=CELLS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no run there"),
        ("not json", "damaged"),
        ('{"schema_version": 1}', "damaged: KeyError"),
        ('{"schema_version": 99, "run_id": "", "environment": {}, "command": {}, "plan": []}', "must be 1, got 99"),
    ],
)
def test_what_is_not_a_run_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(ResultsError, match=message):
        load_results(tmp_path)


def test_run_folders_are_numbered(tmp_path):
    first = free_run_path(tmp_path, "cpu")
    assert first.name.endswith("-cpu-1")
    assert free_run_path(tmp_path, "cpu").name.endswith("-cpu-2")
