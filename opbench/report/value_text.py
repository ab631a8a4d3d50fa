"""How a value is written for a reader: a number, a shape, a count, samples in one line."""

import math
from collections.abc import Sequence
from decimal import Decimal

from opbench.stats import quantile
from opbench.workload.case import Shape

__all__ = ["ABSENT", "count_cells", "shape_text", "signed_percent", "sparkline", "sparklines", "three_digits"]

ABSENT = "—"
"""Stands where there is no value."""
SPARKS = " ▁▂▃▄▅▆▇█"


def shape_text(shape: Shape, *, batch: bool = False) -> str:
    """`56×56×128`, or `64×56×56×128` with the batch."""
    sizes = (shape.height, shape.width, shape.channels)
    return "×".join(str(size) for size in ((shape.batch, *sizes) if batch else sizes))


def three_digits(value: float) -> str:
    """A positive number to three significant digits, never in scientific notation: 0.833, 32.0, 0.0912."""
    return format(Decimal(f"{value:.2e}"), "f")


def sparkline(samples: Sequence[float], bins: int = 10) -> str:
    """The samples' histogram in one line of blocks, fastest left; the slowest 5 % share the last block."""
    ordered = sorted(samples)
    if not ordered:
        return ""
    low, high = ordered[0], quantile(ordered, 0.95)
    return SPARKS[-1] if high <= low else _blocks(ordered, low, high, bins)


def sparklines(several: Sequence[Sequence[float]], bins: int = 24) -> tuple[list[str], float, float]:
    """Histograms of several sets of samples, none empty, on one axis; with its ends. Empty bins are dots.

    It ends at the upper whisker of the set whose whisker is longest, 1.5 interquartile ranges above the third quartile
    (Tukey 1977), or at the slowest sample; what is slower shares the last block.
    """
    ordered = [sorted(samples) for samples in several]
    low, high = min(samples[0] for samples in ordered), max(map(_upper_whisker, ordered))
    width = high - low or 1.0
    return [_blocks(samples, low, low + width, bins).replace(" ", "·") for samples in several], low, high


def _upper_whisker(ordered: Sequence[float]) -> float:
    first, third = quantile(ordered, 0.25), quantile(ordered, 0.75)
    return min(third + 1.5 * (third - first), ordered[-1])


def _blocks(samples: Sequence[float], low: float, high: float, bins: int) -> str:
    """A full block is the fullest bin; a bin with any sample shows at least the lowest block, an empty one a blank."""
    counts = [0] * bins
    for value in samples:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    return "".join(SPARKS[math.ceil(count / max(counts) * (len(SPARKS) - 1))] for count in counts)


def signed_percent(change: float) -> str:
    """`+5.2 %`"""
    return f"{100 * change:+.1f} %"


def count_cells(count: int) -> str:
    """`1 cell`, `2 cells`."""
    return f"{count} cell{'' if count == 1 else 's'}"
