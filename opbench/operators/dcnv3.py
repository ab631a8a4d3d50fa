"""DCNv3: deformable convolution with masks that a softmax normalises over the points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from opbench.operators import _dcn, _offsets, _triton
from opbench.operators._cudnn import autotuned
from opbench.operators._linear import linear, linear_weight
from opbench.operators._random import normal
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Operator, Provider, Setting, Tensors, by_direction, compiled

if TYPE_CHECKING:
    import torch
    from opbench_kernels.implementation import Implementation

GELU_SECOND_MOMENT = 0.4252
"""E[GELU(z)^2] for standard normal z, so that the offset Linear can be scaled to give offset_std_px."""


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """Core: value (B, H, W, C), offset (B, H, W, G K 2), mask (B, H, W, G K). Module: x and the parameters.

    Offsets are of offset_distribution; masks are a softmax of standard normal logits.
    """
    import torch

    shape = (case.shape.batch, case.shape.height, case.shape.width, case.shape.channels)
    channels, taps = case.shape.channels, _dcn.groups(case) * _dcn.points(case)
    offset_std = case.float_setting("offset_std_px")
    if case.level is Level.CORE:
        logits = normal(generator, *shape[:3], _dcn.groups(case), _dcn.points(case))
        return {
            "value": normal(generator, *shape),
            "offset": _offsets.distributed(case, normal(generator, *shape[:3], taps, 2)).flatten(-2),
            "mask": logits.softmax(-1).flatten(-2),
        }
    size = case.int_setting("dw_kernel_size")
    spread = GELU_SECOND_MOMENT**-0.5
    tensors = {
        "x": normal(generator, *shape),
        "dw_conv_weight": normal(generator, channels, 1, size, size) / size,
        "dw_conv_bias": 0.1 * normal(generator, channels),
        "norm_weight": torch.ones(channels, device=generator.device),
        "norm_bias": torch.zeros(channels, device=generator.device),
        "offset_weight": linear_weight(2 * taps, channels, offset_std * spread, generator),
        "offset_bias": torch.zeros(2 * taps, device=generator.device),
        "mask_weight": linear_weight(taps, channels, spread, generator),
        "mask_bias": torch.zeros(taps, device=generator.device),
    }
    for layer in ("input_proj", "output_proj"):
        tensors[f"{layer}_weight"] = linear_weight(channels, channels, 1.0, generator)
        tensors[f"{layer}_bias"] = 0.1 * normal(generator, channels)
    return tensors


def smooth_inputs(case: Case, tensors: Tensors) -> Tensors:
    """Offsets that no rounding carries across a pixel: at module level, nearly constant ones between two pixels."""
    import torch

    if case.level is Level.CORE:
        return {**tensors, "offset": _dcn.away_from_kinks(tensors["offset"])}
    shrink = _dcn.SMOOTH_WEIGHT_STD / max(case.float_setting("offset_std_px"), _dcn.SMOOTH_WEIGHT_STD)
    return {
        **tensors,
        "offset_weight": tensors["offset_weight"] * shrink,
        "offset_bias": torch.full_like(tensors["offset_bias"], 0.5),
    }


def module_inputs(case: Case, tensors: Tensors) -> Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A closure that gives value, offset and mask of the module, from x and its parameters."""
    import torch.nn.functional as F

    x, groups = tensors["x"], _dcn.groups(case)
    depthwise = _dcn.depthwise(tensors["dw_conv_weight"], tensors["dw_conv_bias"])

    def module_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        normed = F.layer_norm(depthwise(x), x.shape[-1:], tensors["norm_weight"], tensors["norm_bias"], 1e-6)
        features = F.gelu(normed)
        value = F.linear(x, tensors["input_proj_weight"], tensors["input_proj_bias"])
        offset = F.linear(features, tensors["offset_weight"], tensors["offset_bias"])
        logits = F.linear(features, tensors["mask_weight"], tensors["mask_bias"])
        mask = logits.unflatten(-1, (groups, -1)).softmax(-1).flatten(-2)
        return value, offset, mask

    return module_inputs


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """The sampling formula between the module's stages."""
    if case.level is Level.CORE:
        value, offset, mask = tensors["value"], tensors["offset"], tensors["mask"]
    else:
        value, offset, mask = module_inputs(case, tensors)()
    groups, points = _dcn.groups(case), _dcn.points(case)
    out = _dcn.sample_reference(
        case, value, offset.unflatten(-1, (groups, points, 2)), mask.unflatten(-1, (groups, points))
    )
    return out if case.level is Level.CORE else linear("output_proj", tensors)(out)


def flop_count(case: Case) -> int:
    """The core's; the module adds 4 P C^2 + 6 K G P C of Linears, 2 k^2 P C depthwise and 5 K G P of softmax."""
    forward = 0
    if case.level is Level.MODULE:
        channels, taps = case.shape.channels, _dcn.groups(case) * _dcn.points(case)
        per_pixel = 4 * channels**2 + 6 * taps * channels + 5 * taps
        per_pixel += 2 * case.int_setting("dw_kernel_size") ** 2 * channels
        forward = case.shape.pixels * per_pixel
    return _dcn.core_flops(case) + by_direction(case, fwd=forward, bwd=2 * forward)


def bytes_moved(case: Case) -> int:
    """The stages' inputs and outputs once, each stage on its own; the weights once.

    Module stages beside the core: input_proj, depthwise, LayerNorm with GELU, offset and mask Linears, softmax
    and output_proj.
    """
    pixels, channels = case.shape.pixels, case.shape.channels
    taps = _dcn.groups(case) * _dcn.points(case)
    elements = _dcn.core_elements(case, 3 * taps)
    if case.level is Level.MODULE:
        stages = pixels * (2 * channels * 4 + channels * 2 + 3 * taps + 2 * taps)
        weights = 2 * channels**2 + 3 * taps * channels + case.int_setting("dw_kernel_size") ** 2 * channels
        elements += by_direction(case, fwd=stages + weights, bwd=2 * (stages + weights))
    return case.dtype.element_bytes * elements


def memory_bytes(case: Case) -> int:
    """Activations of every stage; the torch provider's corner indices and weights dominate."""
    activations = 5 * case.shape.elements if case.level is Level.MODULE else 0
    return case.dtype.element_bytes * activations + 4 * _dcn.core_memory_elements(case)


def _build(implementation: Implementation, case: Case, tensors: Tensors) -> Forward:
    from opbench_kernels import dcnv3

    if implementation == "triton":
        _triton.tune()
    core = partial(
        dcnv3,
        groups=_dcn.groups(case),
        kernel_size=case.int_setting("kernel_size"),
        padding=case.int_setting("kernel_size") // 2,
        implementation=implementation,
    )
    if case.level is Level.CORE:
        return lambda: core(tensors["value"], tensors["offset"], tensors["mask"])
    inputs, output_proj = module_inputs(case, tensors), linear("output_proj", tensors)
    return lambda: output_proj(core(*inputs()))


def _autotuned_not_applicable(case: Case, _device_type: str) -> str | None:
    return "the core has no convolution for cuDNN to choose" if case.level is Level.CORE else None


TRITON = _triton.triton_provider(_build, _dcn.warp_instructions)
TORCH = Provider("torch", partial(_build, "torch"), "vectorised torch, embedding_bag")

OPERATOR = Operator(
    name="dcnv3",
    family="dcn",
    summary="deformable convolution v3; module adds the projections, the depthwise branch and the softmax",
    timed="no layout conversion; module: input_proj, depthwise, LayerNorm, GELU, offset, mask, softmax, output_proj",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=flop_count,
    bytes_moved=bytes_moved,
    memory_bytes=memory_bytes,
    reference_elements=lambda case: _dcn.reference_elements(case) + 8 * case.shape.elements,
    smooth_inputs=smooth_inputs,
    tolerance=_dcn.tolerance,
    providers=(
        TRITON,
        TORCH,
        compiled(TORCH),
        replace(autotuned(TRITON, "triton_autotuned"), not_applicable=_autotuned_not_applicable),
    ),
    settings={
        "group_channels": _dcn.GROUP_CHANNELS,
        "kernel_size": _dcn.KERNEL_SIZE,
        **_offsets.SETTINGS,
        "dw_kernel_size": Setting(3, 1, "side of the depthwise convolution, odd"),
    },
    implied_settings=_offsets.implied_settings,
    not_applicable=_dcn.not_applicable,
    gathered_bytes=_dcn.gathered_bytes,
)
