"""The results folder: written once, appended safely, and read back without loss."""

import csv
import dataclasses
import errno
import json
import os
import re
import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from builders import make_case, make_cell
from ceiling_fixtures import example_ceilings

import opbench
from opbench.errors import ResultsError, StorageError
from opbench.results import columns
from opbench.results.frames import load_results, load_samples
from opbench.results.journal import open_journal
from opbench.results.measurement import Measurement, Status
from opbench.results.row import COLUMN_NAMES, COLUMNS, NEVER, NO_RATE, NOT_OK, is_ok
from opbench.results.run import Run
from opbench.results.run_json import free_run_path
from opbench.timing.stopping import StopReason
from opbench.workload.case import Cell, Dtype

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
    folder = Run.create(tmp_path / "run", command=COMMAND, environment=ENVIRONMENT, plan=CELLS)
    with folder.append() as journal:
        journal.write(ok(CELLS[0]))
        journal.write(Measurement(CELLS[1], Status.OUT_OF_MEMORY, "too big"))
    return folder


def test_cells_and_measurements_survive_json(run):
    assert run.plan() == CELLS
    assert Cell.from_json(json.loads(json.dumps(CELLS[0].to_json()))) == CELLS[0]
    assert Run.open(run.path).measurements()[0] == ok(CELLS[0])


def test_a_row_has_the_clocks_of_its_cell_and_the_limit_at_the_higher(tmp_path):
    """And what its launch gathers and issues, at 100 multiprocessors of at most 1000 MHz."""
    cell = dataclasses.replace(CELLS[0], flop_count=0, bytes_moved=0, gathered_bytes=128 * 10**8)
    clocks = {"before": {"sm_clock_mhz": 250}, "after": {"sm_clock_mhz": 500.0}}
    measured = dataclasses.replace(ok(cell), conditions=clocks, warp_instructions=4 * 10**8)
    run = Run.create(tmp_path / "run", command=COMMAND, environment=ENVIRONMENT, plan=[cell])
    with run.append() as journal:
        journal.write(measured)
    device = dataclasses.replace(example_ceilings(), multiprocessors=100, max_sm_clock_mhz=1000)
    run.write_ceilings(device)
    [row] = Run.open(run.path).rows()
    assert (row.sm_clock_start_mhz, row.sm_clock_end_mhz) == (250, 500.0)
    assert (row.gathered_bytes, row.warp_instructions) == (128 * 10**8, 4 * 10**8)
    assert (row.limit_ms, row.limit_at_clock_ms) == (pytest.approx(1.0), pytest.approx(2.0))
    assert row.bound_by == "l1"


def test_a_plan_from_before_there_were_gathered_bytes_has_none():
    stored = CELLS[0].to_json()
    del stored["gathered_bytes"]
    assert Cell.from_json(stored) == CELLS[0]


def test_fields_that_only_a_newer_opbench_knows_are_left_out(run):
    before = Run.open(run.path).rows()
    journal = run.path / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[0] |= {"energy_j": 3.5, "": None, "cell": lines[0]["cell"] | {"layout": "nhwc"}}
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Run.open(run.path).rows() == before


def test_the_frame_has_every_planned_cell_and_derives_from_raw_samples(run):
    frame = load_results(run.path)
    assert tuple(frame.columns) == COLUMN_NAMES
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
    assert tuple(rows[0]) == COLUMN_NAMES
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


def test_a_line_that_the_disk_refuses_is_cut_off_and_the_next_one_follows_the_whole_ones(run, monkeypatch):
    def refused(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    path = run.path / "journal.jsonl"
    whole = path.read_bytes()
    with run.append() as journal:
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", refused)
            with pytest.raises(StorageError, match="Input/output error"):
                journal.write(ok(CELLS[2]))
        assert path.read_bytes() == whole
        journal.write(ok(CELLS[3]))
        assert path.read_bytes() == whole + ok(CELLS[3]).to_json_line().encode() + b"\n"  # before it is closed


def test_a_journal_is_a_file_of_its_own_that_the_umask_alone_restricts(run, tmp_path):
    (tmp_path / "link").symlink_to(run.path / "journal.jsonl")
    with pytest.raises(StorageError, match="cannot be written"):
        open_journal(tmp_path / "link")
    old = os.umask(0o022)
    try:
        open_journal(tmp_path / "new").close()
        os.umask(0o077)
        open_journal(tmp_path / "private").close()
    finally:
        os.umask(old)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("new", "private")] == [0o644, 0o600]


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
        Run.create(run.path, command=COMMAND, environment=ENVIRONMENT, plan=CELLS)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        Run.create(tmp_path / "file", command=COMMAND, environment=ENVIRONMENT, plan=CELLS)


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
    assert free_run_path(tmp_path, "cpu").name.endswith("-cpu-3")
    assert free_run_path(tmp_path / "deep" / "er", "cpu").name.endswith("-cpu-1")
    assert len(first.name) == len("2026-01-02-cpu-1")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="choose another place for results with --out"):
        free_run_path(tmp_path / "file", "cpu")


ROOT = Path(__file__).parents[1]
STORED = [path.parent for path in sorted((ROOT / "results").rglob("run.json"))]


def test_the_reference_of_columns_is_current_and_linked():
    assert (ROOT / "docs" / "columns.md").read_text() == columns.reference(), (
        "make it: python -m opbench.results.columns"
    )
    assert "docs/columns.md" in load_results.__doc__
    assert "(docs/columns.md)" in (ROOT / "README.md").read_text()


def test_every_column_has_a_meaning_and_one_with_a_unit_in_its_name_says_it():
    for column in COLUMNS:
        assert column.meaning
        assert column.empty
        for ending, unit in (("_ms", "ms"), ("_bytes", "bytes"), ("tflops", "1e12 FLOP/s"), ("gbps", "1e9 byte/s")):
            if column.name.endswith(ending):
                assert column.unit == unit


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name)
def test_columns_are_empty_where_their_reference_says(path):
    rows = Run.open(path).rows()
    for column in COLUMNS:
        values = [getattr(row, column.name) for row in rows]
        assert all(value is None or isinstance(value, column.kind) for value in values)
        if column.empty == NEVER:
            assert all(value not in (None, "") for value in values), column.name
        if column.empty in (NOT_OK, NO_RATE):  # no stored median is 0
            assert [value is not None for value in values] == [row.status == "ok" for row in rows], (
                f"{column.name} has no value in an ok row: opbench/results/metrics.py and rows.py make the values"
            )


def test_a_row_has_a_field_a_column_and_is_a_dictionary_on_request(run):
    row = run.rows()[0]
    assert [field.name for field in dataclasses.fields(row)] == list(COLUMN_NAMES)
    assert row.to_dict() == dict(zip(COLUMN_NAMES, row.values(), strict=True))
    assert (row.to_dict()["latency_ms"], is_ok(row)) == (row.latency_ms, True)
    assert not is_ok(None)
    assert not is_ok(run.rows()[1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.latency_ms = 0.0


def test_the_types_of_the_columns_are_those_of_the_fields():
    kinds = {column.name: column.kind for column in COLUMNS}
    assert (kinds["status"], kinds["batch"], kinds["samples"], kinds["latency_ms"]) == (str, int, int, float)


def test_several_runs_are_one_frame_with_the_limits_of_each(run, tmp_path):
    other = Run.create(tmp_path / "other", command=COMMAND, environment=ENVIRONMENT, plan=CELLS[:1])
    with other.append() as journal:
        journal.write(ok(CELLS[0]))
    frame = load_results([run.path, str(other.path)])
    assert frame.run_id.tolist() == [run.run_id] * len(CELLS) + [other.run_id]
    assert dict(frame.dtypes) == dict(load_results(run.path).dtypes)
    assert frame.latency_ms.notna().sum() == 2
    assert load_results([]).empty
    stored = load_results(STORED[:2])
    one_by_one = [load_results(path).attrs.get("ceilings", {}) for path in STORED[:2]]
    assert stored.attrs.get("ceilings", {}) == {**one_by_one[0], **one_by_one[1]}


def test_samples_are_a_long_frame_in_the_order_of_time(run):
    frame = load_samples(str(run.path))
    assert tuple(frame.columns) == columns.names(columns.SAMPLE_COLUMNS)
    assert frame.latency_ms.tolist() == list(LATENCIES)  # as measured, and of the ok cell alone
    assert frame["sample"].tolist() == list(range(41))
    assert set(frame.repetition) == {1}
    [cell] = frame.drop(columns=["repetition", "sample", "latency_ms"]).drop_duplicates().to_dict("records")
    row = load_results(run.path).iloc[0]
    assert cell == {name: row[name] for name in cell}
    assert load_samples([run.path, run.path]).shape[0] == 2 * 41
    assert load_samples("published").empty


def test_samples_of_a_repeated_cell_are_those_of_every_process(run):
    again = replace(next(iter(run.measurements())), repetition=2, latencies_ms=(3.0, 1.0))
    with run.append() as journal:
        journal.write(again)
    frame = load_samples(run.path)
    assert frame.groupby("repetition").latency_ms.apply(list).to_dict() == {1: list(LATENCIES), 2: [3.0, 1.0]}
    assert frame["sample"].tolist() == [*range(41), 0, 1]


def test_a_run_opens_from_a_text_and_says_what_it_is(run):
    assert repr(opbench.Run.open(str(run.path))) == repr(Run.open(run.path))
    text = repr(run)
    assert text.startswith(f"<opbench.Run {run.path}: {len(CELLS)} cells on A CPU, 20")


def test_dir_shows_the_public_names_and_no_modules_of_ours():
    import opbench.report.layout

    shown = {name for name in dir(opbench) if not name.startswith("_")}
    assert shown == set(opbench.__all__)
    assert {"load_results", "load_samples", "Run", "sweep"} <= shown


def edited(run, **changes):
    """The run with run.json changed; a dotted name is inside a part."""
    file = run.path / "run.json"
    stored = json.loads(file.read_text())
    for name, value in changes.items():
        *parts, last = name.split("__")
        place = stored
        for part in parts:
            place = place[part]
        place[last] = value
    file.write_text(json.dumps(stored))
    return run.path


@pytest.mark.parametrize(
    "name", ["run_id", "started_at", "environment__device_name", "command__timer", "command__cache"]
)
@pytest.mark.parametrize("value", [3, None, "two\nlines"])
def test_what_names_a_run_is_printable_text(run, name, value):
    with pytest.raises(ResultsError, match=f"damaged: .*{name.split('__')[-1]} must be printable text"):
        Run.open(edited(run, **{name: value}))


@pytest.mark.parametrize("name", ["packages", "cpu"])
def test_parts_of_the_environment_are_objects_or_not_there(run, name):
    for value in (None, {}):
        assert Run.open(edited(run, **{f"environment__{name}": value})).plan() == CELLS
    for value in ([], "x", 0):
        with pytest.raises(ResultsError, match=f"damaged: .*{name} must be an object"):
            Run.open(edited(run, **{f"environment__{name}": value}))


def test_a_plan_with_a_cell_twice_is_damaged(run):
    with pytest.raises(ResultsError, match=r"the plan has .* twice"):
        Run.open(edited(run, plan=[CELLS[0].to_json(), CELLS[1].to_json(), CELLS[0].to_json()]))


def test_run_json_is_what_was_asked_and_when_in_its_layout(run):
    text = (run.path / "run.json").read_text()
    stored = json.loads(text)
    assert text == json.dumps(stored, indent=1) + "\n"
    assert list(stored) == ["schema_version", "run_id", "started_at", "environment", "command", "plan"]
    assert (stored["schema_version"], stored["environment"], stored["command"]) == (1, ENVIRONMENT, COMMAND)
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", stored["run_id"])
    assert datetime.fromisoformat(stored["started_at"]).utcoffset() == timedelta(0)
    assert f"{datetime.fromisoformat(stored['started_at']):%Y%m%dT%H%M%SZ}" == stored["run_id"][:16]
    assert len(stored["started_at"]) == len("2026-01-02T03:04:05+00:00")


def test_a_folder_with_a_journal_or_a_run_json_alone_is_refused_and_an_empty_journal_is_not(run, tmp_path):
    given = {"command": COMMAND, "environment": ENVIRONMENT, "plan": CELLS}
    for name in ("journal.jsonl", "run.json"):
        (tmp_path / name).mkdir()
        shutil.copy(run.path / name, tmp_path / name)
        with pytest.raises(ResultsError, match="already holds a run"):
            Run.create(tmp_path / name, **given)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "journal.jsonl").touch()
    assert Run.create(tmp_path / "empty", **given).plan() == CELLS


def test_a_run_that_goes_on_under_other_circumstances_says_so_each_time(run):
    opened = Run.open(run.path)
    with opened.append():
        pass
    assert "resumed" not in json.loads((run.path / "run.json").read_text())
    for differences in (("torch: 2.1 there, 2.2 here",), ("driver: 1 there, 2 here",)):
        opened.differences = differences
        with opened.append():
            pass
    text = (run.path / "run.json").read_text()
    noted = json.loads(text)["resumed"]
    assert [entry["differences"] for entry in noted] == [["torch: 2.1 there, 2.2 here"], ["driver: 1 there, 2 here"]]
    assert all(datetime.fromisoformat(entry["at"]).utcoffset() == timedelta(0) for entry in noted)
    assert text == json.dumps(json.loads(text), indent=1) + "\n"


def test_ceilings_are_read_once_and_again_where_they_are_written(run):
    assert run.ceilings is None
    run.write_ceilings(example_ceilings())
    assert run.ceilings == example_ceilings()
    text = (run.path / "ceilings.json").read_text()
    assert text == json.dumps(json.loads(text), indent=1) + "\n"
    run.write_ceilings("no such luck")
    assert run.ceilings is None
    assert (run.path / "ceilings.json").read_text() == '{\n "reason": "no such luck"\n}\n'


def test_a_run_says_its_size_its_device_and_its_day(run):
    day = run.started_at[:10]
    assert repr(run) == f"<opbench.Run {run.path}: 4 cells on A CPU, {day}>"
    assert repr(Run.open(edited(run, started_at=""))) == f"<opbench.Run {run.path}: 4 cells on A CPU>"


def test_a_schema_of_another_version_is_quoted_in_part(run):
    version = "9" * 100
    with pytest.raises(ResultsError, match=f"schema_version must be 1, got '{'9' * 58}…; another version"):
        Run.open(edited(run, schema_version=version))


def test_a_cell_that_was_not_run_says_so_with_the_timer_that_was_asked_for(run):
    row = run.rows()[2]
    assert (row.status, row.reason) == ("not_run", "the run ended before this cell")
    assert (row.timer, row.cache, run.rows()[0].timer) == ("wall-clock", "warm", "fake")


def test_a_row_tells_the_source_and_the_configuration_that_its_measurement_names(run):
    with run.append() as journal:
        journal.write(dataclasses.replace(ok(CELLS[2]), kernel_source_hash="", configuration="BLOCK_P=64"))
    told = [(row.kernel_source_hash, row.configuration) for row in run.rows()]
    assert told == [("abc", None), (None, None), (None, "BLOCK_P=64"), (None, None)]


def test_what_is_no_json_is_refused_before_anything_is_written(tmp_path):
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            Run.create(tmp_path / "run", command=COMMAND, environment={"clock_mhz": number}, plan=CELLS)
    assert not (tmp_path / "run").exists()
    made = Run.create(tmp_path / "not" / "there" / "yet", command=COMMAND, environment=ENVIRONMENT, plan=CELLS)
    with pytest.raises(ValueError, match="not JSON compliant"):
        made.write_ceilings(dataclasses.replace(example_ceilings(), cache_bytes=float("nan")))
    assert not (made.path / "ceilings.json").exists()
