"""Times the candidates of a choice against each other: by events and their lead, or by the host's clock, as the cell.

The candidates take turns. Each pair of rounds begins with another one, and its second round runs backwards, so that
none always follows the same one and none always meets the device first.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

from opbench.timing.timer import Launch
from opbench.workload.trials import Trials

__all__ = ["LEAST_ROUNDS", "MOST_ROUNDS", "TRIAL_BUDGET_S", "in_turns", "order_of", "trials_for"]

TRIAL_BUDGET_S = 0.5
"""Of one choice, whatever the number of its candidates; their compilation and first launches are not counted."""
LEAST_ROUNDS = 3
MOST_ROUNDS = 25

Reading = tuple[float, bool]
"""Milliseconds of a launch, and whether they may hold the host's time."""


def trials_for(device: str, cache: str) -> Trials:
    """The trials of cells that are timed on `device` ("cpu" or "cuda:N") with that cache state."""
    return Trials(cache, partial(_by_clock if device == "cpu" else _by_events, device, cache))


def in_turns(
    launches: Sequence[Launch],
    read: Callable[[list[Launch]], list[Reading]],
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Samples of each launch, milliseconds: at least LEAST_ROUNDS, at most MOST_ROUNDS, TRIAL_BUDGET_S in between.

    A sample that may hold the host's time counts only for a launch that has no other.

    Args:
        launches: candidates.
        read: launches in an order -> a reading of each.
        clock: seconds; replaced in tests.
    """
    good: list[list[float]] = [[] for _ in launches]
    late: list[list[float]] = [[] for _ in launches]
    end = clock() + TRIAL_BUDGET_S
    for turn in range(MOST_ROUNDS):
        if turn >= LEAST_ROUNDS and clock() >= end:
            break
        order = order_of(len(launches), turn)
        readings = read([launches[place] for place in order])
        for place, (milliseconds, is_late) in zip(order, readings, strict=True):
            (late if is_late else good)[place].append(milliseconds)
    return [samples or fallback for samples, fallback in zip(good, late, strict=True)]


def order_of(count: int, turn: int) -> list[int]:
    """Places 0 to count - 1 as a round takes them: from the next one on in every second, backwards in the others."""
    order = [(turn // 2 + step) % count for step in range(count)]
    return order[::-1] if turn % 2 else order


def _by_events(device: str, cache: str, launches: Sequence[Launch]) -> list[list[float]]:
    import torch

    from opbench.timing.cuda import EventSampler

    sampler = EventSampler(torch.device(device), cache)  # one a choice: its buffers do not count as the cell's memory
    sampler.calibrate(*launches)
    return in_turns(launches, sampler.readings)


def _by_clock(_device: str, _cache: str, launches: Sequence[Launch]) -> list[list[float]]:
    return in_turns(launches, lambda ordered: [(_host_ms(launch), False) for launch in ordered])


def _host_ms(launch: Launch) -> float:
    started = time.perf_counter()
    launch()
    return 1e3 * (time.perf_counter() - started)
