"""Lightweight DCNv4: the module without value_proj and output_proj samples its input itself; the core is DCNv4's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbench.operators import _dcn, _dcnv4, _triton
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Tensors

if TYPE_CHECKING:
    import torch
    from opbench_kernels.implementation import Implementation


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """Core: value and offset_mask. Module: x and the parameters of offset_mask."""
    return _dcnv4.make_inputs(case, generator)


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """The sampling formula, at module level of x."""
    if case.level is Level.CORE:
        return _dcnv4.sample_reference(case, tensors["value"], tensors["offset_mask"])
    return _dcnv4.sample_reference(case, tensors["x"], _dcnv4.predict_offset_mask(tensors)(tensors["x"]))


def build(implementation: Implementation, case: Case, tensors: Tensors) -> Forward:
    """The closure to time, around opbench_kernels.dcnv4."""
    core = _dcnv4.core(case, implementation)
    if case.level is Level.CORE:
        return lambda: core(tensors["value"], tensors["offset_mask"])
    x, offset_mask = tensors["x"], _dcnv4.predict_offset_mask(tensors)
    return lambda: core(x, offset_mask(x))


def build_fused(case: Case, tensors: Tensors) -> Forward:
    """For inference: the offset_mask product inside the sampling kernel, which reads a weight rearranged once."""
    from opbench_kernels.deform.dcnv4_fused import dcnv4_from_input, pack_offset_mask

    _triton.tune()
    groups, x = _dcn.groups(case), tensors["x"]
    packed = pack_offset_mask(tensors["offset_mask_weight"], tensors["offset_mask_bias"], groups, _dcn.points(case))
    return lambda: dcnv4_from_input(x, *packed, groups=groups, geometry=_dcn.geometry(case))


OPERATOR = _dcnv4.operator(
    name="dcnv4_lightweight",
    summary="deformable convolution v4 without the pointwise projections; module adds offset_mask only",
    timed="no layout conversion; module: the offset_mask Linear (and the depthwise convolution, if any)",
    make_inputs=make_inputs,
    reference=reference,
    build=build,
    build_fused=build_fused,
    projections=0,
)
