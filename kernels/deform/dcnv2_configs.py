"""The choice of a configuration of DCNv2's kernels, and what it depends on.

Beside the rule's there are tiles of twice the pixels or twice the outputs, which read each weight or make each sample
half as often, with twice the warps; and of half the outputs, which take fewer registers.
"""

from functools import cache, partial

import torch
from opbench_kernels import bilinear_launch, tuning
from opbench_kernels.deform.dcnv2_launch import (
    SMALLEST_PRODUCT,
    Config,
    Convolved,
    backward_launch,
    backward_rule,
    forward_launch,
    rule,
    weight_grad_launch,
)
from opbench_kernels.launch import place_in_vector

__all__ = [
    "BACKWARD",
    "FORWARD",
    "WEIGHT_GRAD",
    "choose_backward",
    "choose_forward",
    "choose_weight_grad",
]

FORWARD = "dcnv2 forward"
BACKWARD = "dcnv2 backward"
WEIGHT_GRAD = "dcnv2 weight gradient"
SOURCES = (*bilinear_launch.SOURCES, "opbench_kernels.deform.dcnv2_launch", "opbench_kernels.deform.dcnv2_triton")


def _candidates(convolved: Convolved, first: Config, *, wider: bool) -> tuple[Config, ...]:
    """The rule's configuration, then the others.

    Args:
        convolved: the operands.
        first: the rule's.
        wider: whether there is one with twice the outputs. The backward kernel has none: it makes each sample's
            gradient once whatever they are, and its tiles are for 16 pixels a warp.
    """
    found = [first, Config(2 * first.pixels, first.outputs, 2 * first.num_warps)]
    if wider and convolved.weight.shape[3] > first.outputs:
        found.append(Config(first.pixels, 2 * first.outputs, 2 * first.num_warps))
    if min(first.outputs, convolved.weight.shape[3]) > SMALLEST_PRODUCT:
        found.append(Config(first.pixels, first.outputs // 2, first.num_warps))
    return tuple(found)


def choose_forward(convolved: Convolved, bias: torch.Tensor | None, out: torch.Tensor) -> Config:
    """The configuration of a forward launch that writes `out`."""
    if not tuning.is_enabled():
        return tuning.taken(FORWARD, rule(convolved))
    return tuning.choose(
        _key(FORWARD, convolved, out, bias is None),
        _candidates(convolved, rule(convolved), wider=True),
        lambda config: forward_launch(convolved, bias, out, config).__call__,
    )


def choose_backward(
    convolved: Convolved,
    grad_out: torch.Tensor,
    grad_image: torch.Tensor,
    grad_offset: torch.Tensor,
    grad_mask: torch.Tensor,
    fixed_point: torch.Tensor | None,
) -> Config:
    """The configuration of a backward launch; arguments as backward_launch takes them.

    Trials add to a tensor of their own. What they write of the other gradients is written again.
    """
    if not tuning.is_enabled():
        return tuning.taken(BACKWARD, backward_rule(convolved))
    sums = cache(partial(torch.zeros_like, grad_image))  # for trials, where there are any

    def launch_of(config: Config) -> tuning.Trial:
        return backward_launch(convolved, grad_out, sums(), grad_offset, grad_mask, fixed_point, config).__call__

    return tuning.choose(
        _key(BACKWARD, convolved, grad_out, fixed_point is not None),
        _candidates(convolved, backward_rule(convolved), wider=False),
        launch_of,
    )


def choose_weight_grad(convolved: Convolved, grad_out: torch.Tensor, partial: torch.Tensor) -> Config:
    """The configuration of a launch of weight_grad_launch, whose trials write what it then writes again."""
    if not tuning.is_enabled():
        return tuning.taken(WEIGHT_GRAD, rule(convolved))
    return tuning.choose(
        _key(WEIGHT_GRAD, convolved, grad_out, partial.shape[0]),
        _candidates(convolved, rule(convolved), wider=True),
        lambda config: weight_grad_launch(convolved, grad_out, partial, config).__call__,
    )


def _key(kernel: str, convolved: Convolved, out: torch.Tensor, *more: object) -> tuning.Key:
    """Image and weight are contiguous. Counts of pixels are rounded up to a power of two, so that few sizes are new."""
    image, offset, mask, weight, geometry, deform_groups, allow_tf32 = convolved
    facts = (
        image.dtype, offset.dtype, mask.dtype, *weight.shape, deform_groups, allow_tf32,
        *offset.stride(), *mask.stride(), *(place_in_vector(tensor) for tensor in (image, offset, mask, out)),
        min(image.shape[1:3]) < 2, convolved.is_wide, geometry.kernel[1], *geometry.stride, *geometry.dilation,
        (convolved.pixels - 1).bit_length(), *more,
    )  # fmt: skip
    return tuning.Key(kernel, image.device, facts, SOURCES)
