"""DCNv4: deformable convolution with unbounded masks, offsets and masks packed in one tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from opbench.operators import _dcn
from opbench.operators._random import normal
from opbench.workload.case import Case, Direction, Level
from opbench.workload.operator import Forward, Operator, Provider, Setting, Tensors, by_direction, compiled

if TYPE_CHECKING:
    import torch
    from opbench_kernels.functional import Implementation

SETTINGS = {
    "group_channels": _dcn.GROUP_CHANNELS,
    "kernel_size": _dcn.KERNEL_SIZE,
    "offset_std_px": _dcn.OFFSET_STD_PX,
    "dw_kernel_size": Setting(0, 0, "side of the depthwise convolution before offset_mask, odd; 0 for none"),
}


def packed_channels(case: Case) -> int:
    """M, channels of the packed offset_mask tensor."""
    from opbench_kernels.geometry import padded_offset_mask_channels

    channels: int = padded_offset_mask_channels(_dcn.groups(case), _dcn.points(case))
    return channels


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


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """Core: value (B, H, W, C) and offset_mask (B, H, W, M). Module: x (B, H, W, C) and the parameters.

    Offsets are normal with standard deviation offset_std_px and independent from pixel to pixel; masks are
    normal around 1 / K. The official initialisation, all zero, would make every point a plain pixel.
    """
    import torch

    shape = (case.shape.batch, case.shape.height, case.shape.width, case.shape.channels)
    std, mean = _packed_scales(case, generator)
    channels, packed = case.shape.channels, packed_channels(case)
    if case.level is Level.CORE:
        noise = normal(generator, *shape[:3], packed)
        return {"value": normal(generator, *shape), "offset_mask": noise * std + mean}
    tensors = {
        "x": normal(generator, *shape),
        "offset_mask_weight": _dcn.linear_weight(packed, channels, 1.0, generator) * std.view(-1, 1),
        "offset_mask_bias": mean,
    }
    size = case.int_setting("dw_kernel_size")
    if size:
        tensors["offset_mask_dw_weight"] = normal(generator, channels, 1, size, size) / size
        tensors["offset_mask_dw_bias"] = torch.zeros(channels, device=generator.device)
    if case.operator == OPERATOR.name:
        for layer in ("value_proj", "output_proj"):
            tensors[f"{layer}_weight"] = _dcn.linear_weight(channels, channels, 1.0, generator)
            tensors[f"{layer}_bias"] = 0.1 * normal(generator, channels)
    return tensors


def smooth_inputs(case: Case, tensors: Tensors) -> Tensors:
    """Offsets that no rounding carries across a pixel: at module level, nearly constant ones between two pixels."""
    used = slice(0, 3 * _dcn.points(case) * _dcn.groups(case))
    layout = (_dcn.groups(case), 3 * _dcn.points(case))
    offsets = slice(0, 2 * _dcn.points(case))
    smooth = {name: tensor.clone() for name, tensor in tensors.items()}
    if case.level is Level.CORE:
        packed = smooth["offset_mask"][..., used].unflatten(-1, layout)[..., offsets]
        packed.copy_(_dcn.away_from_kinks(packed))
        return smooth
    weight = smooth["offset_mask_weight"][used].unflatten(0, layout)[:, offsets]
    weight *= _dcn.SMOOTH_WEIGHT_STD / max(case.float_setting("offset_std_px"), _dcn.SMOOTH_WEIGHT_STD)
    smooth["offset_mask_bias"][used].unflatten(0, layout)[:, offsets] = 0.5
    return smooth


def _projection(name: str, tensors: Tensors) -> Callable[[torch.Tensor], torch.Tensor]:
    """The Linear of that name; the identity where the module has none (lightweight)."""
    import torch.nn.functional as F

    weight = tensors.get(f"{name}_weight")
    if weight is None:
        return lambda x: x
    bias = tensors[f"{name}_bias"]
    return lambda x: F.linear(x, weight, bias)


def _module_inputs(tensors: Tensors) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """A closure that gives value and offset_mask of the module, from x and its parameters."""
    x = tensors["x"]
    value_proj, offset_mask = _projection("value_proj", tensors), _projection("offset_mask", tensors)
    if "offset_mask_dw_weight" not in tensors:
        return lambda: (value_proj(x), offset_mask(x))
    depthwise = _dcn.depthwise(tensors["offset_mask_dw_weight"], tensors["offset_mask_dw_bias"])
    return lambda: (value_proj(x), offset_mask(depthwise(x)))


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """The sampling formula between the module's projections."""
    if case.level is Level.CORE:
        value, offset_mask = tensors["value"], tensors["offset_mask"]
    else:
        value, offset_mask = _module_inputs(tensors)()
    groups, points = _dcn.groups(case), _dcn.points(case)
    used = offset_mask[..., : 3 * points * groups].unflatten(-1, (groups, 3 * points))
    offset = used[..., : 2 * points].unflatten(-1, (points, 2))
    out = _dcn.sample_reference(case, value, offset, used[..., 2 * points :])
    return _projection("output_proj", tensors)(out)


def linear_channels(case: Case) -> int:
    """Output channels of all the module's Linears together."""
    if case.level is Level.CORE:
        return 0
    projections = 2 * case.shape.channels if case.operator == OPERATOR.name else 0
    return projections + packed_channels(case)


def flop_count(case: Case) -> int:
    """The core's, and at module level 2 P C per Linear output channel and 2 k^2 P C depthwise; twice backward."""
    per_pixel = 2 * case.shape.channels * linear_channels(case)
    if case.level is Level.MODULE:
        per_pixel += 2 * case.int_setting("dw_kernel_size") ** 2 * case.shape.channels
    outside = case.shape.pixels * per_pixel
    return _dcn.core_flops(case) + by_direction(case, fwd=outside, bwd=2 * outside)


def bytes_moved(case: Case) -> int:
    """The stages' inputs and outputs once: core, and at module level each Linear's; the weights once.

    Forward counts each stage on its own (unfused), so that a fused provider can exceed the bus's rate.
    """
    pixels, channels = case.shape.pixels, case.shape.channels
    elements = _dcn.core_elements(case, packed_channels(case))
    if case.level is Level.MODULE:
        stages = pixels * (channels + packed_channels(case))
        if case.operator == OPERATOR.name:
            stages += 4 * pixels * channels
        if case.int_setting("dw_kernel_size"):
            stages += 2 * pixels * channels
        weights = channels * linear_channels(case) + case.int_setting("dw_kernel_size") ** 2 * channels
        elements += by_direction(case, fwd=stages + weights, bwd=2 * (stages + weights))
    return case.dtype.element_bytes * elements


def memory_bytes(case: Case) -> int:
    """Activations of every stage; the torch provider's corner indices and weights dominate."""
    pixels = case.shape.pixels
    return case.dtype.element_bytes * pixels * (linear_channels(case) + packed_channels(case)) + (
        4 * _dcn.core_memory_elements(case)
    )


def _core(case: Case, implementation: Implementation) -> Callable[..., torch.Tensor]:
    """opbench_kernels.dcnv4 with the case's settings; takes value and offset_mask."""
    from opbench_kernels import dcnv4

    return partial(
        dcnv4,
        groups=_dcn.groups(case),
        kernel_size=case.int_setting("kernel_size"),
        padding=case.int_setting("kernel_size") // 2,
        implementation=implementation,
    )


def build(implementation: Implementation, case: Case, tensors: Tensors) -> Forward:
    """The closure to time, around opbench_kernels.dcnv4."""
    if implementation == "triton":
        _dcn.tune_triton()
    core = _core(case, implementation)
    if case.level is Level.CORE:
        return lambda: core(tensors["value"], tensors["offset_mask"])
    inputs, output_proj = _module_inputs(tensors), _projection("output_proj", tensors)
    return lambda: output_proj(core(*inputs()))


def build_fused(case: Case, tensors: Tensors) -> Forward:
    """For inference: parameters are rearranged once, untimed.

    DCNv4: value_proj and offset_mask in one product, which the sampling reads by stride. Lightweight: the offset_mask
    product inside the sampling kernel.
    """
    import torch
    import torch.nn.functional as F
    from opbench_kernels.dcnv4_fused import dcnv4_from_input, pack_offset_mask

    _dcn.tune_triton()
    groups, x = _dcn.groups(case), tensors["x"]
    if case.operator != OPERATOR.name:
        weight, bias = tensors["offset_mask_weight"], tensors["offset_mask_bias"]
        packed = pack_offset_mask(weight, bias, groups, _dcn.points(case))
        return lambda: dcnv4_from_input(x, *packed, groups=groups, geometry=_dcn.geometry(case))
    weight, bias = (
        torch.cat([tensors[f"value_proj_{kind}"], tensors[f"offset_mask_{kind}"]]) for kind in ("weight", "bias")
    )
    core, output_proj = _core(case, "triton"), _projection("output_proj", tensors)

    def module() -> torch.Tensor:
        both = F.linear(x, weight, bias)
        value, offset_mask = both[..., : x.shape[-1]], both[..., x.shape[-1] :]
        return output_proj(core(value, offset_mask))

    return module


def _fused_not_applicable(case: Case, _device_type: str) -> str | None:
    if case.level is not Level.MODULE:
        return "it fuses the module's projections, which the core level leaves out"
    if case.direction is not Direction.FWD:
        return "it is an inference path, without a backward pass"
    if case.int_setting("dw_kernel_size"):
        return "offsets come from the depthwise convolution, not from the input that the other product reads"
    return None


TORCH = Provider("torch", partial(build, "torch"), "vectorised torch, embedding_bag")

PROVIDERS = (
    Provider(
        "triton",
        partial(build, "triton"),
        "opbench_kernels in Triton",
        unavailable=_dcn.triton_unavailable,
        needs=_dcn.TRITON_NEEDS,
        configuration=_dcn.triton_configuration,
    ),
    Provider(
        "triton_fused",
        build_fused,
        "inference: projections and sampling with fewer passes over memory",
        unavailable=_dcn.triton_unavailable,
        needs=_dcn.TRITON_NEEDS,
        configuration=_dcn.triton_configuration,
        not_applicable=_fused_not_applicable,
    ),
    TORCH,
    compiled(TORCH),
)

OPERATOR = Operator(
    name="dcnv4",
    summary="deformable convolution v4; module adds value_proj, offset_mask and output_proj",
    timed="no layout conversion; module: the three Linears (and the depthwise convolution, if any)",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=flop_count,
    bytes_moved=bytes_moved,
    memory_bytes=memory_bytes,
    reference_elements=lambda case: _dcn.reference_elements(case) + 4 * case.shape.elements,
    smooth_inputs=smooth_inputs,
    tolerance=_dcn.tolerance,
    providers=PROVIDERS,
    settings=SETTINGS,
    not_applicable=_dcn.not_applicable,
)
