"""Multi-scale deformable attention in vectorised torch, on any device: one weighted sum of rows for all levels.

As in deform/sampling_torch.py there are two ways to make indices and weights. Inference on the CPU takes
`_unchecked_sum`, which has no comparisons and works in place; where its result is not finite, `_strict_sum` computes it
again. Gradients, other devices and compilers always take `_strict_sum`.

Levels and points are one axis here: operations along an axis of four points are not vectorised.
"""

import math

import torch
from opbench_kernels.bilinear_torch import (
    index_dtype,
    is_inference_on_the_cpu,
    precise_dtype,
    weigh_corners,
    weighted_sum,
    with_row_of_zeros,
)

__all__ = ["attend"]


def attend(
    value: torch.Tensor,
    shapes: torch.Tensor,
    starts: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """As opbench_kernels.ms_deform_attn, without checks of the arguments."""
    batch, length, heads, head_dim = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    rows = index_dtype(value, weights)
    height, width, start = (
        numbers.to(rows).unsqueeze(-1).expand(-1, points).flatten() for numbers in (*shapes.unbind(-1), starts)
    )
    image = torch.arange(batch, device=value.device, dtype=rows).view(-1, 1, 1, 1) * (length * heads)
    head = torch.arange(heads, device=value.device, dtype=rows).view(-1, 1)
    first = image + head + start * heads
    locations, weights = locations.flatten(3, 4), weights.flatten(3)
    operands = (value, height, width, first, locations, weights)
    # A level of one row or column has no second neighbour there.
    if is_inference_on_the_cpu(value, shapes, starts, locations, weights) and shapes.min() > 1:
        result = _unchecked_sum(*operands)
        if not math.isfinite(result.sum(dtype=precise_dtype(value)).item()):
            result = _strict_sum(*operands)
    else:
        result = _strict_sum(*operands)
    return result.view(batch, queries, heads * head_dim)


def _unchecked_sum(
    value: torch.Tensor,
    height: torch.Tensor,
    width: torch.Tensor,
    first: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """The sum over two neighbours in each direction, both always in the level.

    A pixel at distance z weighs max(0, 1 - |z|), which is 0 for a point outside. 0 * inf is NaN, so the result may
    have a NaN that does not belong there; it never lacks one.
    """
    precise, heads = precise_dtype(value), value.shape[2]
    lows, near, far = [], [], []
    for axis, size in ((1, height), (0, width)):
        place = torch.mul(locations[..., axis], size.to(precise)).sub_(0.5)
        low = torch.minimum(place.floor().nan_to_num_(nan=0.0), (size - 2).to(precise)).clamp_(min=0.0)
        place.sub_(low)
        lows.append(low)
        far.append((1 - (place - 1).abs_()).relu_())
        near.append((1 - place.abs_()).relu_())
    upper = near[0].mul_(weights), far[0].mul_(weights)
    corner = lows[0].to(first.dtype).mul_(width).add_(lows[1].to(first.dtype)).mul_(heads).add_(first)
    below = corner + width * heads
    indices = torch.stack([corner, corner + heads, below, below + heads], -2)
    shares = torch.stack([row * column for row in upper for column in (near[1], far[1])], -2)
    return weighted_sum(value.reshape(-1, value.shape[-1]), indices, shares, 4 * weights.shape[-1])


def _strict_sum(
    value: torch.Tensor,
    height: torch.Tensor,
    width: torch.Tensor,
    first: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """The sum that reads only pixels that count, and a row of zeros in place of the others."""
    precise = precise_dtype(value)
    dtype = value.dtype
    if torch.is_grad_enabled() and value.requires_grad:
        # All queries add to the few pixels of a coarse level: their gradient is summed in float32, as in Triton.
        value = value.to(precise)
    x, y = (locations[..., axis].to(precise) * size - 0.5 for axis, size in enumerate((width, height)))
    nowhere = math.prod(value.shape[:3])
    corners = weigh_corners(y, x, weights.to(precise), height, width, first, value.shape[2], nowhere, dim=-2)
    table = with_row_of_zeros(value.reshape(-1, value.shape[-1]))
    return weighted_sum(table, *corners, 4 * weights.shape[-1]).to(dtype)
