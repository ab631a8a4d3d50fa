"""Timers on a CUDA device: events around every launch, and replay of a captured graph."""

import time
from collections.abc import Callable

import torch

from opbench.timing.timer import Launch

__all__ = ["CudaEventTimer", "CudaGraphTimer"]

GRAPH_SECONDS = 1e-3
"""A warm graph holds enough launches to last about this long, far above an event's resolution (0.5 us)."""

MAX_GRAPH_LAUNCHES = 1000


def _flusher(device: torch.device) -> Callable[[], object]:
    """A closure that overwrites twice the device's L2, so that nothing of a launch's data stays in it."""
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    buffer = torch.empty(2 * l2_bytes, dtype=torch.uint8, device=device)
    return buffer.zero_


class CudaEventTimer:
    """One pair of CUDA events around every launch.

    With a cold cache the flush before each launch keeps the device busy while the host queues the launch, so
    the host's launch overhead is hidden as long as it is shorter than the flush; with a warm one, launches shorter
    than the host needs to queue them show the host's time. CudaGraphTimer shows neither.
    """

    name = "cuda-event"

    def __init__(self, device: str, cache: str) -> None:
        self.cache = cache
        self.launches_per_sample = 1
        self._device = torch.device(device)
        self._flush = _flusher(self._device) if cache == "cold" else None

    def now(self) -> float:
        """Seconds on the host's clock."""
        return time.perf_counter()

    def prepare(self, launch: Launch, seconds: float) -> None:
        """Warm up."""
        _warm_up(launch, seconds, self._device)

    def sample(self, launch: Launch, count: int) -> list[float]:
        """`count` latencies in milliseconds; the host waits once, after the last."""
        return _event_times_ms(launch, self._flush, count, self._device)


class CudaGraphTimer:
    """Replays of a captured graph between two events: no launch overhead of the host in the figure.

    Warm: the graph holds many launches one after the other. Cold: it holds one, and the cache is flushed before
    each replay. The current stream is captured, unless it is the default one, which cannot be: a backward pass runs on
    its forward's stream, so whoever times one runs the forward on a stream of its own.
    """

    name = "cuda-graph"

    def __init__(self, device: str, cache: str) -> None:
        self.cache = cache
        self.launches_per_sample = 1
        self._device = torch.device(device)
        self._flush = _flusher(self._device) if cache == "cold" else None
        self._graph = torch.cuda.CUDAGraph()

    def now(self) -> float:
        """Seconds on the host's clock."""
        return time.perf_counter()

    def prepare(self, launch: Launch, seconds: float) -> None:
        """Warm up on the stream to capture, then capture."""
        current = torch.cuda.current_stream(self._device)
        on_default = current == torch.cuda.default_stream(self._device)
        stream = torch.cuda.Stream(self._device) if on_default else current
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            latency = _warm_up(launch, seconds, self._device)
        current.wait_stream(stream)
        if self._flush is None:
            self.launches_per_sample = max(1, min(MAX_GRAPH_LAUNCHES, round(GRAPH_SECONDS / latency)))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            for _ in range(self.launches_per_sample):
                launch()
        self._graph.replay()
        torch.cuda.synchronize(self._device)

    def sample(self, launch: Launch, count: int) -> list[float]:
        """`count` latencies in milliseconds per launch, from replays of the captured graph."""
        times_ms = _event_times_ms(self._graph.replay, self._flush, count, self._device)
        return [milliseconds / self.launches_per_sample for milliseconds in times_ms]


def _event_times_ms(work: Launch, flush: Launch | None, count: int, device: torch.device) -> list[float]:
    """Milliseconds between an event before and one after each of `count` runs of `work`."""
    events = []
    for _ in range(count):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if flush:
            flush()
        start.record()
        work()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in events]


def _warm_up(launch: Launch, seconds: float, device: torch.device) -> float:
    """Launch for at least `seconds`; returns the mean latency in seconds, host overhead included."""
    started, count = time.perf_counter(), 0
    while True:
        launch()
        count += 1
        torch.cuda.synchronize(device)
        if (spent := time.perf_counter() - started) >= seconds:
            return spent / count
