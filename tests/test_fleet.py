"""A sweep over many cards, with cards that are played: who measures what, what a lost card costs, how cards differ."""

import itertools
import json
import sys

import pytest
from builders import doubling, make_case, make_cell
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz import call

from opbench.compare.cards import card_readings, operator_spreads, outliers
from opbench.errors import FleetError, ResultsError, UsageError
from opbench.report.cards import card_tables, draw_spread, spread_tables, write_spread
from opbench.report.layout import group_rows
from opbench.report.page.data import page_data
from opbench.report.page.warnings import run_warnings
from opbench.results.measurement import Measurement, Status
from opbench.results.run import Run
from opbench.results.sentinels import AFTER, BEFORE, SENTINELS, read_sentinels
from opbench.sweeps.conduct import Conduct, FleetMode, make_conduct
from opbench.sweeps.fleet.fleet import Answer, Lost, Stage
from opbench.sweeps.fleet.schedule import Schedule, Task
from opbench.sweeps.fleet.sentinel import sentinel_cell
from opbench.sweeps.fleet.sweep import measure, start_fleet
from opbench.sweeps.progress import NullProgress

PLAN = [
    make_cell(make_case(shape=(1, side, side, 8), dtype=dtype), provider)
    for side in (4, 5, 6, 7) for dtype in ("fp32", "bf16") for provider in ("right", "wrong")
]  # fmt: skip
COMMAND = {"timer": "wall-clock", "cache": "warm", "ops": ["double"], "time_budget_s": 0.5, "device": "cuda:0"}
SENTINELS_OF = {when: sentinel_cell("cpu", {"conv3x3": doubling(name="conv3x3")}, when) for when in (BEFORE, AFTER)}


def environment(number, **changes):
    card = {"device": "cuda:0", "device_name": "Example GPU 40GB", "gpu": {"uuid": f"GPU-{number}"}}
    return {**card, "host": f"node-{number}", "packages": {"torch": "2.1"}, "git_revision": "abc", **changes}


class PlayedFleet:
    """Cards that answer at once, each card's latency being its number in ms.

    Args:
        count: of cards.
        deaths: by card how many cells it measures before it is lost at one; `""` as the cell of a call of that name.
        changes: to the environment, by card.
    """

    device_type = "cuda"

    def __init__(self, count, deaths=(), changes=None, plan=PLAN, repeat=1):
        self.all = [str(number) for number in range(1, count + 1)]
        self.cards = [*self.all]
        self.deaths, self.changes = dict(deaths), changes or {}
        self.plan, self.command = plan, {**COMMAND, "repeat": repeat}
        self.measured = {card: [] for card in self.all}
        self.calls, self.events = [], []

    def place(self, card):
        return f"10.0.0.{card}"

    def close(self):
        self.cards.clear()

    def call(self, card, method, *arguments):
        assert card in self.cards
        self.calls.append((card, method))
        if self.deaths.get(card) == method or (method == "run" and self.deaths.get(card) == len(self.measured[card])):
            self.events.append(Lost(card, "the node died"))
            self.cards.remove(card)
            return
        self.events += [Stage(card, method), Answer(card, getattr(self, f"_{method}")(card, *arguments))]

    def wait(self):
        found, self.events = self.events, []
        return found

    def _prepare(self, card, options, command, folder):
        return {
            "command": self.command, "plan": [cell.to_json() for cell in self.plan], "others": [], "note": "",
            "environment": environment(card, **self.changes.get(card, {})),
        }  # fmt: skip

    def _open(self, card, command, providers):
        assert providers == ["right", "wrong"]

    def _renew(self, card):
        pass

    def _ceilings(self, card, budget_s):
        return "none measured"

    def _sentinel(self, card, when):
        return self._line(SENTINELS_OF[when], float(card))

    def _run(self, card, cell):
        self.measured[card].append(cell)
        return self._line(json_cell(cell), float(card))

    def _line(self, cell, latency_ms):
        return Measurement(
            cell, Status.OK, latencies_ms=(latency_ms,) * 9, timer="wall-clock", cache="warm"
        ).to_json_line()


def json_cell(data):
    return type(PLAN[0]).from_json(data)


class Notes(NullProgress):
    """Keeps what it is told."""

    def __init__(self):
        self.notes, self.stages = [], []

    def note(self, text):
        self.notes.append(text)

    def stage(self, name):
        self.stages.append(name)


def sweep(fleet, out, progress=None, mode="share", **options):
    resume, accept = options.pop("resume", False), options.pop("accept_differences", False)
    conduct = Conduct(fleet="ray", fleet_mode=FleetMode(mode))
    progress = progress or Notes()
    begun = start_fleet(fleet, options, conduct, out, progress, resume=resume, accept_differences=accept)
    measure(fleet, begun, conduct, progress)
    return begun.every_run


def groups(cells):
    return {(cell["operator"], str(cell["shape"])) for cell in cells}


def test_each_cell_is_measured_once_and_a_group_stays_on_one_card(tmp_path):
    fleet = PlayedFleet(3)
    [run] = sweep(fleet, tmp_path / "run")
    assert sorted(line.cell.key for line in run.measurements()) == sorted(cell.key for cell in PLAN)
    for one, other in itertools.combinations(fleet.measured.values(), 2):
        assert not groups(one) & groups(other)
    assert [row.status for row in run.rows()] == ["ok"] * len(PLAN)
    for row in run.rows():
        number = int(row.latency_ms)
        assert (row.actor, row.host, row.gpu_uuid) == (f"card-{number}", f"node-{number}", f"GPU-{number}")
        assert row.origin == f"{run.run_id}.card-{number}"
    assert Run.open(run.path).rows() == run.rows()
    assert run.command["fleet"] == "ray"


def test_a_lost_card_is_a_row_and_its_cell_is_tried_once_more_elsewhere(tmp_path):
    notes = Notes()
    [run] = sweep(PlayedFleet(2, {"2": 1}), tmp_path / "run", notes)
    lines = run.measurements()
    lost = [line for line in lines if line.status is Status.ERROR]
    assert [line.reason for line in lost] == ["node node-2 lost: the node died (card-2)"]
    assert lost[0].origin.endswith("card-2")
    row = next(row for row, cell in zip(run.rows(), PLAN, strict=True) if cell == lost[0].cell)
    assert (row.status, row.actor) == ("ok", "card-1")
    assert row.warnings == "card lost: this is the second try; at the first, node node-2 lost: the node died (card-2)"
    assert len(lines) == len(PLAN) + 1
    assert [row.status for row in run.rows()] == ["ok"] * len(PLAN)
    assert notes.notes == ["card-2 (node node-2, Example GPU 40GB, GPU-2) is lost: the node died; 1 card left"]


def test_a_cell_that_loses_two_cards_is_an_error_and_is_not_tried_a_third_time(tmp_path):
    fleet = PlayedFleet(3, {"2": 0})
    first_of_2 = []
    real = fleet.call

    def call(card, method, *arguments):
        if method == "run":
            if card == "2":
                first_of_2.append(arguments[0])
            elif first_of_2 and arguments[0] == first_of_2[0]:
                fleet.deaths[card] = len(fleet.measured[card])
        real(card, method, *arguments)

    fleet.call = call
    [run] = sweep(fleet, tmp_path / "run")
    key = json_cell(first_of_2[0]).key
    tries = [line for line in run.measurements() if line.cell.key == key]
    assert [line.status for line in tries] == [Status.ERROR, Status.ERROR]
    first, second = (line.origin.rpartition("-")[2] for line in tries)
    assert tries[1].reason == (
        f"node node-{first} lost: the node died (card-{first}); "
        f"tried again: node node-{second} lost: the node died (card-{second})"
    )
    assert sum(row.status == "ok" for row in run.rows()) == len(PLAN) - 1


def test_without_a_card_left_the_rest_is_not_run_and_the_run_goes_on_later(tmp_path):
    notes = Notes()
    [run] = sweep(PlayedFleet(2, {"1": 1, "2": 2}), tmp_path / "run", notes)
    counts = [row.status for row in run.rows()]
    assert counts.count("ok") == 3
    assert counts.count("error") == 2
    assert counts.count("not_run") == len(PLAN) - 5
    assert f"{len(PLAN) - 3} cells were not measured: the cards that could are lost" in notes.notes[-1]
    fleet = PlayedFleet(2)
    [again] = sweep(fleet, tmp_path / "run", resume=True)
    assert sum(map(len, fleet.measured.values())) == len(PLAN) - 5
    assert {row.actor for row in again.rows()} == {"card-1", "card-2"}
    assert len(again.origins) == 2


def test_progress_that_knows_no_cards_hears_of_all_cells(tmp_path):
    ended = []
    progress = Notes()
    progress.ended = lambda measurement: ended.append(measurement.cell.key)
    sweep(PlayedFleet(2), tmp_path / "run", progress)
    assert sorted(ended) == sorted(cell.key for cell in PLAN)


def test_repetitions_stay_on_the_card_of_the_first(tmp_path):
    fleet = PlayedFleet(3, repeat=3)
    [run] = sweep(fleet, tmp_path / "run")
    homes = {}
    for line in run.measurements():
        assert homes.setdefault(line.cell.key, line.origin) == line.origin
    assert len(run.measurements()) == 3 * len(PLAN)
    assert fleet.calls.count(("1", "renew")) == 2
    assert {row.processes for row in run.rows()} == {3}


def test_a_card_that_comes_back_changed_gets_another_name(tmp_path):
    sweep(PlayedFleet(2, {"1": 1, "2": 1}), tmp_path / "run")
    changed = PlayedFleet(2, changes={"1": {"git_revision": "def"}, "2": {"git_revision": "def"}})
    with pytest.raises(ResultsError, match="git revision: abc there, def here"):
        sweep(changed, tmp_path / "run", resume=True)
    [run] = sweep(changed, tmp_path / "run", resume=True, accept_differences=["git revision"])
    assert {row.actor for row in run.rows()} == {"card-1", "card-2", "card-3", "card-4"}
    assert sum("resumed elsewhere: git revision" in row.warnings for row in run.rows()) == len(PLAN) - 4


def test_cards_that_differ_are_refused_by_their_places(tmp_path):
    other = {"2": {"packages": {"torch": "2.2"}}}
    with pytest.raises(
        FleetError, match=r"cards on 10.0.0.1 \(there\) and 10.0.0.2 \(here\) differ: torch: 2.1 there, 2.2 here"
    ):
        sweep(PlayedFleet(2, changes=other), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    [run] = sweep(PlayedFleet(2, changes=other), tmp_path / "run", accept_differences=["torch"])
    assert len(run.finished()) == len(PLAN)


def test_a_card_that_cannot_start_or_plan_is_an_error_of_the_sweep(tmp_path):
    with pytest.raises(FleetError, match=r"the card on 10.0.0.2 cannot be used: the node died"):
        sweep(PlayedFleet(2, {"2": "prepare"}), tmp_path / "run")
    fleet = PlayedFleet(1)
    fleet._prepare = lambda *arguments: {"refused": "unknown operator 'x'"}
    with pytest.raises(UsageError, match=r"^unknown operator 'x'$"):
        sweep(fleet, tmp_path / "run")


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_whatever_cards_do_no_cell_is_lost_or_measured_twice(sizes, cards, random):
    tasks = [
        Task(make_cell(make_case(shape=(1, side, 1, 8)), f"provider{n}"), number=1)
        for side, size in enumerate(sizes, start=1) for n in range(size)
    ]  # fmt: skip
    schedule = Schedule(tasks)
    alive, doing, done, failed = [f"card-{n}" for n in range(cards)], {}, [], []
    while True:
        for card in alive:
            if card not in doing and (task := schedule.next(card)):
                assert task.lost_on != card
                doing[card] = task
        if not doing:
            break
        card = random.choice(sorted(doing))
        task = doing.pop(card)
        if random.random() < 0.1:
            alive.remove(card)
            if not schedule.lose(card, task, "lost"):
                failed.append(task.cell.key)
        else:
            done.append(task.cell.key)
    left = [task.cell.key for task in schedule.left]
    assert sorted([*done, *failed, *left]) == sorted(task.cell.key for task in tasks)
    assert not left or not alive or all(task.lost_on in alive for task in schedule.left)


def test_every_card_measures_every_cell_to_compare_them(tmp_path):
    runs = sweep(PlayedFleet(3), tmp_path / "cards", mode="replicate")
    assert [run.path.name for run in runs] == ["card-1", "card-2", "card-3"]
    for number, run in enumerate(runs, start=1):
        assert {(row.actor, row.latency_ms) for row in run.rows()} == {(f"card-{number}", float(number))}
    *_, every = operator_spreads({run.path.name: run for run in runs})
    assert every.relative == pytest.approx({"card-1": 0.5, "card-2": 1.0, "card-3": 1.5})
    assert every.spread == pytest.approx(2.0)
    cards, spread = spread_tables(runs)
    assert spread.rows[0] == ("double", str(len(PLAN)), "-50.0 %", "+0.0 %", "+50.0 %", "+200.0 %")
    assert [row[0] for row in cards.rows] == ["card-1", "card-2", "card-3"]
    written = [path.name for path in (*write_spread(runs), *draw_spread(runs))]
    assert {"cards.csv", "cards-spread.md", "cards.svg"} <= {*written}
    assert f"double,{len(PLAN)},card-3,1.5" in (tmp_path / "cards" / "cards.csv").read_text()


def test_a_comparison_of_cards_goes_on_where_each_card_stopped(tmp_path):
    sweep(PlayedFleet(2, {"2": 3}), tmp_path / "cards", mode="replicate")
    fleet = PlayedFleet(2)
    runs = sweep(fleet, tmp_path / "cards", mode="replicate", resume=True)
    assert {card: len(cells) for card, cells in fleet.measured.items()} == {"1": 0, "2": len(PLAN) - 4}
    assert [row.status for row in runs[1].rows()].count("error") == 1
    with pytest.raises(FleetError, match=r"card-3 .*measured nothing in "):
        sweep(PlayedFleet(3), tmp_path / "cards", mode="replicate", resume=True)


def test_the_sentinel_names_the_card_that_is_slow(tmp_path):
    fleet = PlayedFleet(5)
    latencies = {"1": 1.0, "2": 1.002, "3": 0.999, "4": 1.09, "5": 1.001}
    fleet._sentinel = lambda card, when: fleet._line(SENTINELS_OF[when], latencies[card])
    [run] = sweep(fleet, tmp_path / "run")
    [table] = card_tables(run)
    assert table.rows[3] == ("card-4", "node-4", "GPU-4", "4", "1.09", "1.09", "+8.9 %")
    assert "card-4 (GPU-4) is 9 % slower than the median of the fleet: an outlier." in table.notes
    assert sum("outlier" in note for note in table.notes) == 1
    assert "From the fastest to the slowest card: +9.1 %." in table.notes
    assert len(read_sentinels(run.path)) == 10
    assert "card-4 (GPU-4) is 9 % slower than the median of the fleet: an outlier." in run_warnings(run)


def test_a_lost_card_has_no_sentinel_after_its_cells(tmp_path):
    [run] = sweep(PlayedFleet(2, {"2": 1}), tmp_path / "run")
    assert [(card.name, card.before_ms, card.after_ms) for card in card_readings(run)] == [
        ("card-1", 1.0, 1.0), ("card-2", 2.0, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "far"),
    [
        ({}, set()),
        ({"a": 1.0, "b": 2.0}, set()),  # each is as far from the median as the other
        ({"a": 1.0, "b": 1.0, "c": 1.0}, set()),
        ({"a": 1.0, "b": 1.0, "c": 1.005}, set()),  # alike to half a percent
        ({"a": 1.0, "b": 1.0, "c": 1.02}, {"c"}),
        ({"a": 1.0, "b": 1.02, "c": 0.98, "d": 1.03, "e": 0.97}, set()),
        ({"a": 1.0, "b": 1.02, "c": 0.98, "d": 1.01, "e": 0.80}, {"e"}),
    ],
)
def test_an_outlier_lies_far_from_cards_that_are_alike(values, far):
    assert set(outliers(values)) == far


def test_a_damaged_sentinel_is_one_line_and_a_cut_one_is_left_out(tmp_path):
    [run] = sweep(PlayedFleet(2), tmp_path / "run")
    path = run.path / SENTINELS
    path.write_text(path.read_text() + '{"cell": {"oper')
    assert len(read_sentinels(run.path)) == 4
    path.write_text('{"cell": 3}\n')
    with pytest.raises(ResultsError, match=rf"{SENTINELS}:1: damaged line: "):
        read_sentinels(run.path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fleet": "slurm"}, "--fleet must be ray or ray:ADDRESS, got 'slurm'"),
        ({"fleet": "ray", "isolation": "none"}, "--fleet needs --isolation process"),
        ({"fleet_mode": "replicate"}, "--fleet-mode replicate needs --fleet"),
        ({"fleet": "ray", "fleet_mode": "both"}, "--fleet-mode must be of share, replicate, got 'both'"),
    ],
)
def test_what_cannot_be_followed_is_said_with_the_flag(options, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        make_conduct(options)


@pytest.mark.parametrize(
    ("fleet", "message"),
    [
        ("ray:127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1: "),
        ("ray:nowhere.invalid:6379", "no Ray cluster answers at nowhere.invalid:6379: "),
        ("ray:6379", "--fleet ray:ADDRESS takes HOST:PORT of a cluster's head or auto, got '6379'"),
        ("ray:ray://127.0.0.1:10001", "--fleet ray:ADDRESS takes HOST:PORT"),
    ],
)
def test_a_wrong_address_is_one_line(fleet, message, tmp_path):
    code, _, errors = call("sweep", "--fleet", fleet, "--quiet", "--out", tmp_path / "run")
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert message in errors


def test_a_wrong_option_is_said_before_anything_starts(tmp_path):
    code, _, errors = call("sweep", "--fleet", "ray", "--dtypes", "fp99", "--quiet", "--out", tmp_path / "run")
    assert (code, errors) == (2, "opbench: --dtypes must be of fp32, tf32, fp16, bf16, got 'fp99'\n")


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, errors = call("sweep", "--fleet", "ray", "--quiet", "--out", tmp_path / "run")
    assert (code, errors.strip()) == (2, "opbench: --fleet ray needs Ray: pip install 'opbench[fleet]'")


def test_tasks_and_rows_are_json():
    assert json_cell(json.loads(json.dumps(PLAN[0].to_json()))) == PLAN[0]


def test_unlike_cards_are_series_of_their_own(tmp_path):
    other = {"2": {"device_name": "Other GPU 80GB"}}
    [run] = sweep(PlayedFleet(2, changes=other), tmp_path / "run", accept_differences=True)
    [group] = group_rows(run.rows())
    right = [series for series in group.series if series.provider == "right"]
    assert [group.label(series) for series in right] == [
        "double [right, Example GPU 40GB]",
        "double [right, Other GPU 80GB]",
    ]
    for series in group.series:
        rows = [group.cell(series, shape, "fp32") for shape in group.shapes]
        assert {row.device for row in rows if row} == {series.device}
    data = page_data([run])
    names = {data["series"][data["series_of"][place]]["name"] for place in range(len(PLAN))}
    assert len(names) == 4
