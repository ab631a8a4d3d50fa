"""`opbench history`: a folder of runs over time, with damaged ones, other set-ups and a known step in it."""

import csv
import io
import json
import math
import shutil
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from report_fixtures import make_run, measurement
from test_fuzz import call

from opbench.compare.history import read_history
from opbench.compare.run_figures import RunEntry
from opbench.compare.trends import Point, RunSeries, Trend
from opbench.device.identity import Identity
from opbench.errors import ResultsError
from opbench.report.history_tables import HISTORY_COLUMNS
from opbench.report.plots.history import TICKS, _ticks, history_figure
from opbench.results.measurement import Status
from opbench.workload.case import Shape

SHAPE = Shape(2, 8, 8, 32)
BEGIN = datetime(2026, 3, 1, 4, tzinfo=UTC)
STEP_AT = 12
ENVIRONMENT = {
    "device": "cuda:0",
    "device_name": "Example GPU 40GB",
    "driver_version": "1.2",
    "packages": {"torch": "2.1"},
}


def revision(day):
    return f"{day:02d}" + "c0ffee" * 6 + "ab"


def add_run(folder, day, cells, *, name=None, environment=(), started_at=None):
    """One run with its day's date and revision."""
    path = folder / (name or f"night-{day:02d}")
    make_run(path, cells)
    file = path / "run.json"
    run = json.loads(file.read_text())
    run["started_at"] = started_at or (BEGIN + timedelta(days=day)).isoformat()
    run["environment"] = {**ENVIRONMENT, "git_revision": revision(day), **dict(environment)}
    file.write_text(json.dumps(run))
    return path


def cells_of(day, noise):
    """dcnv4 is 10 % slower from STEP_AT on; conv3x3 stays."""
    slow = 1.1 if day >= STEP_AT else 1.0
    return [
        measurement("conv3x3", SHAPE, "fp16", noise.normal(1, 0.01)),
        measurement("dcnv4", SHAPE, "fp16", 2 * slow * noise.normal(1, 0.01), provider="triton"),
    ]


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Twenty nights."""
    folder = tmp_path_factory.mktemp("nights")
    noise = np.random.default_rng(5)
    for day in reversed(range(20)):  # the order of names and of writing is not that of time
        add_run(folder / f"week-{day // 7}", day, cells_of(day, noise))
    return folder


@pytest.fixture
def copied(nights, tmp_path):
    return shutil.copytree(nights, tmp_path / "runs")


def test_the_revision_is_that_of_the_project_whose_operators_were_measured(tmp_path):
    theirs = {"operator_revisions": {"conv3x3": revision(1), "mine": "ab" * 20 + "+dirty", "yours": None}}
    add_run(tmp_path, 1, [measurement("mine", SHAPE, "fp16", 1.0)], environment=theirs)
    add_run(tmp_path, 2, [measurement("mine", SHAPE, "fp16", 1.0)])  # from before the project's revision was kept
    [series] = read_history(tmp_path).series
    first, second = series.runs
    assert (first.revision, first.short_revision) == ("ab" * 20 + "+dirty", "ababababab+")
    assert (first.opbench_revision, second.opbench_revision) == (revision(1), revision(2))
    assert second.revision == revision(2)
    code, text, err = call("history", tmp_path, "--format", "csv")
    assert code == 0, err
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["git_revision"] for row in rows] == ["ab" * 20 + "+dirty", revision(2)]
    assert [row["opbench_revision"] for row in rows] == [revision(1), revision(2)]


def test_a_step_is_found_with_its_revision_and_run(nights):
    [series] = read_history(nights).series
    assert [run.revision for run in series.runs] == [revision(day) for day in range(20)]
    [(trend, step)] = series.steps
    assert trend.cell.case.operator == "dcnv4"
    assert step.run.revision == revision(STEP_AT)
    assert step.run.name == f"week-1/night-{STEP_AT}"
    assert (step.runs_before, step.runs_after) == (12, 8)
    assert step.change == pytest.approx(0.1, abs=0.02)
    assert step.before_ms == pytest.approx(2.0, rel=0.01)
    assert trend.levels == ((0, 12, step.before_ms), (12, 20, step.after_ms))
    assert trend.noise == pytest.approx(0.01, rel=0.6)


def test_without_out_files_go_to_standard_output_and_no_plot_is_drawn(nights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, err = call("history", str(nights), "--format", "csv")
    assert (code, err) == (0, "")
    assert len(list(csv.reader(io.StringIO(text)))) == 41
    assert not list(tmp_path.iterdir())


def test_damaged_runs_are_a_line_each_and_the_others_are_shown(copied):
    _, whole, _ = call("history", str(copied))
    damaged = {
        "a-cut": lambda path: (path / "run.json").write_text('{"schema_version": 1, "run_'),
        "b-future": lambda path: (path / "run.json").write_text('{"schema_version": 99}'),
        "c-journal": lambda path: (path / "journal.jsonl").write_text("{}\n"),
        "d-no-journal": lambda path: (path / "journal.jsonl").unlink(),
        "e-no-run": lambda path: (path / "run.json").unlink(),
        "f-nan": lambda path: (path / "journal.jsonl").write_text(
            (path / "journal.jsonl").read_text().replace('"latencies_ms": [', '"latencies_ms": [NaN, ')
        ),
        "g-negative": lambda path: (path / "journal.jsonl").write_text(
            (path / "journal.jsonl").read_text().replace('"latencies_ms": [', '"latencies_ms": [-1.0, ')
        ),
    }
    for name, damage in damaged.items():
        damage(add_run(copied, 30, cells_of(30, np.random.default_rng(1)), name=name))
    add_run(copied, 31, cells_of(31, np.random.default_rng(1)), name="h-date", started_at="yesterday")
    code, text, err = call("history", str(copied))
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == len(damaged) + 1
    for line, name in zip(lines, [*damaged, "h-date"], strict=True):
        assert line.startswith("opbench: left out: ")
        assert name in line
    assert "schema_version must be 1, got 99" in lines[1]
    assert "started_at must be a date, got 'yesterday'" in lines[-1]
    assert "8 runs could not be read and are left out" in text
    kept = [line for line in text.splitlines() if "could not be read" not in line]
    assert kept == whole.splitlines()


def test_what_lies_inside_a_run_is_no_other_run(copied):
    """A copy in a subfolder, or what somebody kept there, is part of the run's folder."""
    noise = np.random.default_rng(1)
    add_run(copied / "night-25" / "inner", 26, cells_of(26, noise))
    add_run(copied, 25, cells_of(25, noise))
    found = read_history(copied)
    assert [len(series.runs) for series in found.series] == [21]
    assert found.series[0].runs[-1].name == "night-25"
    assert (found.problems, found.notes) == ((), ())


def test_a_date_without_a_time_zone_is_utc(copied):
    add_run(copied, 25, cells_of(25, np.random.default_rng(1)), started_at="2026-03-10T04:30:00")
    [series] = read_history(copied).series
    [run] = [run for run in series.runs if run.name == "night-25"]
    assert run.started_at == datetime(2026, 3, 10, 4, 30, tzinfo=UTC)
    assert series.runs.index(run) == 10  # half an hour after the tenth night


def test_a_run_that_was_cut_short_keeps_its_whole_lines(copied):
    path = add_run(copied, 25, cells_of(25, np.random.default_rng(1)), name="cut")
    journal = path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-10])
    [series] = read_history(copied).series
    assert [len(trend.points) for trend in series.trends] == [21, 20]


def test_nothing_to_show_is_one_line_and_exit_code_2(tmp_path):
    empty, failed, broken = tmp_path / "empty", tmp_path / "failed", tmp_path / "broken"
    empty.mkdir()
    add_run(failed, 1, [measurement("dcnv4", SHAPE, "fp16", Status.ERROR)])
    for day in (1, 2):
        (add_run(broken, day, cells_of(day, np.random.default_rng(1))) / "run.json").write_text("[")
    for folder, message in (
        (tmp_path / "gone", "gone: no such folder"),
        (empty, "empty: no run there"),
        (failed, "failed: no cell was measured in the runs there (1)"),
        (broken, f"broken: no run there that can be read; {broken / 'night-01'}"),
    ):
        code, text, err = call("history", str(folder))
        assert (code, text) == (2, "")
        assert err.count("\n") == 1
        assert err.startswith("opbench: ")
        assert message in err
    code, _, err = call("history", str(empty), "--format", "pdf")
    assert (code, err) == (2, "opbench: unknown format 'pdf'; known: terminal, markdown, csv\n")


def test_a_file_that_cannot_be_written_is_exit_code_3(nights, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = call("history", str(nights), "--out", str(tmp_path / "file" / "out"))
    assert code == 3
    assert "cannot be written" in err


def on_card(uuid):
    return {"gpu": {"uuid": uuid} if uuid else {}}


def test_runs_that_do_not_tell_their_card_are_in_the_series_of_the_only_one(copied):
    noise = np.random.default_rng(9)
    add_run(copied, 20, cells_of(20, noise), environment=on_card("GPU-1"))
    add_run(copied, 21, cells_of(21, noise), environment=on_card(""))
    [series] = read_history(copied).series
    assert len(series.runs) == 22
    assert series.identity.parts["gpu uuid"] == "GPU-1"
    add_run(copied, 22, cells_of(22, noise), environment=on_card("GPU-2"))
    second, unknown, first = read_history(copied).series
    assert [len(one.runs) for one in (second, unknown, first)] == [1, 21, 1]
    assert [one.identity.parts.get("gpu uuid") for one in (second, unknown, first)] == ["GPU-2", None, "GPU-1"]


def trend_of(latencies_ms, starts=()):
    """One cell in one run a day."""
    runs = [RunEntry(f"night-{day}", str(day), BEGIN + timedelta(days=day), "") for day in range(len(latencies_ms))]
    points = [Point(run, ms, ms, ms) for run, ms in zip(runs, latencies_ms, strict=True)]
    return Trend(measurement("dcnv4", SHAPE, "fp16", 1.0).cell, tuple(points), starts)


def test_a_trend_of_eight_points_is_long_enough_for_a_step_and_of_two_for_noise():
    assert [trend_of([1.0] * count).is_long_enough for count in (7, 8, 9)] == [False, True, True]
    assert trend_of([1.0]).noise is None
    # Logarithms 0 and 0.1: the median difference is 0.1, its standard deviation 0.1 / 0.67449 / sqrt(2) = 0.10483.
    assert trend_of([1.0, math.exp(0.1)]).noise == pytest.approx(math.expm1(0.10483), rel=1e-4)


def test_a_step_counts_the_runs_of_the_levels_before_and_after_it():
    first, second = trend_of([1.0] * 4 + [2.0] * 5 + [3.0] * 6, (4, 9)).steps
    assert (first.index, first.runs_before, first.runs_after, first.change) == (4, 4, 5, 1.0)
    assert (second.index, second.runs_before, second.runs_after, second.change) == (9, 5, 6, 0.5)
    assert second.run.name == "night-9"


def test_steps_are_in_the_order_of_time_and_the_largest_of_a_run_is_the_first():
    later, small, large, halved = (
        trend_of([1.0] * at + [level] * (12 - at), (at,)) for at, level in ((6, 9.0), (4, 1.1), (4, 1.5), (4, 0.5))
    )
    found = RunSeries(Identity({}), (), (later, small, large, halved)).steps  # 0.5 is a factor of 2
    assert [trend for trend, _ in found] == [halved, large, small, later]


def test_long_texts_of_a_run_are_cut(tmp_path):
    """A revision of several projects may have 100 letters, opbench's 60, a part of the identity 100."""
    for length in (59, 60, 61, 99, 100, 101):
        text = "r" * length
        folder = tmp_path / str(length)
        environment = {"git_revision": text, "operator_revisions": {"conv3x3": text}, "device_name": text}
        add_run(folder, 1, [measurement("conv3x3", SHAPE, "fp16", 1.0)], environment=environment)
        [series] = read_history(folder).series
        [run] = series.runs
        assert run.opbench_revision == (text if length <= 60 else "r" * 59 + "…")
        expected = text if length <= 100 else "r" * 99 + "…"
        assert (run.revision, series.identity.parts["device"]) == (expected, expected)


def test_a_copy_of_a_run_counts_once(copied):
    shutil.copytree(copied / "week-0" / "night-03", copied / "z-copy")
    found = read_history(copied)
    assert len(found.series[0].runs) == 20
    assert found.notes == ("z-copy is the run of week-0/night-03 once more, and counts once.",)


def test_figures_from_a_run_that_went_on_elsewhere_are_left_out(copied):
    path = add_run(copied, 20, cells_of(20, np.random.default_rng(1)))
    journal = path / "journal.jsonl"
    first, second = (json.loads(line) for line in journal.read_text().splitlines())
    first["warnings"] = ["resumed elsewhere: torch: 2.1 there, 2.2 here"]
    journal.write_text("".join(json.dumps(line) + "\n" for line in (first, second)))
    found = read_history(copied)
    assert [len(trend.points) for trend in found.series[0].trends] == [20, 21]
    assert found.notes == ("1 figures are left out: their runs went on on another set-up than they began on.",)


def test_a_warning_that_only_mentions_those_words_leaves_no_figure_out(copied):
    path = add_run(copied, 20, cells_of(20, np.random.default_rng(1)))
    journal = path / "journal.jsonl"
    first, second = (json.loads(line) for line in journal.read_text().splitlines())
    second["warnings"] = ["global state: the cell changed the variable resumed elsewhere: yes"]
    journal.write_text("".join(json.dumps(line) + "\n" for line in (first, second)))
    found = read_history(copied)
    assert [len(trend.points) for trend in found.series[0].trends] == [21, 21]
    assert found.series[0].trends[1].points[-1].warnings == second["warnings"][0]
    assert found.notes == ()


def test_a_failed_cell_is_a_gap(copied):
    cells = [measurement("conv3x3", SHAPE, "fp16", Status.ERROR), cells_of(20, np.random.default_rng(1))[1]]
    add_run(copied, 20, cells)
    [series] = read_history(copied).series
    assert [len(trend.points) for trend in series.trends] == [20, 21]
    assert len(series.steps) == 1


def test_the_picture_shows_points_intervals_levels_and_the_step(nights):
    [series] = read_history(nights).series
    [trend] = [trend for trend in series.trends if trend.steps]
    figure = history_figure(series, [trend])
    [axes] = [axes for axes in figure.axes if axes.axison]
    intervals, points, *levels = axes.collections
    assert [tuple(offset) for offset in points.get_offsets()] == [(n, p.latency_ms) for n, p in enumerate(trend.points)]
    assert [path.vertices[:, 1].tolist() for path in intervals.get_paths()] == [
        [p.low_ms, p.high_ms] for p in trend.points
    ]
    assert [level.get_paths()[0].vertices[0, 1] for level in levels] == [ms for *_, ms in trend.levels]
    assert [line.get_xdata()[0] for line in axes.lines] == [STEP_AT - 0.5]
    assert [text.get_text() for text in axes.texts] == [f" {100 * trend.steps[0].change:+.1f} %"]
    assert f"{revision(STEP_AT)[:7]}\n26-03-13" in [tick.get_text() for tick in axes.get_xticklabels()]
    assert axes.get_ylim()[0] < min(p.latency_ms for p in trend.points)
    assert axes.get_ylim()[1] > max(p.latency_ms for p in trend.points)


@pytest.mark.parametrize(("count", "steps"), [(1, []), (2, []), (8, [4]), (20, [12]), (300, [5, 100, 280])])
def test_labels_name_the_steps_and_do_not_touch(count, steps):
    ticks = _ticks(count, steps)
    assert set(steps) <= set(ticks) <= set(range(count))
    assert count == 1 or len(ticks) >= 2
    gaps = [after - before for before, after in pairwise(ticks)]
    assert all(gap >= -(-count // TICKS) for gap in gaps)


def test_no_folder_is_an_error_of_its_own(tmp_path):
    with pytest.raises(ResultsError, match="no such folder"):
        read_history(tmp_path / "gone")


def test_the_command_prints_and_writes(nights, tmp_path):
    out = tmp_path / "deep" / "out"
    code, text, err = call("history", str(nights), "--out", str(out))
    assert code == 0, err
    short = revision(STEP_AT)[:10]
    [line] = [line for line in text.splitlines() if line.startswith(short)]
    assert f"2026-03-13 week-1/night-{STEP_AT}" in line
    assert "DCNv4 [triton] 2×8×8×32 fp16 module fwd" in line
    assert "12 / 8" in line
    assert "20 runs from 2026-03-01" in text
    assert f"| {short} |" in (out / "history.md").read_text()
    rows = list(csv.DictReader(io.StringIO((out / "history.csv").read_text())))
    assert tuple(rows[0]) == HISTORY_COLUMNS
    assert len(rows) == 40
    [begin] = [row for row in rows if row["step_change"]]
    assert begin["git_revision"] == revision(STEP_AT)
    assert float(begin["step_change"]) == pytest.approx(0.1, abs=0.02)
    dcnv4 = [row for row in rows if row["operator"] == "dcnv4"]
    assert {row["level_ms"] for row in dcnv4[:12]} != {row["level_ms"] for row in dcnv4[12:]}
    assert [row["started_at"] for row in dcnv4] == sorted(row["started_at"] for row in dcnv4)
    plots = {"conv3x3-module-fwd-standard", "dcnv4-module-fwd-standard"}
    assert {path.name for path in (out / "plots").iterdir()} == {f"{p}{s}" for p in plots for s in (".png", ".svg")}
    assert err.count("\n") == 6


def test_set_ups_that_take_turns_are_series_of_their_own_and_said_so(copied, tmp_path):
    noise = np.random.default_rng(9)
    for day in range(17, 21):
        newer = {"packages": {"torch": "2.2"}}
        add_run(copied, day, cells_of(day, noise), environment=newer, name=f"newer-{day}")
    newer, older = read_history(copied).series
    assert [len(newer.runs), len(older.runs)] == [4, 20]
    assert newer.identity.parts["torch"] == "2.2"
    shared = {"torch": "2.1", "driver": "1.2", "timer": "cuda-event", "cache": "cold"}
    assert shared.items() <= older.identity.parts.items()
    assert newer.steps == ()
    assert len(older.steps) == 1
    code, text, _ = call("history", str(copied), "--out", str(tmp_path / "out"))
    assert code == 0
    assert "series 1 of 2" in text
    assert "Not comparable with the other 1 series: torch 2.2 here, 2.1 there" in text
    assert "no step can be shown in fewer than 8 runs, 4 before it and 4 from it on (2 cells)" in text
    assert (tmp_path / "out" / "plots" / "series-2-dcnv4-module-fwd-standard.png").exists()


def on(host, torch="2.1"):
    return {"host": host, "packages": {"torch": torch}}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (lambda day: on("ab"[day % 2]), [("b", "2.1", 12), ("a", "2.1", 12)]),
        (lambda day: on("ab"[day >= 12]), [("b", "2.1", 24)]),
        (lambda day: on(f"container-{day}"), [("container-23", "2.1", 24)]),
        (
            lambda day: on(f"container-{day}", f"2.{day % 2}"),
            [("container-23", "2.1", 12), ("container-22", "2.0", 12)],
        ),
        (
            lambda day: on("ab"[day % 2], "2.2" if day >= (12, 17)[day % 2] else "2.1"),
            [("b", "2.2", 12), ("a", "2.2", 12)],
        ),
    ],
    ids=["turns", "moved", "containers", "containers with two versions", "versions change on one host first"],
)
def test_hosts_and_versions_that_take_turns_are_told_apart(tmp_path, environment, expected):
    for day in range(24):
        add_run(tmp_path, day, cells_of(day, np.random.default_rng(day)), environment=environment(day))
    found = [
        (series.identity.parts["host"], series.identity.parts["torch"], len(series.runs))
        for series in read_history(tmp_path).series
    ]
    assert found == expected


def test_versions_that_change_once_are_said_and_the_series_goes_on(copied):
    for day in range(20, 24):
        newer = {"packages": {"torch": "2.2"}, "driver_version": "1.3"}
        add_run(copied, day, cells_of(day, np.random.default_rng(day)), environment=newer)
    [series] = read_history(copied).series
    assert len(series.runs) == 24
    assert series.identity.parts["torch"] == "2.2"
    code, text, _ = call("history", str(copied))
    assert code == 0
    assert "From 2026-03-21 night-20 on: torch 2.1 → 2.2, driver 1.2 → 1.3." in text


def test_settings_are_named_where_they_tell_cells_apart(tmp_path):
    cells = [measurement("dcnv4", SHAPE, "fp16", 1.0, settings=(("offset_std_px", size),)) for size in (1, 2)]
    add_run(tmp_path, 0, [*cells, measurement("conv3x3", SHAPE, "fp16", 1.0, settings=(("bias", 0),))])
    code, text, err = call("history", str(tmp_path), "--out", str(tmp_path / "out"), "--format", "terminal")
    assert code == 0, err
    assert "DCNv4 [torch] 2×8×8×32 fp16 module fwd standard offset_std_px=2 " in text
    assert "bias" not in text
    assert "1 run from" in text
    svg = (tmp_path / "out" / "plots" / "dcnv4-module-fwd-standard.svg").read_text()
    assert "fp16, offset_std_px=2" in svg
