"""Measures the energy of a cell after its timing: idle power first, then a window of launches back to back.

The counter of a device stands still for 20 to 100 ms (NVML's) and then steps. So the window begins and ends when a
reading differs from the one before. How long before that reading the counter stepped is not known: at most the time
since the reading before, or between two steps where that is less. Of the window this is ENDS_SHARE at most.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from opbench.device.energy_counters import EnergyCounter, NoEnergyError, energy_counter
from opbench.results.energy import EnergyWindow
from opbench.results.measurement import Measurement
from opbench.stats import median
from opbench.text import one_line
from opbench.timing import Launch, Timer
from opbench.timing.back_to_back import back_to_back
from opbench.timing.cuda import CudaGraphTimer

__all__ = ["measure", "with_energy"]

SETTLE_S = 1.0
"""Before the idle power: what the launches before it used has reached the counter. Some of NVML's power readings are a
mean over a second; of its counter nothing is written."""
IDLE_S = 1.0
WARM_UP_S = 1.0
"""Likewise, before the window."""
WINDOW_S = 2.0
"""Both are least lengths."""
ENDS_SHARE = 0.01
LONGEST_WINDOW_S = 20.0
PATIENCE_S = 5.0
"""Most that a counter may stand still."""
IDLE_READING_S = 2e-3
READING_S = 5e-3
"""Between two readings, where a launch is not longer."""
MOST_LAUNCHES = 5000


def with_energy(timed: Measurement, timer: Timer, launch: Launch, device: str) -> tuple[Measurement, str]:
    """The measurement with the energy of its launches, or as it is and why.

    With a timer that replays a graph, its graph is replayed. What the launch raises is raised; whatever goes wrong with
    the counter is a reason.

    Args:
        timed: with latencies.
        timer: that has timed the launch.
        launch: the closure.
        device: "cpu" or "cuda:N".
    """
    call, launches = (timer.replay, timer.launches_per_sample) if isinstance(timer, CudaGraphTimer) else (launch, 1)
    run = back_to_back(call, device)
    raised: list[BaseException] = []

    def guarded(count: int) -> None:
        try:
            run(count)
        except BaseException as error:
            raised.append(error)
            raise

    try:
        with energy_counter(device) as counter:
            window = measure(counter, guarded, launches * median(timed.latencies_ms) / 1e3, launches)
    except NoEnergyError as error:
        return timed, f"no energy: {error}"
    except Exception as error:
        if error in raised:
            raise
        return timed, f"no energy: {type(error).__name__}: {one_line(str(error)) or 'no message'}"
    return replace(timed, energy=window), ""


def measure(
    counter: EnergyCounter,
    run: Callable[[int], None],
    call_s: float,
    launches_of_call: int = 1,
) -> EnergyWindow:
    """The energy that calls back to back use.

    Args:
        counter: of the device.
        run: makes so many calls, as opbench.timing.back_to_back.
        call_s: what one takes, about.
        launches_of_call: in one.

    Raises:
        NoEnergyError: the counter cannot be read, stands still, or steps too seldom for calls that are so long.
    """
    time.sleep(SETTLE_S)
    idle = _window(counter, lambda: time.sleep(IDLE_READING_S), IDLE_S)
    count = _warmed_up(run, call_s)
    found = _window(counter, lambda: run(count), WINDOW_S, idle.longest_step_s)
    return EnergyWindow(
        source=counter.source,
        window_mj=found.mj,
        window_s=found.seconds,
        launches=found.rounds * count * launches_of_call,
        counter_updates=found.updates,
        idle_power_w=idle.mj / idle.seconds / 1e3,
    )


def _warmed_up(run: Callable[[int], None], call_s: float) -> int:
    """How many calls lie between two readings. The host may take longer to queue a call than the device runs it."""
    count = max(1, min(MOST_LAUNCHES, int(READING_S / max(call_s, READING_S / MOST_LAUNCHES))))
    end = (before := time.perf_counter()) + WARM_UP_S
    while True:
        run(count)
        now = time.perf_counter()
        if count > 1 and now - before > 2 * READING_S:
            count //= 2
        elif now >= end:
            return count
        before = now


@dataclass(frozen=True, slots=True)
class _Window:
    """Between two changes of a counter; `longest_step_s` is the longest time from one change to the next."""

    mj: float
    seconds: float
    rounds: int
    updates: int
    longest_step_s: float


def _window(
    counter: EnergyCounter, run_round: Callable[[], object], least_s: float, step_s: float = float("inf")
) -> _Window:
    """From a change of the counter to one that is at least `least_s` later, with rounds of something throughout.

    Args:
        counter: which.
        run_round: runs between two readings.
        least_s: seconds.
        step_s: between two changes at most, where that is known.
    """
    begun: tuple[float, float] | None = None
    rounds = updates = 0
    first_round_s = longest_step_s = 0.0
    read_s = changed_s = time.perf_counter()
    last_mj = counter.read_mj()
    while True:
        run_round()
        rounds += 1
        now_mj = counter.read_mj()
        now_s = time.perf_counter()
        round_s, read_s = now_s - read_s, now_s
        if now_mj == last_mj:
            if now_s - changed_s > PATIENCE_S:
                raise NoEnergyError(f"the counter stands still: no change within {PATIENCE_S:g} s")
            continue
        if now_mj < last_mj:
            raise NoEnergyError(f"the counter went back, from {last_mj:g} to {now_mj:g} mJ")
        last_mj = now_mj
        if begun is None:
            begun, changed_s, rounds, first_round_s = (now_s, now_mj), now_s, 0, round_s
            continue
        updates += 1
        longest_step_s, changed_s = max(longest_step_s, now_s - changed_s), now_s
        seconds = now_s - begun[0]
        unsure_s = min(max(first_round_s, round_s), longest_step_s, step_s)
        if seconds >= least_s and unsure_s <= ENDS_SHARE * seconds:
            return _Window(now_mj - begun[1], seconds, rounds, updates, longest_step_s)
        if seconds > LONGEST_WINDOW_S:
            raise NoEnergyError(
                f"the counter steps every {min(longest_step_s, step_s):.2g} s, too seldom for launches this long"
            )
