"""How far two processes that run the same code differ on a device: measured by `opbench noise`, kept per device.

Reading needs neither torch nor numpy.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Self

from opbench.device.ceiling_cache import device_cache_path
from opbench.errors import StorageError
from opbench.files import write_whole

__all__ = ["ASSUMED_SPREAD", "Noise", "keep_noise", "known_noise", "spread_of"]

ASSUMED_SPREAD = 0.15
"""Where it was not measured: 99 % of the pairs of processes of the same code under results/gate differ by less, on two
shared cores with torch on one thread (tests/test_noise.py counts them)."""

PAIRS_BEYOND = 0.001
"""Of the pairs of processes of the same code, how many may differ by more than the spread."""


@dataclass(frozen=True, slots=True)
class Noise:
    """What `opbench noise` found on one device.

    Attributes:
        device_name: of the device.
        identity: what must be the same for it to hold: device, versions, driver or threads.
        measured_at: date and time, ISO 8601.
        medians_ms: of each cell by its key one median per process.
        spread: relative; all but PAIRS_BEYOND of the pairs of processes differ by less.
        conditions: other_cpu_share, the largest share of all cores that other processes used during a cell.
    """

    device_name: str
    identity: Mapping[str, str]
    measured_at: str
    medians_ms: Mapping[str, Sequence[float]]
    spread: float
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """Processes of the cell that has fewest."""
        return min(map(len, self.medians_ms.values()), default=0)

    def to_json(self) -> dict[str, Any]:
        """A dictionary that from_json reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The noise that to_json wrote; KeyError, TypeError or ValueError where it is damaged."""
        found = cls(**data)
        numbers = [found.spread, *chain.from_iterable(found.medians_ms.values())]
        if not all(type(number) in (int, float) and 0 <= number < math.inf for number in numbers):
            raise ValueError("spread and medians must be numbers, not negative")
        texts = [found.device_name, found.measured_at, *found.medians_ms]
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise ValueError("device_name, measured_at and cells must be printable texts")
        return found


def spread_of(medians_ms: Mapping[str, Sequence[float]]) -> float:
    """By how much two processes of the same code differ at most, but for PAIRS_BEYOND of the pairs; relative.

    A prediction interval: the difference of two logarithms of medians has sqrt(2) times their standard deviation, which
    is pooled over the cells, and Student's t pays for its being an estimate. Never below the largest difference seen.

    Raises:
        ValueError: fewer than two processes.

    Source: Hahn and Meeker, Statistical Intervals, chapter 4.
    """
    from scipy import stats

    logs = [[math.log(value) for value in medians] for medians in medians_ms.values() if len(medians) > 1]
    freedom = sum(len(values) - 1 for values in logs)
    if not freedom:
        raise ValueError("a spread of fewer than two processes")
    means = [math.fsum(values) / len(values) for values in logs]
    squares = math.fsum((x - mean) ** 2 for values, mean in zip(logs, means, strict=True) for x in values)
    half = float(stats.t.ppf(1 - PAIRS_BEYOND / 2, freedom)) * math.sqrt(2 * squares / freedom)
    return math.expm1(max(half, *(max(values) - min(values) for values in logs)))


def noise_path(environment: Mapping[str, object]) -> Path:
    """Where the noise of a device is kept."""
    return device_cache_path("noise", environment)


def known_noise(environment: Mapping[str, object] | None) -> Noise | None:
    """The kept noise of a device with these versions; None where there is none, or it cannot be read."""
    try:
        return Noise.from_json(json.loads(noise_path(environment).read_text(encoding="utf-8"))) if environment else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def keep_noise(noise: Noise, environment: Mapping[str, object]) -> Path | None:
    """Keep it for later comparisons; None where the cache cannot be written."""
    path = noise_path(environment)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(noise.to_json(), indent=1, allow_nan=False) + "\n")
    except (OSError, StorageError):
        return None
    return path
