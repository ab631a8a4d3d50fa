"""Tiles of the kernels that sample rows of channels, as those of deform/ and msda/: the rule, and what may be tuned.

A second vector per lane trades warps for fewer instructions, warps per program decide how programs are spread over the
SMs, and the rest of a tile follows from 16 bytes per load. docs/tuning.md has the counts. No value depends on it, but
for the order in which backward kernels sum in float32.
"""

from functools import cache
from typing import NamedTuple

import triton
from opbench_kernels.launch import VECTOR_BYTES, WARP_SIZE

__all__ = [
    "GRADIENT_VECTOR",
    "SOURCES",
    "Config",
    "backward_candidates",
    "backward_rule",
    "forward_candidates",
    "forward_rule",
    "tile",
]

SOURCES = (
    "opbench_kernels.launch",
    "opbench_kernels.bilinear_launch",
    "opbench_kernels.bilinear_triton",
    "opbench_kernels.bilinear_grad_triton",
)
"""Modules of a key of these kernels, beside those of the family."""
MANY_ROWS = 2**18
"""At least this many give enough warps for two vectors a lane: 16384 warps, of which 25 fit an SM by registers."""
GRADIENT_VECTOR = 4
"""Channels of 16 bytes of value's gradient, which is summed up in float32."""


class Config(NamedTuple):
    """What may be tuned.

    Attributes:
        vectors: 16-byte vectors of a row that one lane takes, of value in a forward kernel and of its float32
            gradient in a backward one: 1, 2 or 4. Two halve the coordinates' cost per channel; one gives twice the
            warps.
        num_warps: warps per program.
    """

    vectors: int
    num_warps: int


FORWARD_CONFIGS = tuple(Config(vectors, num_warps) for vectors in (1, 2) for num_warps in (1, 2, 4))
BACKWARD_CONFIGS = tuple(Config(vectors, 1) for vectors in (1, 2, 4))


def tile(config: Config, channels: int, vector_elements: int) -> dict[str, int]:
    """The compile-time constants of a tile: rows of so many channels, and vectors of so many elements."""
    block_d = triton.next_power_of_2(channels) // config.vectors
    lanes = max(1, block_d // vector_elements)
    return {
        "BLOCK_D": block_d,
        "BLOCK_ROWS": max(1, WARP_SIZE // lanes) * config.num_warps,
        "VECTORS": config.vectors,
    }


def forward_rule(rows: int, channels: int, element_bytes: int) -> Config:
    """The forward configuration that instruction counts favour."""
    halved_bytes = triton.next_power_of_2(channels) // 2 * element_bytes
    vectors = 2 if rows >= MANY_ROWS and halved_bytes >= 2 * VECTOR_BYTES else 1
    # With two warps the compiler spills two registers on sm_90, to fit another program, where value has 16 bits.
    return Config(vectors, num_warps=1 if element_bytes == 2 else 2)


def backward_rule(channels: int) -> Config:
    """The backward configuration."""
    return Config(vectors=2 if channels > GRADIENT_VECTOR else 1, num_warps=1)


def forward_candidates(rule: Config, channels: int, element_bytes: int) -> tuple[Config, ...]:
    """The rule's configuration, then the others that a row has channels for."""
    return _candidates(rule, FORWARD_CONFIGS, triton.next_power_of_2(channels * element_bytes) // VECTOR_BYTES)


def backward_candidates(rule: Config, channels: int) -> tuple[Config, ...]:
    """The same for a backward kernel."""
    return _candidates(rule, BACKWARD_CONFIGS, triton.next_power_of_2(channels) // GRADIENT_VECTOR)


@cache
def _candidates(rule: Config, configs: tuple[Config, ...], vectors: int) -> tuple[Config, ...]:
    """The rule's, and those whose further vectors still have channels, of a row of so many vectors."""
    return (rule, *(config for config in configs if config.vectors <= max(1, vectors) and config != rule))
