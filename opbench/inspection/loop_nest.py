"""The path through kernels that loop over their sampling points, as the official CUDA kernels and some of ours do.

Kernels that are unrolled `sass.hot_path` follows. Here the loops are known from the source, and each guarded part of
their body is executed by a point that lies inside the image.
"""

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from opbench.inspection.sass import Instruction, branch_target, successors

__all__ = ["compiled_path", "inside_path", "loop_depth"]

WAITS = frozenset({"SYNCS", "UTCATOMSWS"})
"""Of Blackwell: for a barrier of memory, and for tensor memory."""
LONGEST_WAIT = 8
"""Instructions of a loop that does nothing but ask again."""

Flow = list[list[int]]
"""Positions that may follow, by position; none for what cannot be reached."""


class Loop(NamedTuple):
    """Positions in a listing, both included."""

    first: int
    last: int

    def holds(self, place: int) -> bool:
        """Whether a position is inside."""
        return self.first <= place <= self.last


Nest = list[Loop]
"""Loops inside each other, the outermost first."""


def inside_path(instructions: Sequence[Instruction], trips: Sequence[int]) -> list[Instruction]:
    """What a warp executes whose points all lie inside the image, each instruction as often as it is executed.

    In the loops it is the longest way: no corner is skipped. Before and after them it is the shortest way, which skips
    other loops: there, they run over what the published shapes do not have. The way of a warp that has diverged
    (BRA.DIV) is never taken.

    Args:
        instructions: a whole listing.
        trips: how often each loop of the nest runs, the outermost first.

    Raises:
        ValueError: the deepest loops of the listing are not so deep, or no way leads through them.
    """
    flow = _flow(instructions)
    nest, others = _nest(flow, len(trips))
    outermost = nest[0]
    inside = [
        place for place in range(outermost.first, outermost.last + 1) if not any(loop.holds(place) for loop in others)
    ]
    before = _shortest(flow, {0}, {outermost.first})[:-1]
    after = _after(instructions, flow, outermost)
    times = [math.prod(trips[: sum(loop.holds(place) for loop in nest)]) for place in range(len(flow))]
    way = [*before, *_longest(flow, inside, times), *after]
    return [instructions[place] for place in way for _ in range(times[place])]


def compiled_path(instructions: Sequence[Instruction], trips: Sequence[int] = ()) -> list[Instruction]:
    """What a warp executes of a kernel whose loops the compiler may have unrolled.

    The shortest way that enters no loop, if there is one: then the remaining loops are of sums made again. Else that
    of inside_path.

    Raises:
        ValueError: as inside_path.
    """
    flow = _flow(instructions)
    looped = {place for loop in _loops(flow) for place in range(loop.first, loop.last + 1)}
    straight = [[] if place in looped else [each for each in to if each not in looped] for place, to in enumerate(flow)]
    ends = {place for place, each in enumerate(instructions) if _ends(each)}
    if _reached(straight, 0) & ends:
        return [instructions[place] for place in _shortest(straight, {0}, ends)]
    return inside_path(instructions, trips)


def loop_depth(instructions: Sequence[Instruction]) -> int:
    """How deep the loops of a listing are nested."""
    loops = _loops(_flow(instructions))
    return max(
        (sum(outer.holds(inner.first) and outer.holds(inner.last) for outer in loops) for inner in loops), default=0
    )


def _reached(flow: Flow, start: int) -> set[int]:
    queue, seen = [start], {start}
    while queue:
        new = set(flow[queue.pop()]) - seen
        seen |= new
        queue.extend(new)
    return seen


def _flow(instructions: Sequence[Instruction]) -> Flow:
    """Without branches to where a warp waits, which is also where it falls through to: nothing is asked twice."""
    index = {instruction.address: place for place, instruction in enumerate(instructions)}
    waits = _waits(instructions, index)
    flow: Flow = [[] for _ in instructions]
    queue, seen = deque([0]), {0}
    while queue:
        place = queue.popleft()
        instruction = instructions[place]
        if _ends(instruction):
            continue
        diverges = instruction.opcode.startswith("BRA.DIV")
        flow[place] = [place + 1] if diverges else successors(instruction, place, index)
        if len(flow[place]) > 1:
            flow[place] = [to for to in flow[place] if to == place + 1 or to not in waits]
        new = set(flow[place]) - seen
        seen |= new
        queue.extend(new)
    return flow


def _waits(instructions: Sequence[Instruction], index: Mapping[int, int]) -> set[int]:
    """First positions of loops that wait."""
    found = set()
    for place, instruction in enumerate(instructions):
        first = index.get(branch_target(instruction) or -1, place) if instruction.name == "BRA" else place
        if first < place < first + LONGEST_WAIT and any(each.name in WAITS for each in instructions[first:place]):
            found.add(first)
    return found


def _ends(instruction: Instruction) -> bool:
    return instruction.name in ("EXIT", "RET") and not instruction.conditional


def _nest(flow: Flow, depth: int) -> tuple[Nest, list[Loop]]:
    """The nest of so many loops that runs, and the loops that stand in its place where the kernel's centre is removed.

    The compiler may make a loop twice, to decide before it whether the centre is removed. The copy for that case looks
    for the centre in each trip, so it has one branch more.
    """
    loops = _loops(flow)
    nests = [[loop for loop in loops if loop.first <= inner.first and inner.last <= loop.last] for inner in loops]
    deepest = max(map(len, nests), default=0)
    if deepest != depth:
        raise ValueError(f"expected {depth} loops inside each other, found {deepest}")
    nests = [nest for nest in nests if len(nest) == depth]
    level = next((level for level in range(depth) if len({nest[level] for nest in nests}) > 1), None)
    if level is None:
        return nests[0], []
    chosen = min(nests, key=lambda nest: _branches(flow, nest[level]))
    return chosen, [nest[level] for nest in nests if nest[level] != chosen[level]]


def _loops(flow: Flow) -> list[Loop]:
    """By what leads back."""
    ends: dict[int, int] = {}
    for place, following in enumerate(flow):
        for first in following:
            if first <= place:
                ends[first] = max(ends.get(first, 0), place)
    return [Loop(first, last) for first, last in sorted(ends.items())]


def _branches(flow: Flow, loop: Loop) -> int:
    return sum(len(following) > 1 for following in flow[loop.first : loop.last + 1])


def _after(instructions: Sequence[Instruction], flow: Flow, outermost: Loop) -> list[int]:
    """The shortest way from the nest to the end; nothing where the nest itself has the exit."""
    inside = range(outermost.first, outermost.last + 1)
    left = {following for place in inside for following in flow[place] if following not in inside}
    if not left and any(instructions[place].name == "EXIT" for place in inside):
        return []
    return _shortest(flow, left, {place for place, each in enumerate(instructions) if _ends(each)})


def _shortest(flow: Flow, starts: Collection[int], goals: Collection[int]) -> list[int]:
    """The shortest way from a start to a goal, both included."""
    previous: dict[int, int | None] = dict.fromkeys(sorted(starts))
    queue = deque(previous)
    while queue:
        place = queue.popleft()
        if place in goals:
            return _trace(previous, place)
        for following in flow[place]:
            if following not in previous:
                previous[following] = place
                queue.append(following)
    raise ValueError("no way leads to the loops, or from them to an exit")


def _longest(flow: Flow, inside: Sequence[int], times: Sequence[int]) -> list[int]:
    """The way through a loop, from its first position to its last, on which most is executed; no branch back."""
    executed = dict.fromkeys(inside, 0)
    previous: dict[int, int | None] = {inside[0]: None}
    for place in inside:
        if place not in previous:
            continue
        executed[place] += times[place]
        for following in flow[place]:
            if following > place and following in executed and executed[place] > executed[following]:
                executed[following] = executed[place]
                previous[following] = place
    if inside[-1] not in previous:
        raise ValueError("no way leads through the loops")
    return _trace(previous, inside[-1])


def _trace(previous: dict[int, int | None], end: int) -> list[int]:
    """The way to a position, by what comes before each."""
    way: list[int] = []
    place: int | None = end
    while place is not None:
        way.append(place)
        place = previous[place]
    return way[::-1]
