"""Partial convolution (PConv) of FasterNet: a 3x3 convolution of the first channels, the others as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from opbench.operators import _timm, _triton
from opbench.operators._cudnn import autotuned
from opbench.operators._linear import linear_weight
from opbench.operators._random import normal
from opbench.operators.conv3x3 import shifted_products
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Operator, Provider, Setting, Tensors, by_direction, compiled
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    import torch
    from opbench_kernels.implementation import Implementation

MLP_RATIO = 2
"""Of every FasterNet."""


def convolved(case: Case) -> int:
    """D, the channels that are convolved."""
    return case.shape.channels // case.int_setting("n_div")


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """x (B, H, W, C) and weight (D, 3, 3, D): output channel, row, column, input channel.

    At module level also fc1_weight (2C, C), fc1_bias (2C,) and fc2_weight (C, 2C): the block's 1x1 convolutions, with
    its BatchNorm folded into the first.
    """
    shape, channels = case.shape, convolved(case)
    tensors = {
        "x": normal(generator, shape.batch, shape.height, shape.width, shape.channels),
        "weight": normal(generator, channels, 3, 3, channels) / (9 * channels) ** 0.5,
    }
    if case.level is Level.MODULE:
        hidden = MLP_RATIO * shape.channels
        tensors["fc1_weight"] = linear_weight(hidden, shape.channels, 1.0, generator)
        tensors["fc1_bias"] = 0.1 * normal(generator, hidden)
        tensors["fc2_weight"] = linear_weight(shape.channels, hidden, 1.0, generator)
    return tensors


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """Nine shifted matrix products, and what is left of the input beside them."""
    import torch

    x, channels = tensors["x"], convolved(case)
    mixed = torch.cat((shifted_products(x[..., :channels], tensors["weight"]), x[..., channels:]), dim=-1)
    return mlp(tensors)(mixed) if case.level is Level.MODULE else mixed


def mlp(tensors: Tensors) -> Callable[[torch.Tensor], torch.Tensor]:
    """What follows the partial convolution in a block: 1x1, GELU, 1x1, and the block's input added."""
    import torch.nn.functional as F

    x, weight1, bias1, weight2 = (tensors[name] for name in ("x", "fc1_weight", "fc1_bias", "fc2_weight"))
    return lambda mixed: x + F.linear(F.gelu(F.linear(mixed, weight1, bias1)), weight2)


def flop_count(case: Case) -> int:
    """18 P D^2; the module adds 8 P C^2. Twice that backward."""
    channels = case.shape.channels
    count = 18 * convolved(case) ** 2
    if case.level is Level.MODULE:
        count += 4 * MLP_RATIO * channels**2
    return by_direction(case, fwd=case.shape.pixels * count, bwd=2 * case.shape.pixels * count)


def bytes_moved(case: Case) -> int:
    """Input, weight and output once. Backward reads of the input only the D channels that the weight's gradient needs.

    The module adds its 1x1 convolutions, GELU and the addition, each with what it reads and writes.
    """
    feature, some = case.shape.elements, case.shape.pixels * convolved(case)
    weight = 9 * convolved(case) ** 2
    elements = by_direction(case, fwd=2 * feature + weight, bwd=2 * feature + some + 2 * weight)
    if case.level is Level.MODULE:
        products = (2 + 2 * MLP_RATIO) * feature + 2 * MLP_RATIO * case.shape.channels**2
        around = products + 2 * MLP_RATIO * feature + 3 * feature
        elements += by_direction(case, fwd=around, bwd=2 * around)
    return case.dtype.element_bytes * elements


def memory_bytes(case: Case) -> int:
    """Input, output, both parts apart and weights; in the module also what its stages hand on."""
    feature, weights = case.shape.elements, 9 * convolved(case) ** 2
    if case.level is Level.MODULE:
        feature *= 2 + MLP_RATIO
        weights += 2 * MLP_RATIO * case.shape.channels**2
    return case.dtype.element_bytes * (4 * feature + weights)


def reference_elements(case: Case) -> int:
    """The input, padded, the products of a tap, their sum and the output; in the module the hidden channels too."""
    hidden = 3 * MLP_RATIO * case.shape.elements if case.level is Level.MODULE else 0
    return 6 * case.shape.elements + hidden + 9 * convolved(case) ** 2


def tolerance(case: Case) -> float:
    """Rounded to the dtype: the output; in the module also the convolution, both products and GELU."""
    longest = max(9 * convolved(case), MLP_RATIO * case.shape.channels, case.shape.pixels)
    roundings = 1 if case.level is Level.CORE else 5
    return rounding_budget(case, storage_roundings=roundings, float32_growth=longest**0.5)


def not_applicable(case: Case) -> str | None:
    """Why the case has no partial convolution, or None."""
    n_div = case.int_setting("n_div")
    if n_div > case.shape.channels:
        return f"{case.shape.channels} channels have no {n_div}th part (--set pconv.n_div=N)"
    return None


def _build(implementation: Implementation, case: Case, tensors: Tensors) -> Forward:
    from opbench_kernels import partial_conv3x3

    convolve = partial(partial_conv3x3, weight=tensors["weight"].permute(0, 3, 1, 2), implementation=implementation)
    return _around(case, tensors, convolve)


def _build_slicing(case: Case, tensors: Tensors) -> Forward:
    import torch.nn.functional as F

    weight, channels = tensors["weight"].permute(0, 3, 1, 2), convolved(case)

    def convolve(image: torch.Tensor) -> torch.Tensor:
        out = image.clone()
        out[:, :channels] = F.conv2d(image[:, :channels], weight, padding=1)
        return out

    return _around(case, tensors, convolve)


def _build_timm(case: Case, tensors: Tensors) -> Forward:
    from timm.models.fasternet import Partial_conv3

    weight = tensors["weight"].permute(0, 3, 1, 2)
    layer = Partial_conv3(
        case.shape.channels, case.int_setting("n_div"), "split_cat", device=weight.device, dtype=weight.dtype
    )
    _timm.share(layer.partial_conv3, "weight", weight)
    return _around(case, tensors, layer)


def _around(case: Case, tensors: Tensors, convolve: Callable[[torch.Tensor], torch.Tensor]) -> Forward:
    """The core on a channels_last view of x, or the module around it."""
    image = tensors["x"].permute(0, 3, 1, 2)
    if case.level is Level.CORE:
        return lambda: convolve(image).permute(0, 2, 3, 1)
    block = mlp(tensors)
    return lambda: block(convolve(image).permute(0, 2, 3, 1))


TORCH = Provider("torch", partial(_build, "torch"), "conv2d of a split, channels_last, and a concatenation")
SLICING = Provider("torch_slicing", _build_slicing, "conv2d into a slice of a copy, channels_last")
TIMM = Provider(
    "timm", _build_timm, "timm's Partial_conv3, channels_last: a split and a concatenation",
    unavailable=lambda _device: _timm.unavailable("fasternet"), needs=_timm.NEEDS,
)  # fmt: skip
TRITON = Provider(
    "triton", partial(_build, "triton"), "opbench_kernels in Triton: one pass, no concatenation",
    unavailable=_triton.unavailable, needs=_triton.NEEDS,
)  # fmt: skip

OPERATOR = Operator(
    name="pconv",
    family="convolution",
    by_default=False,
    summary="3x3 convolution of the first C / n_div channels (FasterNet); module adds the block's MLP and residual",
    timed="the other channels' copy; no layout conversion; module: 1x1, GELU, 1x1 and the addition",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=flop_count,
    bytes_moved=bytes_moved,
    memory_bytes=memory_bytes,
    reference_elements=reference_elements,
    tolerance=tolerance,
    providers=(TRITON, TORCH, SLICING, TIMM, compiled(TORCH), autotuned(TORCH)),
    settings={"n_div": Setting(4, 1, "the convolution takes one part in so many of the channels")},
    not_applicable=not_applicable,
)
