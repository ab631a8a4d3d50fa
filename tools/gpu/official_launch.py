"""Which launch of the official DCNv4 kernels is timed: the fastest right one, or what the official function takes.

A launch is right where its block holds a number of pixels that divides Ho * Wo: the kernel places a whole block in the
image of its first pixel, and says nothing where that is wrong.
"""

import runpy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch

from opbench.operators import _dcn
from opbench.stats import median
from opbench.timing.trials import trials_for
from opbench.workload.case import Case, Direction
from opbench.workload.trials import current_trials

__all__ = ["TABLES", "DefaultLaunch", "FastestLaunch", "Launch", "launches", "read_tables"]

TABLES = Path("DCNv4/DCNv4_op/DCNv4/functions/table.py")
"""The official tables of launches, under the folder of the sources."""

MOST_PIXELS = 64
"""Of a block, in the official search."""
MOST_THREADS = 1024
"""Of a block, by CUDA; the official tables hold blocks of up to that."""
CHANNELS_PER_THREAD = {"forward": {2: (2, 4, 8, 16), 4: (2, 4, 8)}, "backward": {2: (1, 2, 4), 4: (1, 2, 4)}}
"""d_stride by pass and bytes of an element: those of the official tables that the kernels have."""
RULE_THREADS = {"forward": 512, "backward": 256}
"""Of a block, at most, by the official rule for sizes that its tables lack."""

Launch = tuple[int, int]
"""Channels per thread (d_stride) and threads per block (block_thread)."""
Run = Callable[[Launch], object]
"""Launches once."""


def launches(direction: str, pixels: int, groups: int, group_channels: int, element_bytes: int) -> Iterator[Launch]:
    """Every right launch.

    Args:
        direction: forward or backward.
        pixels: Ho * Wo of one image.
        groups, group_channels: of the value.
        element_bytes: of the value.
    """
    for channels in CHANNELS_PER_THREAD[direction][element_bytes]:
        if group_channels % channels:
            continue
        per_pixel = groups * group_channels // channels
        for block_pixels in range(1, min(MOST_PIXELS, pixels) + 1):
            if pixels % block_pixels == 0 and block_pixels * per_pixel <= MOST_THREADS:
                yield channels, block_pixels * per_pixel


class FastestLaunch:
    """Of the right launches the fastest for each shape, found when a shape is first seen, which is never timed.

    They are timed as our kernels' configurations are: by the trials of the cell. `times_ms` keeps the medians of all,
    by what was asked for.
    """

    def __init__(self) -> None:
        self.times_ms: dict[tuple[object, ...], dict[Launch, float]] = {}
        self._last: dict[str, Launch] = {}

    def __call__(self, direction: str, value: torch.Tensor, groups: int, run: Run) -> Launch:
        """The launch for a value (B, H, W, C), the output being as large."""
        trials = current_trials() or trials_for(str(value.device), "cold")
        key = (direction, tuple(value.shape), str(value.dtype), groups, trials.cache)
        if key not in self.times_ms:
            _, height, width, channels = value.shape
            candidates = launches(direction, height * width, groups, channels // groups, value.element_size())
            works = _working(candidates, run)
            samples = trials.measure([partial(run, candidate) for candidate in works])
            self.times_ms[key] = dict(zip(works, map(median, samples), strict=True))
        times = self.times_ms[key]
        self._last[direction] = min(times, key=times.__getitem__)
        return self._last[direction]

    def to_json(self) -> list[dict[str, object]]:
        """The median of each launch, milliseconds, by what was asked for."""
        return [
            {
                "asked": [*map(str, key)],
                "times_ms": {f"{channels},{threads}": time_ms for (channels, threads), time_ms in times.items()},
            }
            for key, times in self.times_ms.items()
        ]

    def forget(self) -> None:
        """Let configuration tell of the launches from now on."""
        self._last.clear()

    def configuration(self) -> str:
        """The last launches, for a row."""
        return _text(self._last)


def _working(candidates: Iterator[Launch], run: Run) -> list[Launch]:
    """Those that the device accepts, each launched once.

    Raises:
        RuntimeError: it accepts none.
    """
    works = []
    refusal: RuntimeError | None = None
    for candidate in candidates:
        try:
            run(candidate)
        except RuntimeError as error:  # too many registers for so many threads
            refusal = error
        else:
            works.append(candidate)
    if not works:
        raise refusal or RuntimeError("no launch has a block that divides Ho * Wo")
    return works


class DefaultLaunch:
    """The launch that the official function takes by itself: its table's, else its rule's.

    The rule: 8 channels per thread forward, backward 2 or (below 64 channels a group) 1; of the divisors of B * H * W
    the largest up to 64 whose block has at most 512 threads, backward 256.

    Args:
        tables: by pass, as read_tables gives them.
    """

    def __init__(self, tables: Mapping[str, Mapping[str, Launch]]) -> None:
        self._tables = tables
        self._last: dict[str, Launch] = {}

    def launch(self, direction: str, shape: tuple[int, ...], groups: int) -> Launch:
        """For a value (B, H, W, C), right or not."""
        batch, height, width, channels = shape
        group_channels = channels // groups
        if found := self._tables.get(direction, {}).get(f"{batch}x{height}x{width}x{groups}x{group_channels}"):
            return found
        per_thread = 8 if direction == "forward" else 2 if group_channels >= 64 else 1
        per_pixel = channels // per_thread
        fits = (
            pixels
            for pixels in range(1, MOST_PIXELS + 1)
            if batch * height * width % pixels == 0 and pixels * per_pixel <= RULE_THREADS[direction]
        )
        return per_thread, max(fits, default=1) * per_pixel

    def not_applicable(self, case: Case) -> str | None:
        """Why it is wrong or refused for a case, or None."""
        shape = (case.shape.batch, case.shape.height, case.shape.width, case.shape.channels)
        passes = ("forward",) if case.direction is Direction.FWD else ("forward", "backward")
        for direction in passes:
            per_thread, threads = self.launch(direction, shape, _dcn.groups(case))
            if per_thread not in (*CHANNELS_PER_THREAD[direction][case.dtype.element_bytes], 1):
                return f"its {direction} launch has {per_thread} channels per thread, more than {case.dtype} allows"
            pixels = threads * per_thread // case.shape.channels
            if shape[1] * shape[2] % pixels:
                return f"its {direction} block of {pixels} pixels does not divide {shape[1]}x{shape[2]}: silently wrong"
        return None

    def __call__(self, direction: str, value: torch.Tensor, groups: int, run: Run) -> Launch:
        """The launch for a value; where a check at a smaller image would be wrong, the largest right block below it."""
        shape = tuple(value.shape)
        per_thread, threads = self.launch(direction, shape, groups)
        pixels, per_pixel = shape[1] * shape[2], shape[3] // per_thread
        right = max(size for size in range(1, threads // per_pixel + 1) if pixels % size == 0)
        self._last[direction] = per_thread, right * per_pixel
        return self._last[direction]

    def forget(self) -> None:
        """Let configuration tell of the launches from now on."""
        self._last.clear()

    def configuration(self) -> str:
        """The last launches, for a row."""
        return _text(self._last)


def read_tables(sources: Path) -> dict[str, dict[str, Launch]]:
    """The official tables, by pass; {} where the checkout has only the kernels."""
    path = sources / TABLES
    if not path.is_file():
        return {}
    found = runpy.run_path(str(path))
    return {
        direction: {size: (entry[0], entry[1]) for size, entry in found[name].items()}
        for direction, name in (("forward", "TABLE"), ("backward", "BWDTABLE"))
    }


def _text(last: Mapping[str, Launch]) -> str:
    return ";".join(
        f"{name}_d_stride={channels};{name}_block_thread={threads}" for name, (channels, threads) in last.items()
    )
