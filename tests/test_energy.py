"""Energy: within 2 % of the truth with counters that step every 20 to 100 ms, on clocks that the tests move.

What follows from it, in journals, rows and tables, comes at the end.
"""

import json
import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from builders import make_cell
from report_fixtures import make_run, measurement
from test_environment import GPU, HANDLE, nvml  # noqa: F401 - a fixture

from opbench.device.energy_counters import NoEnergyError
from opbench.report.tables import energy_tables, write_tables
from opbench.results.energy import EnergyWindow, energy_columns, together
from opbench.results.measurement import Measurement, Status
from opbench.results.repetitions import by_cell
from opbench.sweeps import energy
from opbench.workload.case import Shape

IDLE_W, BUSY_W = 70.0, 400.0
WINDOW = EnergyWindow("nvml", 800_000.0, 2.0, 4000, 40, 70.0)


class Machine:
    """A device, its counter and the clock that both move: one that works where it launches, and idles where it sleeps.

    Args:
        step_s: from one step of the counter to the next.
        launch_s: what a launch takes.
        lag_s: how far the counter is behind.
        reading_s: what a reading takes.
    """

    source = "made up"

    def __init__(self, step_s: Callable[[], float], launch_s=1e-3, lag_s=0.0, reading_s=20e-6):
        self.now, self.step_s, self.launch_s, self.lag_s, self.reading_s = 0.0, step_s, launch_s, lag_s, reading_s
        self.times, self.joules = [0.0], [0.0]
        self.next_step, self.shown_mj = step_s() + lag_s, 0

    def spend(self, seconds, watts):
        self.now += seconds
        self.times.append(self.now)
        self.joules.append(self.joules[-1] + seconds * watts)
        while self.next_step <= self.now:
            self.shown_mj = int(1e3 * self.used_until(self.next_step - self.lag_s))
            self.next_step += self.step_s()

    def used_until(self, moment):
        place = bisect_right(self.times, moment) - 1
        if place + 1 == len(self.times):
            return self.joules[place]
        share = (moment - self.times[place]) / (self.times[place + 1] - self.times[place])
        return self.joules[place] + share * (self.joules[place + 1] - self.joules[place])

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.spend(seconds, IDLE_W)

    def run(self, count):
        self.spend(count * self.launch_s, BUSY_W)

    def read_mj(self):
        self.now += self.reading_s
        return self.shown_mj


def measured(machine, monkeypatch, told_s=None, **more):
    monkeypatch.setattr(energy, "time", machine)
    return energy.measure(machine, machine.run, told_s or machine.launch_s, **more)


STEPS = {
    "20 ms": lambda _: 0.02,
    "100 ms": lambda _: 0.1,
    "20 to 100 ms": lambda chance: chance.uniform(0.02, 0.1),
}


@pytest.mark.parametrize("lag_s", [0.0, 0.9])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("launch_s", [3e-6, 1e-3, 0.03, 0.4])
def test_energy_is_within_2_percent_of_the_truth(launch_s, steps, lag_s, monkeypatch):
    chance = random.Random(0)  # noqa: S311
    for _ in range(30):
        machine = Machine(lambda: STEPS[steps](chance), launch_s, lag_s)
        machine.spend(chance.uniform(1.0, 1.2), BUSY_W)  # the timing before it
        found = measured(machine, monkeypatch)
        columns = energy_columns(found, flop_count=10**9)
        assert columns["energy_mj"] == pytest.approx(1e3 * BUSY_W * launch_s, rel=0.02)
        assert columns["energy_idle_subtracted_mj"] == pytest.approx(1e3 * (BUSY_W - IDLE_W) * launch_s, rel=0.02)
        assert columns["average_power_w"] == pytest.approx(BUSY_W, rel=0.02)
        assert columns["idle_power_w"] == pytest.approx(IDLE_W, rel=0.02)
        assert columns["gflop_per_joule"] == pytest.approx(1 / BUSY_W / launch_s, rel=0.021)
        assert found.window_s >= 2
        seen_s = max(launch_s, {"20 ms": 0.02, "100 ms": 0.1}.get(steps, 0.06))
        assert found.counter_updates == pytest.approx(found.window_s / seen_s, rel=0.3)
        assert found.launches * launch_s == pytest.approx(found.window_s, rel=0.02)


def test_a_host_that_queues_more_slowly_than_the_device_runs_reads_often_enough(monkeypatch):
    chance = random.Random(1)  # noqa: S311
    found = measured(Machine(lambda: chance.uniform(0.02, 0.1), 60e-6), monkeypatch, told_s=2e-6)
    assert found.window_mj / found.launches == pytest.approx(1e3 * BUSY_W * 60e-6, rel=0.02)
    assert found.window_s < 3


def test_calls_of_several_launches_are_counted_as_these(monkeypatch):
    machine = Machine(lambda: 0.05, launch_s=4e-3)
    found = measured(machine, monkeypatch, launches_of_call=4)
    assert found.launches % 4 == 0
    assert found.window_mj / found.launches == pytest.approx(BUSY_W, rel=0.02)  # 1 ms of each


def test_the_window_begins_and_ends_where_the_counter_changes(monkeypatch):
    machine = Machine(lambda: 0.05)
    readings = []
    monkeypatch.setattr(
        machine, "read_mj", lambda: readings.append((machine.now, machine.shown_mj)) or machine.shown_mj
    )
    found = measured(machine, monkeypatch)
    changes = [after for before, after in pairwise(readings) if after[1] != before[1]]
    end, end_mj = changes[-1]
    assert readings[-1] == (end, end_mj)
    begin = next(moment for moment, counted in changes if counted == end_mj - found.window_mj)
    assert end - begin == pytest.approx(found.window_s)


@pytest.mark.parametrize(
    ("counter", "launch_s", "reason"),
    [
        ({"step_s": lambda: 1e9}, 1e-3, "the counter stands still: no change within 5 s"),
        ({"step_s": lambda: 3.0}, 4.0, "the counter steps every 3 s, too seldom for launches this long"),
    ],
)
def test_a_counter_that_cannot_tell_is_a_reason(counter, launch_s, reason, monkeypatch):
    with pytest.raises(NoEnergyError, match=reason):
        measured(Machine(launch_s=launch_s, **counter), monkeypatch)


def test_a_counter_that_goes_back_is_a_reason(monkeypatch):
    machine = Machine(lambda: 0.05)
    monkeypatch.setattr(machine, "read_mj", iter([*range(600), 7]).__next__)
    with pytest.raises(NoEnergyError, match="the counter went back, from 599 to 7 mJ"):
        measured(machine, monkeypatch)


# In journals, rows and tables

OK = Measurement(make_cell(), Status.OK, latencies_ms=(1.0,), energy=WINDOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "two\nlines"}, {"source": None}, {"launches": 0}, {"launches": 1.5}, {"counter_updates": True},
        {"window_mj": -1.0}, {"window_s": 0.0}, {"window_s": float("nan")}, {"idle_power_w": "70"},
        {"idle_power_w": float("inf")},
    ],
)  # fmt: skip
def test_a_line_with_an_energy_that_nobody_measured_is_refused(changes):
    line = json.loads(OK.to_json_line())
    line["energy"] |= changes
    with pytest.raises(ValueError, match=next(iter(changes))):
        Measurement.from_json(line)


@pytest.mark.parametrize("nonsense", [[], 3, {"source": "nvml"}])
def test_an_energy_that_is_no_window_is_refused(nonsense):
    with pytest.raises((KeyError, TypeError)):
        Measurement.from_json({**json.loads(OK.to_json_line()), "energy": nonsense})


def test_a_line_without_energy_or_with_a_newer_ones_field_is_read():
    line = json.loads(OK.to_json_line())
    assert Measurement.from_json({**line, "energy": {**line["energy"], "later": 1}}) == OK
    del line["energy"]
    assert Measurement.from_json(line).energy is None


def test_the_columns_follow_from_the_window():
    assert energy_columns(WINDOW, flop_count=10**9) == {
        "energy_mj": 200.0, "energy_idle_subtracted_mj": 165.0, "energy_window_s": 2.0, "energy_launches": 4000,
        "energy_counter_updates": 40, "energy_source": "nvml", "average_power_w": 400.0, "idle_power_w": 70.0,
        "gflop_per_joule": 5.0,
    }  # fmt: skip
    assert energy_columns(replace(WINDOW, window_mj=0.0), 10**9)["gflop_per_joule"] is None
    assert set(energy_columns(None, 10**9).values()) == {None}


def test_the_windows_of_several_processes_count_by_their_length():
    longer = EnergyWindow("nvml", 500_000.0, 6.0, 1000, 10, 110.0)
    assert together([WINDOW, longer]) == EnergyWindow("nvml", 1_300_000.0, 8.0, 5000, 50, 100.0)
    lines = [OK, replace(OK, energy=longer, repetition=2), replace(OK, energy=None, repetition=3)]
    [found] = by_cell(lines).values()
    assert found.energy == together([WINDOW, longer])
    assert together([]) is None


def test_a_table_shows_the_energy_of_a_launch_and_why_there_is_none(tmp_path):
    shape = Shape(64, 14, 14, 512)
    cells = [
        replace(measurement("dcnv4", shape, "fp32", 1.0), energy=WINDOW),
        replace(measurement("dcnv4", shape, "fp16", 0.5), energy=replace(WINDOW, launches=8000)),
        replace(measurement("dcnv3", shape, "fp32", 1.0), reason="checked at 1x14x14x512; no energy: MIG is on"),
        measurement("dcnv3", shape, "fp16", Status.OUT_OF_MEMORY),
    ]
    run = make_run(tmp_path / "run", cells)
    [table] = energy_tables(run)
    assert table.columns == ("Operator", "Provider", "14×14×512\nfp32 / fp16 (mJ)")
    assert table.rows == (("DCNv3", "torch", "— / OOM"), ("DCNv4", "torch", "200 / 100"))
    assert table.notes[2:] == (
        "Counter: nvml. Idle power, which is included: 70 to 70 W.",
        "No energy: MIG is on (1 cell).",
    )
    assert "energy-standard-module-fwd.md" in {path.name for path in write_tables(run)}
    assert energy_tables(make_run(tmp_path / "other", [measurement("dcnv4", shape, "fp32", 1.0)])) == []
