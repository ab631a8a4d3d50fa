"""SLaK's large convolution, a tall, a wide and a small depthwise kernel added, and the block around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbench.operators import _depthwise
from opbench.operators._linear import linear, linear_weight
from opbench.operators._random import normal
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Operator, Setting, Tensors, by_direction
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

KERNELS = ("tall_weight", "wide_weight", "small_weight")
MLP_RATIO = 4
"""Of every SLaK."""


def sizes(case: Case) -> list[tuple[int, int]]:
    """Height and width of the tall, the wide and the small kernel."""
    large, small = case.int_setting("kernel_size"), case.int_setting("small_kernel")
    return [(large, small), (small, large), (small, small)]


def taps(case: Case) -> int:
    """Weights of a channel in all three kernels."""
    return sum(height * width for height, width in sizes(case))


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """x (B, H, W, C), tall_weight (C, 1, k, s), wide_weight (C, 1, s, k) and small_weight (C, 1, s, s).

    At module level also conv_bias (C,) of the folded BatchNorms, norm_weight and norm_bias (C,) of the LayerNorm,
    fc1_weight (4C, C), fc1_bias (4C,), and fc2_weight (C, 4C) and fc2_bias (C,) with the layer scale folded in.
    """
    import torch

    shape, channels = case.shape, case.shape.channels
    tensors = {"x": normal(generator, shape.batch, shape.height, shape.width, channels)}
    for name, (height, width) in zip(KERNELS, sizes(case), strict=True):
        tensors[name] = _depthwise.kernel_weight(case, generator, height, width, taps(case))
    if case.level is Level.MODULE:
        hidden = MLP_RATIO * channels
        tensors["conv_bias"] = 0.1 * normal(generator, channels)
        tensors["norm_weight"] = torch.ones(channels, device=generator.device)
        tensors["norm_bias"] = torch.zeros(channels, device=generator.device)
        tensors["fc1_weight"] = linear_weight(hidden, channels, 1.0, generator)
        tensors["fc1_bias"] = 0.1 * normal(generator, hidden)
        tensors["fc2_weight"] = linear_weight(channels, hidden, 1.0, generator)
        tensors["fc2_bias"] = 0.1 * normal(generator, channels)
    return tensors


def mlp(tensors: Tensors) -> Callable[[torch.Tensor], torch.Tensor]:
    """What follows the convolution in a block, on NHWC: LayerNorm, Linear, GELU, Linear."""
    import torch.nn.functional as F

    fc1, fc2 = linear("fc1", tensors), linear("fc2", tensors)
    weight, bias = tensors["norm_weight"], tensors["norm_bias"]
    return lambda x: fc2(F.gelu(fc1(F.layer_norm(x, weight.shape, weight, bias, 1e-6))))


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """The three convolutions apart."""
    x = tensors["x"]
    first, *others = (_depthwise.reference(x, tensors[name]) for name in KERNELS)
    for other in others:
        first = first + other
    return first if case.level is Level.CORE else x + mlp(tensors)(first + tensors["conv_bias"])


def flop_count(case: Case) -> int:
    """2 P C (2 k s + s^2); the module adds 16 P C^2. Twice that backward."""
    forward = 4 * MLP_RATIO * case.shape.elements * case.shape.channels if case.level is Level.MODULE else 0
    return _depthwise.flop_count(case, taps(case)) + by_direction(case, fwd=forward, bwd=2 * forward)


def bytes_moved(case: Case) -> int:
    """Input, output and all weights once; the module adds LayerNorm, Linears, GELU and the addition."""
    elements = _depthwise.elements_moved(case, taps(case))
    if case.level is Level.MODULE:
        products = 2 * (1 + MLP_RATIO) * case.shape.elements + 2 * MLP_RATIO * case.shape.channels**2
        stages = products + (2 + 2 * MLP_RATIO + 3) * case.shape.elements
        elements += by_direction(case, fwd=stages, bwd=2 * stages)
    return case.dtype.element_bytes * elements


def memory_bytes(case: Case) -> int:
    """The convolutions'; in the module also what its stages hand on, and the weights."""
    if case.level is Level.CORE:
        return _depthwise.memory_bytes(case, taps(case))
    more = (3 + 2 * MLP_RATIO) * case.shape.elements + 2 * MLP_RATIO * case.shape.channels**2
    return _depthwise.memory_bytes(case, taps(case)) + case.dtype.element_bytes * more


def tolerance(case: Case) -> float:
    """Rounded to the dtype: each convolution and each sum; in the module every stage."""
    longest = max(taps(case), MLP_RATIO * case.shape.channels, case.shape.pixels)
    roundings = 3 if case.level is Level.CORE else 8
    return rounding_budget(case, storage_roundings=roundings, float32_growth=longest**0.5)


def not_applicable(case: Case) -> str | None:
    """Why the case has no such kernels, or None."""
    large, small = case.int_setting("kernel_size"), case.int_setting("small_kernel")
    if small >= large:
        return f"small_kernel must be smaller than kernel_size {large}, got {small} (--set slak.small_kernel=N)"
    return _depthwise.even(case, "kernel_size", "small_kernel")


def around(case: Case, tensors: Tensors, image: torch.Tensor, convolve: _depthwise.Convolve) -> Forward:
    """The three convolutions, or the block around them, which is NHWC from the LayerNorm on as the authors' is."""
    weights = [tensors[name] for name in KERNELS]
    if case.level is Level.CORE:
        return lambda: convolve(image, weights, None).permute(0, 2, 3, 1)
    x, bias, after = tensors["x"], tensors["conv_bias"], mlp(tensors)
    return lambda: x + after(convolve(image, weights, bias).permute(0, 2, 3, 1))


OPERATOR = Operator(
    name="slak",
    family="large-kernel",
    by_default=False,
    summary="a tall, a wide and a small depthwise kernel, added (SLaK); module is the block, its BatchNorms folded",
    timed="no layout conversion, but for torch_nchw and torch_fft; module: also LayerNorm, MLP and the addition",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=flop_count,
    bytes_moved=bytes_moved,
    memory_bytes=memory_bytes,
    reference_elements=lambda case: 3 * _depthwise.reference_elements(case),
    tolerance=tolerance,
    providers=_depthwise.providers(around),
    settings={
        "kernel_size": Setting(51, 1, "long side of the tall and the wide kernel, odd"),
        "small_kernel": Setting(5, 1, "their short side, and the small kernel's, odd"),
    },
    not_applicable=not_applicable,
)
