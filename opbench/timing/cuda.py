"""Timers on a CUDA device: events around every launch, and replay of a captured graph."""

import time

import torch

from opbench.cell_warning import CellWarning, WarningKind
from opbench.stats import median
from opbench.timing.timer import Launch, SpoiledProcessError

__all__ = ["CudaEventTimer", "CudaGraphTimer"]

LEAD_FACTOR = 2.0
"""The device is kept busy before each sample for this many times what the host needs to queue it."""

LEAD_READINGS = 5
MAX_LEAD_S = 10e-3
"""A launch that waits for the device by itself looks slow to queue, and no lead helps it."""

SPIN_CYCLES_PER_SECOND = 2e9
"""At this clock of the multiprocessors the lead lasts as long as it should, at a slower one longer."""

LATE_SHARE = 0.05
"""Of the samples: fewer that hold the host's time do not move a median by much."""

GRAPH_MS = 1.0
"""A warm graph holds enough launches to last about this long, far above an event's resolution (0.5 us)."""

MAX_GRAPH_LAUNCHES = 1000
TRIAL_REPLAYS = 5
"""Of a graph of one launch, to see how many make a graph long enough."""


class _EventSampler:
    """The time that a device needs for work between two events, with all of it queued before the first passes.

    Before each sample the device is kept busy: by the flush of the L2 where the cache is to be cold, then by a kernel
    that spins, and so leaves the caches as they are, for longer than the host needs to queue the sample. Where samples
    fill the driver's queue (about 1000 entries) the host waits for the device, which is then far behind it.
    """

    def __init__(self, device: torch.device, cache: str) -> None:
        self._device = device
        self._cold = cache == "cold"
        self._flush: Launch | None = None
        self._lead_cycles = 0
        self._count = self._late = 0

    def calibrate(self, work: Launch) -> None:
        """Find the lead that `work` needs."""
        if self._cold and not self._flush:  # not before: its buffer is no part of a cell's peak memory
            self._flush = _flusher(self._device)
        self._lead_cycles = 0
        taken = []
        for _ in range(1 + LEAD_READINGS):
            torch.cuda.synchronize(self._device)
            started = time.perf_counter()
            self._queue(work)
            taken.append(time.perf_counter() - started)
        torch.cuda.synchronize(self._device)
        host_s = median(taken[1:])  # the first loads the kernels of the flush and of the lead
        self._lead_cycles = round(min(LEAD_FACTOR * host_s, MAX_LEAD_S) * SPIN_CYCLES_PER_SECOND)
        self._count = self._late = 0

    def times_ms(self, work: Launch, count: int) -> list[float]:
        """Milliseconds of each of `count` runs of `work`; the host waits once, after the last."""
        events = [self._queue(work) for _ in range(count)]
        torch.cuda.synchronize(self._device)
        return [start.elapsed_time(end) for start, end in events]

    @property
    def warnings(self) -> tuple[CellWarning, ...]:
        """What is wrong with the samples since the calibration."""
        if self._late <= LATE_SHARE * self._count:
            return ()
        late = f"{self._late} of {self._count} samples began before the host had queued all of the launch"
        return (CellWarning(WarningKind.HOST_TIME, f"{late}, and may hold the host's time"),)

    def _queue(self, work: Launch) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if self._flush:
            self._flush()
        _spin(self._lead_cycles)
        start.record()
        work()
        end.record()
        self._count += 1
        self._late += start.query()
        return start, end


class CudaEventTimer:
    """One pair of CUDA events around every launch, which is queued before the device reaches it.

    So it measures what the device needs from the launch's first kernel to the end of its last, and none of the host's
    time: neither to queue them nor between two of them. The wall clock shows that.
    """

    name = "cuda-event"

    def __init__(self, device: str, cache: str) -> None:
        self.cache = cache
        self.launches_per_sample = 1
        self._device = torch.device(device)
        self._sampler = _EventSampler(self._device, cache)

    @property
    def warnings(self) -> tuple[CellWarning, ...]:
        """Where the host was behind the device."""
        return self._sampler.warnings

    def now(self) -> float:
        """Seconds on the host's clock."""
        return time.perf_counter()

    def prepare(self, launch: Launch, seconds: float) -> None:
        """Warm up, then see how long the host needs to queue a launch."""
        _warm_up(launch, seconds, self._device)
        self._sampler.calibrate(launch)

    def sample(self, launch: Launch, count: int) -> list[float]:
        """`count` latencies in milliseconds; the host waits once, after the last."""
        return self._sampler.times_ms(launch, count)


class CudaGraphTimer:
    """Replays of a captured graph between two events: nothing of the host's between two kernels of a launch.

    Warm: the graph holds many launches one after the other. Cold: it holds one, and the cache is flushed before
    each replay. The current stream is captured, unless it is the default one, which cannot be: a backward pass runs on
    its forward's stream, so whoever times one runs the forward on a stream of its own.
    """

    name = "cuda-graph"

    def __init__(self, device: str, cache: str) -> None:
        self.cache = cache
        self.launches_per_sample = 1
        self._device = torch.device(device)
        self._sampler = _EventSampler(self._device, cache)
        self._graph = torch.cuda.CUDAGraph()

    @property
    def warnings(self) -> tuple[CellWarning, ...]:
        """Where the host was behind the device."""
        return self._sampler.warnings

    def now(self) -> float:
        """Seconds on the host's clock."""
        return time.perf_counter()

    def prepare(self, launch: Launch, seconds: float) -> None:
        """Warm up on the stream to capture, then capture.

        Raises:
            SpoiledProcessError: a capture that cannot be ended.
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
            # By the device's clock: launched one by one, what is short takes the host's time.
            one_ms = median(self._sampler.times_ms(self._graph.replay, TRIAL_REPLAYS))
            count = round(GRAPH_MS / max(one_ms, GRAPH_MS / MAX_GRAPH_LAUNCHES))
            if count > 1:
                self._graph = torch.cuda.CUDAGraph()  # the trial's memory is free for the next
                self._capture(launch, count, stream)

    def sample(self, launch: Launch, count: int) -> list[float]:
        """`count` latencies in milliseconds per launch, from replays of the captured graph."""
        times_ms = self._sampler.times_ms(self._graph.replay, count)
        return [milliseconds / self.launches_per_sample for milliseconds in times_ms]

    def _capture(self, launch: Launch, count: int, stream: torch.cuda.Stream) -> None:
        """Capture `count` launches, and see how long the host needs to replay them."""
        self._graph, self.launches_per_sample = _captured(launch, count, stream), count
        self._sampler.calibrate(self._graph.replay)


def _captured(launch: Launch, count: int, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """A graph of `count` launches.

    Raises:
        SpoiledProcessError: the capture was not ended. torch's allocator then takes one to be under way for good.
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
        if error is refusal:  # an error that left the capture whole, so that it was ended
            raise
        cause = refusal or error
        raise SpoiledProcessError(f"cannot be captured in a CUDA graph: {type(cause).__name__}: {cause}") from error
    return graph


def _flusher(device: torch.device) -> Launch:
    """A closure that overwrites twice the device's L2, so that nothing of a launch's data stays in it."""
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    buffer = torch.empty(2 * l2_bytes, dtype=torch.uint8, device=device)
    return buffer.zero_


def _spin(cycles: int) -> None:
    """Queue a kernel that is busy for so many cycles of the multiprocessors' clock and touches no memory."""
    torch.cuda._sleep(cycles)


def _warm_up(launch: Launch, seconds: float, device: torch.device) -> None:
    """Launch at least once, and for `seconds`."""
    end = time.perf_counter() + seconds
    while True:
        launch()
        torch.cuda.synchronize(device)
        if time.perf_counter() >= end:
            return
