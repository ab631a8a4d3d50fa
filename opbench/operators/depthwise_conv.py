"""Depthwise convolution: each channel with a kernel of its own, from 3x3 to the 51x51 of large-kernel networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbench.operators import _depthwise
from opbench.operators._random import normal
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Operator, Setting, Tensors
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    import torch


def taps(case: Case) -> int:
    """Weights of a channel."""
    return case.int_setting("kernel_size") ** 2


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """x (B, H, W, C) and weight (C, 1, k, k)."""
    shape, size = case.shape, case.int_setting("kernel_size")
    return {
        "x": normal(generator, shape.batch, shape.height, shape.width, shape.channels),
        "weight": _depthwise.kernel_weight(case, generator, size, size, size**2),
    }


def around(_case: Case, tensors: Tensors, image: torch.Tensor, convolve: _depthwise.Convolve) -> Forward:
    """The convolution alone."""
    weights = [tensors["weight"]]
    return lambda: convolve(image, weights, None).permute(0, 2, 3, 1)


OPERATOR = Operator(
    name="depthwise_conv",
    family="large-kernel",
    by_default=False,
    summary="depthwise convolution, kernel_size x kernel_size, padded to the same size",
    timed="the convolution alone; no layout conversion, but for torch_nchw's and torch_fft's gradient of x",
    make_inputs=make_inputs,
    reference=lambda case, tensors: _depthwise.reference(tensors["x"], tensors["weight"]),
    flop_count=lambda case: _depthwise.flop_count(case, taps(case)),
    bytes_moved=lambda case: case.dtype.element_bytes * _depthwise.elements_moved(case, taps(case)),
    memory_bytes=lambda case: _depthwise.memory_bytes(case, taps(case)),
    reference_elements=_depthwise.reference_elements,
    tolerance=lambda case: rounding_budget(
        case, storage_roundings=1, float32_growth=max(taps(case), case.shape.pixels) ** 0.5
    ),
    providers=_depthwise.providers(around),
    settings={"kernel_size": Setting(7, 1, "side of the kernel, odd")},
    not_applicable=lambda case: _depthwise.even(case, "kernel_size"),
    levels=(Level.CORE,),
)
