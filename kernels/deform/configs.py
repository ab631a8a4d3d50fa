"""The choice of a configuration of the deformable kernels, and what it depends on."""

from functools import cache, partial

import torch
from opbench_kernels import bilinear_launch, tuning
from opbench_kernels.bilinear_launch import Config, backward_candidates, forward_candidates
from opbench_kernels.deform.launch import (
    Sampled,
    backward_config,
    backward_launch,
    forward_config,
    forward_launch,
    is_wide,
)
from opbench_kernels.launch import place_in_vector

__all__ = ["BACKWARD", "FORWARD", "choose_backward", "choose_forward"]

FORWARD = "deform forward"
BACKWARD = "deform backward"
SOURCES = (*bilinear_launch.SOURCES, "opbench_kernels.deform.launch", "opbench_kernels.deform.sampling_triton")


def choose_forward(sampled: Sampled, out: torch.Tensor) -> Config:
    """The configuration of a forward launch that writes `out`."""
    rule = forward_config(sampled)
    if not tuning.is_enabled():
        return tuning.taken(FORWARD, rule)
    candidates = forward_candidates(rule, sampled.value.shape[-1], sampled.value.element_size())
    # Its method, because mypy takes no NamedTuple for a function.
    return tuning.choose(
        _key(FORWARD, sampled, out), candidates, lambda config: forward_launch(sampled, out, config).__call__
    )


def choose_backward(
    sampled: Sampled,
    grad_out: torch.Tensor,
    grad_value: torch.Tensor,
    grad_offset: torch.Tensor,
    grad_mask: torch.Tensor,
    fixed_point: torch.Tensor | None,
) -> Config:
    """The configuration of a backward launch; arguments as backward_launch takes them.

    Trials add to a tensor of their own. What they write of the other gradients is written again.
    """
    rule = backward_config(sampled)
    if not tuning.is_enabled():
        return tuning.taken(BACKWARD, rule)
    sums = cache(partial(torch.zeros_like, grad_value))  # for trials, where there are any

    def launch_of(config: Config) -> tuning.Trial:
        return backward_launch(sampled, grad_out, sums(), grad_offset, grad_mask, fixed_point, config=config).__call__

    return tuning.choose(
        _key(BACKWARD, sampled, grad_out, fixed_point is not None),
        backward_candidates(rule, sampled.value.shape[-1]),
        launch_of,
    )


def _key(kernel: str, sampled: Sampled, out: torch.Tensor, *more: object) -> tuning.Key:
    """Counts of rows are rounded up to a power of two, so that few sizes are new."""
    value, offset, mask, size, geometry = sampled
    facts = (
        value.dtype, *value.shape[1:], value.stride(0), *offset.stride()[:2], *mask.stride()[:2],
        *(place_in_vector(tensor) for tensor in (value, offset, mask, out)),
        min(size) < 2, is_wide(size, geometry, value.stride(0), sampled.rows),
        geometry.points, *geometry.stride, (sampled.rows - 1).bit_length(), *more,
    )  # fmt: skip
    return tuning.Key(kernel, value.device, facts, SOURCES)
