"""DCNv2: a 3x3 convolution whose points move by offsets, and whose samples have masks as factors."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from opbench.operators import _dcn, _offsets, _triton
from opbench.operators._random import normal
from opbench.workload.case import Case, Dtype, Level
from opbench.workload.operator import Forward, Operator, Provider, Setting, Tensors, by_direction, compiled
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    import torch
    from opbench_kernels.implementation import Implementation

Core = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""The NCHW output from NCHW x, offsets and masks."""


def taps(case: Case) -> int:
    """K * Dg: the masks of a pixel, and half of its offsets."""
    return _dcn.points(case) * case.int_setting("deform_groups")


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """x (B, H, W, C), weight (C, k, k, C): output channel, row, column, input channel.

    Core: offset (B, H, W, 2 K Dg), pairs (y, x) of offset_distribution, and mask
    (B, H, W, K Dg), sigmoids of standard normal numbers. Module: the bias, and the convolution that predicts both, the
    offsets first.
    """
    import torch

    channels, size = case.shape.channels, case.int_setting("kernel_size")
    image = (case.shape.batch, case.shape.height, case.shape.width)
    reach = size * channels**0.5
    offset_std = case.float_setting("offset_std_px")
    tensors = {
        "x": normal(generator, *image, channels),
        "weight": normal(generator, channels, size, size, channels) / reach,
    }
    if case.level is Level.CORE:
        noise = normal(generator, *image, taps(case), 2)
        tensors["offset"] = _offsets.distributed(case, noise.flip(-1)).flip(-1).flatten(-2)
        tensors["mask"] = normal(generator, *image, taps(case)).sigmoid()
        return tensors
    conv_offset = normal(generator, 3 * taps(case), size, size, channels) / reach
    conv_offset[: 2 * taps(case)] *= offset_std
    return tensors | {
        "bias": normal(generator, channels),
        "conv_offset_weight": conv_offset,
        "conv_offset_bias": torch.zeros(3 * taps(case), device=generator.device),
    }


def smooth_inputs(case: Case, tensors: Tensors) -> Tensors:
    """Offsets that no rounding carries across a pixel: at module level, nearly constant ones between two pixels."""
    if case.level is Level.CORE:
        return {**tensors, "offset": _dcn.away_from_kinks(tensors["offset"])}
    weight, bias = tensors["conv_offset_weight"].clone(), tensors["conv_offset_bias"].clone()
    offsets = slice(0, 2 * taps(case))
    weight[offsets] *= _dcn.SMOOTH_WEIGHT_STD / max(case.float_setting("offset_std_px"), _dcn.SMOOTH_WEIGHT_STD)
    bias[offsets] = 0.5
    return {**tensors, "conv_offset_weight": weight, "conv_offset_bias": bias}


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """One matrix product for each point, on its samples times their masks."""
    import torch
    from opbench_kernels.bilinear_reference import sample

    x, weight, size = tensors["x"], tensors["weight"], case.int_setting("kernel_size")
    offset, mask = _offset_and_mask_by_shifts(case, tensors)
    groups = case.int_setting("deform_groups")
    offset, mask = offset.unflatten(-1, (groups, -1, 2)), mask.unflatten(-1, (groups, -1))
    row, column = (torch.arange(side, device=x.device, dtype=x.dtype) for side in x.shape[1:3])
    out = tensors["bias"] if case.level is Level.MODULE else x.new_zeros(())
    for point in range(size**2):
        down, across = point // size, point % size
        y = row.view(-1, 1, 1) + (down - size // 2) + offset[..., point, 0]
        left = column.view(-1, 1) + (across - size // 2) + offset[..., point, 1]
        samples = sample(x.unflatten(-1, (groups, -1)), y, left) * mask[..., point].unsqueeze(-1)
        out = out + samples.flatten(-2) @ weight[:, down, across].T
    return out


def _offset_and_mask_by_shifts(case: Case, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """NHWC offsets and masks: the core's inputs, or at module level a sum of shifted matrix products."""
    import torch.nn.functional as F

    if case.level is Level.CORE:
        return tensors["offset"], tensors["mask"]
    x, weight = tensors["x"], tensors["conv_offset_weight"]
    size, (_, height, width, _) = case.int_setting("kernel_size"), x.shape
    half = size // 2
    padded = F.pad(x, (0, 0, half, half, half, half))
    both = tensors["conv_offset_bias"]
    for row in range(size):
        for column in range(size):
            both = both + padded[:, row : row + height, column : column + width] @ weight[:, row, column].T
    return both[..., : 2 * taps(case)], both[..., 2 * taps(case) :].sigmoid()


def not_applicable(case: Case) -> str | None:
    """Why the case has no deformable convolution of this kind, or None."""
    groups, size = case.int_setting("deform_groups"), case.int_setting("kernel_size")
    if case.shape.channels % groups:
        return f"{case.shape.channels} channels are not a multiple of deform_groups {groups}"
    if size % 2 == 0:
        return f"kernel_size must be odd to keep the image size, got {size}"
    return _offsets.not_applicable(case)


def flop_count(case: Case) -> int:
    """2 K P C^2 of the product, 8 K P C + 30 K P Dg of the sampling; the module adds 6 K^2 P C Dg. Backward: twice the
    products, 16 K P C + 30 K P Dg."""
    pixels, channels, points = case.shape.pixels, case.shape.channels, _dcn.points(case)
    product = 2 * points * pixels * channels**2
    if case.level is Level.MODULE:
        product += 6 * points * taps(case) * pixels * channels
    coordinates = 30 * taps(case) * pixels
    return by_direction(
        case,
        fwd=product + 8 * points * pixels * channels + coordinates,
        bwd=2 * product + 16 * points * pixels * channels + coordinates,
    )


def bytes_moved(case: Case) -> int:
    """x, offsets, masks, weight and output once; backward these with the output's gradient, and the inputs' gradients.

    The module adds its convolution: x and its weight read, its output written.
    """
    pixels, channels = case.shape.pixels, case.shape.channels
    inputs = pixels * (channels + 3 * taps(case)) + _dcn.points(case) * channels**2
    output = pixels * channels
    elements = by_direction(case, fwd=inputs + output, bwd=2 * inputs + output)
    if case.level is Level.MODULE:
        added = pixels * (channels + 3 * taps(case)) + 3 * _dcn.points(case) * taps(case) * channels
        elements += by_direction(case, fwd=added, bwd=2 * added)
    return case.dtype.element_bytes * elements


def memory_bytes(case: Case) -> int:
    """The matrix of samples in the dtype, with x and output; corner indices and weights, which are wider."""
    pixels, channels = case.shape.pixels, case.shape.channels
    weights = _dcn.points(case) * channels**2
    features = (_dcn.points(case) + 3) * pixels * channels + weights
    return case.dtype.element_bytes * features + 4 * 12 * 4 * taps(case) * pixels


def reference_elements(case: Case) -> int:
    """Samples, corners, offsets and weights; with gradients those of every point are kept."""
    kept = 1 if case.direction == "fwd" else _dcn.points(case)
    features = (12 * kept + 4) * case.shape.elements
    weights = _dcn.points(case) * case.shape.channels * (case.shape.channels + 3 * taps(case))
    return features + weights + 12 * taps(case) * case.shape.pixels


def tolerance(case: Case) -> float:
    """Rounded to the dtype: the samples and the output; in the module also offsets (of several pixels) and masks.

    In float32 the coordinates are the largest numbers, and the product sums over 9 C; a gradient of the weight over all
    pixels.
    """
    side = max(case.shape.height, case.shape.width) * max(1.0, case.float_setting("offset_std_px"))
    terms = max(_dcn.points(case) * case.shape.channels, case.shape.pixels)
    roundings = 2 if case.level is Level.CORE else 6
    return rounding_budget(case, storage_roundings=roundings, float32_growth=2 * side + terms**0.5)


def _around(case: Case, tensors: Tensors, core: Core) -> Forward:
    """The closure to time, around a core of NCHW tensors, which are channels_last views: nothing is copied."""
    import torch.nn.functional as F

    x = tensors["x"].permute(0, 3, 1, 2)
    if case.level is Level.CORE:
        offset, mask = (tensors[name].permute(0, 3, 1, 2) for name in ("offset", "mask"))
        return lambda: core(x, offset, mask).permute(0, 2, 3, 1)
    weight, bias = tensors["conv_offset_weight"].permute(0, 3, 1, 2), tensors["conv_offset_bias"]
    half, offsets = case.int_setting("kernel_size") // 2, 2 * taps(case)

    def module() -> torch.Tensor:
        both = F.conv2d(x, weight, bias, padding=half)
        return core(x, both[:, :offsets], both[:, offsets:].sigmoid()).permute(0, 2, 3, 1)

    return module


def _build(implementation: Implementation, case: Case, tensors: Tensors) -> Forward:
    from opbench_kernels import dcnv2

    core = partial(
        dcnv2,
        weight=tensors["weight"].permute(0, 3, 1, 2),
        bias=tensors.get("bias"),
        padding=case.int_setting("kernel_size") // 2,
        deform_groups=case.int_setting("deform_groups"),
        implementation=implementation,
    )
    return _around(case, tensors, core)


def _build_torchvision(case: Case, tensors: Tensors) -> Forward:
    from torchvision.ops import deform_conv2d

    weight, bias = tensors["weight"].permute(0, 3, 1, 2), tensors.get("bias")
    half = case.int_setting("kernel_size") // 2
    return _around(case, tensors, lambda x, offset, mask: deform_conv2d(x, offset, weight, bias, 1, half, 1, mask))


def _torchvision_unavailable(_: str) -> str | None:
    found = importlib.util.find_spec("torchvision")
    return None if found else "the package torchvision is not installed (pip install torchvision)"


def _single_alone(case: Case, _device_type: str) -> str | None:
    refusals = {
        Dtype.FP16: "torchvision's deform_conv2d computes coordinates in float16, hundredths of a pixel off",
        Dtype.BF16: "torchvision's deform_conv2d has no bfloat16",
    }
    return refusals.get(case.dtype)


TORCH = Provider("torch", partial(_build, "torch"), "samples by embedding_bag, then one matrix product")

OPERATOR = Operator(
    name="dcnv2",
    family="dcn",
    by_default=False,
    summary="modulated deformable convolution, C to C; module adds the convolution that predicts offsets and masks",
    timed="whatever copies the provider makes of NHWC tensors; module: that convolution and the sigmoid",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=flop_count,
    bytes_moved=bytes_moved,
    gathered_bytes=_dcn.gathered_bytes,
    memory_bytes=memory_bytes,
    reference_elements=reference_elements,
    smooth_inputs=smooth_inputs,
    tolerance=tolerance,
    providers=(
        _triton.triton_provider(_build),
        TORCH,
        compiled(TORCH),
        Provider(
            "torchvision",
            _build_torchvision,
            "torchvision.ops.deform_conv2d, with its copies to NCHW",
            unavailable=_torchvision_unavailable,
            needs="the package torchvision",
            not_applicable=_single_alone,
        ),
    ),
    settings={
        "kernel_size": _dcn.KERNEL_SIZE,
        "deform_groups": Setting(1, 1, "groups of channels with offsets and masks of their own"),
        **_offsets.SETTINGS,
    },
    implied_settings=_offsets.implied_settings,
    not_applicable=not_applicable,
)
