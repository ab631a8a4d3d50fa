"""An operator in a file, and a timer that counts: a fleet's processes load it as a user's operators."""

import dataclasses

import torch

from opbench.timing import timers
from opbench.workload.operator import Operator, Provider, Setting, by_direction
from opbench.workload.tolerance import rounding_budget


class CountingTimer:
    """A launch takes as many microseconds as its output has elements."""

    name = "wall-clock"
    cache = "warm"
    launches_per_sample = 1
    resolution_ms = 0.0
    warnings = ()

    def __init__(self):
        self._seconds = 0.0
        self._elements = 0

    def now(self):
        return self._seconds

    def prepare(self, launch, seconds):
        self._elements = launch().numel()

    def sample(self, launch, count):
        launch()
        self._seconds += count * 1.0
        return [self._elements / 1e3] * count


timers.TIMERS["wall-clock"] = dataclasses.replace(
    timers.TIMERS["wall-clock"], make=lambda device, cache: CountingTimer()
)


def make_inputs(case, generator):
    shape = case.shape
    return {"x": torch.randn(shape.batch, shape.height, shape.width, shape.channels, generator=generator)}


def build(case, tensors):
    return lambda: tensors["x"] * 2


TWICE = Operator(
    name="twice",
    summary="twice its input",
    timed="the product",
    make_inputs=make_inputs,
    reference=lambda case, tensors: tensors["x"] + tensors["x"],
    flop_count=lambda case: by_direction(case, fwd=case.shape.elements, bwd=case.shape.elements),
    bytes_moved=lambda case: 2 * case.dtype.element_bytes * case.shape.elements,
    memory_bytes=lambda case: 2 * case.dtype.element_bytes * case.shape.elements,
    reference_elements=lambda case: 3 * case.shape.elements,
    tolerance=lambda case: rounding_budget(case, storage_roundings=1, float32_growth=1),
    providers=(Provider("right", build, "the product"),),
    settings={"factor": Setting(2, 1, "unused")},
)
