"""Bilinear samples written from the formula: what the reference of every family is made of.

Plain differentiable torch, any floating dtype (meant for float64) and any device.
"""

import torch

__all__ = ["sample"]


def sample(value: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Bilinear samples of `value`; zero for a point that does not count, whatever its coordinates are.

    A point counts only where -1 < x < width and -1 < y < height; corners outside the image are zero.

    Args:
        value: (N, H, W, G, D).
        y, x: (N, Ho, Wo, G), pixels.

    Returns:
        (N, Ho, Wo, G, D).
    """
    _, height, width, _, _ = value.shape
    inside = (x > -1) & (x < width) & (y > -1) & (y < height)
    y, x = torch.where(inside, y, 0), torch.where(inside, x, 0)
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    result = value.new_zeros(())
    for corner_y, weight_y in ((top, 1 - down), (top + 1, down)):
        for corner_x, weight_x in ((left, 1 - right), (left + 1, right)):
            result = result + (weight_y * weight_x).unsqueeze(-1) * _pixel(value, corner_y, corner_x)
    return torch.where(inside.unsqueeze(-1), result, 0)


def _pixel(value: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Pixels (N, Ho, Wo, G, D) of `value` at integer coordinates, zero outside the image."""
    batch, height, width, groups, _ = value.shape
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    image = torch.arange(batch, device=value.device).view(-1, 1, 1, 1)
    group = torch.arange(groups, device=value.device)
    pixel = value[image, y.clamp(0, height - 1).long(), x.clamp(0, width - 1).long(), group]
    return torch.where(inside.unsqueeze(-1), pixel, 0)
