"""The attentions of DAT: in windows, in shifted windows, and at sampled positions; NCHW, named as the authors'."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from opbench.models.layers import to_nchw, to_nhwc
from opbench.models.windows import merge, partition, relative_position_index

__all__ = ["DAttention", "LayerNormProxy", "LocalAttention", "ShiftWindowAttention", "sampled_macs"]

OFFSET_KERNELS = (9, 7, 5, 3)
"""Side of the offset network's depthwise convolution in each stage."""
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
        out = _attention(query, key, value, bias=bias, drop=self.attn_drop)
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


class DAttention(nn.Module):
    """Deformable attention of DAT v1: every pixel attends to the same positions, which the image itself moves.

    A small network predicts an offset for each point of a regular grid, per group of channels. Keys and values come
    from the image there, by bilinear interpolation; so does a relative position bias from a table.

    Args:
        q_size: (H, W) of the image, pixels.
        n_heads, n_head_channels: C is their product.
        n_groups: groups of channels with offsets of their own, a divisor of n_heads.
        attn_drop, proj_drop: dropout of the attention weights and of the output.
        stride: pixels between two points of the grid.
        offset_range_factor: greatest offset, in points of the grid; 0 for any offset, below 0 for positions squashed
            into the image.
        use_pe: a relative position bias; with dwc_pe a depthwise 3x3 convolution of the queries is added to the
            output in its place, with fixed_pe the bias is a number per pixel and point of the grid.
        no_off: leave the grid as it is.
        stage_idx: number of the stage, which decides the offset network's kernel.

    Source: Xia et al., Vision Transformer with Deformable Attention, CVPR 2022; the authors call it DAttentionBaseline.
    """

    def __init__(
        self,
        q_size: tuple[int, int],
        n_heads: int,
        n_head_channels: int,
        n_groups: int,
        attn_drop: float,
        proj_drop: float,
        stride: int,
        offset_range_factor: float,
        use_pe: bool,
        dwc_pe: bool,
        no_off: bool,
        fixed_pe: bool,
        stage_idx: int,
    ) -> None:
        super().__init__()
        if n_groups < 1 or n_heads % n_groups:
            raise ValueError(f"groups must be a divisor of the {n_heads} heads, got {n_groups}")
        if stride < 1:
            raise ValueError(f"strides must be positive where a stage has deformable attention, got {stride}")
        channels, side = n_heads * n_head_channels, OFFSET_KERNELS[stage_idx]
        self.n_heads, self.n_groups = n_heads, n_groups
        self.offset_range_factor = offset_range_factor
        self.no_off = no_off
        self.bias_kind = ("convolution" if dwc_pe else "fixed" if fixed_pe else "sampled") if use_pe else "none"
        width = channels // n_groups
        self.conv_offset = nn.Sequential(
            nn.Conv2d(width, width, side, stride, side // 2, groups=width),
            LayerNormProxy(width),
            nn.GELU(),
            nn.Conv2d(width, 2, 1, bias=False),
        )
        for name in ("proj_q", "proj_k", "proj_v", "proj_out"):
            self.add_module(name, nn.Conv2d(channels, channels, 1))
        self.proj_drop = nn.Dropout(proj_drop)
        self.attn_drop = nn.Dropout(attn_drop)
        self._add_rpe_table(channels, q_size)

    def _add_rpe_table(self, channels: int, size: tuple[int, int]) -> None:
        height, width = size
        shapes = {
            "fixed": (self.n_heads, height * width, height * width),
            "sampled": (self.n_heads, 2 * height - 1, 2 * width - 1),
        }
        self.rpe_table: nn.Module | nn.Parameter | None = None
        if self.bias_kind == "convolution":
            self.rpe_table = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        elif self.bias_kind != "none":
            self.rpe_table = nn.Parameter(torch.zeros(shapes[self.bias_kind]))
            nn.init.trunc_normal_(self.rpe_table, std=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        query = self.get_submodule("proj_q")(x)
        positions = self._positions(query)
        sampled = self._sample(x, positions)
        key, value = self.get_submodule("proj_k")(sampled), self.get_submodule("proj_v")(sampled)
        bias = self._bias(positions, x.shape[2], x.shape[3])
        heads = (_heads(tensor, self.n_heads) for tensor in (query, key, value))
        out = _attention(*heads, bias=bias, drop=self.attn_drop).transpose(-2, -1).reshape(x.shape)
        if self.bias_kind == "convolution":
            out = out + cast(nn.Conv2d, self.rpe_table)(query)
        result: torch.Tensor = self.proj_drop(self.get_submodule("proj_out")(out))
        return result

    def _positions(self, query: torch.Tensor) -> torch.Tensor:
        """Where keys and values are read, (N * groups, rows, columns, 2): (y, x), -1 and 1 at the image's edges."""
        offset = self.conv_offset(query.unflatten(1, (self.n_groups, -1)).flatten(0, 1)).permute(0, 2, 3, 1)
        rows, columns = offset.shape[1:3]
        grid = _pixel_centres(rows, columns, query)
        if self.no_off:
            return grid.expand_as(offset)
        if self.offset_range_factor > 0:
            points = torch.tensor([1 / rows, 1 / columns], device=query.device, dtype=query.dtype)
            offset = offset.tanh() * points * self.offset_range_factor
        moved: torch.Tensor = offset + grid
        return moved if self.offset_range_factor >= 0 else moved.tanh()

    def _sample(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The image at the positions, (N, C, 1, points)."""
        groups = x.unflatten(1, (self.n_groups, -1)).flatten(0, 1)
        sampled = F.grid_sample(groups, positions.flip(-1), mode="bilinear", align_corners=True)
        return sampled.reshape(x.shape[0], x.shape[1], 1, -1)

    def _bias(self, positions: torch.Tensor, height: int, width: int) -> torch.Tensor | None:
        """What is added before the softmax, broadcastable to (N, heads, pixels, points)."""
        if self.bias_kind == "fixed":
            return cast(torch.Tensor, self.rpe_table)
        if self.bias_kind != "sampled":
            return None
        table = cast(torch.Tensor, self.rpe_table).unflatten(0, (self.n_groups, -1))
        batch = positions.shape[0] // self.n_groups
        pixels = _pixel_centres(height, width, positions).reshape(-1, 1, 2)
        distance = (pixels - positions.flatten(1, 2).unsqueeze(1)) * 0.5  # (N * groups, pixels, points, 2)
        tables = table.expand(batch, -1, -1, -1, -1).flatten(0, 1)
        bias: torch.Tensor = F.grid_sample(tables, distance.flip(-1), mode="bilinear", align_corners=True)
        by_head: torch.Tensor = bias.view(batch, self.n_heads, *bias.shape[2:])
        return by_head


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(N, C, H, W) to (N, heads, H * W, head_dim)."""
    split: torch.Tensor = x.flatten(2).unflatten(1, (heads, -1))
    return split.transpose(-2, -1)


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, bias: torch.Tensor | None, drop: nn.Dropout
) -> torch.Tensor:
    """Attention of (N, heads, tokens, head_dim) with a bias before the softmax."""
    probability = drop.p if drop.training else 0.0
    bias = None if bias is None else bias.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=probability)


def _pixel_centres(rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
    """(rows, columns, 2): (y, x) of the centres of an image's pixels, whose edges are at -1 and 1."""
    y, x = ((2 * torch.arange(n, device=like.device, dtype=like.dtype) + 1) / n - 1 for n in (rows, columns))
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)


def sampled_macs(attention: DAttention, output: torch.Tensor) -> int:
    """Multiply-accumulates of the bilinear samples, four each: of the image, and of the table of biases."""
    convolution = cast(nn.Conv2d, attention.conv_offset[0])
    batch, channels, height, width = output.shape
    points = 1
    for axis, size in enumerate((height, width)):
        side, stride = convolution.kernel_size[axis], convolution.stride[axis]
        points *= (size + 2 * (side // 2) - side) // stride + 1
    biases = height * width * attention.n_heads if attention.bias_kind == "sampled" else 0
    return 4 * batch * points * (channels + biases)
