"""How far a tensor is from what it should be: its worst element, and the mean over all of them."""

import math
from dataclasses import dataclass

import torch

__all__ = ["Deviation", "deviation", "relative_error", "where_worst"]


@dataclass(frozen=True, slots=True)
class Deviation:
    """Figures of one tensor against the expected one.

    Attributes:
        max_rel_error: largest |got - expected| / (|expected| + root mean square of expected, least_scale at least);
            inf where not finite.
        mean_rel_error: mean of (got - expected) / expected, each element weighted by expected^2: one that is nearly
            zero has a relative error of rounding alone. 0.01 where everything is 1 % too large; inf as above, and 0
            where all of expected is below least_scale.
        mean_spread: standard deviation of mean_rel_error where the relative errors of the elements, as max_rel_error
            has them, are independent and of standard deviation 1. It falls with the square root of their count.
    """

    max_rel_error: float
    mean_rel_error: float
    mean_spread: float


def deviation(got: torch.Tensor, expected: torch.Tensor, least_scale: float = 0.0) -> Deviation:
    """Compare a tensor with the expected one, of any floating dtypes.

    Args:
        got: what was computed.
        expected: what it should be.
        least_scale: size of what cancels in it, where nothing else is left: errors are relative to that. 0 elsewhere.
    """
    got = got.to(expected.dtype)
    if got.shape != expected.shape or not bool(got.isfinite().all()):
        return Deviation(math.inf, math.inf, 0.0)
    if not expected.numel():
        return Deviation(0.0, 0.0, 0.0)
    errors = _errors(got, expected, least_scale)
    power = float(expected.square().sum())
    if power <= expected.numel() * least_scale**2:
        return Deviation(float(errors.max()), 0.0, 0.0)
    weighted = (expected.abs() * _scale(expected, least_scale)).norm()
    mean = float(((got - expected) * expected).sum()) / power
    return Deviation(float(errors.max()), mean, float(weighted) / power)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest |got - expected| / (|expected| + root mean square of expected); inf where got is not finite."""
    return deviation(got, expected).max_rel_error


def where_worst(got: torch.Tensor, expected: torch.Tensor, tolerance: float, least_scale: float) -> str:
    """Place and values of the worst element, and how many are beyond what is allowed; least_scale as in deviation."""
    got = got.to(expected.dtype)
    errors = _errors(got, expected, least_scale)
    index = [int(place) for place in torch.unravel_index(errors.argmax(), errors.shape)]
    place = tuple(index)
    share = 100 * float((errors > tolerance).double().mean())
    return (
        f"worst at {index}: got {float(got[place]):.6g}, expected {float(expected[place]):.6g}; "
        f"{share:.3g} % of {errors.numel()} elements are beyond what is allowed"
    )


def _scale(expected: torch.Tensor, least_scale: float) -> torch.Tensor:
    return expected.abs() + expected.square().mean().sqrt().clamp(min=least_scale)


def _errors(got: torch.Tensor, expected: torch.Tensor, least_scale: float) -> torch.Tensor:
    error = (got - expected).abs()
    return torch.where(error > 0, error / _scale(expected, least_scale), 0)
