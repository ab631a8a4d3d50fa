"""Small operators, cases and cells that tests drive the harness with."""

import torch

from opbench.registry.registry import registered
from opbench.workload.case import Case, Cell, Direction, Dtype, Level, Shape
from opbench.workload.operator import Operator, Provider, Setting, by_direction
from opbench.workload.tolerance import rounding_budget

NAMES = [name for name, operator in registered().items() if not operator.is_network]
"""Every operator but the networks."""


def make_case(operator="double", shape=(1, 4, 4, 8), **changes):
    values = {
        "operator": operator,
        "level": Level.CORE,
        "direction": Direction.FWD,
        "shape_list": "tiny",
        "shape": Shape(*shape),
        "dtype": Dtype.FP32,
        "settings": (),
    }
    return Case(**{**values, **changes})


def make_cell(case=None, provider="right", **changes):
    values = {"flop_count": 1000, "bytes_moved": 4000, "memory_bytes": 8000}
    return Cell(case or make_case(), provider, **{**values, **changes})


def build_right(case, tensors):
    return lambda: tensors["x"] * 2


def build_wrong(case, tensors):
    return lambda: tensors["x"] * 2.01


def build_unwritten(case, tensors):
    def launch():
        out = torch.empty_like(tensors["x"])
        out[:, 1:] = tensors["x"][:, 1:] * 2
        return out

    return launch


def build_raising(case, tensors):
    raise ValueError("no such\nluck")


def build_out_of_memory(case, tensors):
    return lambda: torch.empty(2**60)


def build_nan_where_not_checked(case, tensors):
    """Right on small inputs only."""
    return lambda: tensors["x"] * (2 if tensors["x"].shape[0] < 8 else float("nan"))


PROVIDERS = {
    "right": build_right,
    "wrong": build_wrong,
    "unwritten": build_unwritten,
    "raising": build_raising,
    "out_of_memory": build_out_of_memory,
    "nan_where_not_checked": build_nan_where_not_checked,
}


def doubling(**changes):
    """An operator that doubles its input, with providers that go wrong in every way."""
    values = {
        "name": "double",
        "summary": "twice its input",
        "timed": "the product",
        "make_inputs": lambda case, generator: {
            "x": torch.randn(
                case.shape.batch,
                case.shape.height,
                case.shape.width,
                case.shape.channels,
                generator=generator,
            )
        },
        "reference": lambda case, tensors: tensors["x"] + tensors["x"],
        "flop_count": lambda case: by_direction(case, fwd=case.shape.elements, bwd=case.shape.elements),
        "bytes_moved": lambda case: 2 * case.dtype.element_bytes * case.shape.elements,
        "memory_bytes": lambda case: 2 * case.dtype.element_bytes * case.shape.elements,
        "reference_elements": lambda case: 3 * case.shape.elements,
        "tolerance": lambda case: rounding_budget(case, storage_roundings=1, float32_growth=1),
        "providers": tuple(Provider(name, build, name) for name, build in PROVIDERS.items()),
        "settings": {"factor": Setting(2, 1, "unused")},
    }
    return Operator(**{**values, **changes})
