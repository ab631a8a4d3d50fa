"""What `opbench inspect` knows of DCNv2's kernels: cases, launches, and how they are counted.

All of them loop, and each loop counts as often as it runs. The count is per sampled point of 32 channels; the forward
kernel makes its samples once for each block of outputs, and every time counts.
"""

import math
from typing import TYPE_CHECKING

from opbench.inspection.compile import Binary
from opbench.inspection.family import Costs, Counted, wide_loads
from opbench.inspection.loop_nest import inside_path, loop_depth
from opbench.workload.case import Case, Direction, Dtype, Level
from opbench.workload.shapes import load_shape_list

if TYPE_CHECKING:
    from opbench_kernels.launch import Launch

__all__ = ["cases", "costs", "count", "launch", "name"]

SHAPE_LIST = "internimage"
CHANNELS = 224
"""Of InternImage-B's second stage."""
POINTS = 9
UNIT = 32
WEIGHT = (("gradient", "weight"),)
"""Settings of a case whose launch is the weight's gradient."""


def cases(direction: Direction, dtype: Dtype) -> list[Case]:
    """Backward there are two kernels: `bwd` gives the gradients of image, offsets and masks, `weight` the weight's."""
    dtypes = (dtype, Dtype.TF32) if dtype is Dtype.FP32 else (dtype,)
    kinds: tuple[tuple[tuple[str, str], ...], ...] = ((),) if direction is Direction.FWD else ((), WEIGHT)
    return [
        Case("dcnv2", Level.CORE, direction, SHAPE_LIST, shape, each, settings)
        for each in dtypes
        for settings in kinds
        for shape in load_shape_list(SHAPE_LIST).shapes
        if shape.channels == CHANNELS
    ]


def _kind(case: Case) -> str:
    return "weight" if case.settings == WEIGHT else str(case.direction)


def name(case: Case) -> str:
    """Kernel, dtype, channels."""
    return f"{_kind(case)}-{case.dtype}-dcnv2-channels{case.shape.channels}"


def launch(case: Case) -> "Launch":
    """The launch of a case of `cases`: one group of each kind, 3x3 points, as many outputs as channels."""
    import torch
    from opbench_kernels.deform import dcnv2_launch
    from opbench_kernels.deform.geometry import Geometry

    dtype, channels = getattr(torch, case.dtype.torch_name), case.shape.channels

    def pixels(numbers: int) -> torch.Tensor:
        size = (case.shape.batch, case.shape.height, case.shape.width, numbers)
        return torch.empty(size, dtype=dtype, device="meta")

    image, offset, mask = pixels(channels), pixels(2 * POINTS), pixels(POINTS)
    convolved = dcnv2_launch.Convolved(
        image, offset.permute(0, 3, 1, 2), mask.permute(0, 3, 1, 2),
        torch.empty(1, POINTS, channels, channels, dtype=dtype, device="meta"),
        Geometry(), 1, allow_tf32=case.dtype is Dtype.TF32,
    )  # fmt: skip
    if case.direction is Direction.FWD:
        return dcnv2_launch.forward_launch(convolved, None, image)
    if case.settings == WEIGHT:
        sums = torch.empty(dcnv2_launch.weight_grad_slices(convolved), *convolved.weight.shape, device="meta")
        return dcnv2_launch.weight_grad_launch(convolved, image, sums)
    return dcnv2_launch.backward_launch(convolved, image, image.float(), offset, mask)


def _tiles(case: Case, launched: "Launch") -> tuple[int, ...]:
    """How often a program runs its loops: over points, channels and, backward, outputs; or over pixels."""
    constants = launched.constants
    if case.settings == WEIGHT:
        return (math.ceil(math.ceil(case.shape.pixels / constants["BLOCK_P"]) / launched.grid[2]),)
    channels = math.ceil(constants["SEGMENT"] / constants["BLOCK_C"])
    outputs = math.ceil(constants["GO"] / constants["BLOCK_O"])
    return (POINTS, channels, outputs) if case.direction is Direction.BWD else (POINTS, channels)


def count(case: Case, launched: "Launch", binary: Binary) -> Counted:
    """Instructions per point of 32 channels, of all that a program does."""
    pixels, channels, outputs = (launched.constants[key] for key in ("BLOCK_P", "BLOCK_C", "BLOCK_O"))
    tiles = _tiles(case, launched)
    # The compiler may unroll the innermost loop.
    path = inside_path(binary.instructions, tiles[: loop_depth(binary.instructions)])

    def wide(elements: int) -> int:
        return wide_loads(elements, case.dtype.element_bytes, binary.num_warps)

    samples = math.prod(tiles[:2])
    loads = samples * 4 * wide(pixels * channels)
    if case.settings == WEIGHT:
        loads += samples * wide(pixels * outputs)
    elif case.direction is Direction.FWD:
        loads += samples * wide(channels * outputs)
    else:
        # Its corners are read four channels a lane, as they are added.
        loads = loads if case.dtype.element_bytes == 4 else 0
        loads += math.prod(tiles) * (wide(channels * outputs) + wide(pixels * outputs))
    return Counted(
        path,
        per_point=len(path) * binary.num_warps / (samples * pixels * channels / UNIT),
        block_rows=pixels,
        lanes_per_row=max(1, channels * case.dtype.element_bytes // 16),
        wide_loads=loads,
    )


def costs(case: Case, launched: "Launch") -> Costs:
    """Corners and operands of the products as tiles load them; image, points, output and weight, and the gradients."""
    constants, element_bytes = launched.constants, case.dtype.element_bytes
    pixels, channels, outputs = (constants[key] for key in ("BLOCK_P", "BLOCK_C", "BLOCK_O"))
    tiles = math.prod(launched.grid) * math.prod(_tiles(case, launched)[:2])
    product = {"fwd": channels * outputs, "weight": pixels * outputs}.get(
        _kind(case), (pixels + channels) * constants["GO"]
    )
    points, weight = 3 * POINTS * case.shape.pixels, POINTS * constants["GC"] * constants["GO"]
    moved = {"fwd": 2 * case.shape.elements + points, "weight": 2 * case.shape.elements + points}.get(
        _kind(case), 3 * case.shape.elements + 2 * points
    )
    return Costs(tiles * (4 * pixels * channels + product) * element_bytes, (moved + weight) * element_bytes)
