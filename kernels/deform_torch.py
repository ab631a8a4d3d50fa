"""Deformable sampling in vectorised torch, on any device.

The four corners of all points of one (pixel, group) are a weighted sum of rows of `value`, which is what
`embedding_bag` with per-sample weights computes: no gathered copy of the corners is ever stored.
"""

import math

import torch
import torch.nn.functional as F
from opbench_kernels.geometry import Geometry

__all__ = ["deformable_sample"]


def deformable_sample(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: Geometry
) -> torch.Tensor:
    """As opbench_kernels.reference.deformable_sample, differentiable, with coordinates in float32 or better.

    Args:
        value: (N, H, W, G, Dg), float32, float16, bfloat16 or float64.
        offset: (N, Ho, Wo, G, K, 2), pixels, (x, y) pairs.
        mask: (N, Ho, Wo, G, K).
        geometry: sampling grid with K points.

    Returns:
        (N, Ho, Wo, G, Dg) in the dtype of `value`; sums are accumulated in float32 or better.
    """
    batch, height, width, groups, group_channels = value.shape
    precise = torch.float64 if value.dtype == torch.float64 else torch.float32
    x, y = _coordinates(offset.to(precise), geometry)
    inside = (x > -1) & (x < width) & (y > -1) & (y < height)
    strength = torch.where(inside, mask.to(precise), 0)
    # Points outside are moved to the origin with weight zero, so that NaN and inf never reach an index. An inf or NaN
    # among the image's first four pixels, times zero, does reach their sums.
    x = torch.where(inside, x, 0)
    y = torch.where(inside, y, 0)

    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    index_dtype = torch.int32 if value.numel() < 2**31 else torch.int64
    row, column = top.to(index_dtype), left.to(index_dtype)
    weight_y = ((1 - down) * (row >= 0), down * (row < height - 1))
    weight_x = ((1 - right) * (column >= 0), right * (column < width - 1))
    rows = (row.clamp(min=0), (row + 1).clamp(max=height - 1))
    columns = (column.clamp(min=0), (column + 1).clamp(max=width - 1))

    image = torch.arange(batch, device=value.device, dtype=index_dtype).view(-1, 1, 1, 1, 1) * height
    group = torch.arange(groups, device=value.device, dtype=index_dtype).view(-1, 1)
    indices, weights = [], []
    for corner_y in (0, 1):
        line = (image + rows[corner_y]) * width
        strength_y = strength * weight_y[corner_y]
        for corner_x in (0, 1):
            indices.append((line + columns[corner_x]) * groups + group)
            weights.append(strength_y * weight_x[corner_x])

    bags = math.prod(offset.shape[:4])
    result = F.embedding_bag(
        torch.stack(indices, dim=-2).view(bags, 4 * geometry.points),
        value.reshape(-1, group_channels),
        per_sample_weights=torch.stack(weights, dim=-2).view(bags, 4 * geometry.points).to(value.dtype),
        mode="sum",
    )
    return result.view(*offset.shape[:4], group_channels)


def _coordinates(offset: torch.Tensor, geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampling coordinates x and y in pixels, each (N, Ho, Wo, G, K)."""
    _, out_height, out_width, _, _, _ = offset.shape
    options = {"device": offset.device, "dtype": offset.dtype}
    scale = geometry.offset_scale
    taps = torch.tensor(list(geometry.taps()), **options)
    grids = []
    for axis, size in ((0, out_height), (1, out_width)):
        start = torch.arange(size, **options) * geometry.stride[axis] - geometry.padding[axis]
        point = geometry.base[axis] * (1 - scale) + taps[:, axis] * (geometry.dilation[axis] * scale)
        grids.append(start.view(-1, 1) + point)
    y = grids[0].view(1, out_height, 1, 1, -1) + offset[..., 1] * scale
    x = grids[1].view(1, 1, out_width, 1, -1) + offset[..., 0] * scale
    return x, y
