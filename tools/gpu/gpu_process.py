"""Runs one program of a step: until it ends, its time is over, it makes no progress, or the whole command is to end."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

__all__ = ["GRACE_S", "Ended", "Ending", "run_program"]

GRACE_S = 10.0
"""From SIGTERM, at which a sweep writes its tables and ends, to SIGKILL."""
POLL_S = 0.1


class Ending(StrEnum):
    """Why a program is over."""

    ITSELF = "ended"
    TIME = "out of time"
    STALLED = "stalled"
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended.

    Attributes:
        ending: why.
        code: its exit code; negative for a signal.
    """

    ending: Ending
    code: int


def run_program(
    command: Sequence[str],
    log: Path,
    variables: Mapping[str, str],
    *,
    limit_s: float,
    progress: Callable[[], object] | None = None,
    stall_s: float = 0.0,
    terminated: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Ended:
    """Run a program in a process group of its own, which is gone when this returns.

    Out of time or terminated, it gets SIGTERM and some seconds. Where it makes no progress it is killed at once: a
    sweep that could clean up would forget the cell that hangs.

    Args:
        command: the program and its arguments.
        log: what it prints is added there.
        variables: its environment.
        limit_s: seconds that it may take.
        progress: gives another value whenever the program has come further; None where that cannot be told.
        stall_s: seconds without progress after which it is killed.
        terminated: whether the whole command is to end.
        clock: seconds.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=dict(variables), start_new_session=True
        )
    started = moved = clock()
    state = progress() if progress else None
    while True:
        try:
            return Ended(Ending.ITSELF, process.wait(POLL_S))
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.returncode is not None:
                _kill(process)  # what it started and left behind
        now = clock()
        if terminated():
            return Ended(Ending.TERMINATED, _stop(process))
        if now - started >= limit_s:
            return Ended(Ending.TIME, _stop(process))
        if progress and (latest := progress()) != state:
            state, moved = latest, now
        if progress and now - moved >= stall_s:
            _kill(process)
            return Ended(Ending.STALLED, process.wait())


def _stop(process: "subprocess.Popen[bytes]") -> int:
    """Ask it to end, then kill its group."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    _kill(process)
    return process.wait()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
