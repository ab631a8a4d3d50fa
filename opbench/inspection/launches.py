"""The Triton launches that the published shapes make, on tensors without memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opbench.inspection import depthwise
from opbench.inspection.families import FAMILIES
from opbench.workload.case import Case, Direction, Dtype, Level
from opbench.workload.shapes import load_shape_list

if TYPE_CHECKING:
    from opbench_kernels.launch import Launch

__all__ = ["GROUP_CHANNELS", "KERNEL_SIZE", "POINTS", "is_fused", "launch", "uses"]

SHAPE_LISTS = ("standard", "high_resolution")
GROUP_CHANNELS = 32
KERNEL_SIZE = 3
POINTS = KERNEL_SIZE**2


def uses(dtypes: Sequence[Dtype], directions: Sequence[Direction], *, core_only: bool = False) -> dict[str, list[Case]]:
    """Cases by the name of the kernel variant that they launch.

    `fwd` and `bwd` are the core's, `strided` the same forward kernel where value and offset_mask are the halves of one
    product, and `fused` the lightweight operator in one kernel, which has a variant for tf32 of its own. With
    `core_only` there are the first two. opbench.inspection.depthwise and families have further ones.
    """
    found: dict[str, list[Case]] = {}
    for direction in directions:
        for dtype in dtypes:
            for case in _cases(direction, dtype, core_only=core_only):
                found.setdefault(_name(case), []).append(case)
    return found


def _cases(direction: Direction, dtype: Dtype, *, core_only: bool) -> list[Case]:
    kinds = [("dcnv4", Level.CORE, dtype)]
    if direction is Direction.FWD and not core_only:
        kinds += [("dcnv4", Level.MODULE, dtype), ("dcnv4_lightweight", Level.MODULE, dtype)]
        kinds += [("dcnv4_lightweight", Level.MODULE, Dtype.TF32)] if dtype is Dtype.FP32 else []
    deformable = [
        Case(operator, level, direction, shape_list, shape, kind)
        for operator, level, kind in kinds
        for shape_list in SHAPE_LISTS
        for shape in load_shape_list(shape_list).shapes
    ]
    if core_only:
        return deformable
    others = (case for family in FAMILIES.values() for case in family.cases(direction, dtype))
    return [*deformable, *depthwise.cases(direction, dtype), *others]


def is_fused(case: Case) -> bool:
    """Whether offsets and masks are predicted in the sampling kernel."""
    return case.operator == "dcnv4_lightweight"


def _name(case: Case) -> str:
    if case.operator in FAMILIES:
        return FAMILIES[case.operator].name(case)
    if depthwise.is_depthwise(case):
        return depthwise.name(case)
    constants = launch(case).constants
    if is_fused(case):
        return f"fused-{case.dtype}-groups{constants['G']}"
    kind = case.direction if case.level is Level.CORE else "strided"
    return f"{kind}-{case.dtype}-groups{constants['G']}-vectors{constants.get('VECTORS', 1)}"


def launch(case: Case) -> "Launch":
    """The launch of a case of `uses`; DCNv3's kernels are the core's, with other strides."""
    import torch
    from opbench_kernels.deform.dcnv4_fused import from_input_launch
    from opbench_kernels.deform.geometry import Geometry, padded_offset_mask_channels
    from opbench_kernels.deform.launch import backward_launch, forward_launch, sampled_dcnv4

    if case.operator in FAMILIES:
        return FAMILIES[case.operator].launch(case)
    if depthwise.is_depthwise(case):
        return depthwise.launch(case)
    channels = case.shape.channels
    groups = channels // GROUP_CHANNELS
    size = (case.shape.batch, case.shape.height, case.shape.width)
    options: dict[str, Any] = {"dtype": getattr(torch, case.dtype.torch_name), "device": "meta"}
    value = torch.empty(*size, channels, **options)
    if is_fused(case):
        weight, bias = torch.empty(POINTS, channels, 4 * groups, **options), torch.empty(POINTS, 4 * groups, **options)
        return from_input_launch(value, weight, bias, value, groups, Geometry(), allow_tf32=case.dtype is Dtype.TF32)
    packed = padded_offset_mask_channels(groups, POINTS)
    out, offset_mask = value, torch.empty(*size, packed, **options)
    if case.level is Level.MODULE:
        both = torch.empty(*size, channels + packed, **options)
        value, offset_mask = both[..., :channels], both[..., channels:]
    sampled = sampled_dcnv4(value, offset_mask, groups, Geometry())
    if case.direction is Direction.FWD:
        return forward_launch(sampled, out)
    return backward_launch(sampled, out, out.float(), sampled.offset, sampled.mask)
