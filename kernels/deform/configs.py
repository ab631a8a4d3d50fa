"""What there is to choose for the deformable kernels, and what the choice depends on.

Six configurations of the forward kernel are enough: a second vector per lane trades warps for fewer instructions, warps
per program decide how programs are spread over the SMs, and the rest of a tile follows from 16 bytes per load. The
backward kernel takes one warp, and up to four vectors. No value depends on the choice.
"""

from functools import cache

import torch
import triton
from opbench_kernels import tuning
from opbench_kernels.deform.launch import (
    GRADIENT_VECTOR,
    Config,
    Sampled,
    backward_config,
    backward_launch,
    forward_config,
    forward_launch,
    is_wide,
)
from opbench_kernels.launch import VECTOR_BYTES

__all__ = ["BACKWARD", "BACKWARD_CONFIGS", "CONFIGS", "FORWARD", "choose_backward", "choose_forward"]

FORWARD = "deform forward"
BACKWARD = "deform backward"
CONFIGS = tuple(Config(vectors, num_warps) for vectors in (1, 2) for num_warps in (1, 2, 4))
BACKWARD_CONFIGS = tuple(Config(vectors, 1) for vectors in (1, 2, 4))
SOURCES = tuple(
    f"opbench_kernels.{name}" for name in ("launch", "bilinear_triton", "deform.launch", "deform.sampling_triton")
)


def choose_forward(sampled: Sampled, out: torch.Tensor) -> Config:
    """The configuration of a forward launch that writes `out`."""
    rule = forward_config(sampled)
    if not tuning.is_enabled():
        return tuning.taken(FORWARD, rule)
    row_bytes = sampled.value.shape[-1] * sampled.value.element_size()
    candidates = _candidates(rule, CONFIGS, triton.next_power_of_2(row_bytes) // VECTOR_BYTES)
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
    vectors = triton.next_power_of_2(sampled.value.shape[-1]) // GRADIENT_VECTOR
    sums: list[torch.Tensor] = []

    def launch_of(config: Config) -> tuning.Trial:
        if not sums:
            sums.append(torch.zeros_like(grad_value))
        gradients = (grad_out, sums[0], grad_offset, grad_mask, fixed_point)
        return backward_launch(sampled, *gradients, config=config).__call__

    key = _key(BACKWARD, sampled, grad_out, fixed_point is not None)
    return tuning.choose(key, _candidates(rule, BACKWARD_CONFIGS, vectors), launch_of)


def _key(kernel: str, sampled: Sampled, out: torch.Tensor, *more: object) -> tuning.Key:
    """Counts of rows are rounded up to a power of two, so that few sizes are new."""
    value, offset, mask, size, geometry = sampled
    facts = (
        value.dtype, *value.shape[1:], value.stride(0), *offset.stride()[:2], *mask.stride()[:2],
        *(_place_in_vector(tensor) for tensor in (value, offset, mask, out)),
        min(size) < 2, is_wide(size, geometry, value.stride(0), sampled.rows),
        geometry.points, *geometry.stride, (sampled.rows - 1).bit_length(), *more,
    )  # fmt: skip
    return tuning.Key(kernel, value.device, facts, SOURCES)


def _place_in_vector(tensor: torch.Tensor) -> int:
    """Bytes from the last multiple of a vector's to the start of a tensor, in memory from torch's allocator."""
    return int(tensor.storage_offset()) * tensor.element_size() % VECTOR_BYTES


@cache
def _candidates(rule: Config, configs: tuple[Config, ...], vectors: int) -> tuple[Config, ...]:
    """The rule's, and those whose further vectors still have channels, of a row of so many vectors."""
    return (rule, *(config for config in configs if config.vectors <= max(1, vectors) and config != rule))
