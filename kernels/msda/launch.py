"""Launches of the kernels of multi-scale deformable attention: tile sizes from the head's width and the dtype."""

from typing import Any, NamedTuple

import torch
import triton
from opbench_kernels.launch import INDEX_LIMIT, VECTOR_BYTES, WARP_SIZE, Launch
from opbench_kernels.msda.sampling_triton import msda_bwd_kernel, msda_fwd_kernel

__all__ = ["Attended", "backward_launch", "forward_launch"]

NUM_WARPS = 2


class Attended(NamedTuple):
    """The operands of both passes, contiguous.

    Attributes:
        value: (N, S, M, D).
        shapes: (L, 2), integers.
        starts: (L,), integers.
        locations: (N, Lq, M, L, P, 2).
        weights: (N, Lq, M, L, P).
    """

    value: torch.Tensor
    shapes: torch.Tensor
    starts: torch.Tensor
    locations: torch.Tensor
    weights: torch.Tensor

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows, one for each query and head, then Lq and S: the scalar arguments of both kernels."""
        batch, queries, heads = self.weights.shape[:3]
        return batch * queries * heads, queries, self.value.shape[1]

    def constants(self) -> dict[str, Any]:
        """The compile-time constants that both kernels share."""
        _, length, heads, head_dim = self.value.shape
        levels, points = self.weights.shape[3:]
        block_d = triton.next_power_of_2(head_dim)
        lanes = max(1, block_d * self.value.element_size() // VECTOR_BYTES)
        return {
            "M": heads,
            "D": head_dim,
            "L": levels,
            "P": points,
            "WIDE": length * heads * head_dim >= INDEX_LIMIT,
            "BLOCK_D": block_d,
            "BLOCK_ROWS": max(1, WARP_SIZE // lanes) * NUM_WARPS,
        }


def forward_launch(attended: Attended, out: torch.Tensor) -> Launch:
    """The launch of the forward kernel, which writes `out` (N, Lq, M * D), contiguous, in the dtype of the value."""
    return Launch.over_rows(msda_fwd_kernel, (*attended, out, *attended.sizes), attended.constants(), NUM_WARPS)


def backward_launch(
    attended: Attended,
    grad_out: torch.Tensor,
    grad_value: torch.Tensor,
    grad_locations: torch.Tensor,
    grad_weights: torch.Tensor,
    fixed_point: torch.Tensor | None = None,
) -> Launch:
    """The launch of the backward kernel.

    Args:
        attended: the operands of the forward pass.
        grad_out: (N, Lq, M * D), contiguous.
        grad_value: as value, contiguous, zeros; float32, or int64 with `fixed_point`. Shares are added to it.
        grad_locations, grad_weights: shaped as `attended.locations` and `attended.weights`, contiguous; written.
        fixed_point: two numbers whose product is the integer units per 1.0 of grad_value.
    """
    unit = grad_value if fixed_point is None else fixed_point
    tensors = (*attended, grad_out, grad_value, grad_locations, grad_weights, unit)
    constants = attended.constants() | {"FIXED_POINT": fixed_point is not None}
    return Launch.over_rows(msda_bwd_kernel, (*tensors, *attended.sizes), constants, NUM_WARPS)
