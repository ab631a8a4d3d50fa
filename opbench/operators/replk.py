"""RepLKNet's large convolution, a large and a small depthwise kernel added, and the block around it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from opbench.operators import _depthwise
from opbench.operators._linear import linear_weight
from opbench.operators._random import normal
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Operator, Provider, Setting, Tensors, by_direction
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    import torch

SMOOTH_SPREAD = 0.1
"""Of what comes into a ReLU in gradient checks, around 1 or -1: ten deviations from 0."""


def sides(case: Case) -> tuple[int, int]:
    """Of the large and of the small kernel."""
    return case.int_setting("kernel_size"), case.int_setting("small_kernel")


def taps(case: Case) -> int:
    """Weights of a channel in both kernels."""
    return sum(side**2 for side in sides(case))


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """x (B, H, W, C), large_weight (C, 1, k, k) and small_weight (C, 1, s, s).

    At module level also what the block has with its BatchNorms folded: pw1_weight (C, C), pw1_bias (C,), conv_bias
    (C,), pw2_weight (C, C) and pw2_bias (C,).
    """
    shape, channels, (large, small) = case.shape, case.shape.channels, sides(case)
    tensors = {
        "x": normal(generator, shape.batch, shape.height, shape.width, channels),
        "large_weight": _depthwise.kernel_weight(case, generator, large, large, taps(case)),
        "small_weight": _depthwise.kernel_weight(case, generator, small, small, taps(case)),
    }
    if case.level is Level.MODULE:
        tensors["pw1_weight"] = linear_weight(channels, channels, 1.0, generator)
        tensors["pw1_bias"] = 0.1 * normal(generator, channels)
        tensors["conv_bias"] = 0.1 * normal(generator, channels)
        tensors["pw2_weight"] = linear_weight(channels, channels, 1.0, generator)
        tensors["pw2_bias"] = 0.1 * normal(generator, channels)
    return tensors


def smooth_inputs(case: Case, tensors: Tensors) -> Tensors:
    """What comes into the ReLUs at 1 or -1 and little around it, so that no rounding carries it across 0."""
    import torch

    if case.level is Level.CORE:
        return tensors
    channel = torch.arange(case.shape.channels, device=tensors["x"].device)
    small = {name: SMOOTH_SPREAD * tensors[name] for name in ("pw1_weight", "large_weight", "small_weight")}
    # Channels of all four combinations of signs.
    signs = {"pw1_bias": 1 - 2 * (channel % 2), "conv_bias": 1 - 2 * (channel // 2 % 2)}
    return {**tensors, **small, **{name: sign.to(tensors[name].dtype) for name, sign in signs.items()}}


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """Both convolutions apart; the block stage by stage."""

    def convolve(x: torch.Tensor) -> torch.Tensor:
        return _depthwise.reference(x, tensors["large_weight"]) + _depthwise.reference(x, tensors["small_weight"])

    x = tensors["x"]
    if case.level is Level.CORE:
        return convolve(x)
    hidden = (x @ tensors["pw1_weight"].T + tensors["pw1_bias"]).relu()
    hidden = (convolve(hidden) + tensors["conv_bias"]).relu()
    return x + hidden @ tensors["pw2_weight"].T + tensors["pw2_bias"]


def flop_count(case: Case) -> int:
    """2 k^2 P C, of the merged kernel; the module adds 4 P C^2. Twice that backward."""
    forward = 4 * case.shape.elements * case.shape.channels if case.level is Level.MODULE else 0
    return _depthwise.flop_count(case, sides(case)[0] ** 2) + by_direction(case, fwd=forward, bwd=2 * forward)


def bytes_moved(case: Case) -> int:
    """The convolution with both weights; the module adds its 1x1 convolutions, both ReLUs and the addition."""
    elements = _depthwise.elements_moved(case, taps(case))
    if case.level is Level.MODULE:
        around = 11 * case.shape.elements + 2 * case.shape.channels**2
        elements += by_direction(case, fwd=around, bwd=2 * around)
    return case.dtype.element_bytes * elements


def memory_bytes(case: Case) -> int:
    """The convolution's; in the module also what its stages hand on, and the weights."""
    if case.level is Level.CORE:
        return _depthwise.memory_bytes(case, taps(case))
    more = 3 * case.shape.elements + 2 * case.shape.channels**2
    return _depthwise.memory_bytes(case, taps(case)) + case.dtype.element_bytes * more


def tolerance(case: Case) -> float:
    """Rounded to the dtype: the merged weight or both convolutions, and their sum; in the module each stage too."""
    longest = max(taps(case), case.shape.channels, case.shape.pixels)
    roundings = 2 if case.level is Level.CORE else 6
    return rounding_budget(case, storage_roundings=roundings, float32_growth=longest**0.5)


def not_applicable(case: Case) -> str | None:
    """Why the case has no such pair of kernels, or None."""
    large, small = sides(case)
    if small > large:
        return f"small_kernel must be at most kernel_size {large}, got {small} (--set replk.small_kernel=N)"
    return _depthwise.even(case, "kernel_size", "small_kernel")


def around(case: Case, tensors: Tensors, image: torch.Tensor, convolve: _depthwise.Convolve) -> Forward:
    """Both convolutions, or the block with 1x1 convolutions in the image's layout."""
    import torch.nn.functional as F

    weights = [tensors["large_weight"], tensors["small_weight"]]
    if case.level is Level.CORE:
        return lambda: convolve(image, weights, None).permute(0, 2, 3, 1)
    pw1, pw2 = (tensors[f"{name}_weight"][..., None, None] for name in ("pw1", "pw2"))

    def block() -> torch.Tensor:
        hidden = F.relu(F.conv2d(image, pw1, tensors["pw1_bias"]))
        hidden = F.relu(convolve(hidden, weights, tensors["conv_bias"]))
        return (image + F.conv2d(hidden, pw2, tensors["pw2_bias"])).permute(0, 2, 3, 1)

    return block


def _providers() -> tuple[Provider, ...]:
    """Those with the kernels merged inside the timing, and torch's without."""
    unmerged = _depthwise.torch_provider(around)
    unmerged = replace(
        unmerged, name="torch_unmerged", summary="both kernels by torch's conv2d, channels_last, and a sum"
    )
    return (*_depthwise.providers(around, _depthwise.once), unmerged)


OPERATOR = Operator(
    name="replk",
    family="large-kernel",
    by_default=False,
    summary="a large and a small depthwise kernel, added (RepLKNet); module is the block, its BatchNorms folded",
    timed="adding the small kernel to the large one; module: 1x1, ReLU, convolution, ReLU, 1x1 and the addition",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=flop_count,
    bytes_moved=bytes_moved,
    memory_bytes=memory_bytes,
    reference_elements=lambda case: 2 * _depthwise.reference_elements(case),
    smooth_inputs=smooth_inputs,
    tolerance=tolerance,
    providers=_providers(),
    settings={
        "kernel_size": Setting(31, 1, "side of the large kernel, odd"),
        "small_kernel": Setting(5, 1, "side of the small kernel, odd"),
    },
    not_applicable=not_applicable,
)
