"""The window attentions of DAT; NCHW, parameters named as the authors' are."""

import torch
import torch.nn.functional as F
from torch import nn

from opbench.models.layers import to_nchw, to_nhwc
from opbench.models.windows import merge, partition, relative_position_index

__all__ = ["LayerNormProxy", "LocalAttention", "ShiftWindowAttention"]

OUTSIDE_WINDOW = -100.0
"""Added before the softmax where two pixels were no neighbours before the shift."""


class LayerNormProxy(nn.Module):
    """LayerNorm over the channels of (N, C, H, W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return to_nchw(self.norm(to_nhwc(x)))


class LocalAttention(nn.Module):
    """Self-attention inside windows with Swin's relative position bias.

    Args:
        dim: C.
        heads: a divisor of C.
        window_size: (height, width) in pixels, divisors of the image's.
        attn_drop, proj_drop: dropout of the attention weights and of the output.

    Source: Liu et al., Swin Transformer, ICCV 2021.
    """

    def __init__(self, dim: int, heads: int, window_size: tuple[int, int], attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.heads = heads
        self.window_size = window_size
        self.proj_qkv = nn.Linear(dim, 3 * dim)
        self.proj_out = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.attn_drop = nn.Dropout(attn_drop)
        positions = (2 * window_size[0] - 1) * (2 * window_size[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(positions, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)
        self.relative_position_index: torch.Tensor
        self.register_buffer("relative_position_index", relative_position_index(window_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        return self._attend(x, None)

    def _attend(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """With a mask (windows, pixels, pixels) that is added before the softmax."""
        windows = partition(to_nhwc(x), self.window_size)
        qkv = self.proj_qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # (N * windows, heads, pixels, head_dim)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            bias = (bias + mask.unsqueeze(1)).expand(x.shape[0], -1, -1, -1, -1).flatten(0, 1)
        drop = self.attn_drop.p if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype), dropout_p=drop)
        projected = self.proj_drop(self.proj_out(out.transpose(1, 2).flatten(2)))
        return to_nchw(merge(projected, self.window_size, x.shape[2], x.shape[3]))


class ShiftWindowAttention(LocalAttention):
    """As LocalAttention, with windows moved by `shift_size` pixels in both directions.

    Args:
        dim, heads, window_size, attn_drop, proj_drop: as LocalAttention.
        shift_size: pixels, from 1 to less than the window's sides.
        fmap_size: (height, width) of the image, pixels.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window_size: tuple[int, int],
        attn_drop: float,
        proj_drop: float,
        shift_size: int,
        fmap_size: tuple[int, int],
    ) -> None:
        super().__init__(dim, heads, window_size, attn_drop, proj_drop)
        self.shift_size = shift_size
        self.attn_mask: torch.Tensor
        self.register_buffer("attn_mask", self._mask(fmap_size))

    def _mask(self, fmap_size: tuple[int, int]) -> torch.Tensor:
        """Pairs of pixels that the shift brought from opposite edges, (windows, pixels, pixels)."""
        rows, columns = (
            # 0 in all windows but the last; there 1 before and 2 after the edge of the image.
            (torch.arange(size) >= size - side).long() + (torch.arange(size) >= size - self.shift_size).long()
            for size, side in zip(fmap_size, self.window_size, strict=True)
        )
        regions = (rows[:, None] * 3 + columns[None, :]).view(1, *fmap_size, 1)
        of_windows = partition(regions, self.window_size).squeeze(-1)
        apart = of_windows.unsqueeze(1) != of_windows.unsqueeze(2)
        return apart.to(torch.get_default_dtype()) * OUTSIDE_WINDOW

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        shift = self.shift_size
        out = self._attend(torch.roll(x, (-shift, -shift), (2, 3)), self.attn_mask)
        return torch.roll(out, (shift, shift), (2, 3))
