"""What there is to choose for the deformable kernels, and what the choice depends on.

Six configurations of the forward kernel are enough: a second vector per lane trades warps for fewer instructions, warps
per program decide how programs are spread over the SMs, and the rest of a tile follows from 16 bytes per load. No value
depends on the choice.
"""

from functools import cache

import torch
import triton
from opbench_kernels import tuning
from opbench_kernels.deform.launch import Config, Sampled, forward_config, forward_launch, is_wide
from opbench_kernels.launch import VECTOR_BYTES

__all__ = ["CONFIGS", "FORWARD", "choose_forward"]

FORWARD = "deform forward"
CONFIGS = tuple(Config(vectors, num_warps) for vectors in (1, 2) for num_warps in (1, 2, 4))
SOURCES = tuple(
    f"opbench_kernels.{name}" for name in ("launch", "bilinear_triton", "deform.launch", "deform.sampling_triton")
)


def choose_forward(sampled: Sampled, out: torch.Tensor) -> Config:
    """The configuration of a forward launch that writes `out`."""
    rule = forward_config(sampled)
    if not tuning.is_enabled():
        return tuning.taken(FORWARD, rule)
    candidates = _candidates(rule, sampled.value.shape[-1] * sampled.value.element_size())
    # Its method, because mypy takes no NamedTuple for a function.
    return tuning.choose(_key(sampled, out), candidates, lambda config: forward_launch(sampled, out, config).__call__)


def _key(sampled: Sampled, out: torch.Tensor) -> tuning.Key:
    """Counts of rows are rounded up to a power of two, so that few sizes are new."""
    value, offset, mask, size, geometry = sampled
    facts = (
        value.dtype, *value.shape[1:], value.stride(0), *offset.stride()[:2], *mask.stride()[:2],
        *(_place_in_vector(tensor) for tensor in (value, offset, mask, out)),
        min(size) < 2, is_wide(size, geometry, value.stride(0), sampled.rows),
        geometry.points, *geometry.stride, (sampled.rows - 1).bit_length(),
    )  # fmt: skip
    return tuning.Key(FORWARD, value.device, facts, SOURCES)


def _place_in_vector(tensor: torch.Tensor) -> int:
    """Bytes from the last multiple of a vector's to the start of a tensor, in memory from torch's allocator."""
    return int(tensor.storage_offset()) * tensor.element_size() % VECTOR_BYTES


@cache
def _candidates(rule: Config, row_bytes: int) -> tuple[Config, ...]:
    """The rule's, and those whose second vector, if any, still has channels to load."""
    most = max(1, triton.next_power_of_2(row_bytes) // VECTOR_BYTES)
    return (rule, *(config for config in CONFIGS if config.vectors <= most and config != rule))
