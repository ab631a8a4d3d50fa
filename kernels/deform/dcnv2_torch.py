"""DCNv2 in vectorised torch, on any device: the samples of all points as rows of a matrix, then a matrix product."""

import torch
import torch.nn.functional as F
from opbench_kernels.bilinear_torch import index_dtype, precise_dtype, weigh_corners, weighted_sum, with_row_of_zeros
from opbench_kernels.deform.geometry import Geometry

__all__ = ["convolve"]


def convolve(
    image: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    groups: int,
    deform_groups: int,
) -> torch.Tensor:
    """As opbench_kernels.dcnv2, without checks of the arguments, with weight and bias in the dtype of `image`."""
    columns = _columns(image, offset, mask, geometry, deform_groups)
    batch, out_height, out_width, points, channels = columns.shape
    outputs = weight.shape[0]
    if groups > 1:
        split = columns.view(-1, points, groups, channels // groups).permute(2, 0, 1, 3).flatten(2)
        matrices = weight.view(groups, outputs // groups, channels // groups, points).permute(0, 3, 2, 1).flatten(1, 2)
        out = torch.bmm(split, matrices).transpose(0, 1).reshape(batch, out_height, out_width, outputs)
        out = out if bias is None else out + bias
    else:
        out = F.linear(columns.flatten(3), weight.permute(0, 2, 3, 1).reshape(outputs, -1), bias)
    return in_layout_of(image, out.permute(0, 3, 1, 2))


def in_layout_of(image: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`out`, channels last in memory, in the memory format of `image`, as torch's convolutions give it."""
    channels_last = image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
    return out if channels_last else out.contiguous()


def _columns(
    image: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, geometry: Geometry, deform_groups: int
) -> torch.Tensor:
    """The sample of every point, times its mask: (N, Ho, Wo, K, C)."""
    batch, channels, height, width = image.shape
    precise, points = precise_dtype(image), geometry.points
    # (N, Ho, Wo, K, Dg, 2) and without the last axis: then the channels of a point follow each other in a row.
    offset = offset.unflatten(1, (deform_groups, points, 2)).permute(0, 4, 5, 2, 1, 3).to(precise)
    strength = mask.unflatten(1, (deform_groups, points)).permute(0, 3, 4, 2, 1).to(precise)
    y, x = (
        offset[..., axis] + grid for axis, grid in enumerate(_grids(offset.shape[1:3], geometry, image.device, precise))
    )
    rows = index_dtype(image, mask)
    of_image = torch.arange(batch, device=image.device, dtype=rows).view(-1, 1, 1, 1, 1) * (
        height * width * deform_groups
    )
    first = of_image + torch.arange(deform_groups, device=image.device, dtype=rows)
    nowhere = batch * height * width * deform_groups
    indices, weights = weigh_corners(y, x, strength, height, width, first, deform_groups, nowhere, dim=-1)
    table = with_row_of_zeros(image.permute(0, 2, 3, 1).reshape(-1, channels // deform_groups))
    return weighted_sum(table, indices, weights, 4).view(*strength.shape[:4], channels)


def _grids(
    out_shape: torch.Size, geometry: Geometry, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates y and x of the points before offsets, pixels: (Ho, 1, K, 1) and (Wo, K, 1); rows of points outer."""
    (height, width), grids = geometry.kernel, []
    point = torch.arange(height * width, device=device)
    for axis, tap in enumerate((point // width, point % width)):
        start = torch.arange(out_shape[axis], device=device, dtype=dtype) * geometry.stride[axis]
        place = tap.to(dtype) * geometry.dilation[axis] - geometry.padding[axis]
        grids.append(start.view(-1, 1, 1) + place.view(-1, 1))
    return grids[0].unsqueeze(1), grids[1]
