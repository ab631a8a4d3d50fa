"""Multi-scale deformable attention as a torch module, with the parameters' names of Deformable DETR's MSDeformAttn."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from opbench_kernels.implementation import Implementation, check_implementation
from opbench_kernels.msda.functional import ms_deform_attn
from torch import nn

__all__ = ["MSDeformAttn"]


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with its projections; arguments, parameters and initial values of the authors'.

    At first the points of head m lie along the direction of angle 2 pi m / n_heads, point p at distance p + 1, and all
    weights are equal.

    Args:
        d_model: C, of queries, input and output.
        n_levels: L, images of one pyramid.
        n_heads: M; divides d_model.
        n_points: P, of each head in each level.
        implementation: of the sampling, see opbench_kernels.ms_deform_attn.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Zhu et al., Deformable DETR, ICLR 2021.
    """

    def __init__(
        self,
        d_model: int = 256,
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
        *,
        implementation: Implementation = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        numbers = {"d_model": d_model, "n_levels": n_levels, "n_heads": n_heads, "n_points": n_points}
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a positive integer, got {number!r}")
        if d_model % n_heads:
            raise ValueError(f"n_heads must divide d_model {d_model}, got {n_heads}")
        check_implementation(implementation)
        self.d_model = d_model
        self.n_levels = n_levels
        self.n_heads = n_heads
        self.n_points = n_points
        self.implementation = implementation
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2, **options)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points, **options)
        self.value_proj = nn.Linear(d_model, d_model, **options)
        self.output_proj = nn.Linear(d_model, d_model, **options)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        # Deformable DETR calls this name after its own initialisation.
        for zero in (self.sampling_offsets.weight, self.attention_weights.weight):
            nn.init.zeros_(zero)
        for linear in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
        bias = self.sampling_offsets.bias
        angle = torch.arange(self.n_heads, device=bias.device, dtype=torch.float32) * (2.0 * math.pi / self.n_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)  # onto the square of side 2
        distance = torch.arange(1, self.n_points + 1, device=bias.device).view(-1, 1)
        offsets = direction.view(-1, 1, 1, 2) * distance
        with torch.no_grad():
            bias.copy_(offsets.expand(-1, self.n_levels, -1, -1).reshape(-1))

    def forward(
        self,
        query: torch.Tensor,
        reference_points: torch.Tensor,
        input_flatten: torch.Tensor,
        input_spatial_shapes: torch.Tensor,
        input_level_start_index: torch.Tensor,
        input_padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend to points around `reference_points`.

        Args:
            query: (N, Lq, C).
            reference_points: (N, Lq, L, 2), (x, y) as shares of the image, padding included; or (N, Lq, L, 4), boxes
                (x, y, width, height), in which offsets are shares of half the box and of n_points.
            input_flatten: (N, S, C), the levels one after the other.
            input_spatial_shapes: (L, 2), integers (H_l, W_l).
            input_level_start_index: (L,), integers: where each level begins in S.
            input_padding_mask: (N, S), True for pixels that count as zero; or None.

        Returns:
            (N, Lq, C).

        Raises:
            ValueError: an argument that does not fit; the message names it.
        """
        self._check(query, reference_points, input_flatten, input_spatial_shapes, input_padding_mask)
        layout = (self.n_heads, self.n_levels, self.n_points)
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask.unsqueeze(-1), 0.0)
        offsets = self.sampling_offsets(query).unflatten(-1, (*layout, 2))
        weights = F.softmax(self.attention_weights(query).unflatten(-1, (self.n_heads, -1)), -1)
        centre = reference_points[:, :, None, :, None, :2]
        if reference_points.shape[-1] == 2:
            locations = centre + offsets / input_spatial_shapes.flip(-1)[:, None, :]
        else:
            locations = centre + offsets / self.n_points * reference_points[:, :, None, :, None, 2:] * 0.5
        out = ms_deform_attn(
            value.unflatten(-1, (self.n_heads, -1)),
            input_spatial_shapes,
            input_level_start_index,
            locations,
            weights.unflatten(-1, layout[1:]),
            implementation=self.implementation,
        )
        projected: torch.Tensor = self.output_proj(out)
        return projected

    def extra_repr(self) -> str:
        names = ("d_model", "n_levels", "n_heads", "n_points", "implementation")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _check(
        self,
        query: torch.Tensor,
        reference_points: torch.Tensor,
        input_flatten: torch.Tensor,
        shapes: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> None:
        for name, tensor in (("query", query), ("input_flatten", input_flatten)):
            if tensor.dim() != 3 or tensor.shape[-1] != self.d_model:
                raise ValueError(f"{name} must be (N, length, {self.d_model}), got {tuple(tensor.shape)}")
        if query.shape[0] != input_flatten.shape[0]:
            raise ValueError(f"query must have the batch of input_flatten: {query.shape[0]}, {input_flatten.shape[0]}")
        around = (query.shape[0], query.shape[1], self.n_levels)
        if tuple(reference_points.shape) not in ((*around, 2), (*around, 4)):
            raise ValueError(f"reference_points must be {(*around, '2 or 4')}, got {tuple(reference_points.shape)}")
        if tuple(shapes.shape) != (self.n_levels, 2):
            raise ValueError(f"input_spatial_shapes must be ({self.n_levels}, 2), got {tuple(shapes.shape)}")
        if mask is not None and (mask.dtype is not torch.bool or mask.shape != input_flatten.shape[:2]):
            expected = tuple(input_flatten.shape[:2])
            raise ValueError(f"input_padding_mask must be bool, {expected}, got {mask.dtype}, {tuple(mask.shape)}")
