"""Timers on a CUDA device: by events around every launch, and by events around replays of a captured CUDA graph.

Both measure the time between two events on the device. A kernel is queued by the host and runs later on the device.
If the device reaches the first event while the host is still queueing the kernels, it waits between them, and the
time between the events contains this waiting. So both timers keep the device busy before every sample (the lead)
until the host has queued the whole sample; EventSampler does this.
"""

import time
from collections.abc import Iterable
from itertools import pairwise

import torch

from opbench.stats import median
from opbench.timing.timer import Launch, SpoiledProcessError
from opbench.workload.cell_warning import CellWarning, WarningKind

__all__ = ["CudaEventTimer", "CudaGraphTimer"]

LEAD_FACTOR = 2.0
"""Length of the lead, as a multiple of the time that the host needs to queue a sample."""

LEAD_READINGS = 5
"""How often the time to queue a sample is measured."""

MAX_LEAD_S = 10e-3
"""Longest lead. A launch that synchronises with the device itself takes long to queue, and no lead can change that."""

SPIN_CYCLES_PER_SECOND = 2e9
"""Converts the length of the lead to clock cycles. If the GPU's clock is slower than this, the lead is longer."""

LATE_SHARE = 0.05
"""Share of late samples that is tolerated: the median changes little if at most this share contains host time."""

EVENT_STEP_MS = 0.5e-3
"""Step of the time between two events, where readings show no finer one. Source: cudaEventElapsedTime in the CUDA
Runtime API, which promises about that."""

GRAPH_MS = 1.0
"""Duration that a graph for a warm cache should have, far above EVENT_STEP_MS."""

FLUSH_BYTES = 2**28
"""Least size of the two buffers of a flush together; or four times the L2 where that is more."""

FLOAT_BYTES = 4
MAX_GRAPH_LAUNCHES = 1000
TRIAL_REPLAYS = 5
"""Replays of a graph of one launch, from which the number of launches for GRAPH_MS is computed."""


class EventSampler:
    """Measures work on the device between two events, both queued before the device reaches the first one.

    Before each sample the device runs the lead. For a cold cache it first fills the L2 with other data. Then it runs a
    kernel that spins, for longer than the host needs to queue the sample. The spinning kernel uses no memory, so that
    it does not change the caches. The driver's queue has room for about 1000 entries. When it is full, the host
    waits, but then the device still has all of these entries to run, and the next samples are queued in time.
    """

    def __init__(self, device: torch.device, cache: str) -> None:
        self._device = device
        self._cold = cache == "cold"
        self._flush: Launch | None = None
        self._lead_cycles = 0
        self._count = self._late = 0
        self._seen_ms: set[float] = set()

    def calibrate(self, *works: Launch) -> None:
        """Measure how long the host needs to queue each of `works`, and set the lead for the longest."""
        if self._cold and not self._flush:  # allocated this late so that it does not count as the cell's peak memory
            self._flush = _flusher(self._device)
        self._lead_cycles = 0
        host_s = max(map(self._host_s, works))
        self._lead_cycles = round(min(LEAD_FACTOR * host_s, MAX_LEAD_S) * SPIN_CYCLES_PER_SECOND)
        self._count = self._late = 0
        self._seen_ms.clear()

    def times_ms(self, works: Iterable[Launch]) -> list[float]:
        """Milliseconds of each of `works`; the host synchronises once, after the last."""
        return [milliseconds for milliseconds, _ in self.readings(works)]

    def readings(self, works: Iterable[Launch]) -> list[tuple[float, bool]]:
        """The same, each with whether the device began before the host had queued all of it."""
        events = [self._queue(work) for work in works]
        torch.cuda.synchronize(self._device)
        taken = [(start.elapsed_time(end), late) for start, end, late in events]
        self._seen_ms.update(milliseconds for milliseconds, _ in taken)
        return taken

    @property
    def step_ms(self) -> float:
        """The smallest step between readings since the calibration, EVENT_STEP_MS where none was smaller."""
        gaps_ms = (after - before for before, after in pairwise(sorted(self._seen_ms)))
        return min((EVENT_STEP_MS, *gaps_ms))

    @property
    def warnings(self) -> tuple[CellWarning, ...]:
        """One warning if too many samples since the calibration began before the host had queued all of them."""
        if self._late <= LATE_SHARE * self._count:
            return ()
        late = f"{self._late} of {self._count} samples began before the host had queued all of the launch"
        return (CellWarning(WarningKind.HOST_TIME, f"{late}, and may hold the host's time"),)

    def _host_s(self, work: Launch) -> float:
        """Seconds that the host needs to queue a sample of `work` on an idle device."""
        taken = []
        for _ in range(1 + LEAD_READINGS):
            torch.cuda.synchronize(self._device)
            started = time.perf_counter()
            self._queue(work)
            taken.append(time.perf_counter() - started)
        torch.cuda.synchronize(self._device)
        return median(taken[1:])  # without the first, which also loads the kernels of the flush and the lead

    def _queue(self, work: Launch) -> tuple[torch.cuda.Event, torch.cuda.Event, bool]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if self._flush:
            self._flush()
        _spin(self._lead_cycles)
        start.record()
        work()
        end.record()
        late = start.query()
        self._count += 1
        self._late += late
        return start, end, late


class CudaEventTimer:
    """One pair of CUDA events around every launch.

    A latency is the time on the device from the start of the launch's first kernel to the end of its last one. It does
    not contain the time that the host needs to queue the kernels. The wall-clock timer contains it.
    """

    name = "cuda-event"

    def __init__(self, device: str, cache: str) -> None:
        self.cache = cache
        self.launches_per_sample = 1
        self._device = torch.device(device)
        self._sampler = EventSampler(self._device, cache)

    @property
    def resolution_ms(self) -> float:
        """An event's step."""
        return self._sampler.step_ms

    @property
    def warnings(self) -> tuple[CellWarning, ...]:
        """A warning if too many samples began before the host had queued all of them."""
        return self._sampler.warnings

    def now(self) -> float:
        """Seconds on the host's clock."""
        return time.perf_counter()

    def prepare(self, launch: Launch, seconds: float) -> None:
        """Warm up, then calibrate the lead for this launch."""
        _warm_up(launch, seconds, self._device)
        self._sampler.calibrate(launch)

    def sample(self, launch: Launch, count: int) -> list[float]:
        """`count` latencies in milliseconds; the host synchronises once, after the last."""
        return self._sampler.times_ms([launch] * count)


class CudaGraphTimer:
    """One pair of CUDA events around every replay of a captured CUDA graph.

    The device runs the kernels of a graph without the host, so that no host time lies between two kernels. With a
    warm cache the graph contains many launches, and a latency is the time of a replay divided by their number. With a
    cold cache it contains one launch, and the cache is flushed before each replay.

    The current stream is captured, or a new one if the current one is the default stream, which CUDA cannot capture.
    PyTorch runs a backward pass on the stream of its forward pass. To time a backward pass, run the forward pass on a
    stream that is not the default one.
    """

    name = "cuda-graph"

    def __init__(self, device: str, cache: str) -> None:
        self.cache = cache
        self.launches_per_sample = 1
        self._device = torch.device(device)
        self._sampler = EventSampler(self._device, cache)
        self._graph = torch.cuda.CUDAGraph()

    @property
    def resolution_ms(self) -> float:
        """An event's step, divided by the launches of a graph."""
        return self._sampler.step_ms / self.launches_per_sample

    @property
    def warnings(self) -> tuple[CellWarning, ...]:
        """A warning if too many samples began before the host had queued all of them."""
        return self._sampler.warnings

    def now(self) -> float:
        """Seconds on the host's clock."""
        return time.perf_counter()

    def prepare(self, launch: Launch, seconds: float) -> None:
        """Warm up on the stream that is captured, then capture the graph.

        Raises:
            SpoiledProcessError: the capture failed and cannot be ended.
        """
        current = torch.cuda.current_stream(self._device)
        on_default = current == torch.cuda.default_stream(self._device)
        stream = torch.cuda.Stream(self._device) if on_default else current
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            _warm_up(launch, seconds, self._device)
        current.wait_stream(stream)
        self._capture(launch, 1, stream)
        if self.cache == "warm":
            # Replays, timed on the device: the host cannot launch short kernels as fast as the device runs them.
            one_ms = median(self._sampler.times_ms([self._graph.replay] * TRIAL_REPLAYS))
            count = round(GRAPH_MS / max(one_ms, GRAPH_MS / MAX_GRAPH_LAUNCHES))
            if count > 1:
                self._graph = torch.cuda.CUDAGraph()  # frees the memory of the trial's graph
                self._capture(launch, count, stream)

    def sample(self, launch: Launch, count: int) -> list[float]:
        """`count` latencies in milliseconds per launch, from replays of the captured graph."""
        times_ms = self._sampler.times_ms([self._graph.replay] * count)
        return [milliseconds / self.launches_per_sample for milliseconds in times_ms]

    def replay(self) -> None:
        """Queue the captured graph, launches_per_sample launches, on the current stream."""
        self._graph.replay()

    def _capture(self, launch: Launch, count: int, stream: torch.cuda.Stream) -> None:
        """Capture a graph of `count` launches, and calibrate the lead for its replay."""
        self._graph, self.launches_per_sample = _captured(launch, count, stream), count
        self._sampler.calibrate(self._graph.replay)


def _captured(launch: Launch, count: int, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """A graph of `count` launches.

    Raises:
        SpoiledProcessError: the capture failed and could not be ended. PyTorch's allocator then stays in capture
            mode, and no other cell can be measured in this process.
    """
    graph = torch.cuda.CUDAGraph()
    refusal: Exception | None = None
    try:
        with torch.cuda.graph(graph, stream=stream):
            try:
                for _ in range(count):
                    launch()
            except Exception as error:
                refusal = error
                raise
    except Exception as error:
        if error is refusal:  # the launch raised it, and the capture was ended normally
            raise
        cause = refusal or error
        raise SpoiledProcessError(f"cannot be captured in a CUDA graph: {type(cause).__name__}: {cause}") from error
    return graph


def _flusher(device: torch.device) -> Launch:
    """A function that writes one buffer and then reads another, each at least twice the L2, which removes all else.

    Written alone, the L2 would be full of modified lines, and a launch would pay for writing them back to memory: more
    of them the more it reads. After the second buffer its lines are clean, as before a launch in a model whose inputs
    come from memory.
    """
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    count = max(4 * l2_bytes, FLUSH_BYTES) // 2 // FLOAT_BYTES
    written, read = (torch.empty(count, dtype=torch.float32, device=device).fill_(0.0) for _ in range(2))
    sum_of_read = torch.empty((), dtype=torch.float32, device=device)

    def flush() -> None:
        written.zero_()
        torch.sum(read, dim=0, out=sum_of_read)

    return flush


def _spin(cycles: int) -> None:
    """Queue a kernel that runs for `cycles` clock cycles and reads and writes no memory."""
    torch.cuda._sleep(cycles)


def _warm_up(launch: Launch, seconds: float, device: torch.device) -> None:
    """Launch repeatedly for `seconds`, at least once."""
    end = time.perf_counter() + seconds
    while True:
        launch()
        torch.cuda.synchronize(device)
        if time.perf_counter() >= end:
            return
