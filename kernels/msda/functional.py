"""Multi-scale deformable attention as a function: Triton on a CUDA device, vectorised torch elsewhere."""

import torch
from opbench_kernels.implementation import Implementation, in_autocast_dtype, takes_operator
from opbench_kernels.msda import operators, sampling_torch

__all__ = ["ms_deform_attn"]


def ms_deform_attn(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    *,
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """Multi-scale deformable attention: of each query and head a weighted sum of bilinear samples in several images.

    A location (x, y) is a share of the image: it samples level l at x * W_l - 0.5 and y * H_l - 0.5, in pixels. A point
    counts only where that is above -1 and below W_l or H_l; a neighbour outside the level is zero.

    Args:
        value: (N, S, M, D), the levels one after the other, M heads; float32, float16 or bfloat16 (float64 too in
            torch). Under autocast, float32 is taken in the lower precision.
        spatial_shapes: (L, 2), integers (H_l, W_l), on value's device; with S the sum of H_l * W_l. On a GPU it is
            taken as right: reading it would wait for the device.
        level_start_index: (L,), integers: where each level begins in S.
        sampling_locations: (N, Lq, M, L, P, 2), any floating dtype; coordinates are float32 or better. In half
            precision a location is at most W_l / 2048 pixels fine.
        attention_weights: (N, Lq, M, L, P), any floating dtype.
        implementation: "auto" takes Triton on a CUDA device, if it is installed, and torch elsewhere.

    Returns:
        (N, Lq, M * D) in the dtype of `value`.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Zhu et al., Deformable DETR, ICLR 2021, equation 3. Arguments as its MSDeformAttnFunction.
    """
    if not isinstance(value, torch.Tensor) or value.dim() != 4 or 0 in value.shape[1:]:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"value must be (N, S, M, D) with S, M and D of at least 1, got {got}")
    _check_levels(value, spatial_shapes, level_start_index)
    _check_points(value, spatial_shapes.shape[0], sampling_locations, attention_weights)
    value = in_autocast_dtype(value)
    attend = operators.attend if takes_operator("value", value, implementation) else sampling_torch.attend
    return attend(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)


def _check_levels(value: torch.Tensor, shapes: torch.Tensor, starts: torch.Tensor) -> None:
    """ValueError unless the levels are (L, 2) and (L,) integers, and lie in value where that costs no wait."""
    for name, tensor, axes in (("spatial_shapes", shapes, "(L, 2)"), ("level_start_index", starts, "(L,)")):
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in (torch.int32, torch.int64):
            got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ValueError(f"{name} must be a tensor of int64 or int32, {axes}, got {got}")
        if tensor.device != value.device:
            raise ValueError(f"{name} must be on {value.device} as value is, got {tensor.device}")
    levels = shapes.shape[0] if shapes.dim() else 0
    if levels < 1 or tuple(shapes.shape) != (levels, 2):
        raise ValueError(f"spatial_shapes must be (L, 2) with at least one level, got {tuple(shapes.shape)}")
    if tuple(starts.shape) != (levels,):
        raise ValueError(f"level_start_index must be ({levels},), got {tuple(starts.shape)}")
    if shapes.device.type != "cpu" or torch.compiler.is_compiling() or type(shapes) is not torch.Tensor:
        return
    sizes = [(int(height), int(width)) for height, width in shapes.tolist()]
    ends = [int(start) + height * width for start, (height, width) in zip(starts.tolist(), sizes, strict=True)]
    total = sum(height * width for height, width in sizes)
    if total != value.shape[1] or min(map(min, sizes)) < 1:
        raise ValueError(f"spatial_shapes must be positive and have the {value.shape[1]} pixels of value, got {sizes}")
    if min(starts.tolist()) < 0 or max(ends) > value.shape[1]:
        raise ValueError(f"level_start_index must leave each level in value, got {starts.tolist()} for {sizes}")


def _check_points(value: torch.Tensor, levels: int, locations: torch.Tensor, weights: torch.Tensor) -> None:
    for name, tensor in (("sampling_locations", locations), ("attention_weights", weights)):
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ValueError(f"{name} must be a floating tensor, got {got}")
        if tensor.device != value.device:
            raise ValueError(f"{name} must be on {value.device} as value is, got {tensor.device}")
    batch, _, heads, _ = value.shape
    shape = tuple(locations.shape)
    if len(shape) != 6 or (shape[0], *shape[2:4], shape[5]) != (batch, heads, levels, 2) or 0 in shape[1:]:
        raise ValueError(f"sampling_locations must be ({batch}, Lq, {heads}, {levels}, P, 2), got {shape}")
    if tuple(weights.shape) != shape[:-1]:
        raise ValueError(f"attention_weights must be {shape[:-1]}, got {tuple(weights.shape)}")
