"""Bilinear samples in vectorised torch: each point as four rows of a table of pixels, with their weights.

A weighted sum of rows is what `embedding_bag` with per-sample weights computes, so that no gathered copy of the corners
is ever stored.
"""

import torch
import torch.nn.functional as F
from opbench_kernels.implementation import onnx_opset

__all__ = [
    "are_plain",
    "index_dtype",
    "is_inference_on_the_cpu",
    "precise_dtype",
    "weigh_corners",
    "weighted_sum",
    "with_row_of_zeros",
]


def precise_dtype(value: torch.Tensor) -> torch.dtype:
    """The dtype of coordinates and weights."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def index_dtype(value: torch.Tensor, points: torch.Tensor) -> torch.dtype:
    """Wide enough for a row of `value`, and for the number of all indices of `points`, one element a point."""
    return torch.int32 if max(value.numel(), 4 * points.numel()) < 2**31 else torch.int64


def is_inference_on_the_cpu(*tensors: torch.Tensor) -> bool:
    """Whether no gradient is wanted, and values may be looked at without waiting for a device."""
    wants_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    on_the_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    return on_the_cpu and not wants_gradients and are_plain(*tensors)


def are_plain(*tensors: torch.Tensor) -> bool:
    """Whether nothing traces or transforms this call: only then can values be looked at, and tensors kept."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in tensors)


def weigh_corners(
    y: torch.Tensor,
    x: torch.Tensor,
    strength: torch.Tensor,
    height: torch.Tensor | int,
    width: torch.Tensor | int,
    first: torch.Tensor,
    step: int,
    nowhere: int,
    *,
    dim: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the four corners of each point, and their weights; differentiable in y, x and strength.

    A point counts only where -1 < x < width and -1 < y < height; one that does not has the row `nowhere` and weight 0.

    Args:
        y, x: coordinates, pixels, of one shape.
        strength: factor of each point, of the same shape and dtype.
        height, width: of the image; where they differ from point to point, integers that broadcast against y.
        first: row of the pixel (0, 0) of each point's image, in the dtype of the rows; broadcasts against y.
        step: rows from a pixel to its right neighbour.
        nowhere: a row of zeros.
        dim: where the four corners stand in the results.
    """
    inside = (x > -1) & (x < width) & (y > -1) & (y < height)
    strength = torch.where(inside, strength, 0)
    # NaN and inf must not reach an index.
    x = torch.where(inside, x, 0)
    y = torch.where(inside, y, 0)
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    row, column = top.to(first.dtype), left.to(first.dtype)
    weight_y = ((1 - down) * (row >= 0), down * (row < height - 1))
    weight_x = ((1 - right) * (column >= 0), right * (column < width - 1))
    # A corner outside is its neighbour inside, which the point touches anyway, with weight 0.
    rows = (row.clamp(min=0), _at_most(row + 1, height - 1))
    columns = (column.clamp(min=0), _at_most(column + 1, width - 1))
    indices, weights = [], []
    for corner_y in (0, 1):
        line = rows[corner_y] * width
        strength_y = strength * weight_y[corner_y]
        for corner_x in (0, 1):
            indices.append(torch.where(inside, (line + columns[corner_x]) * step + first, nowhere))
            weights.append(strength_y * weight_x[corner_x])
    return torch.stack(indices, dim), torch.stack(weights, dim)


def _at_most(tensor: torch.Tensor, limit: torch.Tensor | int) -> torch.Tensor:
    return torch.minimum(tensor, limit) if isinstance(limit, torch.Tensor) else tensor.clamp(max=limit)


def with_row_of_zeros(table: torch.Tensor) -> torch.Tensor:
    """The rows of `table` and one of zeros after them, for points that do not count."""
    return F.pad(table, (0, 0, 0, 1))


def weighted_sum(table: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, bag: int) -> torch.Tensor:
    """Rows of `table` weighted and summed, `bag` successive ones at a time: (bags, columns of the table)."""
    weights = weights.to(table.dtype).view(-1, bag)
    if onnx_opset.get() is not None:  # ONNX has no bags: here the rows are copied
        return torch.bmm(weights.unsqueeze(1), F.embedding(indices.view(-1, bag), table)).squeeze(1)
    return F.embedding_bag(indices.view(-1, bag), table, per_sample_weights=weights, mode="sum")
