"""Parameters of a network for a benchmark: random ones under which every layer matters, and its spread is kept."""

from __future__ import annotations

import math
from typing import Any

import torch
from opbench_kernels import DAttention, DCNv3, DCNv4
from torch import nn

from opbench.operators._random import normal
from opbench.operators.dat_attention import MEAN_FEATURE
from opbench.operators.dcnv3 import GELU_SECOND_MOMENT

__all__ = ["draw", "smooth"]

BRANCH_SCALE = 0.2
"""Of a trained factor on a residual branch. The authors start with 1e-5 or less: no error inside would be seen."""
SMALL = 0.1
"""Spread of biases, and of normalisations' factors around 1."""
AWAY_PX, AWAY_SPREAD_PX = 0.25, 0.025
"""Distance of sampling points from pixels where gradients are checked, and its spread: ten deviations."""
POSITIVE, POSITIVE_SPREAD = 2.0, 0.3
"""Mean and spread of what comes into a ReLU there."""


def draw(module: nn.Module, generator: torch.Generator, offset_std_px: float) -> dict[str, torch.Tensor]:
    """Float32 values for all parameters by name, on the generator's device.

    Weights have the spread that keeps their input's. What predicts offsets gives them standard deviation
    `offset_std_px` where its input has unit variance: as initialised it gives zeros, and every point would be a pixel.

    Args:
        module: its parameters' names and shapes count alone; it may be on the meta device.
        generator: of the random numbers.
        offset_std_px: standard deviation of offsets, pixels.
    """
    values = {
        f"{prefix}.{name}" if prefix else name: _values(owner, name, parameter.shape, generator)
        for prefix, owner in module.named_modules()
        for name, parameter in owner.named_parameters(recurse=False)
    }
    for prefix, _ in _named(module, DCNv3):
        spread = GELU_SECOND_MOMENT**-0.5  # of the features after GELU
        values[f"{prefix}offset.weight"] *= offset_std_px * spread
        values[f"{prefix}offset.bias"].zero_()
        values[f"{prefix}mask.weight"] *= spread
    for prefix, owner in _named(module, DCNv4):
        weight, bias = (values[f"{prefix}offset_mask.{name}"] for name in ("weight", "bias"))
        points = owner.geometry.points
        offset, mask = _packed(owner, weight)
        offset *= offset_std_px
        mask *= 0.5 / points  # masks around 1 / K, as of DCNv4 alone
        bias.zero_()
        _packed(owner, bias)[1].fill_(1 / points)
    return values


def smooth(module: nn.Module, values: dict[str, torch.Tensor], offset_std_px: float) -> dict[str, torch.Tensor]:
    """Values of `draw` changed so that no rounding carries an input of a kink across it, where gradients are compared.

    Sampling points lie between pixels, and what comes into a ReLU is positive.
    """
    values = {name: tensor.clone() for name, tensor in values.items()}
    for prefix, owner in _named(module, DCNv3):
        values[f"{prefix}offset.weight"] *= _shrink(owner, offset_std_px)
        values[f"{prefix}offset.bias"].fill_(AWAY_PX / owner.offset_scale)
    for prefix, owner in _named(module, DCNv4):
        offset, _ = _packed(owner, values[f"{prefix}offset_mask.weight"])
        offset *= _shrink(owner, offset_std_px)
        _packed(owner, values[f"{prefix}offset_mask.bias"])[0].fill_(AWAY_PX / owner.offset_scale)
    for prefix, owner in _named(module, DAttention):  # as in opbench.operators.dat_attention
        weight = values[f"{prefix}conv_offset.3.weight"]
        moves = [0.5 / max(side - 1, 1) / owner.offset_range_factor for side in (owner.q_h, owner.q_w)]
        each = weight.new_tensor(moves).view(2, 1, 1, 1) / (MEAN_FEATURE * weight.shape[1])
        values[f"{prefix}conv_offset.3.weight"] = each * (1 + 0.5 * weight.sign())
        values[f"{prefix}conv_offset.1.norm.bias"].fill_(1.0)
    if any(isinstance(owner, nn.ReLU) for owner in module.modules()):
        for prefix, _ in _named(module, nn.BatchNorm2d):
            values[f"{prefix}weight"] *= POSITIVE_SPREAD
            values[f"{prefix}bias"].fill_(POSITIVE)
    return values


def _values(owner: nn.Module, name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Of one parameter, by its place in a layer and its shape."""
    noise = normal(generator, *shape)
    if isinstance(owner, nn.Linear | nn.Conv2d) and name == "weight":
        return noise / math.sqrt(noise[0].numel())
    if name.endswith("proj_weight"):  # of DCNv3 and DCNv4: a Linear's
        return noise / math.sqrt(shape[-1])
    if name == "bias" or name.endswith("_bias") or len(shape) > 1:  # or a table of positions
        return SMALL * noise
    if name == "weight":
        return 1 + SMALL * noise
    return BRANCH_SCALE * (1 + SMALL * noise)


def _named(module: nn.Module, kind: type[nn.Module]) -> list[tuple[str, Any]]:
    """The layers of a kind, each with what stands before its parameters' names."""
    return [(f"{name}." if name else "", owner) for name, owner in module.named_modules() if isinstance(owner, kind)]


def _packed(owner: DCNv4, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of what a parameter of offset_mask has for offsets and for masks, (groups, numbers, ...)."""
    points = owner.geometry.points
    by_group = tensor[: 3 * points * owner.group].unflatten(0, (owner.group, 3 * points))
    return by_group[:, : 2 * points], by_group[:, 2 * points :]


def _shrink(owner: DCNv3 | DCNv4, offset_std_px: float) -> float:
    """To AWAY_SPREAD_PX; offsets without spread keep none."""
    return AWAY_SPREAD_PX / owner.offset_scale / max(offset_std_px, AWAY_SPREAD_PX)
