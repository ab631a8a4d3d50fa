"""The CUDA timers' logic on a fake device: what lies between the events, and what does not. Not their timing."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from builders import make_case, make_cell

from opbench.case import Direction, Level
from opbench.registry import find
from opbench.runner import CellRunner, RunOptions
from opbench.timing import cuda


class FakeDevice:
    """A device whose work takes as long as it says, in order; events read its clock."""

    def __init__(self, monkeypatch):
        device = self
        self.ms, self.flushes, self.capturing = 0.0, 0, None

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.ms = device.ms

            def elapsed_time(self, end):
                return end.ms - self.ms

        class Graph:
            def __init__(self):
                self.work = []

            def replay(self):
                for milliseconds in self.work:
                    device.ms += milliseconds

        @contextmanager
        def capture(graph, stream):
            assert stream is not device.default
            device.capturing, device.captured = graph.work, stream
            yield
            device.capturing = None

        self.default, self.captured = (SimpleNamespace(wait_stream=lambda other: None) for _ in range(2))
        self.current = self.default
        for name, fake in {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": capture,
            "Stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
            "stream": self._on,
            "current_stream": lambda device: self.current,
            "default_stream": lambda device: self.default,
            "device": lambda device: nullcontext(),
            "synchronize": lambda device: None,
            "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=1000),
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch, "empty", self._flush_buffer)
        monkeypatch.setattr(cuda, "time", SimpleNamespace(perf_counter=lambda: self.ms / 1e3))

    @contextmanager
    def _on(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def _flush_buffer(self, size, dtype, device):
        assert (size, dtype) == (2000, torch.uint8)  # twice the L2

        def zero():
            self.flushes += 1
            self.ms += 100.0

        return SimpleNamespace(zero_=zero)

    def launch(self):
        if self.capturing is not None:
            self.capturing.append(0.25)
        else:
            self.ms += 0.25


@pytest.fixture
def device(monkeypatch):
    return FakeDevice(monkeypatch)


@pytest.mark.parametrize(("cache", "flushes"), [("cold", 7), ("warm", 0)])
def test_events_enclose_the_launch_and_not_the_flush(device, cache, flushes):
    timer = cuda.CudaEventTimer("cuda:0", cache)
    timer.prepare(device.launch, 0.01)
    assert device.ms >= 10.0  # warmed up by time
    assert timer.sample(device.launch, 7) == pytest.approx([0.25] * 7)
    assert device.flushes == flushes
    assert timer.launches_per_sample == 1


def test_a_cold_graph_holds_one_launch_and_is_flushed_before_each_replay(device):
    timer = cuda.CudaGraphTimer("cuda:0", "cold")
    timer.prepare(device.launch, 0.01)
    assert timer.launches_per_sample == 1
    assert timer.sample(device.launch, 5) == pytest.approx([0.25] * 5)
    assert device.flushes == 5


def test_a_warm_graph_holds_a_millisecond_of_launches_and_divides_by_them(device):
    timer = cuda.CudaGraphTimer("cuda:0", "warm")
    timer.prepare(device.launch, 0.01)
    assert timer.launches_per_sample == 4
    assert timer.sample(device.launch, 5) == pytest.approx([0.25] * 5)
    assert device.flushes == 0


def test_a_graph_captures_the_current_stream_and_never_the_default_one(device):
    timer = cuda.CudaGraphTimer("cuda:0", "cold")
    timer.prepare(device.launch, 0.01)
    assert device.captured is not device.default
    with torch.cuda.stream(torch.cuda.Stream("cuda:0")):
        timer.prepare(device.launch, 0.01)
        assert device.captured is device.current


@pytest.mark.parametrize(("timer", "own"), [("cuda-graph", True), ("cuda-event", False)])
def test_a_cell_timed_by_graphs_has_a_stream_of_its_own(device, timer, own):
    """Where its forward pass runs, the backward pass that is captured runs too."""
    runner = CellRunner(RunOptions("cuda:0", timer, "cold", 1.0, None, 0), dict.__getitem__)
    with runner._current_device():
        assert (device.current is not device.default) == own
    assert device.current is device.default


@pytest.mark.gpu
@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_a_backward_pass_can_be_captured(cache, level):
    operator = find("dcnv4")
    settings = operator.resolve_settings({})
    case = make_case("dcnv4", (2, 9, 13, 64), direction=Direction.BWD, level=level, settings=settings)
    runner = CellRunner(RunOptions("cuda:0", "cuda-graph", cache, 0.01, None, 0), find)
    measured = runner.run(make_cell(case, "triton"))
    assert (measured.status, measured.reason) == ("ok", "")
