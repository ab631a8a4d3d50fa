"""What `opbench inspect` counts of depthwise convolution as matrix products: a trip of the loop with the products."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from opbench.inspection.sass import Instruction, branch_target
from opbench.workload.case import Case, Direction

if TYPE_CHECKING:
    import torch
    from opbench_kernels.depthwise.geometry import Kernel
    from opbench_kernels.launch import Launch

__all__ = [
    "SETTING",
    "is_gemm",
    "launch",
    "loaded_bytes",
    "loop_of",
    "multiply_adds",
    "multiply_adds_of_a_trip",
    "wide_loads",
]

SETTING = "gemm"
"""1 among a case's settings where it is not the direct kernel that is inspected."""
MATRIX = ("HMMA", "HGMMA", "UTCHMMA")
WARP_BYTES = 16 * 32


def is_gemm(case: Case) -> bool:
    """Whether the case is of these kernels."""
    return dict(case.settings).get(SETTING) == 1


def launch(x: "torch.Tensor", weight: "torch.Tensor", kernels: Sequence["Kernel"], direction: Direction) -> "Launch":
    """With the rule's configuration; x (N, H, W, C) and weight (taps, C) have no memory."""
    from opbench_kernels.depthwise.configs import GEMM_CONFIGS, GEMM_WEIGHT_GRAD_CONFIGS
    from opbench_kernels.depthwise.gemm_launch import forward_gemm_launch, weight_grad_gemm_launch

    if direction is Direction.BWD:
        return weight_grad_gemm_launch(x, x, kernels[0], GEMM_WEIGHT_GRAD_CONFIGS[0])[1]
    out = x.new_empty(x.shape[0], x.shape[3], *x.shape[1:3])
    return forward_gemm_launch(x, weight, None, out, kernels, GEMM_CONFIGS[0])


def loop_of(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The body of the first innermost loop with products: that of the first kernel.

    Raises:
        ValueError: no loop has any.
    """
    for end in instructions:
        start = branch_target(end) if end.name == "BRA" else None
        if start is not None and start < end.address:
            body = [each for each in instructions if start <= each.address <= end.address]
            if any(each.name in MATRIX for each in body):
                return body
    raise ValueError("no loop has an instruction of the tensor cores")


def _trips(case: Case, launched: "Launch") -> float:
    """Of all programs, in trips of the first kernel's loop; a trip of another counts by its columns."""
    constants = launched.constants
    programs = math.prod(launched.grid)
    if "KERNELS" in constants:
        bands = constants["KERNELS"]
        return float(programs * sum(chunks * width for chunks, width, *_ in bands) / bands[0][1])
    kernel_rows, channels, _ = launched.grid
    shape = case.shape
    blocks = math.ceil(shape.batch * shape.height / constants["BLOCK_M"])
    return float(kernel_rows * channels * blocks * math.ceil(shape.width / constants["BLOCK_X"]))


def multiply_adds(case: Case, launched: "Launch") -> float:
    """Of all programs that are no products with the zeros of a band, for a warp."""
    return _trips(case, launched) * multiply_adds_of_a_trip(launched)


def multiply_adds_of_a_trip(launched: "Launch") -> float:
    """Those of a trip of the first kernel's loop."""
    constants = launched.constants
    width = constants["KERNELS"][0][5] if "KERNELS" in constants else constants["KERNEL"][1]
    return float(constants["BLOCK_M"] * constants.get("TAPS", 1) * constants["BLOCK_X"] * width) / 32


def _loaded_elements(launched: "Launch") -> tuple[int, int]:
    """Of a trip: the image's, and the bands' or the output gradient's."""
    constants = launched.constants
    width = constants["KERNELS"][0][1] if "KERNELS" in constants else constants["BLOCK_U"]
    block = constants["BLOCK_M"], constants["BLOCK_X"]
    other = width * constants["TAPS"] * block[1] if "TAPS" in constants else block[0] * block[1]
    return block[0] * width, other


def loaded_bytes(case: Case, launched: "Launch") -> float:
    """What all programs load. On these GPUs asynchronous copies bypass L1: it comes from L2."""
    return _trips(case, launched) * sum(_loaded_elements(launched)) * case.dtype.element_bytes


def wide_loads(case: Case, launched: "Launch") -> int:
    """Loads of a trip, all of 16 bytes."""
    a_load = WARP_BYTES * int(launched.options["num_warps"])
    return sum(elements * case.dtype.element_bytes // a_load for elements in _loaded_elements(launched))
