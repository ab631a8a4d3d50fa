"""ParC_V2 of ParCNetV2: an oversized separable depthwise convolution and a 7x7 one; the module gates with their sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from opbench.operators import _triton
from opbench.operators._cudnn import autotuned
from opbench.operators._linear import linear, linear_weight
from opbench.operators._random import normal
from opbench.workload.case import Case, Direction, Level
from opbench.workload.operator import Forward, Operator, Provider, Setting, Tensors, by_direction, compiled
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    import torch
    from opbench_kernels.implementation import Implementation

LOCAL = 7
"""Side of the small kernel."""
LARGEST_MERGED = 31
"""A kernel of more rows and columns takes hundreds of times the work of its two separable ones."""


def kernel_size(case: Case) -> int:
    """K, taps of the oversized convolution along each axis: from every pixel it reaches all others of its line."""
    return case.int_setting("global_kernel_size") or 2 * max(case.shape.height, case.shape.width) - 1


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """x (B, H, W, C), and the depthwise weights column (C, 1, K, 1), row (C, 1, 1, K) and local (C, 1, 7, 7).

    At module level also pwconv1_weight (2C, C), pwconv1_bias (2C,) and pwconv2_weight (C, C).
    """
    shape, channels, size = case.shape, case.shape.channels, kernel_size(case)
    # Of the K taps about half meet the image.
    reached = (max(shape.height, shape.width) * 3 / 4) ** 0.5
    tensors = {
        "x": normal(generator, shape.batch, shape.height, shape.width, channels),
        "column_weight": normal(generator, channels, 1, size, 1) / reached,
        "row_weight": normal(generator, channels, 1, 1, size) / reached,
        "local_weight": normal(generator, channels, 1, LOCAL, LOCAL) / LOCAL,
    }
    if case.level is Level.MODULE:
        tensors["pwconv1_weight"] = linear_weight(2 * channels, channels, 1.0, generator)
        tensors["pwconv1_bias"] = 0.1 * normal(generator, 2 * channels)
        tensors["pwconv2_weight"] = linear_weight(channels, channels, 1.0, generator)
    return tensors


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """Shifted images, tap by tap; the gate by the error function."""
    import torch

    if case.level is Level.CORE:
        return _mixed_exactly(tensors["x"], tensors)
    weight, bias, channels = tensors["pwconv1_weight"], tensors["pwconv1_bias"], case.shape.channels
    carried = tensors["x"] @ weight[:channels].T + bias[:channels]
    gate = tensors["x"] @ weight[channels:].T + bias[channels:]
    gate = gate * (1 + torch.erf(gate / 2**0.5)) / 2
    return (carried * _mixed_exactly(gate, tensors)) @ tensors["pwconv2_weight"].T


def _mixed_exactly(x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    from opbench_kernels.depthwise.geometry import Kernel
    from opbench_kernels.depthwise.reference import depthwise

    def convolve(image: torch.Tensor, name: str) -> torch.Tensor:
        weight = tensors[name][:, 0].permute(1, 2, 0)
        rows, columns, _ = weight.shape
        return depthwise(image, weight, Kernel(rows, columns, rows // 2, columns // 2))

    return convolve(convolve(x, "column_weight"), "row_weight") + convolve(x, "local_weight")


def flop_count(case: Case) -> int:
    """2 P C (2 K + 49), taps outside the image included; the module adds 6 P C^2. Twice that backward."""
    per_element = 2 * (2 * kernel_size(case) + LOCAL**2)
    if case.level is Level.MODULE:
        per_element += 6 * case.shape.channels
    forward = case.shape.elements * per_element
    return by_direction(case, fwd=forward, bwd=2 * forward)


def bytes_moved(case: Case) -> int:
    """Three convolutions and their sum; the module adds two products, GELU and the gate. Twice that backward."""
    feature, channels = case.shape.elements, case.shape.channels
    elements = 9 * feature + channels * (2 * kernel_size(case) + LOCAL**2)
    if case.level is Level.MODULE:
        elements += 10 * feature + 3 * channels**2
    return case.dtype.element_bytes * by_direction(case, fwd=elements, bwd=2 * elements)


def memory_bytes(case: Case) -> int:
    """Input, output and what the stages hand on, and as much again for a convolution's workspace."""
    features = 6 if case.level is Level.CORE else 10
    weights = case.shape.channels * (2 * kernel_size(case) + LOCAL**2 + 3 * case.shape.channels)
    return case.dtype.element_bytes * (features * case.shape.elements + weights)


def reference_elements(case: Case) -> int:
    """The padded image, a tap's product, sums and features; with gradients every tap's product is kept."""
    taps = 2 * kernel_size(case) + LOCAL**2
    kept = 0 if case.direction == "fwd" else taps
    return (14 + kept) * case.shape.elements


def tolerance(case: Case) -> float:
    """Rounded to the dtype: three convolutions, their sum; in the module also two products, GELU and the gate."""
    longest = max(2 * kernel_size(case), LOCAL**2, case.shape.channels, case.shape.pixels)
    roundings = 4 if case.level is Level.CORE else 8
    return rounding_budget(case, storage_roundings=roundings, float32_growth=longest**0.5)


def not_applicable(case: Case) -> str | None:
    """Why the case has no oversized convolution, or None."""
    size, most = kernel_size(case), 2 * max(case.shape.height, case.shape.width) - 1
    if size % 2 == 0:
        return f"global_kernel_size must be odd to keep the image size, got {size}"
    if size > most:
        return f"global_kernel_size {size} is above {most}: its outer taps meet no pixel of {case.shape}"
    return None


def _around(case: Case, tensors: Tensors, mix: Callable[[torch.Tensor], torch.Tensor]) -> Forward:
    """`mix` on a channels_last view of x, or the module around it."""
    import torch.nn.functional as F

    x = tensors["x"]
    if case.level is Level.CORE:
        return lambda: mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    first, weight = linear("pwconv1", tensors), tensors["pwconv2_weight"]

    def module() -> torch.Tensor:
        carried, gate = first(x).chunk(2, dim=-1)
        mixed = mix(F.gelu(gate).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return F.linear(carried * mixed, weight)

    return module


def _build(implementation: Implementation, case: Case, tensors: Tensors) -> Forward:
    from opbench_kernels import depthwise_conv2d

    column, row, local = (
        partial(depthwise_conv2d, weight=tensors[f"{name}_weight"], implementation=implementation)
        for name in ("column", "row", "local")
    )
    return _around(case, tensors, lambda image: row(column(image)) + local(image))


def _build_merged(implementation: Implementation, case: Case, tensors: Tensors) -> Forward:
    """The two separable kernels and the small one as one; with gradients they are merged in each launch."""
    import torch.nn.functional as F
    from opbench_kernels import depthwise_conv2d

    margin = (kernel_size(case) - LOCAL) // 2

    def merged() -> torch.Tensor:
        return tensors["column_weight"] * tensors["row_weight"] + F.pad(tensors["local_weight"], [margin] * 4)

    convolve = partial(depthwise_conv2d, implementation=implementation)
    if case.direction is not Direction.FWD:
        return _around(case, tensors, lambda image: convolve(image, merged()))
    weight = merged()
    return _around(case, tensors, lambda image: convolve(image, weight))


def _merging_not_applicable(case: Case, _device_type: str) -> str | None:
    size = kernel_size(case)
    if LOCAL <= size <= LARGEST_MERGED:
        return None
    return f"merging is for kernels of {LOCAL} to {LARGEST_MERGED}, this is {size}"


TORCH = Provider("torch", partial(_build, "torch"), "opbench_kernels in torch: three depthwise convolutions and a sum")
TRITON = Provider(
    "triton", partial(_build, "triton"), "opbench_kernels in Triton: the same",
    unavailable=_triton.unavailable, needs=_triton.NEEDS,
)  # fmt: skip
MERGED_WEIGHTS = ("column_weight", "row_weight", "local_weight")
TORCH_MERGED = replace(
    TORCH,
    name="torch_merged",
    copied=MERGED_WEIGHTS,
    build=partial(_build_merged, "torch"),
    summary="one depthwise convolution, whose kernel is the product of both and the small one added",
    not_applicable=_merging_not_applicable,
)
TRITON_MERGED = replace(
    TRITON,
    name="triton_merged",
    copied=MERGED_WEIGHTS,
    build=partial(_build_merged, "triton"),
    summary="the same in Triton",
    not_applicable=_merging_not_applicable,
)

OPERATOR = Operator(
    name="parc_v2",
    family="large-kernel",
    by_default=False,
    summary="oversized Kx1 and 1xK and 7x7 depthwise convolutions (ParCNetV2); module adds both 1x1, GELU and the gate",
    timed="no layout conversion; module: 1x1 to 2C, GELU, the convolutions, the gate, 1x1",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=flop_count,
    bytes_moved=bytes_moved,
    memory_bytes=memory_bytes,
    reference_elements=reference_elements,
    tolerance=tolerance,
    providers=(TRITON, TRITON_MERGED, TORCH, TORCH_MERGED, compiled(TORCH), autotuned(TORCH)),
    settings={"global_kernel_size": Setting(0, 0, "K, odd; 0 for twice the image's longer side, less one")},
    not_applicable=not_applicable,
)
