"""Gradients added up as integers, whose sum does not depend on the order of the additions."""

import math

import torch

__all__ = ["from_fixed_point", "units"]


def units(shares: int, *factors: torch.Tensor) -> torch.Tensor:
    """Integer units per 1.0, as two powers of two, whose product float32 might not hold.

    With them no sum of shares overflows 63 bits. Where a factor is not finite, both are NaN.

    Args:
        shares: most additions to one number.
        factors: a share is at most the product of their largest elements.
    """
    if not all(factor.numel() for factor in factors):
        return torch.ones(2, device=factors[0].device)
    largest = torch.stack([torch.log2(factor.abs().amax().double()) for factor in factors]).sum()
    exponent = (62 - math.ceil(math.log2(max(shares, 1))) - largest.ceil()).clamp(-250, 250)
    halves = torch.stack([(exponent / 2).floor(), (exponent / 2).ceil()])
    return torch.where(largest < math.inf, torch.exp2(halves).float(), math.nan)


def from_fixed_point(total: torch.Tensor, per_one: torch.Tensor) -> torch.Tensor:
    """The float64 numbers of an integer sum in these units."""
    total = total.double()
    total /= per_one.double().prod()
    return total
