"""Bifurcate Gate Unit (BGU) of ParCNetV2: an MLP whose hidden channels are one half times GELU of the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbench.operators._linear import linear, linear_weight
from opbench.operators._random import normal
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Operator, Provider, Setting, Tensors, by_direction, compiled
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    import torch


def hidden(case: Case) -> int:
    """Channels between the Linears, before the gate halves them."""
    return case.int_setting("mlp_ratio") * case.shape.channels


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """x (B, H, W, C), fc1_weight (R, C), fc1_bias (R,) and fc2_weight (C, R / 2), R = mlp_ratio * C."""
    shape = case.shape
    return {
        "x": normal(generator, shape.batch, shape.height, shape.width, shape.channels),
        "fc1_weight": linear_weight(hidden(case), shape.channels, 1.0, generator),
        "fc1_bias": 0.1 * normal(generator, hidden(case)),
        "fc2_weight": linear_weight(shape.channels, hidden(case) // 2, 1.0, generator),
    }


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """Both halves of the first Linear apart, GELU by the error function."""
    import torch

    weight, bias, half = tensors["fc1_weight"], tensors["fc1_bias"], hidden(case) // 2
    carried = tensors["x"] @ weight[:half].T + bias[:half]
    gate = tensors["x"] @ weight[half:].T + bias[half:]
    gate = gate * (1 + torch.erf(gate / 2**0.5)) / 2
    return (carried * gate) @ tensors["fc2_weight"].T


def flop_count(case: Case) -> int:
    """3 P C R: 15 P C^2 at mlp_ratio 5. Twice that backward."""
    forward = 3 * case.shape.elements * hidden(case)
    return by_direction(case, fwd=forward, bwd=2 * forward)


def bytes_moved(case: Case) -> int:
    """Both Linears, and the gate, which reads R channels and writes half as many; twice that backward."""
    channels, half = case.shape.channels, hidden(case) // 2
    per_pixel = (channels + 2 * half) + 3 * half + (half + channels)
    elements = case.shape.pixels * per_pixel + 3 * half * channels
    return case.dtype.element_bytes * by_direction(case, fwd=elements, bwd=2 * elements)


def memory_bytes(case: Case) -> int:
    """Input, output, weights, hidden channels, GELU of half of them and the product."""
    elements = case.shape.pixels * (2 * case.shape.channels + 2 * hidden(case))
    return case.dtype.element_bytes * (elements + 3 * case.shape.channels * hidden(case) // 2)


def tolerance(case: Case) -> float:
    """Rounded to the dtype: the first product, GELU, the gated channels and the output."""
    longest = max(hidden(case), case.shape.pixels)
    return rounding_budget(case, storage_roundings=5, float32_growth=longest**0.5)


def not_applicable(case: Case) -> str | None:
    """Why the hidden channels have no halves, or None."""
    if hidden(case) % 2:
        return f"{hidden(case)} hidden channels cannot be halved (--set bgu.mlp_ratio=N)"
    return None


def _build(case: Case, tensors: Tensors) -> Forward:
    import torch.nn.functional as F

    x, fc1, weight = tensors["x"], linear("fc1", tensors), tensors["fc2_weight"]

    def module() -> torch.Tensor:
        carried, gate = fc1(x).chunk(2, dim=-1)
        return F.linear(carried * F.gelu(gate), weight)

    return module


TORCH = Provider("torch", _build, "linear, chunk, gelu, product, linear")

OPERATOR = Operator(
    name="bgu",
    family="mlp",
    by_default=False,
    summary="Bifurcate Gate Unit (ParCNetV2): Linear, one half times GELU of the other, Linear",
    timed="everything from the input to the output",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=flop_count,
    bytes_moved=bytes_moved,
    memory_bytes=memory_bytes,
    reference_elements=lambda case: case.shape.pixels * (2 * case.shape.channels + 4 * hidden(case)),
    tolerance=tolerance,
    providers=(TORCH, compiled(TORCH)),
    settings={"mlp_ratio": Setting(5, 1, "hidden channels per channel, before the gate halves them")},
    not_applicable=not_applicable,
    levels=(Level.MODULE,),
)
