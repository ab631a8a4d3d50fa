"""What `opbench inspect` knows of multi-scale deformable attention: cases, launches, and how they are counted.

The forward kernel is unrolled; what is counted is the way where every sum is finite. The backward kernel loops over the
levels. The count is per point of a head, of 32 channels in the published model.
"""

from typing import TYPE_CHECKING

from opbench.inspection.compile import Binary
from opbench.inspection.family import Costs, Counted
from opbench.inspection.loop_nest import compiled_path
from opbench.operators import ms_deform_attn
from opbench.workload.case import Case, Direction, Dtype, Level
from opbench.workload.shapes import load_shape_list

if TYPE_CHECKING:
    from opbench_kernels.launch import Launch

__all__ = ["cases", "costs", "count", "launch", "name"]

SHAPE_LIST = "deformable_detr"
SETTINGS = (("n_levels", 4), ("n_heads", 8), ("n_points", 4))


def cases(direction: Direction, dtype: Dtype) -> list[Case]:
    """The published shapes; locations are in the dtype, as in the operator's core."""
    shapes = load_shape_list(SHAPE_LIST).shapes
    return [Case("ms_deform_attn", Level.CORE, direction, SHAPE_LIST, shape, dtype, SETTINGS) for shape in shapes]


def name(case: Case) -> str:
    """Direction, dtype, vectors of 16 bytes a lane."""
    return f"{case.direction}-{case.dtype}-msda-vectors{launch(case).constants['VECTORS']}"


def launch(case: Case) -> "Launch":
    """The launch of a case of `cases`."""
    import torch
    from opbench_kernels.msda.launch import Attended, backward_launch, forward_launch

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    heads, levels, points = (case.int_setting(key) for key in ("n_heads", "n_levels", "n_points"))
    batch, queries = case.shape.batch, case.shape.height * case.shape.width
    dtype = getattr(torch, case.dtype.torch_name)
    value = empty(batch, ms_deform_attn.length(case), heads, case.shape.channels // heads, dtype=dtype)
    sizes = empty(levels, 2, dtype=torch.int64), empty(levels, dtype=torch.int64)
    locations = empty(batch, queries, heads, levels, points, 2, dtype=dtype)
    weights = empty(batch, queries, heads, levels, points, dtype=dtype)
    attended, out = Attended(value, *sizes, locations, weights), empty(batch, queries, case.shape.channels, dtype=dtype)
    if case.direction is Direction.FWD:
        return forward_launch(attended, out)
    return backward_launch(attended, out, value.float(), locations, weights)


def count(case: Case, launched: "Launch", binary: Binary) -> Counted:
    """Instructions per point of a row, a query's head."""
    constants, forward = launched.constants, case.direction is Direction.FWD
    points, vectors = constants["L"] * constants["P"], constants["VECTORS"]
    path = compiled_path(binary.instructions, () if forward else [constants["L"]])
    # A lane of the backward kernel takes as many channels as 16 bytes of a float32 gradient have.
    wide = forward or case.dtype.element_bytes == 4
    return Counted(
        path,
        per_point=len(path) * binary.num_warps / (constants["BLOCK_ROWS"] * points),
        block_rows=constants["BLOCK_ROWS"],
        lanes_per_row=max(1, constants["BLOCK_D"] * (case.dtype.element_bytes if forward else 4) // 16),
        wide_loads=4 * points * vectors if wide else 0,
    )


def costs(case: Case, launched: "Launch") -> Costs:
    """Four corners of each point; value, locations and weights, output, and backward their gradients."""
    taps = ms_deform_attn.taps(case) * case.shape.pixels
    value = case.shape.batch * ms_deform_attn.length(case) * case.shape.channels
    inputs = value + 3 * taps
    moved = inputs + case.shape.elements if case.direction is Direction.FWD else 2 * inputs + case.shape.elements
    corners = 4 * ms_deform_attn.points(case) * case.shape.elements
    return Costs(corners * case.dtype.element_bytes, moved * case.dtype.element_bytes)
