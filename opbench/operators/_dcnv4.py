"""What DCNv4 and its lightweight variant share: core, offset_mask and the Linear that predicts it, costs, providers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from opbench.operators import _dcn, _offsets, _triton
from opbench.operators._linear import linear, linear_weight
from opbench.operators._random import normal
from opbench.workload.case import Case, Direction, Level
from opbench.workload.operator import (
    Forward,
    Operator,
    Provider,
    Setting,
    Tensors,
    by_direction,
    compiled,
    not_counted,
)

if TYPE_CHECKING:
    import torch
    from opbench_kernels.implementation import Implementation

SETTINGS = {
    "group_channels": _dcn.GROUP_CHANNELS,
    "kernel_size": _dcn.KERNEL_SIZE,
    "offset_std_px": _offsets.SETTINGS["offset_std_px"],
    "dw_kernel_size": Setting(0, 0, "side of the depthwise convolution before offset_mask, odd; 0 for none"),
    "offset_distribution": _offsets.SETTINGS["offset_distribution"],
}


def packed_channels(case: Case) -> int:
    """M, channels of the packed offset_mask tensor."""
    from opbench_kernels.deform.geometry import padded_offset_mask_channels

    return padded_offset_mask_channels(_dcn.groups(case), _dcn.points(case))


def _packed_scales(case: Case, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard deviation and mean of each packed channel: offsets, then masks around 1 / K; the tail is zero."""
    import torch

    groups, points = _dcn.groups(case), _dcn.points(case)
    std = torch.zeros(packed_channels(case), device=generator.device)
    mean = torch.zeros_like(std)
    by_group = std[: 3 * points * groups].view(groups, 3 * points)
    by_group[:, : 2 * points] = case.float_setting("offset_std_px")
    by_group[:, 2 * points :] = 0.5 / points
    mean[: 3 * points * groups].view(groups, 3 * points)[:, 2 * points :] = 1 / points
    return std, mean


def _packed_offsets(case: Case, offset_mask: torch.Tensor) -> torch.Tensor:
    """Those of (B, H, W, M), as a view (B, H, W, G, K, 2)."""
    groups, points = _dcn.groups(case), _dcn.points(case)
    by_group = offset_mask[..., : 3 * points * groups].unflatten(-1, (groups, 3 * points))
    pairs: torch.Tensor = by_group[..., : 2 * points].unflatten(-1, (points, 2))
    return pairs


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """Core: value (B, H, W, C) and offset_mask (B, H, W, M). Module: x (B, H, W, C) and what predicts offset_mask.

    Offsets are of offset_distribution, and but for measured ones independent from pixel to pixel; masks are normal
    around 1 / K. The official initialisation, all zero, would make every point a plain pixel.
    """
    import torch

    shape = (case.shape.batch, case.shape.height, case.shape.width, case.shape.channels)
    std, mean = _packed_scales(case, generator)
    channels, packed = case.shape.channels, packed_channels(case)
    if case.level is Level.CORE:
        noise = normal(generator, *shape[:3], packed)
        offset_mask = noise * std + mean
        _packed_offsets(case, offset_mask)[:] = _offsets.distributed(case, _packed_offsets(case, noise))
        return {"value": normal(generator, *shape), "offset_mask": offset_mask}
    tensors = {
        "x": normal(generator, *shape),
        "offset_mask_weight": linear_weight(packed, channels, 1.0, generator) * std.view(-1, 1),
        "offset_mask_bias": mean,
    }
    size = case.int_setting("dw_kernel_size")
    if size:
        tensors["offset_mask_dw_weight"] = normal(generator, channels, 1, size, size) / size
        tensors["offset_mask_dw_bias"] = torch.zeros(channels, device=generator.device)
    return tensors


def smooth_inputs(case: Case, tensors: Tensors) -> Tensors:
    """Offsets that no rounding carries across a pixel: at module level, nearly constant ones between two pixels."""
    smooth = {name: tensor.clone() for name, tensor in tensors.items()}
    if case.level is Level.CORE:
        packed = _packed_offsets(case, smooth["offset_mask"])
        packed.copy_(_dcn.away_from_kinks(packed))
        return smooth
    used = slice(0, 3 * _dcn.points(case) * _dcn.groups(case))
    layout = (_dcn.groups(case), 3 * _dcn.points(case))
    offsets = slice(0, 2 * _dcn.points(case))
    weight = smooth["offset_mask_weight"][used].unflatten(0, layout)[:, offsets]
    weight *= _dcn.SMOOTH_WEIGHT_STD / max(case.float_setting("offset_std_px"), _dcn.SMOOTH_WEIGHT_STD)
    smooth["offset_mask_bias"][used].unflatten(0, layout)[:, offsets] = 0.5
    return smooth


def predict_offset_mask(tensors: Tensors) -> Callable[[torch.Tensor], torch.Tensor]:
    """The module's offset_mask of its input x: a Linear, after the depthwise convolution if there is one."""
    offset_mask = linear("offset_mask", tensors)
    if "offset_mask_dw_weight" not in tensors:
        return offset_mask
    depthwise = _dcn.depthwise(tensors["offset_mask_dw_weight"], tensors["offset_mask_dw_bias"])
    return lambda x: offset_mask(depthwise(x))


def sample_reference(case: Case, value: torch.Tensor, offset_mask: torch.Tensor) -> torch.Tensor:
    """The core by its formula: (B, H, W, C)."""
    groups, points = _dcn.groups(case), _dcn.points(case)
    used = offset_mask[..., : 3 * points * groups].unflatten(-1, (groups, 3 * points))
    offset = used[..., : 2 * points].unflatten(-1, (points, 2))
    return _dcn.sample_reference(case, value, offset, used[..., 2 * points :])


def core(case: Case, implementation: Implementation) -> Callable[..., torch.Tensor]:
    """opbench_kernels.dcnv4 with the case's settings; takes value and offset_mask."""
    from opbench_kernels import dcnv4

    if implementation == "triton":
        _triton.tune()
    return partial(
        dcnv4,
        groups=_dcn.groups(case),
        kernel_size=case.int_setting("kernel_size"),
        padding=case.int_setting("kernel_size") // 2,
        implementation=implementation,
    )


def _linear_channels(case: Case, projections: int) -> int:
    """Output channels of all the module's Linears: offset_mask and the projections, C to C."""
    return 0 if case.level is Level.CORE else projections * case.shape.channels + packed_channels(case)


def flop_count(case: Case, *, projections: int) -> int:
    """The core's, and at module level 2 P C per Linear output channel and 2 k^2 P C depthwise; twice backward.

    Args:
        case: of either operator.
        projections: Linears of C to C channels that the module has beside offset_mask.
    """
    per_pixel = 2 * case.shape.channels * _linear_channels(case, projections)
    if case.level is Level.MODULE:
        per_pixel += 2 * case.int_setting("dw_kernel_size") ** 2 * case.shape.channels
    outside = case.shape.pixels * per_pixel
    return _dcn.core_flops(case) + by_direction(case, fwd=outside, bwd=2 * outside)


def bytes_moved(case: Case, *, projections: int) -> int:
    """The stages' inputs and outputs once: core, and at module level each Linear's; the weights once.

    Each stage counts on its own (unfused), so that a fused provider can exceed the bus's rate. Arguments are as
    flop_count's.
    """
    pixels, channels = case.shape.pixels, case.shape.channels
    elements = _dcn.core_elements(case, packed_channels(case))
    if case.level is Level.MODULE:
        depthwise_size = case.int_setting("dw_kernel_size")
        stages = pixels * (channels + packed_channels(case) + 2 * channels * projections)
        if depthwise_size:
            stages += 2 * pixels * channels
        weights = channels * _linear_channels(case, projections) + depthwise_size**2 * channels
        elements += by_direction(case, fwd=stages + weights, bwd=2 * (stages + weights))
    return case.dtype.element_bytes * elements


def memory_bytes(case: Case, *, projections: int) -> int:
    """Activations of every stage; the torch provider's corner indices and weights dominate. Arguments: flop_count's."""
    activations = case.shape.pixels * (_linear_channels(case, projections) + packed_channels(case))
    return case.dtype.element_bytes * activations + 4 * _dcn.core_memory_elements(case)


def reference_elements(case: Case) -> int:
    """The sampling's, and the module's activations."""
    return _dcn.reference_elements(case) + 4 * case.shape.elements


def _fused_not_applicable(case: Case, _device_type: str) -> str | None:
    if case.level is not Level.MODULE:
        return "it fuses the module's projections, which the core level leaves out"
    if case.direction is not Direction.FWD:
        return "it is an inference path, without a backward pass"
    if case.int_setting("dw_kernel_size"):
        return "offsets come from the depthwise convolution, not from the input that the other product reads"
    return None


def operator(
    *,
    name: str,
    summary: str,
    timed: str,
    make_inputs: Callable[[Case, torch.Generator], Tensors],
    reference: Callable[[Case, Tensors], torch.Tensor],
    build: Callable[[Implementation, Case, Tensors], Forward],
    build_fused: Callable[[Case, Tensors], Forward],
    projections: int,
) -> Operator:
    """DCNv4 or its lightweight variant, from what is its own.

    Args:
        name, summary, timed, make_inputs, reference: as Operator takes them.
        build: (implementation of opbench_kernels.dcnv4, case, tensors) -> the closure to time.
        build_fused: the same for inference, the parameters rearranged once, untimed.
        projections: Linears of C to C channels that the module has beside offset_mask.
    """
    triton = _triton.triton_provider(build, _dcn.warp_instructions)
    fused = replace(
        triton,
        name="triton_fused",
        build=build_fused,
        summary="inference: projections and sampling with fewer passes over memory",
        not_applicable=_fused_not_applicable,
        warp_instructions=not_counted,
    )
    torch = Provider("torch", partial(build, "torch"), "vectorised torch, embedding_bag")
    return Operator(
        name=name,
        family="dcn",
        summary=summary,
        timed=timed,
        make_inputs=make_inputs,
        reference=reference,
        flop_count=partial(flop_count, projections=projections),
        bytes_moved=partial(bytes_moved, projections=projections),
        memory_bytes=partial(memory_bytes, projections=projections),
        reference_elements=reference_elements,
        smooth_inputs=smooth_inputs,
        tolerance=_dcn.tolerance,
        providers=(triton, fused, torch, compiled(torch)),
        settings=SETTINGS,
        implied_settings=_offsets.implied_settings,
        not_applicable=_dcn.not_applicable,
        gathered_bytes=_dcn.gathered_bytes,
    )
