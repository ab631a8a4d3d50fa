"""The choice of a configuration of the attention's kernels, and what it depends on."""

from functools import cache, partial

import torch
from opbench_kernels import bilinear_launch, tuning
from opbench_kernels.bilinear_launch import Config, backward_candidates, forward_candidates
from opbench_kernels.launch import place_in_vector
from opbench_kernels.msda.launch import Attended, backward_config, backward_launch, forward_config, forward_launch

__all__ = ["BACKWARD", "FORWARD", "choose_backward", "choose_forward"]

FORWARD = "msda forward"
BACKWARD = "msda backward"
SOURCES = (*bilinear_launch.SOURCES, "opbench_kernels.msda.launch", "opbench_kernels.msda.sampling_triton")


def choose_forward(attended: Attended, out: torch.Tensor) -> Config:
    """The configuration of a forward launch that writes `out`."""
    rule = forward_config(attended)
    if not tuning.is_enabled():
        return tuning.taken(FORWARD, rule)
    candidates = forward_candidates(rule, attended.value.shape[-1], attended.value.element_size())
    # Its method, because mypy takes no NamedTuple for a function.
    return tuning.choose(
        _key(FORWARD, attended, out), candidates, lambda config: forward_launch(attended, out, config).__call__
    )


def choose_backward(
    attended: Attended,
    grad_out: torch.Tensor,
    grad_value: torch.Tensor,
    grad_locations: torch.Tensor,
    grad_weights: torch.Tensor,
    fixed_point: torch.Tensor | None,
) -> Config:
    """The configuration of a backward launch; arguments as backward_launch takes them.

    Trials add to a tensor of their own. What they write of the other gradients is written again.
    """
    rule = backward_config(attended)
    if not tuning.is_enabled():
        return tuning.taken(BACKWARD, rule)
    sums = cache(partial(torch.zeros_like, grad_value))  # for trials, where there are any

    def launch_of(config: Config) -> tuning.Trial:
        gradients = (grad_out, sums(), grad_locations, grad_weights, fixed_point)
        return backward_launch(attended, *gradients, config=config).__call__

    return tuning.choose(
        _key(BACKWARD, attended, grad_out, fixed_point is not None),
        backward_candidates(rule, attended.value.shape[-1]),
        launch_of,
    )


def _key(kernel: str, attended: Attended, out: torch.Tensor, *more: object) -> tuning.Key:
    """Operands are contiguous, so shapes say their strides. Counts are rounded up to a power of two, as in deform/."""
    value, _, _, locations, weights = attended
    rows, _, length = attended.sizes
    facts = (
        value.dtype, locations.dtype, weights.dtype, *value.shape[2:], *weights.shape[3:],
        *(place_in_vector(tensor) for tensor in (value, locations, weights, out)),
        attended.is_wide, (length - 1).bit_length(), (rows - 1).bit_length(), *more,
    )  # fmt: skip
    return tuning.Key(kernel, value.device, facts, SOURCES)
