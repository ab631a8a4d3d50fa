"""Which cells of a plan are one shard's: decided by the cells' keys alone, so that every machine finds the same."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence

from opbench.errors import UsageError
from opbench.workload.case import Cell

__all__ = ["own_places", "shard_text"]

MOST_SHARDS = 10_000


def shard_text(flag: str, given: str) -> str:
    """A shard as `K/N`, the K-th of N, from 1 on.

    Raises:
        UsageError: it is none.
    """
    if isinstance(given, str) and (found := re.fullmatch(r"0*(\d{1,5})/0*(\d{1,5})", given)):
        number, count = map(int, found.groups())
        if 1 <= number <= count <= MOST_SHARDS:
            return f"{number}/{count}"
    raise UsageError(f"{flag} must be K/N with K from 1 to N, and N at most {MOST_SHARDS}, got {given!r:.60}")


def own_places(plan: Sequence[Cell], shard: str | None) -> list[int]:
    """Places in the plan of the cells that a shard measures, in ascending order; all without a shard.

    Cells of one operator and shape stay together, so that what is compiled for them is compiled once. These groups go
    to the shard that has the fewest cells so far, the largest first, and equal ones in the order of a hash of their
    names. Each cell is in one shard, whatever the order of the plan.
    """
    if shard is None:
        return [*range(len(plan))]
    number, count = map(int, shard.split("/"))
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for place, cell in enumerate(plan):
        groups[f"{cell.case.operator}/{cell.case.shape}"].append(place)
    shards: list[list[int]] = [[] for _ in range(count)]
    for _, places in sorted(groups.items(), key=lambda group: (-len(group[1]), _digest(group[0]))):
        min(shards, key=len).extend(places)
    return sorted(shards[number - 1])


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
