"""Deformable sampling in vectorised torch, on any device.

The four corners of all points of one (pixel, group) are a weighted sum of rows of `value`, which is what
`embedding_bag` with per-sample weights computes: no gathered copy of the corners is ever stored.

There are two ways to make indices and weights. Inference on the CPU takes `_unchecked_sample`, which has no comparisons
and works in place; where its result is not finite, `_strict_sample` computes it again. Gradients, other devices and
compilers always take `_strict_sample`.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from opbench_kernels.bilinear_torch import (
    are_plain,
    index_dtype,
    is_inference_on_the_cpu,
    precise_dtype,
    weigh_corners,
    weighted_sum,
    with_row_of_zeros,
)
from opbench_kernels.deform.geometry import Geometry

__all__ = ["deformable_sample"]

SUM = 0
"""The mode of torch.embedding_bag."""
MOST_KEPT_BAGS = 2**20
"""Plans of more bags are made anew in each call: they take memory, and their microseconds do not count there."""


def deformable_sample(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: Geometry
) -> torch.Tensor:
    """As opbench_kernels.deform.reference.deformable_sample, differentiable, with coordinates in float32 or better.

    Args:
        value: (N, H, W, G, Dg), float32, float16, bfloat16 or float64.
        offset: (N, Ho, Wo, G, K, 2), pixels, (x, y) pairs.
        mask: (N, Ho, Wo, G, K).
        geometry: sampling grid with K points.

    Returns:
        (N, Ho, Wo, G, Dg) in the dtype of `value`; sums are accumulated in float32 or better.
    """
    # An image of one row or column has no second neighbour there.
    if min(value.shape[1:3]) > 1 and is_inference_on_the_cpu(value, offset, mask):
        result = _unchecked_sample(value, offset, mask, geometry)
        if math.isfinite(result.sum(dtype=precise_dtype(value)).item()):
            return result
    return _strict_sample(value, offset, mask, geometry)


def _unchecked_sample(
    value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: Geometry
) -> torch.Tensor:
    """The sum over two neighbours in each direction, both always in the image.

    A pixel at distance z weighs max(0, 1 - |z|), which is 0 for a point outside the image. 0 * inf is NaN, so the
    result may have a NaN that does not belong there; it never lacks one. On small images each torch call counts, so
    both axes and all four corners share one wherever the layout allows.
    """
    batch, height, width, groups, group_channels = value.shape
    precise, rows = precise_dtype(value), index_dtype(value, mask)
    make_plan = _plan if mask.shape[:-1].numel() < MOST_KEPT_BAGS else _plan.__wrapped__
    plan = make_plan(batch, height, width, groups, tuple(offset.shape[1:3]), geometry, precise, rows)
    # Axes and corners come first, so that the loops inside run over all points at once.
    y_x = torch.empty(2, *mask.shape, dtype=precise, device=value.device)
    for axis, grid in enumerate(plan.grids):
        torch.add(grid, offset[..., 1 - axis], alpha=geometry.offset_scale, out=y_x[axis])
    low = y_x.floor().nan_to_num_(nan=0.0)  # NaN is no index; as a weight it stays
    low[0].clamp_(0, height - 2)
    low[1].clamp_(0, width - 2)
    weights = (y_x.sub_(low) - plan.corners).abs_()  # (corner, axis, N, Ho, Wo, G, K)
    torch.sub(plan.one, weights, out=weights).relu_()
    by_row, by_column = weights.unbind(1)
    row, column = low.to(rows).unbind()
    first = row.mul_(width).add_(column).mul_(groups)
    pixels, points = mask.shape[1:3].numel(), mask.shape[-1]
    corner_weights = by_row.mul_(mask).unsqueeze(1) * by_column  # (2, 2, N, Ho, Wo, G, K)
    indices = first.view(batch, pixels, groups, points) + plan.steps  # (4, N, Ho * Wo, G, K)
    # A bag is the four corners of a (pixel, group)'s points: a copy each, faster than writing in that order at once.
    bags = (4, batch * pixels * groups, points)
    indices, corner_weights = (each.view(bags).transpose(0, 1).reshape(-1) for each in (indices, corner_weights))
    table = value.reshape(-1, group_channels)
    # What F.embedding_bag calls, without making the offsets of the bags anew.
    result = torch.embedding_bag(table, indices, plan.bags, False, SUM, False, corner_weights.to(value.dtype))[0]
    return result.view(*mask.shape[:-1], group_channels)


class _Plan(NamedTuple):
    """What the indices and weights of all inputs of one shape have in common."""

    grids: list[torch.Tensor]
    one: torch.Tensor
    corners: torch.Tensor
    steps: torch.Tensor
    """Rows of `value` from a first neighbour, counted in its image and group, to each of the four, (4, N, 1, G, K)."""
    bags: torch.Tensor
    """Where the indices of each (pixel, group) begin."""


@lru_cache(maxsize=16)
def _plan(
    batch: int,
    height: int,
    width: int,
    groups: int,
    out_shape: tuple[int, int],
    geometry: Geometry,
    precise: torch.dtype,
    index_dtype: torch.dtype,
) -> _Plan:
    cpu = torch.device("cpu")  # whatever the default device is
    size = height * width * groups
    images = torch.arange(batch, dtype=index_dtype, device=cpu) * size
    starts = images.view(-1, 1, 1, 1) + torch.arange(groups, dtype=index_dtype, device=cpu).view(-1, 1)
    neighbours = [down * width * groups + right * groups for down in (0, 1) for right in (0, 1)]
    steps = starts + torch.tensor(neighbours, dtype=index_dtype, device=cpu).view(4, 1, 1, 1, 1)
    points = sum(1 for _ in geometry.taps())
    return _Plan(
        grids=_grids(out_shape, geometry, cpu, precise),
        one=torch.ones((), dtype=precise, device=cpu),
        corners=torch.tensor([0, 1], dtype=precise, device=cpu).view(2, 1, 1, 1, 1, 1, 1),
        steps=steps.expand(-1, -1, -1, -1, points).contiguous(),
        bags=torch.arange(batch * math.prod(out_shape) * groups, dtype=index_dtype, device=cpu) * (4 * points),
    )


def _strict_sample(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """The sum that reads only pixels that count, and a row of zeros in place of the others."""
    batch, height, width, groups, group_channels = value.shape
    precise = precise_dtype(value)
    make_grids = _kept_grids if are_plain(offset) else _grids
    y, x = (
        grid + offset[..., 1 - axis].to(precise) * geometry.offset_scale
        for axis, grid in enumerate(make_grids((offset.shape[1], offset.shape[2]), geometry, offset.device, precise))
    )
    rows = index_dtype(value, mask)
    image = torch.arange(batch, device=value.device, dtype=rows).view(-1, 1, 1, 1, 1) * (height * width * groups)
    first = image + torch.arange(groups, device=value.device, dtype=rows).view(-1, 1)
    nowhere = batch * height * width * groups
    indices, weights = weigh_corners(y, x, mask.to(precise), height, width, first, groups, nowhere, dim=-2)
    table = with_row_of_zeros(value.reshape(-1, group_channels))
    return weighted_sum(table, indices, weights, 4 * mask.shape[-1]).view(*mask.shape[:-1], group_channels)


def _grids(
    out_shape: tuple[int, int], geometry: Geometry, device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Coordinates y and x of the points before offsets, in pixels: (1, Ho, 1, 1, K) and (1, 1, Wo, 1, K)."""
    scale = geometry.offset_scale
    grids = []
    for axis, shape in enumerate(((1, -1, 1, 1, 1), (1, 1, -1, 1, 1))):
        stride, dilation = geometry.stride[axis], geometry.dilation[axis]
        first = geometry.base[axis] * (1 - scale) - geometry.padding[axis]
        taps = [first + tap[axis] * dilation * scale for tap in geometry.taps()]
        point = torch.tensor(taps, device=device, dtype=dtype)
        start = torch.arange(0, out_shape[axis] * stride, stride, device=device, dtype=dtype)
        grids.append(start.view(shape) + point)
    return grids


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _kept_grids(
    out_shape: tuple[int, int], geometry: Geometry, device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    """_grids, made once: the copy to a GPU would wait for it, and cannot be captured in a CUDA graph."""
    return _grids(out_shape, geometry, device, dtype)
