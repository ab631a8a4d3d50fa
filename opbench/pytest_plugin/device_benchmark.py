"""What the fixture `opbench_benchmark` gives a test: pytest-benchmark's fixture with a clock that knows the device.

pytest-benchmark takes a stamp before and after a round and subtracts. On a GPU a stamp is a CUDA event, and the
difference of two is the time that the device spent between them, when it is done.
"""

import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from opbench.compare.benchmark_json import EXTRA_KEY, extra_info, identity_info
from opbench.results.measurement import Measurement, Status
from opbench.workload.cell_warning import CellWarning

if TYPE_CHECKING:
    import torch

    from opbench.device.identity import Identity
    from opbench.timing import Launch
    from opbench.workload.case import Cell, Shape
    from opbench.workload.operator import Operator

__all__ = ["DeviceBenchmark", "DeviceClock"]

WARM_UP_S = 0.1
HARNESS_BUDGET_S = 1e-9
"""pytest-benchmark decides how long to sample; the harness's own stopping rule must ask for no more."""


class EventStamp:
    """A moment in the current stream of a device; the difference of two is in seconds, and waits for the later one."""

    __slots__ = ("_event",)

    def __init__(self, event: "torch.cuda.Event") -> None:
        self._event = event

    def __sub__(self, earlier: "EventStamp") -> float:
        self._event.synchronize()
        milliseconds: float = earlier._event.elapsed_time(self._event)
        return milliseconds / 1e3


class DeviceClock:
    """The timer of one test: seconds of the wall clock, or CUDA events once a GPU is chosen.

    Work on other streams than the device's current one is not seen.
    """

    __name__ = "opbench"

    def __init__(self) -> None:
        self._device: str | None = None

    def choose(self, device: str) -> None:
        """Take the stamps on `device`, "cpu" or "cuda:N"."""
        self._device = None if device == "cpu" else device

    @property
    def name(self) -> str:
        """The timer's name among the circumstances of a benchmark.

        On a GPU it is not the sweeps' cuda-event: one pair of events is around all launches of a round.
        """
        return "wall-clock" if self._device is None else "cuda-event around rounds"

    def __call__(self) -> Any:  # noqa: ANN401 - a float or an EventStamp; pytest-benchmark only subtracts
        if self._device is None:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return EventStamp(event)


class DeviceBenchmark:
    """Times closures or the harness's cells with pytest-benchmark; once per test.

    Args:
        benchmark: pytest-benchmark's fixture, which keeps its `group`, `extra_info` and statistics.
        clock: its timer.
    """

    def __init__(self, benchmark: Any, clock: DeviceClock) -> None:  # noqa: ANN401 - pytest-benchmark may be missing
        self.benchmark = benchmark
        self._clock = clock

    def __call__(self, launch: "Launch", device: str = "auto") -> object:
        """Time a closure and return what it returns.

        Args:
            launch: queues work on the device's current stream, or works on the CPU.
            device: auto (the first GPU, else the CPU), cpu, cuda or cuda:N.

        Raises:
            UsageError: no such device.
        """
        name = self._choose(device)
        self.benchmark.extra_info[EXTRA_KEY] = identity_info(_identity(name), self._clock.name, "warm")
        _warm_up(launch, name, WARM_UP_S)
        return self.benchmark(launch)

    def cell(
        self,
        operator: "str | Operator",
        shape: "Shape",
        *,
        shape_list: str = "benchmarks",
        dtype: str = "fp32",
        level: str = "module",
        direction: str = "fwd",
        provider: str | None = None,
        settings: Mapping[str, object] | None = None,
        device: str = "auto",
    ) -> Measurement:
        """Check a cell's values against the fp64 reference, then time it; a cell that is not ok fails the test.

        Arguments are as in a sweep; without a provider the first that works here is taken.

        Raises:
            OpbenchError: a name or a value that cannot be followed.
        """
        import pytest

        from opbench.registry.registry import find
        from opbench.sweeps.request import RunOptions
        from opbench.sweeps.runner import CellRunner

        chosen = find(operator) if isinstance(operator, str) else operator
        name = self._choose(device)
        cell = _plan(chosen, shape, shape_list, dtype, level, direction, provider, settings or {}, name)
        timer = _BenchmarkTimer(self.benchmark, self._clock.name, name)
        options = RunOptions(name, "auto", "warm", HARNESS_BUDGET_S, None, 0)
        measurement = CellRunner(options, lambda _: chosen, timer).run(cell)
        if measurement.status is Status.NOT_APPLICABLE:
            pytest.skip(measurement.reason)
        if measurement.status is not Status.OK:
            pytest.fail(f"{measurement.status}: {measurement.reason}", pytrace=False)
        self.benchmark.extra_info[EXTRA_KEY] = extra_info(measurement, _identity(name))
        return measurement

    def _choose(self, device: str) -> str:
        from opbench.device.resolve import resolve_device

        name = resolve_device(device)
        self._clock.choose(name)
        return name


class _BenchmarkTimer:
    """Lets the harness check, build and watch a cell while pytest-benchmark takes the samples."""

    cache = "warm"
    launches_per_sample = 1
    resolution_ms = 0.0
    warnings: tuple[CellWarning, ...] = ()

    def __init__(self, benchmark: Any, name: str, device: str) -> None:  # noqa: ANN401
        self.name = name
        self._benchmark = benchmark
        self._device = device

    def now(self) -> float:
        """Seconds on the host's clock."""
        return time.perf_counter()

    def prepare(self, launch: "Launch", _seconds: float) -> None:
        """Warm up."""
        _warm_up(launch, self._device, WARM_UP_S if self._benchmark.enabled else 0)

    def sample(self, launch: "Launch", _count: int) -> list[float]:
        """Every sample that pytest-benchmark took, in milliseconds; with --benchmark-disable one launch's time."""
        started = time.perf_counter()
        self._benchmark(launch)
        if self._benchmark.stats is None:
            return [1e3 * (time.perf_counter() - started)]
        self.launches_per_sample = self._benchmark.stats.iterations
        return [1e3 * seconds for seconds in self._benchmark.stats.stats.data]


def _warm_up(launch: "Launch", device: str, seconds: float) -> None:
    """Launch at least once and for some time, so that nothing is compiled or chosen in a sample."""
    synchronize: Callable[[], object] = _nothing
    if device != "cpu":
        import torch

        def synchronize() -> object:
            torch.cuda.synchronize(device)
            return None

    end = time.perf_counter() + seconds
    while True:
        launch()
        synchronize()
        if time.perf_counter() >= end:
            return


def _nothing() -> None:
    """On the CPU there is nothing to wait for."""


@cache
def _identity(device: str) -> "Identity":
    from opbench.device.environment import collect_environment
    from opbench.device.identity import Identity

    return Identity.of(collect_environment(device))


def _plan(
    operator: "Operator",
    shape: "Shape",
    shape_list: str,
    dtype: str,
    level: str,
    direction: str,
    provider: str | None,
    settings: Mapping[str, object],
    device: str,
) -> "Cell":
    """The cell that a sweep of this one case plans."""
    from opbench.errors import UsageError
    from opbench.sweeps.plan import plan_cells
    from opbench.sweeps.request import make_request
    from opbench.workload.shapes import ShapeList

    options = {
        "ops": [operator.name],
        "dtypes": [dtype],
        "level": [level],
        "direction": [direction],
        "device": device,
        "providers": [f"{operator.name}={provider}"] if provider else [],
        "settings": [f"{operator.name}.{name}={value}" for name, value in settings.items()],
    }
    operators = {operator.name: operator}
    cells = plan_cells(make_request(options, operators), [ShapeList(shape_list, "", (shape,), "")], operators)
    if len(cells) != 1:
        raise UsageError(f"one cell is one choice of settings, got {len(cells)} of {operator.name}")
    return cells[0]
