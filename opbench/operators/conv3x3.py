"""3x3 convolution, C to C channels, padding 1."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from opbench.operators._cudnn import autotuned
from opbench.operators._random import normal
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Operator, Provider, Tensors, by_direction, compiled
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    import torch


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """x (B, H, W, C) and weight (C, 3, 3, C): output channel, row, column, input channel; bias (C,) at module level."""
    channels = case.shape.channels
    tensors = {
        "x": normal(generator, case.shape.batch, case.shape.height, case.shape.width, channels),
        "weight": normal(generator, channels, 3, 3, channels) / (9 * channels) ** 0.5,
    }
    if case.level is Level.MODULE:
        tensors["bias"] = normal(generator, channels)
    return tensors


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """Nine shifted matrix products."""
    out = shifted_products(tensors["x"], tensors["weight"])
    return out + tensors["bias"] if case.level is Level.MODULE else out


def shifted_products(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The 3x3 convolution of x (B, H, W, C) with weight (C out, 3, 3, C in), padding 1."""
    import torch.nn.functional as F

    _, height, width, _ = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    out = x.new_zeros(())
    for row in range(3):
        for column in range(3):
            out = out + padded[:, row : row + height, column : column + width] @ weight[:, row, column].T
    return out


def flop_count(case: Case) -> int:
    """18 P C^2 forward; backward is one such product for the input and one for the weight."""
    forward = 18 * case.shape.pixels * case.shape.channels**2
    return by_direction(case, fwd=forward, bwd=2 * forward)


def bytes_moved(case: Case) -> int:
    """Input, weight and output once; backward reads them with the output gradient and writes two gradients."""
    feature, weight = case.shape.elements, 9 * case.shape.channels**2
    elements = by_direction(case, fwd=2 * feature + weight, bwd=3 * feature + 2 * weight)
    return case.dtype.element_bytes * elements


def memory_bytes(case: Case) -> int:
    """Input, output and weight, and as much again for the convolution's workspace."""
    return case.dtype.element_bytes * 2 * (2 * case.shape.elements + 9 * case.shape.channels**2)


def _build(case: Case, tensors: Tensors, *, nchw: bool = False) -> Forward:
    import torch.nn.functional as F

    x = tensors["x"].permute(0, 3, 1, 2)  # a channels_last view of NHWC memory: nothing is copied
    weight = tensors["weight"].permute(0, 3, 1, 2)
    if nchw:
        x, weight = x.contiguous(), weight.contiguous()
    bias = tensors.get("bias")
    return lambda: F.conv2d(x, weight, bias, padding=1).permute(0, 2, 3, 1)


TORCH = Provider("torch", _build, "torch.nn.functional.conv2d, channels_last")
NCHW = Provider(
    "torch_nchw",
    partial(_build, nchw=True),
    "torch.nn.functional.conv2d on NCHW tensors, rearranged before the timing",
    copied=("x", "weight"),
)

OPERATOR = Operator(
    name="conv3x3",
    family="convolution",
    summary="3x3 convolution, C to C channels, padding 1; module adds the bias",
    timed="the convolution, on channels_last views (torch_nchw: on NCHW tensors); no layout conversion",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=flop_count,
    bytes_moved=bytes_moved,
    memory_bytes=memory_bytes,
    reference_elements=lambda case: 5 * case.shape.elements + 9 * case.shape.channels**2,
    tolerance=lambda case: rounding_budget(
        case, storage_roundings=1, float32_growth=max(9 * case.shape.channels, case.shape.pixels) ** 0.5
    ),
    providers=(TORCH, compiled(TORCH), NCHW, autotuned(TORCH)),
)
