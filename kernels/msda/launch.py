"""Launches of the kernels of multi-scale deformable attention: tile sizes from the head's width and the dtype."""

from typing import Any, NamedTuple

import torch
from opbench_kernels.bilinear_launch import GRADIENT_VECTOR, Config, backward_rule, forward_rule, tile
from opbench_kernels.launch import INDEX_LIMIT, VECTOR_BYTES, Launch
from opbench_kernels.msda.sampling_triton import msda_bwd_kernel, msda_fwd_kernel

__all__ = ["Attended", "backward_config", "backward_launch", "forward_config", "forward_launch"]


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

    @property
    def is_wide(self) -> bool:
        """Whether distances in one image need 64 bits."""
        return self.value[0].numel() >= INDEX_LIMIT

    def constants(self, config: Config, vector_elements: int) -> dict[str, Any]:
        """The compile-time constants that both kernels share, for vectors of that many channels."""
        heads, head_dim = self.value.shape[2:]
        levels, points = self.weights.shape[3:]
        return {
            "M": heads,
            "D": head_dim,
            "L": levels,
            "P": points,
            "WIDE": self.is_wide,
            **tile(config, head_dim, vector_elements),
        }


def forward_config(attended: Attended) -> Config:
    """The rule's."""
    return forward_rule(attended.sizes[0], attended.value.shape[-1], attended.value.element_size())


def forward_launch(attended: Attended, out: torch.Tensor, config: Config | None = None) -> Launch:
    """The launch of the forward kernel, which writes `out` (N, Lq, M * D), contiguous, in the dtype of the value."""
    config = config or forward_config(attended)
    constants = attended.constants(config, VECTOR_BYTES // attended.value.element_size())
    return Launch.over_rows(msda_fwd_kernel, (*attended, out, *attended.sizes), constants, config.num_warps)


def backward_config(attended: Attended) -> Config:
    """The rule's."""
    return backward_rule(attended.value.shape[-1])


def backward_launch(
    attended: Attended,
    grad_out: torch.Tensor,
    grad_value: torch.Tensor,
    grad_locations: torch.Tensor,
    grad_weights: torch.Tensor,
    fixed_point: torch.Tensor | None = None,
    config: Config | None = None,
) -> Launch:
    """The launch of the backward kernel.

    Args:
        attended: the operands of the forward pass.
        grad_out: (N, Lq, M * D), contiguous.
        grad_value: as value, contiguous, zeros; float32, or int64 with `fixed_point`. Shares are added to it.
        grad_locations, grad_weights: shaped as `attended.locations` and `attended.weights`, contiguous; written.
        fixed_point: two numbers whose product is the integer units per 1.0 of grad_value.
        config: backward_config by default.
    """
    config = config or backward_config(attended)
    unit = grad_value if fixed_point is None else fixed_point
    tensors = (*attended, grad_out, grad_value, grad_locations, grad_weights, unit)
    constants = attended.constants(config, GRADIENT_VECTOR) | {"FIXED_POINT": fixed_point is not None}
    return Launch.over_rows(msda_bwd_kernel, (*tensors, *attended.sizes), constants, config.num_warps)
