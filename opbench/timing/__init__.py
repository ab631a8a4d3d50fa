"""Timers and the stopping rule. `make_timer` gives the timer that `--timer` and `--cache` name."""

from opbench.timing.stopping import Samples, StoppingRule, collect_samples
from opbench.timing.timer import Launch, SpoiledProcessError, Timer
from opbench.timing.timers import CACHES, TIMERS, make_timer, resolve_timer
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
