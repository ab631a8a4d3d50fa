"""The cell that every card of a fleet measures before and after its own, so that cards can be told apart."""

from collections.abc import Mapping

from opbench.workload.case import Case, Cell, Direction, Dtype, Level, Shape
from opbench.workload.operator import Operator

__all__ = ["sentinel_cell"]

OPERATOR = "conv3x3"
SHAPES = {"cuda": Shape(16, 56, 56, 128), "cpu": Shape(1, 56, 56, 128)}
"""A stage of the paper's networks, long enough that launching it does not count."""


def sentinel_cell(device_type: str, operators: Mapping[str, Operator], when: str) -> Cell:
    """The cell: a 3x3 convolution in fp32, whose time a card's clocks and its cooling set.

    Args:
        device_type: "cuda" or "cpu".
        operators: by name.
        when: as of opbench.results.sentinels; its shape list.
    """
    operator = operators[OPERATOR]
    case = Case(OPERATOR, Level.MODULE, Direction.FWD, when, SHAPES[device_type], Dtype.FP32, ())
    return Cell(
        case,
        operator.providers[0].name,
        flop_count=operator.flop_count(case),
        bytes_moved=operator.bytes_moved(case),
        memory_bytes=operator.memory_bytes(case),
    )
