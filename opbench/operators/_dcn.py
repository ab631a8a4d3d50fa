"""What the deformable operators share: settings, seeded offsets and masks, the sampling reference, and costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from opbench.operators import _offsets
from opbench.workload.case import Case, Level
from opbench.workload.operator import Setting, by_direction
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    import torch
    from opbench_kernels.deform.geometry import Geometry

GROUP_CHANNELS = Setting(32, 1, "channels per group; each group has offsets and masks of its own")
KERNEL_SIZE = Setting(3, 1, "side of the sampling grid, odd")


def groups(case: Case) -> int:
    """G, the number of channel groups."""
    return case.shape.channels // case.int_setting("group_channels")


def points(case: Case) -> int:
    """K, the number of sampling points."""
    return case.int_setting("kernel_size") ** 2


def geometry(case: Case) -> Geometry:
    """The sampling grid: stride 1, padded so that the output is as large as the input."""
    from opbench_kernels.deform.geometry import Geometry

    size = case.int_setting("kernel_size")
    return Geometry(kernel=(size, size), padding=(size // 2, size // 2))


def not_applicable(case: Case) -> str | None:
    """Why the case has no deformable convolution, or None."""
    group_channels = case.int_setting("group_channels")
    if case.shape.channels % group_channels:
        return (
            f"{case.shape.channels} channels are not a multiple of group_channels {group_channels} "
            f"(--set {case.operator}.group_channels=N)"
        )
    odd = [name for name in ("kernel_size", "dw_kernel_size") if name in dict(case.settings)]
    for name in odd:
        size = case.int_setting(name)
        if size and size % 2 == 0:
            return f"{name} must be odd to keep the image size, got {size}"
    return _offsets.not_applicable(case)


def depthwise(weight: torch.Tensor, bias: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The depthwise convolution of NHWC images with weight (C, 1, k, k), same size; channels_last views, no copy."""
    import torch.nn.functional as F

    channels, _, size, _ = weight.shape

    def convolve(x: torch.Tensor) -> torch.Tensor:
        image = x.permute(0, 3, 1, 2)
        return F.conv2d(image, weight, bias, padding=size // 2, groups=channels).permute(0, 2, 3, 1)

    return convolve


def sample_reference(case: Case, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Reference sampling of NHWC `value` with offset (B, H, W, G, K, 2) and mask (B, H, W, G, K)."""
    from opbench_kernels.deform.reference import deformable_sample

    split = value.unflatten(-1, (groups(case), -1))
    out: torch.Tensor = deformable_sample(split, offset, mask, geometry(case))
    return out.flatten(-2)


SMOOTH_WEIGHT_STD = 0.05
"""Spread of the offsets, pixels, around 0.5 in gradient checks of modules: ten deviations from an integer."""


def away_from_kinks(offset: torch.Tensor) -> torch.Tensor:
    """Offsets with their fractional part squeezed into [1/8, 7/8].

    The gradient jumps where a sampling coordinate is an integer. A rounding that carries a coordinate across one
    changes the gradient without being an error, so gradients are compared away from there.
    """
    whole = offset.floor()
    return whole + 0.125 + 0.75 * (offset - whole)


def tolerance(case: Case) -> float:
    """Rounded to the dtype: weights and output; in the module also value, offsets (of several pixels) and output.

    In float32 the coordinates are the largest numbers: their rounding grows with the image's side.
    """
    side = max(case.shape.height, case.shape.width) * max(1.0, case.float_setting("offset_std_px"))
    roundings = 1 if case.level is Level.CORE else 6
    return rounding_budget(case, storage_roundings=roundings, float32_growth=2 * side + case.shape.channels**0.5)


def core_flops(case: Case) -> int:
    """8 K P C + 30 K P G forward (four corners, coordinates and weights); 16 K P C + 30 K P G backward."""
    taps = points(case) * case.shape.pixels
    coordinates = 30 * taps * groups(case)
    channels = case.shape.channels
    return by_direction(case, fwd=8 * taps * channels + coordinates, bwd=16 * taps * channels + coordinates)


def core_elements(case: Case, offset_mask_channels: int) -> int:
    """Forward: value, output, offsets and masks once. Backward: these with the output gradient; two gradients.

    The fp32 atomic additions of a backward pass are not counted: they are how it is done, not what must be.
    """
    pixels, channels = case.shape.pixels, case.shape.channels
    return by_direction(
        case,
        fwd=pixels * (2 * channels + offset_mask_channels),
        bwd=pixels * (3 * channels + 2 * offset_mask_channels),
    )


def gathered_bytes(case: Case) -> int:
    """Four corners of each point and channel, in either pass; what is added to the gradient of value is not read."""
    one_pass = 4 * points(case) * case.shape.elements * case.dtype.element_bytes
    return by_direction(case, fwd=one_pass, bwd=one_pass)


def warp_instructions(case: Case, architecture: str) -> int | None:
    """Of our Triton kernels, for 3x3 points and groups of 32 channels; at module level of the sampling alone."""
    from opbench_kernels.deform.instructions import warp_instructions

    if (points(case), case.int_setting("group_channels")) != (9, 32):
        return None
    sampled_points = points(case) * case.shape.pixels * groups(case)
    passes = {"fwd": ("fwd",), "bwd": ("bwd",), "fwd_bwd": ("fwd", "bwd")}[case.direction]
    found = [warp_instructions(name, case.dtype.torch_name, architecture, sampled_points) for name in passes]
    return sum(count for count in found if count is not None) if None not in found else None


def core_memory_elements(case: Case) -> int:
    """The vectorised torch provider, the larger one: corner indices and weights of every point, four times."""
    return 4 * case.shape.elements + 12 * 4 * points(case) * groups(case) * case.shape.pixels


def reference_elements(case: Case) -> int:
    """Corners, partial sums and offsets of the reference; with gradients it keeps every point's."""
    kept = 1 if case.direction == "fwd" else points(case)
    return 8 * case.shape.elements * kept + 6 * points(case) * groups(case) * case.shape.pixels
