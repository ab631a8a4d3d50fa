"""Deformable sampling written from its formulas, to check the fast implementations against.

Plain differentiable torch, any floating dtype (meant for float64) and any device; a loop over the points, one
bilinear sample of every pixel and group at a time.
"""

import torch
from opbench_kernels.deform.geometry import Geometry

__all__ = ["deformable_sample"]


def deformable_sample(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: Geometry
) -> torch.Tensor:
    """out[n, oy, ox, g] = sum over points k of mask * bilinear(value[n, :, :, g]; y_k, x_k).

    A point counts only where -1 < x < width and -1 < y < height; corners outside the image are zero.

    Args:
        value: (N, H, W, G, Dg).
        offset: (N, Ho, Wo, G, K, 2), pixels, (x, y) pairs.
        mask: (N, Ho, Wo, G, K).
        geometry: sampling grid with K points.

    Returns:
        (N, Ho, Wo, G, Dg).

    Source: DCNv3 (Wang et al., 2023), equation 2; DCNv4 (Xiong et al., 2024), section 3.
    """
    _, height, width, _, _ = value.shape
    _, out_height, out_width, _, _, _ = offset.shape
    scale = geometry.offset_scale
    grid_y = torch.arange(out_height, device=value.device, dtype=value.dtype).view(1, -1, 1, 1)
    grid_x = torch.arange(out_width, device=value.device, dtype=value.dtype).view(1, 1, -1, 1)
    start_y = grid_y * geometry.stride[0] - geometry.padding[0] + geometry.base[0] * (1 - scale)
    start_x = grid_x * geometry.stride[1] - geometry.padding[1] + geometry.base[1] * (1 - scale)

    total = value.new_zeros((*offset.shape[:4], value.shape[-1]))
    for point, (j, i) in enumerate(geometry.taps()):
        x = start_x + (i * geometry.dilation[1] + offset[..., point, 0]) * scale
        y = start_y + (j * geometry.dilation[0] + offset[..., point, 1]) * scale
        inside = (x > -1) & (x < width) & (y > -1) & (y < height)
        x = torch.where(inside, x, 0)
        y = torch.where(inside, y, 0)
        sample = torch.where(inside.unsqueeze(-1), _bilinear(value, y, x), 0)
        total = total + torch.where(inside, mask[..., point], 0).unsqueeze(-1) * sample
    return total


def _bilinear(value: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Bilinear samples (N, Ho, Wo, G, Dg) of `value` at coordinates (N, Ho, Wo, G)."""
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    result = value.new_zeros(())
    for corner_y, weight_y in ((top, 1 - down), (top + 1, down)):
        for corner_x, weight_x in ((left, 1 - right), (left + 1, right)):
            result = result + (weight_y * weight_x).unsqueeze(-1) * _pixel(value, corner_y, corner_x)
    return result


def _pixel(value: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Pixels (N, Ho, Wo, G, Dg) of `value` at integer coordinates, zero outside the image."""
    batch, height, width, groups, _ = value.shape
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    image = torch.arange(batch, device=value.device).view(-1, 1, 1, 1)
    group = torch.arange(groups, device=value.device)
    pixel = value[image, y.clamp(0, height - 1).long(), x.clamp(0, width - 1).long(), group]
    return torch.where(inside.unsqueeze(-1), pixel, 0)
