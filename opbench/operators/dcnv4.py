"""DCNv4: deformable convolution with unbounded masks, offsets and masks packed in one tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from opbench.operators import _dcnv4
from opbench.operators._linear import linear, linear_weight
from opbench.operators._random import normal
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Tensors

if TYPE_CHECKING:
    import torch
    from opbench_kernels.implementation import Implementation

PROJECTIONS = ("value_proj", "output_proj")
"""The module's Linears before and after the sampling, C to C channels."""


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """As the lightweight variant's; the module also has its projections' parameters."""
    tensors = _dcnv4.make_inputs(case, generator)
    if case.level is Level.MODULE:
        channels = case.shape.channels
        for layer in PROJECTIONS:
            tensors[f"{layer}_weight"] = linear_weight(channels, channels, 1.0, generator)
            tensors[f"{layer}_bias"] = 0.1 * normal(generator, channels)
    return tensors


def module_inputs(tensors: Tensors) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """A closure that gives value and offset_mask of the module, from x and its parameters."""
    x = tensors["x"]
    value_proj, offset_mask = linear("value_proj", tensors), _dcnv4.predict_offset_mask(tensors)
    return lambda: (value_proj(x), offset_mask(x))


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """The sampling formula between the module's projections."""
    if case.level is Level.CORE:
        return _dcnv4.sample_reference(case, tensors["value"], tensors["offset_mask"])
    sampled = _dcnv4.sample_reference(case, *module_inputs(tensors)())
    return linear("output_proj", tensors)(sampled)


def build(implementation: Implementation, case: Case, tensors: Tensors) -> Forward:
    """The closure to time, around opbench_kernels.dcnv4."""
    core = _dcnv4.core(case, implementation)
    if case.level is Level.CORE:
        return lambda: core(tensors["value"], tensors["offset_mask"])
    inputs, output_proj = module_inputs(tensors), linear("output_proj", tensors)
    return lambda: output_proj(core(*inputs()))


def build_fused(case: Case, tensors: Tensors) -> Forward:
    """For inference: value_proj and offset_mask in one product, which the sampling reads by stride."""
    import torch
    import torch.nn.functional as F

    x = tensors["x"]
    weight, bias = (
        torch.cat([tensors[f"value_proj_{kind}"], tensors[f"offset_mask_{kind}"]]) for kind in ("weight", "bias")
    )
    core, output_proj = _dcnv4.core(case, "triton"), linear("output_proj", tensors)

    def module() -> torch.Tensor:
        both = F.linear(x, weight, bias)
        value, offset_mask = both[..., : x.shape[-1]], both[..., x.shape[-1] :]
        return output_proj(core(value, offset_mask))

    return module


OPERATOR = _dcnv4.operator(
    name="dcnv4",
    summary="deformable convolution v4; module adds value_proj, offset_mask and output_proj",
    timed="no layout conversion; module: the three Linears (and the depthwise convolution, if any)",
    make_inputs=make_inputs,
    reference=reference,
    build=build,
    build_fused=build_fused,
    projections=len(PROJECTIONS),
)
