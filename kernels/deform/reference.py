"""Deformable sampling written from its formulas, to check the fast implementations against.

Plain differentiable torch, any floating dtype (meant for float64) and any device; a loop over the points, one
bilinear sample of every pixel and group at a time.
"""

import torch
from opbench_kernels.bilinear_reference import sample
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
        total = total + torch.where(inside, mask[..., point], 0).unsqueeze(-1) * sample(value, y, x)
    return total
