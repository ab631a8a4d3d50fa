"""A CUDA device that a test moves: what torch.cuda offers to the timers and the runner, on a clock of its own."""

import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
from builders import doubling

from opbench.sweeps.check import CheckResult
from opbench.timing import cuda
from opbench.workload.operator import Provider

ILLEGAL_ACCESS = "CUDA error: an illegal memory access was encountered"

NO_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"


class FakeDevice:
    """A device that does what is queued in order, and a host that needs time to queue it; in milliseconds.

    An event passes when all that was queued before it is done, but not before it is queued itself. Once `broken` is
    set, as by a kernel with an illegal access, every call raises; once `stuck` is, nothing that is queued ever ends;
    while `full` is, nothing can be allocated.
    """

    FLUSH_MS = 0.035
    L2_BYTES = 1000

    def __init__(self, monkeypatch):
        device = self
        self.host, self.free = 0.0, 0.0
        self.host_ms, self.kernels_ms = 0.2, [0.25]  # of a launch: the host's, before each of its kernels
        self.flushes, self.spins, self.capturing, self.captures = 0, [], None, []
        self.refusal = self.end_failure = None
        self.broken = self.stuck = self.full = False

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                device.queue(0.001, 0.0)
                self.ms = device.free

            def synchronize(self):
                device.host = max(device.host, self.ms)

            def query(self):
                device.answer()
                return self.ms <= device.host

            def elapsed_time(self, end):
                assert end.ms <= device.host, "read before it passed"
                return end.ms - self.ms

        class Graph:
            def __init__(self):
                self.work = []

            def replay(self):
                device.queue(0.02, sum(self.work))

        @contextmanager
        def capture(graph, stream):
            assert stream is not device.default
            device.answer()
            device.capturing, device.captured = graph.work, stream
            device.order.append(("captures", stream))
            try:
                yield
            finally:
                device.capturing = None
                device.captures.append(len(graph.work))
                if device.end_failure:
                    raise device.end_failure

        class Stream:
            def __init__(self, device_of_stream=None):
                pass

            def wait_stream(self, other):
                device.order.append(("waits", self, other))

        self.order = []  # of launches, waits and captures, with their streams
        self.default, self.captured = Stream(), None
        self.current = self.default
        for name, fake in {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": capture,
            "Stream": Stream,
            "stream": self._on,
            "current_stream": lambda device: self.current,
            "default_stream": lambda device: self.default,
            "device": self._as_current,
            "synchronize": self._synchronize,
            "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=self.L2_BYTES),
            "_sleep": self._sleep,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch, "empty", self._flush_buffer)
        monkeypatch.setattr(torch, "sum", self._read_buffer)
        monkeypatch.setattr(cuda, "time", SimpleNamespace(perf_counter=lambda: self.host / 1e3))

    def answer(self):
        if self.broken:
            raise torch.AcceleratorError(f"{ILLEGAL_ACCESS}\nCUDA kernel errors might be reported at some other call")

    def allocate(self):
        if self.full:
            raise torch.OutOfMemoryError(NO_MEMORY)

    def queue(self, host_ms, device_ms):
        self.answer()
        self.host += host_ms
        self.free = max(self.free, self.host) + device_ms

    def _synchronize(self, device):
        self.order.append(("synchronizes", device))
        self.answer()
        if self.stuck:
            time.sleep(1000)
        self.host = max(self.host, self.free)

    @contextmanager
    def _as_current(self, device):
        yield
        self.answer()

    def _sleep(self, cycles):
        self.spins.append(cycles)
        self.queue(0.003, cycles / 2e9 * 1e3)

    @contextmanager
    def _on(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def _flush_buffer(self, size, dtype, device):
        """A buffer that is written first, or read, or the sum of what is read."""
        self.allocate()
        buffer = SimpleNamespace(bytes=size * dtype.itemsize if size != () else 0)
        self.buffers = [*getattr(self, "buffers", []), buffer]

        def zero():
            self.flushes += 1
            self.flushed = [("writes", buffer)]
            self.queue(0.003, self.FLUSH_MS)

        buffer.zero_, buffer.fill_ = zero, lambda value: buffer
        return buffer

    def _read_buffer(self, buffer, dim, out):
        self.flushed.append(("reads", buffer))
        self.queue(0.003, self.FLUSH_MS)

    def launch(self):
        if self.capturing is None:
            self.order.append(("launches", self.current))
        self.allocate()
        if self.refusal and self.capturing is not None:
            raise self.refusal
        if self.capturing is not None:
            self.capturing.append(sum(self.kernels_ms))
            return
        for milliseconds in self.kernels_ms:
            self.queue(self.host_ms, milliseconds)


def measure_on(device, monkeypatch, **launches):
    """An operator whose providers launch as told, for a CellRunner that has no other business with a GPU."""
    runner = "opbench.sweeps.runner"
    monkeypatch.setattr(f"{runner}.seeded", lambda seed, device: nullcontext())
    monkeypatch.setattr(f"{runner}.check", lambda operator, provider, case, *_: CheckResult(0, 1, str(case.shape), ""))
    monkeypatch.setattr(f"{runner}.make_tensors", lambda *_: {})
    monkeypatch.setattr("opbench.sweeps.timed.Timed.values", lambda timed: {})
    monkeypatch.setattr(f"{runner}.recheck", lambda *_, **__: "")
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)  # nothing is cached, so nothing is asked
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return doubling(
        providers=tuple(Provider(name, lambda *_, launch=launch: launch, name) for name, launch in launches.items())
    )
