"""Grouped 3x3 convolution, C to C channels, padding 1: each group of channels apart."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from opbench.operators._cudnn import autotuned
from opbench.operators._random import normal
from opbench.operators.conv3x3 import shifted_products
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Operator, Provider, Setting, Tensors, by_direction, compiled
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    import torch


def per_group(case: Case) -> int:
    """Channels of a group."""
    return case.shape.channels // case.int_setting("groups")


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """x (B, H, W, C) and weight (C, 3, 3, C / groups): output channel, row, column, input channel of its group."""
    shape = case.shape
    return {
        "x": normal(generator, shape.batch, shape.height, shape.width, shape.channels),
        "weight": normal(generator, shape.channels, 3, 3, per_group(case)) / (9 * per_group(case)) ** 0.5,
    }


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """Each group as a convolution of its own: nine shifted matrix products."""
    import torch

    groups = case.int_setting("groups")
    parts = zip(tensors["x"].chunk(groups, -1), tensors["weight"].chunk(groups), strict=True)
    return torch.cat([shifted_products(x, weight) for x, weight in parts], -1)


def flop_count(case: Case) -> int:
    """18 P C^2 / groups forward; backward is one such product for the input and one for the weight."""
    forward = 18 * case.shape.elements * per_group(case)
    return by_direction(case, fwd=forward, bwd=2 * forward)


def bytes_moved(case: Case) -> int:
    """Input, weight and output once; backward reads them with the output gradient and writes two gradients."""
    feature, weight = case.shape.elements, 9 * case.shape.channels * per_group(case)
    elements = by_direction(case, fwd=2 * feature + weight, bwd=3 * feature + 2 * weight)
    return case.dtype.element_bytes * elements


def memory_bytes(case: Case) -> int:
    """Input, output and weight, and as much again for the convolution's workspace."""
    return case.dtype.element_bytes * 2 * (2 * case.shape.elements + 9 * case.shape.channels * per_group(case))


def not_applicable(case: Case) -> str | None:
    """Why the channels have no such groups, or None."""
    if case.shape.channels % (groups := case.int_setting("groups")):
        return f"{case.shape.channels} channels are not a multiple of {groups} groups (--set grouped_conv3x3.groups=N)"
    return None


def _build(channels_last: bool, case: Case, tensors: Tensors) -> Forward:
    import torch.nn.functional as F

    x = tensors["x"].permute(0, 3, 1, 2)  # a channels_last view of NHWC memory: nothing is copied
    weight = tensors["weight"].permute(0, 3, 1, 2)
    if not channels_last:
        x, weight = x.contiguous(), weight.contiguous()
    groups = case.int_setting("groups")
    return lambda: F.conv2d(x, weight, padding=1, groups=groups).permute(0, 2, 3, 1)


TORCH = Provider("torch", partial(_build, True), "torch.nn.functional.conv2d, channels_last")
NCHW = Provider(
    "torch_nchw",
    partial(_build, False),
    "torch.nn.functional.conv2d on NCHW tensors, rearranged before the timing",
    copied=("x", "weight"),
)

OPERATOR = Operator(
    name="grouped_conv3x3",
    family="convolution",
    by_default=False,
    summary="3x3 convolution in groups of channels, C to C channels, padding 1",
    timed="the convolution on channels_last views; no layout conversion, but of torch_nchw's gradients",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=flop_count,
    bytes_moved=bytes_moved,
    memory_bytes=memory_bytes,
    reference_elements=lambda case: 7 * case.shape.elements + 9 * case.shape.channels * per_group(case),
    tolerance=lambda case: rounding_budget(
        case, storage_roundings=1, float32_growth=max(9 * per_group(case), case.shape.pixels) ** 0.5
    ),
    providers=(TORCH, NCHW, compiled(TORCH), autotuned(TORCH)),
    settings={"groups": Setting(32, 1, "groups of channels, each convolved apart; ResNeXt has 32")},
    not_applicable=not_applicable,
    levels=(Level.CORE,),
)
