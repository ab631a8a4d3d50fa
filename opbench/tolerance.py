"""How far a right implementation may be from the fp64 reference, from the dtype and the operator's arithmetic."""

from opbench.case import Case, Direction

__all__ = ["rounding_budget"]

FLOAT32_ROUNDOFF = 2.0**-24
MARGIN = 6
"""The largest of millions of rounding errors against a typical one."""
BACKWARD_FACTOR = 4
"""A gradient passes the forward's roundings once more, and sums over pixels that partly cancel."""


def rounding_budget(case: Case, *, storage_roundings: float, float32_growth: float) -> float:
    """Allowed relative error of any element, as opbench.check.relative_error measures it.

    Args:
        case: its dtype gives the unit roundoff, its direction the factor for gradients.
        storage_roundings: how often a value on the way to the output is rounded to the dtype.
        float32_growth: growth of float32 roundings inside: the square root of a sum's length, or the size of
            the numbers added (a sampling coordinate is as large as the image).
    """
    forward = MARGIN * (storage_roundings * case.dtype.unit_roundoff + float32_growth * FLOAT32_ROUNDOFF)
    return forward if case.direction is Direction.FWD else BACKWARD_FACTOR * forward
