"""How far a right implementation may be from the fp64 reference, from the dtype and the operator's arithmetic."""

from opbench.workload.case import Case, Direction, Dtype

__all__ = ["cancelled_scale", "mean_budget", "rounding_budget"]

FLOAT32_ROUNDOFF = 2.0**-24
FLOAT64_ROUNDOFF = 2.0**-53
MARGIN = 6
"""The largest of millions of rounding errors against a typical one."""
BACKWARD_FACTOR = 4
"""A gradient passes the forward's roundings once more, and sums over pixels that partly cancel."""
MEAN_MARGIN = 3
"""Standard deviations of a mean. One is at most the typical error over the square root of the count, and mostly a
third of it: rounding_budget adds up roundings that are independent, and takes each at its largest."""
FLOAT32_FUNCTIONS = 16
"""Units of float32 roundoff by which approximations of exp or a reciprocal may err, all in one direction."""


def rounding_budget(case: Case, *, storage_roundings: float, float32_growth: float) -> float:
    """Allowed relative error of any element, as opbench.sweeps.deviation measures it.

    Args:
        case: its dtype gives the unit roundoff, its direction the factor for gradients.
        storage_roundings: how often a value on the way to the output is rounded to the dtype.
        float32_growth: growth of float32 roundings inside: the square root of a sum's length, or the size of
            the numbers added (a sampling coordinate is as large as the image).
    """
    forward = MARGIN * (storage_roundings * case.dtype.unit_roundoff + float32_growth * FLOAT32_ROUNDOFF)
    return forward if case.direction is Direction.FWD else BACKWARD_FACTOR * forward


def mean_budget(case: Case, tolerance: float, mean_spread: float) -> float:
    """Allowed mean relative error of all elements, as opbench.sweeps.deviation measures it.

    Roundings to nearest of different elements are independent and of either sign, so that their mean falls with the
    square root of the count: MEAN_MARGIN standard deviations, where a typical error is a MARGIN-th of the largest. What
    does not fall is a rounding that all elements share, such as that of a constant weight 1/9: at most one unit
    roundoff, and the approximations of float32 functions. Tensor cores cut the operands of a tf32 product off instead
    of rounding them: each loses 0.7 roundoffs on average, so that every stage may lose 2.

    Args:
        case: its dtype gives the unit roundoff.
        tolerance: allowed relative error of any element.
        mean_spread: as Deviation has it; of n normally distributed elements it is 2.7 / sqrt(n).
    """
    typical = tolerance / MARGIN
    shared = 2 * typical if case.dtype is Dtype.TF32 else case.dtype.unit_roundoff
    shared += FLOAT32_FUNCTIONS * FLOAT32_ROUNDOFF
    return shared + MEAN_MARGIN * typical * mean_spread


def cancelled_scale(tolerance: float, size: float, terms: float) -> float:
    """The size of the terms of a gradient whose terms cancel, such as a softmax's over one key; 0 where they do not.

    Of such a gradient a provider gives the rounding of its terms, so that this is what its error is relative to. The
    reference rounds them too, as often and with FLOAT64_ROUNDOFF where the tolerance counts FLOAT32_ROUNDOFF or more:
    a gradient within that share of the tolerance is rounding alone.

    Args:
        tolerance: allowed relative error of any element.
        size: root mean square of the reference's gradient.
        terms: what it would be if the output changed in proportion to the tensor: an output of root mean square y, with
            a random gradient of norm g, gives g y / |x| for a tensor of norm |x|. 0 for a tensor of zeros, of which
            nothing is known.
    """
    return terms if size <= tolerance * (FLOAT64_ROUNDOFF / FLOAT32_ROUNDOFF) * terms else 0.0
