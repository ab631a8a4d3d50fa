"""Timers and the stopping rule. `make_timer` gives the timer that `--timer` and `--cache` name."""

from opbench.errors import UsageError
from opbench.timing.stopping import Samples, StoppingRule, collect_samples
from opbench.timing.timer import Launch, SpoiledProcessError, Timer
from opbench.timing.wall_clock import WallClockTimer

__all__ = [
    "CACHES",
    "TIMERS",
    "Launch",
    "Samples",
    "SpoiledProcessError",
    "StoppingRule",
    "Timer",
    "WallClockTimer",
    "collect_samples",
    "make_timer",
    "resolve_timer",
]

TIMERS = ("cuda-event", "cuda-graph", "wall-clock")
CACHES = ("cold", "warm")


def resolve_timer(timer: str, cache: str | None, device_type: str) -> tuple[str, str]:
    """The timer's and the cache state's name for a device ("cpu" or "cuda"), defaults filled in.

    "auto" is cuda-event on CUDA and wall-clock on the CPU. The default cache state is cold where the timer can
    flush the cache between launches.

    Raises:
        UsageError: an unknown name, a CUDA timer without a CUDA device, or a cold cache with the wall clock.
    """
    if timer not in ("auto", *TIMERS):
        raise UsageError(f"--timer must be one of auto, {', '.join(TIMERS)}, got {timer!r}")
    if cache not in (None, *CACHES):
        raise UsageError(f"--cache must be one of {', '.join(CACHES)}, got {cache!r}")
    name = timer if timer != "auto" else ("cuda-event" if device_type == "cuda" else "wall-clock")
    if name.startswith("cuda") and device_type != "cuda":
        raise UsageError(f"--timer {name} needs a CUDA device, this is {device_type}")
    if name == "wall-clock" and cache == "cold":
        raise UsageError("--cache cold needs a CUDA timer: the wall clock repeats launches without a flush between")
    return name, cache or ("warm" if name == "wall-clock" else "cold")


def make_timer(name: str, cache: str, device: str) -> Timer:
    """The timer of a resolved name on a device."""
    if name == "wall-clock":
        if device == "cpu":
            return WallClockTimer()
        import torch

        return WallClockTimer(synchronize=lambda: torch.cuda.synchronize(device))
    from opbench.timing import cuda

    return cuda.CudaEventTimer(device, cache) if name == "cuda-event" else cuda.CudaGraphTimer(device, cache)
