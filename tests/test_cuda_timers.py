"""The CUDA timers' logic on a fake device: what lies between the events, and what does not. Not their timing."""

import time
from types import SimpleNamespace

import pytest
import torch
from builders import make_case, make_cell
from fake_device import FakeDevice

from opbench.gate import slowdown
from opbench.registry.registry import find
from opbench.stats import median
from opbench.sweeps.request import RunOptions
from opbench.sweeps.runner import CellRunner
from opbench.timing import SpoiledProcessError, WallClockTimer, cuda, make_timer
from opbench.timing.launch_sync import LaunchSyncTimer
from opbench.workload.case import OPERATOR_LEVELS, Direction, Level


@pytest.fixture
def device(monkeypatch):
    return FakeDevice(monkeypatch)


@pytest.mark.parametrize(("cache", "flushes"), [("cold", 7), ("warm", 0)])
def test_events_enclose_the_launch_and_not_the_flush(device, cache, flushes):
    timer = cuda.CudaEventTimer("cuda:0", cache)
    timer.prepare(device.launch, 0.01)
    assert device.host >= 10.0  # warmed up by time
    device.flushes = 0
    assert timer.sample(device.launch, 7) == pytest.approx([0.25] * 7)
    assert device.flushes == flushes
    assert timer.launches_per_sample == 1


@pytest.mark.parametrize("cache", ["cold", "warm"])
@pytest.mark.parametrize("host_ms", [0.001, 0.2, 1.5])
def test_events_hold_none_of_the_hosts_time(device, cache, host_ms):
    """Three kernels of a few microseconds, each of which the host needs longer to queue than the device to run."""
    device.host_ms, device.kernels_ms = host_ms, [0.002, 0.004, 0.001]
    timer = cuda.CudaEventTimer("cuda:0", cache)
    timer.prepare(device.launch, 0.01)
    assert timer.sample(device.launch, 40) == pytest.approx([0.007] * 40)
    assert timer.warnings == ()


@pytest.mark.parametrize(("made", "host_ms"), [(cuda.CudaEventTimer, 0.2), (cuda.CudaGraphTimer, 0.02)])
def test_the_device_spins_between_the_flush_and_the_first_event(device, monkeypatch, made, host_ms):
    """The flush first, or the cache would not be as it left it; then the lead, so that no event passes too soon."""
    order, queue = [], device.queue

    def recorded(host_ms, device_ms):
        order.append(device_ms)
        queue(host_ms, device_ms)

    monkeypatch.setattr(device, "queue", recorded)
    timer = made("cuda:0", "cold")
    timer.prepare(device.launch, 0.0)
    order.clear()
    timer.sample(device.launch, 2)
    lead_ms = device.spins[-1] / 2e9 * 1e3
    assert device.spins[:6] == [0] * 6  # no lead while the host's time is read
    assert lead_ms == pytest.approx(2 * (host_ms + 0.011))  # of the flush twice and the lead 0.003, two events 0.001
    assert order == [device.FLUSH_MS, device.FLUSH_MS, lead_ms, 0.0, 0.25, 0.0] * 2


def test_the_lead_follows_from_the_middle_of_five_readings_after_the_first(device):
    hosts_ms = iter([0.0, 9.0, 1.0, 5.0, 2.0, 4.0, 3.0, 8.0, 8.0])  # the warm-up, the first, five of median 3
    timer = cuda.CudaEventTimer("cuda:0", "warm")
    timer.prepare(lambda: device.queue(next(hosts_ms), 0.25), 0.0)
    timer.sample(device.launch, 1)
    assert device.spins[-1] / 2e9 * 1e3 == pytest.approx(2 * 3.005)


@pytest.mark.parametrize("made", [cuda.CudaEventTimer, cuda.CudaGraphTimer])
def test_before_its_calibration_a_timer_has_no_lead_and_counts_from_nothing(device, made):
    timer = made("cuda:0", "warm")
    assert (timer.launches_per_sample, timer.warnings) == (1, ())
    timer.sample(device.launch, 1)
    assert device.spins == [0]
    assert str(timer.warnings[0]).startswith("host time: 1 of 1 samples")


def test_a_warm_up_ends_on_a_clock_that_stands_still(device):
    launches = []

    def launch():
        launches.append(device.host)
        assert len(launches) < 100

    cuda.CudaEventTimer("cuda:0", "warm").prepare(launch, 0.0)
    assert len(launches) == 1 + 6  # once, and for the lead


def test_a_host_that_is_slower_than_the_longest_lead_is_said(device):
    """A launch that waits for the device, for example: its samples hold the host's time, and are kept."""
    device.host_ms, device.kernels_ms = 20.0, [0.01, 0.01]
    timer = cuda.CudaEventTimer("cuda:0", "cold")
    timer.prepare(device.launch, 0.0)
    assert len(timer.sample(device.launch, 10)) == 10
    [warning] = timer.warnings
    assert str(warning).startswith("host time: 10 of 10 samples began before the host had queued all of the launch")
    assert max(device.spins) <= 0.01 * 2e9  # 10 ms


def test_a_single_late_sample_is_no_warning(device):
    timer = cuda.CudaEventTimer("cuda:0", "warm")
    timer.prepare(device.launch, 0.0)
    timer.sample(device.launch, 19)
    device.host_ms = 2.0
    late = timer.sample(device.launch, 1)
    assert late[0] > 1.0  # kept
    assert timer.warnings == ()  # one of twenty is the most
    timer.sample(device.launch, 1)
    assert timer.warnings


@pytest.mark.parametrize("timer", [cuda.CudaEventTimer, cuda.CudaGraphTimer])
def test_the_flushs_buffer_is_made_when_the_cells_memory_has_been_read(device, timer):
    made = timer("cuda:0", "cold")
    assert not hasattr(device, "buffers")
    made.prepare(device.launch, 0.0)
    made.prepare(device.launch, 0.0)
    assert len(device.buffers) == 3


@pytest.mark.parametrize(("l2_bytes", "each"), [(50 * 2**20, 2**27), (126 * 2**20, 252 * 2**20)])
def test_a_flush_writes_one_buffer_and_then_reads_another(device, monkeypatch, l2_bytes, each):
    """So that no line is left modified, each twice the L2 and 256 MiB together at least."""
    monkeypatch.setattr(device, "L2_BYTES", l2_bytes)
    cuda._flusher(torch.device("cuda:0"))()
    (first, written), (second, read) = device.flushed
    assert (first, second) == ("writes", "reads")
    assert written is not read
    assert written.bytes == read.bytes == each


def test_a_flush_on_real_tensors_writes_and_reads(monkeypatch):
    """On the CPU: what the fake device stands in for takes these arguments."""
    monkeypatch.setattr(cuda, "FLUSH_BYTES", 2**12)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=64))
    cuda._flusher(torch.device("cpu"))()


@pytest.mark.parametrize("timer", [cuda.CudaEventTimer, cuda.CudaGraphTimer])
def test_the_step_is_an_events_until_readings_show_a_finer_one(device, timer):
    made = timer("cuda:0", "cold")
    assert made.resolution_ms == 0.5e-3
    made.prepare(device.launch, 0.0)
    made.sample(device.launch, 3)
    assert made.resolution_ms == 0.5e-3
    sampler = made._sampler
    for kernel_ms in (0.25, 0.2501, 0.2503):
        sampler.times_ms([lambda ms=kernel_ms: device.queue(0.01, ms)])
    assert made.resolution_ms == pytest.approx(0.1e-3)
    made.prepare(device.launch, 0.0)
    assert made.resolution_ms == 0.5e-3  # of another launch nothing is known


def test_the_step_of_a_graph_is_shared_by_its_launches(device):
    timer = cuda.CudaGraphTimer("cuda:0", "warm")
    timer.prepare(device.launch, 0.0)
    assert timer.resolution_ms == 0.5e-3 / 4


def test_a_cold_graph_holds_one_launch_and_is_flushed_before_each_replay(device):
    timer = cuda.CudaGraphTimer("cuda:0", "cold")
    timer.prepare(device.launch, 0.01)
    assert timer.launches_per_sample == 1
    device.flushes = 0
    assert timer.sample(device.launch, 5) == pytest.approx([0.25] * 5)
    assert device.flushes == 5
    assert device.captures == [1]


@pytest.mark.parametrize("host_ms", [0.0, 0.2, 5.0])
def test_a_warm_graph_holds_a_millisecond_of_launches_and_divides_by_them(device, host_ms):
    """However long the host needs to launch one, and to wait for it."""
    device.host_ms = host_ms
    timer = cuda.CudaGraphTimer("cuda:0", "warm")
    timer.prepare(device.launch, 0.01)
    assert timer.launches_per_sample == 4
    assert device.captures == [1, 4]
    assert timer.sample(device.launch, 5) == pytest.approx([0.25] * 5)
    assert device.flushes == 0


@pytest.mark.parametrize(("kernel_ms", "count"), [(0.5, 2), (0.1, 10), (0.0011, 909), (0.0009, 1000), (0.0, 1000)])
def test_a_warm_graph_holds_a_thousand_launches_at_most(device, kernel_ms, count):
    device.kernels_ms = [kernel_ms]
    timer = cuda.CudaGraphTimer("cuda:0", "warm")
    timer.prepare(device.launch, 0.0)
    assert device.captures == [1, count]
    assert timer.launches_per_sample == count


def test_a_warm_graph_of_a_long_launch_is_captured_once(device):
    device.kernels_ms = [0.9]
    timer = cuda.CudaGraphTimer("cuda:0", "warm")
    timer.prepare(device.launch, 0.01)
    assert device.captures == [1]
    assert timer.sample(device.launch, 3) == pytest.approx([0.9] * 3)


def test_a_capture_that_cannot_be_ended_spoils_the_process(device):
    """As torch does: the launch is refused, and then the capture, which that made invalid."""
    device.refusal = RuntimeError("operation not permitted when stream is capturing")
    device.end_failure = RuntimeError("operation failed due to a previous error during capture")
    timer = cuda.CudaGraphTimer("cuda:0", "cold")
    with pytest.raises(SpoiledProcessError, match="graph: RuntimeError: operation not permitted when stream is capt"):
        timer.prepare(device.launch, 0.0)


def test_a_launch_that_raises_in_a_capture_that_ends_spoils_nothing(device):
    device.refusal = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        cuda.CudaGraphTimer("cuda:0", "cold").prepare(device.launch, 0.0)


@pytest.mark.parametrize("host_ms", [0.0, 0.2, 3.0])
def test_the_gates_injected_slow_down_is_a_part_of_the_devices_time(device, monkeypatch, host_ms):
    """And of nothing that the host needs to queue the kernels."""
    monkeypatch.setattr(slowdown, "time", cuda.time)
    device.host_ms, device.kernels_ms = host_ms, [0.05, 0.15]
    launch = slowdown._spin_on_cuda(device.launch, 0.1)
    launch()
    assert device.spins[-1] / 2e9 * 1e3 == pytest.approx(0.1 * 0.2, rel=1e-3)


def test_a_graph_captures_the_current_stream_and_never_the_default_one(device):
    timer = cuda.CudaGraphTimer("cuda:0", "cold")
    timer.prepare(device.launch, 0.01)
    assert device.captured is not device.default
    with torch.cuda.stream(torch.cuda.Stream("cuda:0")):
        timer.prepare(device.launch, 0.01)
        assert device.captured is device.current


def test_streams_wait_for_each_other_around_the_warm_up_of_a_graph(device):
    """The side stream for the tensors that were made before, the stream of the cell for the warm-up's work."""
    cuda.CudaGraphTimer("cuda:0", "cold").prepare(device.launch, 0.0)
    side = device.captured
    assert [entry for entry in device.order if entry[0] != "synchronizes"] == [
        ("waits", side, device.default),
        ("launches", side),
        ("waits", device.default, side),
        ("captures", side),
    ]


@pytest.mark.parametrize("timer", [cuda.CudaEventTimer, cuda.CudaGraphTimer])
def test_the_hosts_time_is_read_on_an_idle_device(device, monkeypatch, timer):
    """A device that is behind fills the driver's queue, and the host then waits where it seems to queue."""
    device.kernels_ms, idle, started = [5.0], [], cuda.EventSampler._queue

    def watched(sampler, work):
        idle.append(device.free <= device.host)
        return started(sampler, work)

    monkeypatch.setattr(cuda.EventSampler, "_queue", watched)
    timer("cuda:0", "cold").prepare(device.launch, 0.0)
    assert idle == [True] * (1 + cuda.LEAD_READINGS)
    assert device.free <= device.host  # and nothing is left for the first sample to wait for


@pytest.mark.parametrize(("timer", "own"), [("cuda-graph", True), ("cuda-event", False)])
def test_a_cell_timed_by_graphs_has_a_stream_of_its_own(device, timer, own):
    """Where its forward pass runs, the backward pass that is captured runs too."""
    runner = CellRunner(RunOptions("cuda:0", timer, "cold", 1.0, None, 0), dict.__getitem__)
    with runner._current_device():
        assert (device.current is not device.default) == own
    assert device.current is device.default


@pytest.mark.parametrize(("timer", "captured"), [("cuda-graph", True), ("cuda-event", False)])
def test_the_launch_that_is_checked_after_the_timing_runs_as_the_timed_ones_did(device, timer, captured):
    """What behaves differently when it is captured would else be checked where it is not."""
    runner = CellRunner(RunOptions("cuda:0", timer, "cold", 1.0, None, 0), dict.__getitem__)
    made = make_timer(timer, "cold", "cuda:0")
    made.prepare(device.launch, 0.0)
    device.order.clear()
    runner._run_once(made, device.launch)
    names = [entry[0] for entry in device.order]
    assert ("captures" in names, "launches" in names) == (captured, True)


def launch_sync(device):
    """The timer on the fake device's clock, and what is called in turn."""
    return LaunchSyncTimer("cuda:0", clock=lambda: device.host / 1e3), lambda: [entry[0] for entry in device.order]


def test_a_launch_and_a_wait_for_it_follow_each_other(device):
    """As published: 100 launches before, then each alone; nothing is flushed, and no lead runs."""
    assert isinstance(make_timer("launch-sync", "warm", "cuda:0"), LaunchSyncTimer)
    timer, called = launch_sync(device)
    timer.prepare(device.launch, 0.0)
    assert called() == ["synchronizes", *["launches", "synchronizes"] * 100]
    device.order.clear()
    timer.sample(device.launch, 3)
    assert called() == ["launches", "synchronizes"] * 3
    assert {waited for name, waited in device.order if name == "synchronizes"} == {torch.device("cuda:0")}
    assert (device.flushes, device.spins, timer.launches_per_sample, timer.cache) == (0, [], 1, "warm")


def test_each_launch_has_its_own_latency_with_the_hosts_time_in_it(device):
    timer, _ = launch_sync(device)
    device.kernels_ms = [0.25, 0.5]  # the host queues the second in 0.2 ms, while the first runs
    assert timer.sample(device.launch, 2) == pytest.approx([0.2 + 0.25 + 0.5] * 2)
    lengths = iter([[0.25], [1.25]])
    assert timer.sample(lambda: device.queue(0.2, *next(lengths)), 2) == pytest.approx([0.45, 1.45])


def test_the_budget_does_not_change_the_warm_up_but_ten_seconds_end_it(device):
    timer, called = launch_sync(device)
    timer.prepare(device.launch, 60.0)
    assert called().count("launches") == 100
    device.order.clear()
    device.host, device.host_ms, device.kernels_ms = 0.0, 0.0, [1000.0]  # whole seconds, so that 10 s are exactly 10 s
    timer.prepare(device.launch, 0.0)
    assert called().count("launches") == 10


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_events_on_a_gpu_hold_none_of_a_slow_hosts_time(cache):
    element = torch.ones(1, device="cuda:0")

    def launch():
        element.add_(1)
        time.sleep(5e-4)
        element.add_(1)

    wall, events = WallClockTimer(), cuda.CudaEventTimer("cuda:0", cache)
    for timer in (wall, events):
        timer.prepare(launch, 0.05)
    assert median(events.sample(launch, 30)) < median(wall.sample(launch, 30)) / 4
    assert events.warnings == ()


@pytest.mark.gpu
def test_a_cells_peak_memory_is_the_same_with_a_cold_and_a_warm_cache():
    operator = find("conv3x3")
    case = make_case("conv3x3", (2, 9, 13, 64), level=Level.CORE, settings=operator.resolve_settings({}))
    peaks = {
        CellRunner(RunOptions("cuda:0", "cuda-event", cache, 0.01, None, 0), find)
        .run(make_cell(case, "torch"))
        .peak_memory_bytes
        for cache in ("cold", "warm")
    }
    assert len(peaks) == 1
    assert None not in peaks


@pytest.mark.gpu
@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_a_backward_pass_can_be_captured(cache, level):
    operator = find("dcnv4")
    settings = operator.resolve_settings({})
    case = make_case("dcnv4", (2, 9, 13, 64), direction=Direction.BWD, level=level, settings=settings)
    runner = CellRunner(RunOptions("cuda:0", "cuda-graph", cache, 0.01, None, 0), find)
    measured = runner.run(make_cell(case, "triton"))
    assert (measured.status, measured.reason) == ("ok", "")
