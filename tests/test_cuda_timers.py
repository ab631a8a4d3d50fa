"""The CUDA timers' logic on a fake device: what lies between the events, and what does not. Not their timing."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

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
        def capture(graph):
            device.capturing = graph.work
            yield
            device.capturing = None

        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, fake in {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": capture,
            "Stream": lambda device: stream,
            "stream": lambda stream: nullcontext(),
            "current_stream": lambda device: stream,
            "synchronize": lambda device: None,
            "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=1000),
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch, "empty", self._flush_buffer)
        monkeypatch.setattr(cuda, "time", SimpleNamespace(perf_counter=lambda: self.ms / 1e3))

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
