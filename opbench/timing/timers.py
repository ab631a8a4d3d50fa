"""Every timer, once: what `--timer` and `--cache` may name, where it works, and how it is made."""

from collections.abc import Callable
from dataclasses import dataclass

from opbench.errors import UsageError
from opbench.timing.stopping import LEAST_SAMPLES, MIN_SAMPLES, StoppingRule
from opbench.timing.timer import Timer
from opbench.timing.wall_clock import WallClockTimer

__all__ = ["CACHES", "TIMERS", "TimerEntry", "make_timer", "resolve_timer"]

CACHES = ("cold", "warm")
DEVICES = {"cuda": "a CUDA device", "cpu": "a CPU"}


@dataclass(frozen=True, slots=True)
class TimerEntry:
    """A timer that can be named.

    Attributes:
        name: as in `--timer`.
        summary: what it measures, for completion and documents.
        device_types: of "cuda" and "cpu", where it works.
        make: from a device and a cache state to the timer.
        cold_needs: what `--cache cold` needs instead, where this timer cannot flush the cache between launches.
        captures: it captures launches in a graph, which needs a stream other than the default one.
        min_samples, least_samples: that it takes whatever the time budget; least_samples of a launch that is long.
    """

    name: str
    summary: str
    device_types: tuple[str, ...]
    make: Callable[[str, str], Timer]
    cold_needs: str = ""
    captures: bool = False
    min_samples: int = MIN_SAMPLES
    least_samples: int = LEAST_SAMPLES

    def rule(self, time_budget_s: float) -> StoppingRule:
        """When to stop sampling with this timer."""
        return StoppingRule(time_budget_s, self.min_samples, least_samples=self.least_samples)


def _cuda_event(device: str, cache: str) -> Timer:
    from opbench.timing.cuda import CudaEventTimer

    return CudaEventTimer(device, cache)


def _cuda_graph(device: str, cache: str) -> Timer:
    from opbench.timing.cuda import CudaGraphTimer

    return CudaGraphTimer(device, cache)


def _launch_sync(device: str, cache: str) -> Timer:
    from opbench.timing.launch_sync import LaunchSyncTimer

    return LaunchSyncTimer(device)


def _wall_clock(device: str, cache: str) -> Timer:
    if device == "cpu":
        return WallClockTimer()
    import torch

    return WallClockTimer(synchronize=lambda: torch.cuda.synchronize(device))


TIMERS = {
    entry.name: entry
    for entry in (
        TimerEntry("cuda-event", "CUDA events around each launch", ("cuda",), _cuda_event),
        TimerEntry(
            "cuda-graph", "replays of launches that a CUDA graph captured", ("cuda",), _cuda_graph, captures=True
        ),
        TimerEntry(
            "launch-sync",
            "the host's clock around each launch and the wait for the GPU, as the published scripts",
            ("cuda",),
            _launch_sync,
            cold_needs="cuda-event or cuda-graph: launch-sync launches without a flush between, as published",
            min_samples=200,
            least_samples=MIN_SAMPLES,
        ),
        TimerEntry(
            "wall-clock",
            "the host's clock around many launches",
            ("cuda", "cpu"),
            _wall_clock,
            cold_needs="cuda-event or cuda-graph: the wall clock repeats launches without a flush between",
        ),
    )
}
"""By name. The first that works on a device is its default, which `--timer auto` takes."""


def resolve_timer(timer: str, cache: str | None, device_type: str) -> tuple[str, str]:
    """The timer's and the cache state's name for a device ("cpu" or "cuda"), defaults filled in.

    "auto" is cuda-event on CUDA and wall-clock on the CPU. The default cache state is cold where the timer can
    flush the cache between launches.

    Raises:
        UsageError: an unknown name, a CUDA timer without a CUDA device, or a cold cache that the timer cannot
            make.
    """
    if timer not in ("auto", *TIMERS):
        raise UsageError(f"--timer must be one of auto, {', '.join(TIMERS)}, got {timer!r}")
    if cache not in (None, *CACHES):
        raise UsageError(f"--cache must be one of {', '.join(CACHES)}, got {cache!r}")
    here = [entry for entry in TIMERS.values() if device_type in entry.device_types]
    entry = here[0] if timer == "auto" else TIMERS[timer]
    if entry not in here:
        needed = " or ".join(DEVICES[known] for known in entry.device_types)
        raise UsageError(f"--timer {timer} needs {needed}, this is {device_type}")
    if entry.cold_needs and cache == "cold":
        raise UsageError(f"--cache cold needs {entry.cold_needs}")
    return entry.name, cache or ("warm" if entry.cold_needs else "cold")


def make_timer(name: str, cache: str, device: str) -> Timer:
    """The timer of a resolved name on a device."""
    return TIMERS[name].make(device, cache)
