"""Networks as operators of a sweep: their names as in opbench.models and timm, costs, values and providers.

Importable without torch; a network is built where a case of it is planned.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from opbench.operators import _triton
from opbench.workload.case import NETWORK_LEVELS, Case, Direction, Dtype, Level
from opbench.workload.operator import (
    NETWORK_INPUT,
    Forward,
    Operator,
    Provider,
    Setting,
    Tensors,
    by_direction,
    compiled,
)
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    import torch
    from opbench_kernels.implementation import Implementation

    from opbench.backbones.work import Work

__all__ = ["OPERATORS"]

STRIDE = 32
"""Pixels of the image per pixel of the last stage, in each direction."""
COLOURS = 3
SWIN_L = "swin_large_patch4_window12_384"
"""Published with windows of 12."""
SWAPPED = ("dcnv3", "dcnv4", "window_attention", "conv3x3", "none")
"""Operators that can stand in the blocks of InternImage and FlashInternImage; none shows what the others cost."""
IN_CONVNEXT = ("depthwise_conv", "dcnv4_lightweight", "none")
IN_VIT = ("attention", "dcnv4", "none")
"""In those of timm's (opbench.models.transplant)."""


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """x, the images or a block's input (B, H, W, C); and all parameters of the network or the block, by name."""
    import torch

    from opbench.backbones.networks import part_of
    from opbench.backbones.parameters import draw
    from opbench.operators._random import normal

    part = part_of(case, "meta")
    x = normal(generator, *part.input_shape)
    values = draw(part.module, generator, _offset_std_px(case))
    return {NETWORK_INPUT: x} | {
        name: tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
        for name, tensor in values.items()
    }


def smooth_inputs(case: Case, tensors: Tensors) -> Tensors:
    """Parameters that keep the inputs of kinks away from them."""
    from opbench.backbones.networks import part_of
    from opbench.backbones.parameters import smooth

    values = {name: tensor for name, tensor in tensors.items() if name != NETWORK_INPUT}
    return {NETWORK_INPUT: tensors[NETWORK_INPUT], **smooth(part_of(case, "meta").module, values, _offset_std_px(case))}


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """The same network in the tensors' dtype, its operators by their formulas."""
    from opbench.backbones.networks import ready_part
    from opbench.backbones.reference import use_reference_operators

    part = ready_part(case, tensors)
    use_reference_operators(part.module)
    return part.run(tensors[NETWORK_INPUT])


def _build(implementation: Implementation, case: Case, tensors: Tensors) -> Forward:
    from opbench.backbones.networks import ready_part, use_implementation

    part, x = ready_part(case, tensors), tensors[NETWORK_INPUT]
    use_implementation(part.module, implementation)
    if implementation == "triton":
        _triton.tune()
    return lambda: part.run(x)


def flop_count(case: Case) -> int:
    """The sum over the layers, by the operators' own formulas; normalisations and activations count nothing."""
    work = _work(case)
    passes = case.shape.batch * by_direction(case, fwd=work.forward_flops, bwd=work.backward_flops)
    return passes + _trained(case, 2)  # of SGD


def bytes_moved(case: Case) -> int:
    """What layers with products read and write, each on its own, and the parameters once; twice that backward."""
    work = _work(case)
    elements = case.shape.batch * work.elements + work.parameters
    passes = by_direction(case, fwd=elements, bwd=2 * elements)
    return case.dtype.element_bytes * (passes + _trained(case, 3))  # SGD reads two and writes one


def gathered_bytes(case: Case) -> int:
    """Of the samples, in either pass."""
    one_pass = case.shape.batch * _work(case).gathered * case.dtype.element_bytes
    return by_direction(case, fwd=one_pass, bwd=one_pass)


def memory_bytes(case: Case) -> int:
    """Parameters, and what the largest layer reads and gives; with gradients, half of what all layers give.

    The harness takes twice that with gradients: parameters with theirs, and all activations.
    """
    work = _work(case)
    activations = work.largest if case.direction is Direction.FWD else work.kept // 2
    return case.dtype.element_bytes * (work.parameters + case.shape.batch * activations)


def reference_elements(case: Case) -> int:
    """As memory_bytes, and twice what samples read, which the reference keeps where there are gradients."""
    work = _work(case)
    if case.direction is Direction.FWD:
        return work.parameters + 3 * case.shape.batch * work.largest
    return 2 * work.parameters + case.shape.batch * (work.kept + 2 * work.gathered)


def tolerance(case: Case) -> float:
    """Roundings of different layers are independent: their errors add up as the square root of their number.

    So do the sums' float32 roundings: the square root of all their lengths.
    """
    work = _work(case)
    return rounding_budget(case, storage_roundings=work.roundings**0.5, float32_growth=work.lengths**0.5)


def not_applicable(step: int, case: Case) -> str | None:
    """Why the network has no such case, or None.

    Args:
        step: sides of images are multiples of it.
        case: of the network.
    """
    if case.shape.channels != COLOURS:
        return f"a network takes images of {COLOURS} channels, got {case.shape.channels} (--shapes backbone)"
    for name in ("height", "width"):
        if getattr(case.shape, name) % step:
            return f"{name} must be a multiple of {step} for {case.operator}, got {getattr(case.shape, name)}"
    if (case.level, case.dtype) == (Level.MODEL, Dtype.FP16) and case.direction is not Direction.FWD:
        return "gradients of a whole network underflow in fp16 without a scaled loss, which is not measured"
    try:
        _work(case)
    except ValueError as error:
        return str(error)
    return None


def _work(case: Case) -> Work:
    from opbench.backbones.work import work_of

    return work_of(case)


def _trained(case: Case, each: int) -> int:
    """So much for each parameter in a step of training, else 0."""
    return each * _work(case).parameters if case.direction is Direction.TRAIN else 0


def _offset_std_px(case: Case) -> float:
    return float(dict(case.settings).get("offset_std_px", 1.0))


TORCH = Provider("torch", partial(_build, "torch"), "PyTorch's and timm's layers; opbench_kernels in torch")


def _without_kernels(case: Case, _device_type: str) -> str | None:
    operator = dict(case.settings).get("operator")
    if operator in (IN_CONVNEXT[0], IN_VIT[0]):
        return f"{case.operator} with {operator} has no layer of opbench_kernels"
    return None


TRITON = Provider(
    "triton", partial(_build, "triton"), "the same with opbench_kernels in Triton",
    unavailable=_triton.unavailable, not_applicable=_without_kernels, needs=_triton.NEEDS,
)  # fmt: skip


def _operators(
    names: Iterable[str],
    what: str,
    *,
    stages: int = 4,
    step: int = STRIDE,
    operator: str = "",
    choices: tuple[str, ...] = SWAPPED,
    kernels: bool = True,
) -> list[Operator]:
    """Networks of one architecture.

    Args:
        names: as in opbench.models or timm.
        what: the architecture, in words.
        stages: how many it has.
        step: sides of images are multiples of it.
        operator: the one in its blocks, where another can be put in its place.
        choices: it, and the others.
        kernels: whether it has layers of opbench_kernels that run in Triton.
    """
    settings = {
        "stage": Setting(min(2, stages - 1), 0, "of the block, from 0", levels=(Level.BLOCK,)),
        "block": Setting(0, 0, "which block of the stage, from 0", levels=(Level.BLOCK,)),
    }
    if operator:
        settings |= {
            "operator": Setting(operator, choices, "inside every block"),
            "offset_std_px": Setting(1.0, 0.0, "standard deviation of the offsets of a DCN, pixels"),
        }
    return [
        Operator(
            name=name,
            family="backbone",
            by_default=False,
            summary=f"{what}; block: one residual block of a stage; model: from images to logits",
            timed="everything from the images, NHWC, to the logits; of a block from its input to its output",
            make_inputs=make_inputs,
            smooth_inputs=smooth_inputs,
            reference=reference,
            flop_count=flop_count,
            bytes_moved=bytes_moved,
            gathered_bytes=gathered_bytes,
            memory_bytes=memory_bytes,
            parameter_count=lambda case: _work(case).parameters,
            mac_count=lambda case: _work(case).macs,
            reference_elements=reference_elements,
            tolerance=tolerance,
            providers=(*([TRITON] if kernels else []), TORCH, compiled(TORCH)),
            settings=settings,
            not_applicable=partial(not_applicable, step),
            levels=NETWORK_LEVELS,
            side_multiple=step,
        )
        for name in names
    ]


OPERATORS = (
    *_operators((f"internimage_{size}" for size in ("t", "s", "b", "l", "xl", "h")), "InternImage", operator="dcnv3"),
    *_operators((f"flash_internimage_{size}" for size in "tsbl"), "FlashInternImage", operator="dcnv4"),
    *_operators((f"replknet_{size}" for size in ("31b", "31l", "xl")), "RepLKNet"),
    *_operators((f"slak_{size}" for size in ("tiny", "small", "base")), "SLaK, dense"),
    *_operators((f"parcnetv2_{size}" for size in ("xt", "tiny", "small", "base")), "ParCNetV2"),
    *_operators((f"dat_{size}" for size in ("tiny", "small", "base")), "DAT", step=224, kernels=False),
    *_operators(
        (f"convnext_{size}" for size in ("tiny", "small", "base", "large")),
        "ConvNeXt (timm)",
        operator="depthwise_conv",
        choices=IN_CONVNEXT,
    ),
    *_operators((f"fasternet_{size}" for size in ("t0", "t1", "t2", "s", "m", "l")), "FasterNet (timm)", kernels=False),
    *_operators(
        (*(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")), SWIN_L),
        "Swin (timm)",
        kernels=False,
    ),
    *_operators(
        (f"vit_{size}_patch16_224" for size in ("base", "large")),
        "ViT (timm)",
        stages=1,
        operator="attention",
        choices=IN_VIT,
    ),
)
"""In the order of families."""
