"""`opbench merge`: one run of several, whatever their order, with the place of every row; and what is refused."""

import json
import shutil
from itertools import permutations

import pytest
from builders import doubling, make_case, make_cell
from ceiling_fixtures import example_ceilings
from test_fuzz import call

import opbench
from opbench.compare.history import read_history
from opbench.compare.readings import Arm
from opbench.errors import ResultsError
from opbench.host.label import host_label
from opbench.results.journal import JOURNAL
from opbench.results.measurement import Measurement, Status
from opbench.results.run import Run
from opbench.results.run_json import RUN
from opbench.sweeps.merge import merge_runs

COUNT = 3
COMMAND = {"timer": "wall-clock", "cache": "warm", "ops": ["double"], "isolation": "process"}
PLAN = [
    make_cell(make_case(shape=(1, side, side, 8), dtype=dtype), provider)
    for side in (4, 5, 6, 7) for dtype in ("fp32", "bf16") for provider in ("right", "wrong")
]  # fmt: skip


def environment(number, **changes):
    card = {"device": f"cuda:{number}", "device_name": "Example GPU 40GB", "gpu": {"uuid": f"GPU-{number}"}}
    return {**card, "host": f"node-{number}", "packages": {"torch": "2.1"}, "git_revision": "abc", **changes}


def make_shard(path, number, count=COUNT, plan=PLAN, environment=environment, without=(), **command):
    """A shard whose cells took `number` ms, as a sweep leaves it."""
    own = {"shard": f"{number}/{count}"} if count > 1 else {}
    run = Run.create(path, command={**COMMAND, **own, **command}, environment=environment(number), plan=plan)
    run.write_ceilings(example_ceilings())
    with run.append() as journal:
        for cell in reversed(run.plan()):  # in another order than planned
            if cell.key not in without:
                measured = Measurement(
                    cell, Status.OK, latencies_ms=(float(number),) * 9, timer="cuda-event", cache="cold"
                )
                journal.write(measured)
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return [make_shard(folder / f"shard-{number}", number) for number in range(1, COUNT + 1)]


def content(run):
    return {path.name: path.read_bytes() for path in run.path.iterdir()}


def test_every_cell_is_there_once_in_the_order_of_the_plan_and_says_where_it_was_measured(shards, tmp_path):
    merged = merge_runs(shards, tmp_path / "merged")
    assert merged.plan() == PLAN
    by_key = {cell.key: Run.open(shard) for shard in shards for cell in Run.open(shard).plan()}
    assert set(by_key) == {cell.key for cell in PLAN}
    for cell, row in zip(PLAN, merged.rows(), strict=True):
        shard = by_key[cell.key]
        number = shard.command["shard"].partition("/")[0]
        assert row.latency_ms == float(number)
        assert (row.host, row.gpu_uuid, row.origin) == (f"node-{number}", f"GPU-{number}", shard.run_id)
        assert row.run_id == merged.run_id
        assert row.limit_ms is not None
    assert {line.origin for line in merged.measurements()} == {run.run_id for run in by_key.values()}
    assert "shard" not in merged.command


def test_the_order_of_the_runs_changes_no_byte_and_neither_does_merging_some_before(shards, tmp_path):
    wanted = content(merge_runs(shards, tmp_path / "merged"))
    assert set(wanted) == {RUN, JOURNAL, "ceilings.json"}
    for number, order in enumerate(permutations(shards)):
        assert content(merge_runs(order, tmp_path / str(number))) == wanted
    some = merge_runs(shards[1:], tmp_path / "some").path
    assert content(merge_runs([some, shards[0]], tmp_path / "all")) == wanted


def test_the_lines_are_those_of_the_shards_byte_for_byte_but_for_their_origin(shards, tmp_path):
    copied = shutil.copytree(shards[0], tmp_path / "copied")
    lines = (copied / JOURNAL).read_text().splitlines()
    odd = lines[0].replace('"status"', '"of a later version":  [1.50, "é"], "status"')
    (copied / JOURNAL).write_text("\n".join([odd, *lines[1:], '{"cut sho']))
    merged = merge_runs([copied, *shards[1:]], tmp_path / "merged")
    first = (merged.path / JOURNAL).read_text().splitlines()[0]
    assert first == f'{odd[:-1]}, "origin": "{Run.open(copied).run_id}"}}'
    assert len(merged.measurements()) == len(PLAN)


def test_readings_and_histories_know_each_rows_own_card(shards, tmp_path):
    merged = merge_runs(shards, tmp_path / "runs" / "merged")
    cards = {reading.identity.parts["gpu uuid"] for reading in Arm.of_run(merged).readings.values()}
    assert cards == {"GPU-1", "GPU-2", "GPU-3"}
    series = read_history(tmp_path / "runs").series
    assert {(one.identity.parts["gpu uuid"], one.identity.parts["host"]) for one in series} == {
        (f"GPU-{number}", f"node-{number}") for number in (1, 2, 3)
    }
    assert sum(len(one.trends) for one in series) == len(PLAN)
    shutil.copytree(shards[0], tmp_path / "runs" / "shard-1")
    found = read_history(tmp_path / "runs")
    assert (found.series, found.notes) == (series, ("shard-1 is part of merged, and counts once.",))


def test_a_run_that_two_began_is_merged_where_they_share_no_cell(tmp_path):
    half = {cell.key for cell in PLAN[:7]}
    rest = {cell.key for cell in PLAN[7:]}
    one = make_shard(tmp_path / "one", 1, count=1, without=rest)
    two = make_shard(tmp_path / "two", 2, count=1, without=half)
    rows = merge_runs([one, two], tmp_path / "merged").rows()
    assert [row.latency_ms for row in rows] == [1.0] * 7 + [2.0] * (len(PLAN) - 7)


def test_cells_of_a_shard_that_is_missing_have_no_row_and_the_command_says_so(shards, tmp_path):
    code, text, err = call("merge", *map(str, shards[:2]), "--out", str(tmp_path / "merged"), "--no-plots", "--quiet")
    missing = len(Run.open(shards[2]).plan())
    assert code == 1
    assert f"{missing} not_run" in text
    assert err.endswith(
        f"{missing} cells have no row; measure them: opbench sweep --resume --out {tmp_path / 'merged'}\n"
    )
    code, text, err = call("merge", *map(str, shards), "--out", str(tmp_path / "all"), "--no-plots")
    assert (code, err) == (0, "")
    assert (tmp_path / "all" / "measurements.csv").exists()
    assert "16 ok" in text
    assert "Merged from 3 runs, 3 hosts, 3 cards; the columns" in text


def test_a_cell_that_two_runs_have_is_refused_with_both_places(shards, tmp_path):
    again = make_shard(tmp_path / "again", 2)
    with pytest.raises(ResultsError) as refused:
        merge_runs([*shards, again], tmp_path / "merged")
    last = Run.open(again).plan()[-1].key
    places = sorted([f"{shards[1] / JOURNAL}:1", f"{again / JOURNAL}:1"])
    words = str(refused.value).split(" both have ")
    assert sorted(words[0].split(" and ")) == places
    assert words[1] == f"{last}: one run has a cell once"
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"plan": PLAN[:-1]}, "plan: 1 cells no longer planned"),
        ({"plan": [*PLAN[:-1], make_cell(PLAN[-1].case, PLAN[-1].provider, flop_count=1)]}, "plan: 1 cells with other"),
        ({"cache": "cold"}, "cache: 'warm' there, 'cold' here"),
        ({"seed": 3}, "seed: None there, 3 here"),
        ({"environment": lambda n: environment(n, git_revision="def")}, "git revision: abc there, def here"),
        ({"environment": lambda n: environment(n, packages={"torch": "2.2"})}, "torch: 2.1 there, 2.2 here"),
        ({"environment": lambda n: environment(n, device_name="Other")}, "device: Example GPU 40GB there, Other here"),
    ],
)
def test_another_plan_or_code_is_refused_by_name(shards, tmp_path, other, message):
    made = make_shard(tmp_path / "other", 2, **other)
    with pytest.raises(ResultsError, match=r"^[^\n]+$") as refused:
        merge_runs([shards[0], made], tmp_path / "merged")
    assert message in str(refused.value)
    assert str(made) in str(refused.value)
    if "environment" in other:
        name = message.partition(":")[0]
        assert merge_runs([shards[0], made], tmp_path / "merged", accept_differences=[name]).origins


def test_what_each_shard_may_have_of_its_own_is_no_difference(shards, tmp_path):
    made = make_shard(tmp_path / "other", 2, device="cuda:5", isolation="none", cell_timeout_s=3.0)
    first = merge_runs([shards[0], made], tmp_path / "merged")
    assert content(first) == content(merge_runs([made, shards[0]], tmp_path / "again"))


def test_a_folder_that_holds_something_and_a_disk_that_refuses_leave_all_as_it_was(shards, tmp_path, monkeypatch):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("mine")
    with pytest.raises(ResultsError, match="is not empty"):
        merge_runs(shards, tmp_path / "kept")
    monkeypatch.setattr("opbench.sweeps.merge.run_text", lambda stored: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge_runs(shards, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"kept"}


def test_damaged_origins_are_one_line(shards, tmp_path):
    merged = merge_runs(shards, tmp_path / "merged")
    whole = json.loads((merged.path / RUN).read_text())
    for damage in ({"origins": [{}]}, {"origins": 3}, {"own_cells": [len(PLAN)]}, {"own_cells": "all"}):
        (merged.path / RUN).write_text(json.dumps({**whole, **damage}))
        with pytest.raises(ResultsError, match=r"^[^\n]+damaged[^\n]+$"):
            Run.open(merged.path)


def test_sweeps_of_all_shards_but_one_are_merged_and_the_last_cells_measured_later(tmp_path):
    shapes = tmp_path / "shapes.yaml"
    sizes = "".join(f"  - {{batch: 1, height: {side}, width: {side}, channels: 8}}\n" for side in (3, 4, 5))
    shapes.write_text(f"description: three shapes\nshapes:\n{sizes}")
    request = {"shapes": [str(shapes)], "dtypes": ["fp32"], "device": "cpu", "time_budget": 0.001, "plots": False,
               "operators": [doubling()], "providers": ["double=right", "double=unwritten"]}  # fmt: skip
    made = [opbench.sweep(**request, shard=f"{number}/3", out=tmp_path / f"{number}") for number in (1, 3)]
    assert [len(run.plan()) for run in made] == [2, 2]
    assert [row.shape for row in made[0].rows()] == [str(made[0].plan()[0].case.shape)] * 2
    assert opbench.sweep(**request, resume=True, out=made[0].path).run_id == made[0].run_id
    with pytest.raises(ResultsError, match="cannot resume with another shard: '1/3' there, '2/3' now"):
        opbench.sweep(**request, resume=True, shard="2/3", out=made[0].path)

    merged = merge_runs([run.path for run in made], tmp_path / "merged")
    before = (merged.path / JOURNAL).read_text()
    whole = opbench.sweep(**request, resume=True, out=merged.path)
    assert (merged.path / JOURNAL).read_text().startswith(before)
    assert len(whole.rows()) == len(whole.measurements()) == 6
    own = [row for row in whole.rows() if not row.origin]
    assert len(own) == 2
    assert {row.host for row in whole.rows()} == {host_label()}
    last = opbench.sweep(**request, shard="2/3", out=tmp_path / "2")
    with pytest.raises(ResultsError, match="both have"):
        merge_runs([merged.path, last.path], tmp_path / "again")
    assert {row.shape for row in last.rows()} == {row.shape for row in own}
