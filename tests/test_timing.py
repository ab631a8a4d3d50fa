"""Timers and the stopping rule on clocks that move only when told."""

import inspect
import math
from pathlib import Path

import pytest
from fake_timer import FakeTimer

import opbench
from opbench.cli.completion import timers
from opbench.errors import UsageError
from opbench.timing import CACHES, TIMERS, StoppingRule, WallClockTimer, collect_samples, make_timer, resolve_timer
from opbench.timing.stopping import LEAST_SAMPLES, StopReason
from opbench.timing.timers import TimerEntry

ROOT = Path(__file__).parents[1]


class FakeClock:
    """Moves by `tick` at every reading, and by what a launch tells it."""

    def __init__(self, tick=0.0):
        self.seconds = 0.0
        self.tick = tick

    def __call__(self):
        self.seconds += self.tick
        return self.seconds


def noop():
    pass


def test_steady_samples_stop_at_the_minimum():
    samples = collect_samples(FakeTimer([2.0]), noop, StoppingRule(time_budget_s=10))
    assert samples.latencies_ms == (2.0,) * 30
    assert samples.stop_reason is StopReason.CONVERGED


def test_noisy_samples_go_on_until_the_interval_is_narrow():
    # The three middle values lie within 1 %, so enough of them narrow the interval.
    samples = collect_samples(FakeTimer([1.0, 1.9, 1.99, 2.0, 2.01, 2.1, 3.0]), noop, StoppingRule(time_budget_s=10))
    assert samples.stop_reason is StopReason.CONVERGED
    assert len(samples.latencies_ms) > 30
    assert max(samples.latencies_ms) == 3.0  # none removed


def test_a_budget_ends_samples_that_never_settle():
    timer = FakeTimer([1.0, 3.0])
    samples = collect_samples(timer, noop, StoppingRule(time_budget_s=1.0))
    assert samples.stop_reason is StopReason.TIME_BUDGET
    assert timer.now() == pytest.approx(1.0, abs=0.01)
    assert sum(samples.latencies_ms) == pytest.approx(1e3 * timer.now())


def test_slow_launches_still_give_the_minimum():
    samples = collect_samples(FakeTimer([190.0, 209.0]), noop, StoppingRule(time_budget_s=1.0))
    assert len(samples.latencies_ms) == 30
    assert samples.stop_reason is StopReason.TIME_BUDGET


@pytest.mark.parametrize(
    ("latency_ms", "count", "reason"), [(200.1, 6, StopReason.LONG_LAUNCH), (200.0, 30, StopReason.CONVERGED)]
)
def test_a_launch_longer_than_a_fifth_of_the_budget_is_timed_six_times(latency_ms, count, reason):
    samples = collect_samples(FakeTimer([latency_ms]), noop, StoppingRule(time_budget_s=1.0))
    assert samples.latencies_ms == (latency_ms,) * count
    assert samples.stop_reason is reason


def test_one_slow_sample_does_not_make_launches_long():
    samples = collect_samples(FakeTimer([900.0, *[1.0] * 10_000]), noop, StoppingRule(time_budget_s=1.0))
    assert len(samples.latencies_ms) == 30
    assert samples.stop_reason is StopReason.CONVERGED


def test_six_is_the_fewest_that_give_an_interval_of_95_percent():
    # All above or all below the median: 2 of 2**n outcomes miss it.
    assert 1 - 2 / 2**LEAST_SAMPLES >= 0.95 > 1 - 2 / 2 ** (LEAST_SAMPLES - 1)


class LateTimer(FakeTimer):
    """Its clock does not begin at 0, as no clock does; it keeps what it was asked for."""

    def __init__(self, ticks):
        # Steps of 1/1024 s, which floating-point numbers hold exactly, added to 1e5 too.
        super().__init__([1000 / 1024 * tick for tick in ticks])
        self.batches = []

    def now(self):
        return 1e5 + super().now()

    def sample(self, launch, count):
        self.batches.append(count)
        return super().sample(launch, count)


def test_batches_grow_by_a_quarter_and_end_with_the_budget_exactly():
    timer = LateTimer([1, 3])
    samples = collect_samples(timer, noop, StoppingRule(time_budget_s=205 / 1024))
    # A quarter of 30, 37, 46, 57 and 71 samples. After 88, which took 176 ticks, 29 are left: 14 samples. One tick is
    # left after those, and half a sample would do: at least one is taken, and the budget is spent to the tick.
    assert timer.batches == [6, 24, 7, 9, 11, 14, 17, 14, 1]
    assert timer.now() - 1e5 == 205 / 1024
    assert samples.stop_reason is StopReason.TIME_BUDGET
    assert len(samples.latencies_ms) == 103


def test_a_clock_that_has_not_moved_yet_is_no_division_by_zero():
    timer = LateTimer([*[0] * 30, *[1, 3] * 1000])
    collect_samples(timer, noop, StoppingRule(time_budget_s=205 / 1024))
    assert timer.batches[:3] == [6, 24, 7]


@pytest.mark.parametrize(("width", "reason"), [(8, StopReason.CONVERGED), (9, StopReason.TIME_BUDGET)])
def test_an_interval_is_narrow_up_to_the_limit_itself(width, reason):
    # 30 samples: the interval reaches from the 10th to the 21st, here the median and `width` ticks above it.
    timer = LateTimer([*[1024] * 20, *[1024 + width] * 10])
    samples = collect_samples(timer, noop, StoppingRule(time_budget_s=30.0, relative_half_width=8 / 1024))
    assert samples.stop_reason is reason


class CoarseTimer(FakeTimer):
    """Its latencies are whole steps of 0.5 us."""

    resolution_ms = 0.5e-3


@pytest.mark.parametrize(
    ("latencies_ms", "reason"),
    [
        ([0.0255], StopReason.CONVERGED),  # half a step is less than 1 %
        ([0.0245], StopReason.RESOLUTION),  # and here more: the samples are identical all the same
        ([0.010, 0.0105], StopReason.RESOLUTION),  # neighbouring steps by turns, which no more samples tell apart
        ([0.0], StopReason.RESOLUTION),
        ([0.010, 0.011], StopReason.TIME_BUDGET),
    ],
)
def test_identical_samples_of_a_coarse_clock_are_no_interval_without_width(latencies_ms, reason):
    samples = collect_samples(CoarseTimer(latencies_ms), noop, StoppingRule(time_budget_s=0.001))
    assert samples.stop_reason is reason
    assert (len(samples.latencies_ms) == 30) == (reason is not StopReason.TIME_BUDGET)


def test_a_rule_that_spends_its_budget_does_so_on_a_coarse_clock():
    samples = collect_samples(CoarseTimer([0.01]), noop, StoppingRule(0.001, 3, relative_half_width=-1.0))
    assert samples.stop_reason is StopReason.TIME_BUDGET
    assert len(samples.latencies_ms) == 100


def test_a_long_launch_is_timed_thirty_times_where_each_sample_holds_the_hosts_time():
    """Above a fifth of the budget: as published each launch is waited for, and 100 have warmed up."""
    rule = TIMERS["launch-sync"].rule(time_budget_s=0.05)
    samples = collect_samples(FakeTimer([10.1]), noop, rule)
    assert (len(samples.latencies_ms), samples.stop_reason) == (30, StopReason.LONG_LAUNCH)
    assert len(collect_samples(FakeTimer([10.0]), noop, rule).latencies_ms) == 200
    assert TIMERS["cuda-event"].rule(1.0) == StoppingRule(1.0, 30, least_samples=6)


def test_wall_clock_measures_what_a_launch_takes():
    clock = FakeClock()

    def launch():
        clock.seconds += 0.003

    timer = WallClockTimer(clock)
    assert timer.launches_per_sample == 1  # as long as nothing is known
    assert timer.sample(launch, 2) == pytest.approx([3.0] * 2)
    timer.prepare(launch, 0.01)
    assert timer.launches_per_sample == 1
    assert timer.sample(launch, 5) == pytest.approx([3.0] * 5)


@pytest.mark.parametrize("tick", [1e-9, 1e-7, 1e-5])
def test_wall_clock_makes_samples_far_longer_than_a_step_of_the_clock(tick):
    clock = FakeClock(tick)

    def launch():
        clock.seconds += 2e-6

    timer = WallClockTimer(clock)
    timer.prepare(launch, 0.001)
    assert timer.launches_per_sample * 2e-6 >= max(100e-6, 999 * tick)
    assert timer.launches_per_sample * 2e-6 < 20 * max(100e-6, 1000 * tick)
    assert timer.sample(launch, 3) == pytest.approx([2e-3] * 3, rel=0.002)


def launches_until_ready(clock, launch_s, seconds=0.0):
    """How many launches prepare() takes between one wait for the device and the next, the warm-up's one by one."""
    passes = [0]

    def launch():
        passes[-1] += 1
        clock.seconds += launch_s
        assert sum(passes) < 20_000

    timer = WallClockTimer(clock, synchronize=lambda: passes.append(0))
    timer.prepare(launch, seconds)
    passes = [count for count in passes if count]
    assert timer.launches_per_sample == passes[-1]
    return passes


@pytest.mark.parametrize(("seconds", "launches"), [(0, 1), (7, 7), (6.5, 7)])
def test_wall_clock_warms_up_by_time_and_at_least_once(seconds, launches):
    assert launches_until_ready(FakeClock(), 1 / 64, seconds / 64) == [1] * launches + [1]


@pytest.mark.parametrize(
    ("launch_us", "counts"),
    [
        (101, [1]),
        (70, [1, 2]),  # 1.7 times as many are needed, a fifth more included
        (3.5, [1, 10, 34]),  # at most tenfold; 10 take 35 us, 1.2 * 100 / 35 of them are 34
    ],
)
def test_launches_grow_tenfold_at_most_to_a_fifth_more_than_a_sample_needs(launch_us, counts):
    assert launches_until_ready(FakeClock(), launch_us * 1e-6)[1:] == counts


class CoarseClock(FakeClock):
    """Shows whole steps of 1/1024 s; a reading takes some 0.1 us."""

    def __call__(self):
        return math.floor(super().__call__() * 1024) / 1024


@pytest.mark.parametrize(
    ("steps", "counts"),
    [
        (1, [1, 10, 100, 1000]),  # 1000 steps of the clock are enough
        (1 / 8, [1, 10, 100, 1000, 9600]),  # one launch shows no time at all; 1000 take 125 steps
    ],
)
def test_a_sample_is_a_thousand_steps_of_a_coarse_clock(steps, counts):
    assert launches_until_ready(CoarseClock(2**-23), steps / 1024)[1:] == counts


def test_wall_clock_waits_for_the_device_inside_the_timing():
    clock, pending = FakeClock(), []

    def launch():
        pending.append(0.005)

    def synchronize():
        clock.seconds += sum(pending)
        pending.clear()

    timer = WallClockTimer(clock, synchronize)
    timer.prepare(launch, 0.01)
    assert timer.sample(launch, 2) == pytest.approx([5.0, 5.0])


@pytest.mark.parametrize(
    ("timer", "cache", "device_type", "expected"),
    [
        ("auto", None, "cpu", ("wall-clock", "warm")),
        ("auto", None, "cuda", ("cuda-event", "cold")),
        ("auto", "warm", "cuda", ("cuda-event", "warm")),
        ("cuda-graph", None, "cuda", ("cuda-graph", "cold")),
        ("launch-sync", None, "cuda", ("launch-sync", "warm")),
        ("wall-clock", None, "cuda", ("wall-clock", "warm")),
    ],
)
def test_names_are_resolved(timer, cache, device_type, expected):
    assert resolve_timer(timer, cache, device_type) == expected


@pytest.mark.parametrize(
    ("timer", "cache", "device_type", "message"),
    [
        ("sundial", None, "cpu", "--timer must be one of auto, cuda-event"),
        ("auto", "tepid", "cpu", "--cache must be one of cold, warm"),
        ("cuda-event", None, "cpu", "needs a CUDA device"),
        ("launch-sync", None, "cpu", "--timer launch-sync needs a CUDA device, this is cpu"),
        ("launch-sync", "cold", "cuda", "--cache cold needs cuda-event or cuda-graph"),
        ("auto", "cold", "cpu", "--cache cold needs cuda-event or cuda-graph"),
    ],
)
def test_what_cannot_be_is_refused(timer, cache, device_type, message):
    with pytest.raises(UsageError, match=message):
        resolve_timer(timer, cache, device_type)


@pytest.mark.parametrize("name", TIMERS)
def test_a_timer_is_known_by_its_entry_alone(name):
    entry = TIMERS[name]
    assert entry.name == name
    assert entry.summary
    for device_type in ("cuda", "cpu"):
        if device_type in entry.device_types:
            assert resolve_timer(name, "warm", device_type) == (name, "warm")
    said = inspect.getdoc(opbench.sweep).partition("timer: ")[2].partition("\n")[0]
    assert name in said, f"{name} is missing in the docstring of sweep, opbench/sweeps/sweep.py"
    assert f"`--timer {name}`" in (ROOT / "docs" / "timing.md").read_text(), f"{name} is missing in docs/timing.md"


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", [name for name, entry in TIMERS.items() if "cpu" in entry.device_types])
def test_a_timer_makes_the_cache_state_that_it_accepts(name, cache):
    try:
        resolved = resolve_timer(name, cache, "cpu")
    except UsageError:
        assert TIMERS[name].cold_needs
    else:
        assert make_timer(*resolved, "cpu").cache == cache, f"{name} cannot flush: say so in `cold_needs` of its entry"


def test_a_new_entry_is_a_timer_everywhere(monkeypatch):
    class Sundial(WallClockTimer):
        name = "sundial"

    monkeypatch.setitem(TIMERS, "sundial", TimerEntry("sundial", "shadows", ("cpu",), lambda device, cache: Sundial()))
    assert resolve_timer("sundial", None, "cpu") == ("sundial", "cold")
    with pytest.raises(UsageError, match="--timer sundial needs a CPU, this is cuda"):
        resolve_timer("sundial", None, "cuda")
    assert isinstance(make_timer("sundial", "cold", "cpu"), Sundial)
    assert ("sundial", "shadows") in timers()


def test_the_cpu_gets_the_wall_clock():
    assert isinstance(make_timer("wall-clock", "warm", "cpu"), WallClockTimer)


WORKING = [
    pytest.param(name, device, marks=[pytest.mark.gpu] if device != "cpu" else [])
    for name, entry in TIMERS.items()
    for device in ("cpu", "cuda:0")
    if device.partition(":")[0] in entry.device_types
]


@pytest.mark.parametrize(("name", "device"), WORKING)
def test_a_sample_runs_as_many_launches_as_its_time_is_divided_by(name, device):
    import torch

    count = torch.zeros((), dtype=torch.int64, device=device)
    timer = make_timer(name, "warm", device)
    timer.prepare(lambda: count.add_(1), 0.01)
    before = int(count)
    assert len(timer.sample(lambda: count.add_(1), 30)) == 30
    assert int(count) - before == 30 * timer.launches_per_sample
