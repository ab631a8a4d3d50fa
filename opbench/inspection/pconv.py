"""What `opbench inspect` knows of the partial convolution's kernel, which is also its input gradient.

The count is per pixel: nine products of the pixels' neighbours with a tap's weight, and the copy of the other channels.
"""

import math
from typing import TYPE_CHECKING

from opbench.inspection.compile import Binary
from opbench.inspection.family import Costs, Counted, wide_loads
from opbench.inspection.loop_nest import compiled_path
from opbench.workload.case import Case, Direction, Dtype, Level
from opbench.workload.shapes import load_shape_list

if TYPE_CHECKING:
    from opbench_kernels.launch import Launch

__all__ = ["cases", "costs", "count", "launch", "name"]

SHAPE_LIST = "fasternet"
CHANNELS = (40, 128, 192)
"""First stages of FasterNet-T0, -S and -L."""
SHARE = 4
TAPS = 9


def cases(direction: Direction, dtype: Dtype) -> list[Case]:
    """Backward there is no kernel of its own: torch computes the weight's gradient."""
    dtypes = (dtype, Dtype.TF32) if dtype is Dtype.FP32 else (dtype,)
    return [
        Case("pconv", Level.CORE, direction, SHAPE_LIST, shape, each)
        for each in dtypes
        for shape in load_shape_list(SHAPE_LIST).shapes
        if shape.channels in CHANNELS and direction is Direction.FWD
    ]


def name(case: Case) -> str:
    """Direction, dtype, channels."""
    return f"{case.direction}-{case.dtype}-pconv-channels{case.shape.channels}"


def launch(case: Case) -> "Launch":
    """The launch of a case of `cases`: a quarter of the channels is convolved."""
    import torch
    from opbench_kernels.partial.launch import partial_conv3x3_launch

    dtype, channels = getattr(torch, case.dtype.torch_name), case.shape.channels
    size = (case.shape.batch, case.shape.height, case.shape.width, channels)
    x = torch.empty(size, dtype=dtype, device="meta")
    weight = torch.empty(TAPS, channels // SHARE, channels // SHARE, dtype=dtype, device="meta")
    return partial_conv3x3_launch(x, weight, x, allow_tf32=case.dtype is Dtype.TF32)


def _steps(launched: "Launch") -> int:
    """Products of a program."""
    convolved, at_a_time = (int(launched.constants[key]) for key in ("D", "BLOCK_K"))
    return TAPS * math.ceil(convolved / at_a_time)


def count(case: Case, launched: "Launch", binary: Binary) -> Counted:
    """Instructions per pixel. The compiler may unroll the loop over the products."""
    constants, element_bytes = launched.constants, case.dtype.element_bytes
    path = compiled_path(binary.instructions, [_steps(launched)])
    pixels, inner = constants["BLOCK_P"], constants["BLOCK_K"]
    # Channels that end within a vector are read by narrower loads; so are tf32 weights on some architectures.
    wide = constants["D"] * element_bytes % 16 == 0
    return Counted(
        path,
        per_point=len(path) * binary.num_warps / pixels,
        block_rows=pixels,
        lanes_per_row=max(1, inner * element_bytes // 16),
        wide_loads=_steps(launched) * wide_loads(pixels * inner, element_bytes, binary.num_warps) if wide else 0,
    )


def costs(case: Case, launched: "Launch") -> Costs:
    """Neighbours, weights of each program, and the other channels; input, output and weight."""
    convolved, element_bytes = launched.constants["D"], case.dtype.element_bytes
    weight = TAPS * convolved**2
    loaded = case.shape.pixels * (TAPS * convolved + case.shape.channels - convolved) + weight * launched.grid[0]
    return Costs(loaded * element_bytes, (2 * case.shape.elements + weight) * element_bytes)
