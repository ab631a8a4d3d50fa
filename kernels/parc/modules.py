"""ParCNetV2's operators as modules with the official parameter names."""

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["BGU"]


class BGU(nn.Module):
    """Bifurcate Gate Unit: a Linear, one half of its channels times the activation of the other, a Linear.

    Args:
        dim: C, channels of the input; the last axis.
        mlp_ratio: the first Linear has int(mlp_ratio * dim) channels, an even number.
        out_features: channels of the output; None takes `dim`.
        act_layer: makes the activation.
        drop: probability of the dropouts before and after the second Linear, or one of each.
        bias: whether the second Linear has a bias; the first always has.
        device, dtype: of the parameters.

    Raises:
        ValueError: the channels between the Linears are odd or none.

    Source: Xu et al., ParCNetV2: Oversized Kernel with Enhanced Attention, ICCV 2023, section 3.3.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 4,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float | tuple[float, float] = 0.0,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        if hidden < 2 or hidden % 2:
            raise ValueError(f"mlp_ratio * dim must be an even number of channels, got {mlp_ratio} * {dim} = {hidden}")
        before, after = drop if isinstance(drop, tuple) else (drop, drop)
        self.fc1 = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.act = act_layer()
        self.drop1 = nn.Dropout(before)
        self.fc2 = nn.Linear(hidden // 2, out_features or dim, bias=bias, device=device, dtype=dtype)
        self.drop2 = nn.Dropout(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., out_features)."""
        carried, gate = self.fc1(x).chunk(2, dim=-1)
        out: torch.Tensor = self.drop2(self.fc2(self.drop1(carried * self.act(gate))))
        return out
