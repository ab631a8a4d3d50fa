"""How candidates of a choice are timed: in turns, with what times the cell, and within one budget."""

from collections import Counter

import pytest
import torch
from builders import doubling, make_cell
from fake_device import FakeDevice
from fake_timer import FakeTimer

from opbench.sweeps.request import RunOptions
from opbench.sweeps.runner import CellRunner
from opbench.timing import trials
from opbench.timing.trials import LEAST_ROUNDS, MOST_ROUNDS, TRIAL_BUDGET_S, in_turns, order_of, trials_for
from opbench.workload.operator import Provider
from opbench.workload.trials import Trials, current_trials, trials_of_cell


def test_every_candidate_begins_a_round_and_follows_every_neighbour():
    orders = [order_of(4, turn) for turn in range(8)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert {order[0] for order in orders} == {0, 1, 2, 3} == {order[-1] for order in orders}
    followed = {(order[place], order[place + 1]) for order in orders for place in range(3)}
    assert followed >= {(0, 1), (1, 0), (1, 2), (2, 1), (3, 0), (0, 3)}
    assert order_of(1, 1) == [0]


class Clock:
    """Moves by what a reading takes."""

    def __init__(self, reading_s):
        self.seconds, self.reading_s, self.read = 100.0, reading_s, []

    def __call__(self):
        return self.seconds

    def readings(self, launches):
        self.read.append(launches)
        self.seconds += self.reading_s * len(launches)
        return [(float(launch), False) for launch in launches]


@pytest.mark.parametrize(
    ("reading_s", "rounds"),
    [(0.0, MOST_ROUNDS), (TRIAL_BUDGET_S, LEAST_ROUNDS), (TRIAL_BUDGET_S / 16, 8)],
)
def test_rounds_end_with_the_budget_but_for_the_fewest_and_the_most(reading_s, rounds):
    clock = Clock(reading_s)
    samples = in_turns([5, 7], clock.readings, clock)
    assert samples == [[5.0] * rounds, [7.0] * rounds]
    assert clock.read[:3] == [[5, 7], [7, 5], [7, 5]]


def test_a_sample_with_the_hosts_time_in_it_counts_only_for_want_of_others():
    turns = iter([False, True, True] * MOST_ROUNDS)

    def read(launches):
        late = next(turns)
        return [(9.0, True) if late or launch == "always late" else (1.0, False) for launch in launches]

    good, late = in_turns(["good", "always late"], read, lambda: 0.0)
    assert set(good) == {1.0}
    assert len(good) < MOST_ROUNDS
    assert late == [9.0] * MOST_ROUNDS


@pytest.mark.parametrize(("cache", "flushed"), [("cold", True), ("warm", False)])
def test_on_a_gpu_candidates_are_timed_by_the_events_and_the_flush_of_the_cell(monkeypatch, cache, flushed):
    """The lead is long enough for the candidate that the host needs longest to queue: no time holds the host's."""
    device = FakeDevice(monkeypatch)
    order = []

    def launch(name, host_ms, kernel_ms):
        def queue():
            order.append(name)
            for _ in range(2):
                device.queue(host_ms, kernel_ms / 2)

        return queue

    candidates = [launch("slow host", 1.5, 0.002), launch("fast host", 0.001, 0.004)]
    monkeypatch.setattr(trials.time, "perf_counter", lambda: device.host / 1e3)
    found = trials_for("cuda:0", cache).measure(candidates)
    assert [{round(ms, 6) for ms in samples} for samples in found] == [{0.002}, {0.004}]
    assert bool(device.flushes) == flushed
    assert min(device.spins[12:]) / 2e9 * 1e3 == pytest.approx(2 * 3.005 if not flushed else 2 * 3.011)
    assert Counter(order)["slow host"] == Counter(order)["fast host"]


def test_on_a_cpu_the_hosts_clock_times_them():
    launched = []
    found = trials_for("cpu", "warm").measure([lambda: launched.append(0), lambda: launched.append(1)])
    assert [len(samples) for samples in found] == [launched.count(0), launched.count(1)]
    assert launched[:6] == [0, 1, 1, 0, 1, 0]


def test_trials_belong_to_a_cell():
    assert current_trials() is None
    outer, inner = (Trials(cache, lambda launches: []) for cache in ("cold", "warm"))
    with trials_of_cell(outer):
        with trials_of_cell(inner):
            assert current_trials() is inner
        assert current_trials() is outer
        with pytest.raises(KeyError), trials_of_cell(inner):
            raise KeyError
        assert current_trials() is outer
    assert current_trials() is None


def test_a_provider_finds_the_trials_of_its_cell():
    found = []

    def build(_case, tensors):
        found.append(current_trials().cache)
        return lambda: tensors["x"] * 2

    operator = doubling(providers=(Provider("choosing", build, "asks for trials"),))
    runner = CellRunner(RunOptions("cpu", "wall-clock", "warm", 0.01, None, 0), {"double": operator}.__getitem__,
                        FakeTimer([1.0]))  # fmt: skip
    measured = runner.run(make_cell(provider="choosing"))
    assert (measured.status, set(found)) == ("ok", {"warm"})
    assert current_trials() is None
    assert torch.is_grad_enabled()
