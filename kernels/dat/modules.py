"""Deformable attention of DAT as a torch module, with the parameters' names of its first version."""

import torch
import torch.nn.functional as F
from opbench_kernels.sizes import Size, pair
from torch import nn

__all__ = ["DAttention"]

OFFSET_KERNELS = (9, 7, 5, 3)
"""Side of the depthwise convolution before the offsets, by stage."""


class DAttention(nn.Module):
    """Attention to keys and values sampled at learned places; arguments, parameters and initial values of DAT's first
    version (DAttentionBaseline).

    Queries predict an offset for each place of a grid and group of channels. The input is sampled there, and all
    queries attend to these samples, with a bias by the distance between a query and a sample.

    Args:
        q_size: (H, W) of the input.
        kv_size: as q_size where there is a bias table.
        n_heads, n_head_channels: their product is C.
        n_groups: groups of channels with offsets of their own; divides n_heads.
        attn_drop, proj_drop: probabilities of dropout of attention weights and of the output.
        stride: of the grid of samples.
        offset_range_factor: offsets are tanh times this over the grid's size, in shares of half the image; 0 leaves
            them unbounded, a negative number bounds the places instead.
        use_pe: whether there is a positional term: with dwc_pe a depthwise convolution of the queries, with fixed_pe a
            table with a bias for each query and sample, else one by distance.
        dwc_pe, no_off, fixed_pe: as above; no_off samples the plain grid.
        stage_idx: 0 to 3; the offsets' depthwise convolution has side 9, 7, 5 or 3.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Xia et al., Vision Transformer with Deformable Attention, CVPR 2022.
    """

    def __init__(
        self,
        q_size: Size,
        kv_size: Size,
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
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        numbers = {"n_heads": n_heads, "n_head_channels": n_head_channels, "n_groups": n_groups, "stride": stride}
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a positive integer, got {number!r}")
        if n_heads % n_groups:
            raise ValueError(f"n_groups must divide n_heads {n_heads}, got {n_groups}")
        if stage_idx not in range(len(OFFSET_KERNELS)):
            raise ValueError(f"stage_idx must be 0, 1, 2 or 3, got {stage_idx!r}")
        self.q_h, self.q_w = pair(q_size, "q_size", 1)
        self.kv_h, self.kv_w = pair(kv_size, "kv_size", 1)
        self.by_distance = use_pe and not (dwc_pe or fixed_pe)
        if self.by_distance and (self.q_h, self.q_w) != (self.kv_h, self.kv_w):
            raise ValueError(f"kv_size must be q_size {q_size!r} where a table has the bias by distance: {kv_size!r}")
        self.n_heads = n_heads
        self.n_head_channels = n_head_channels
        self.nc = n_heads * n_head_channels
        self.n_groups = n_groups
        self.n_group_channels = self.nc // n_groups
        self.offset_range_factor = offset_range_factor
        self.use_pe, self.dwc_pe, self.no_off, self.fixed_pe = use_pe, dwc_pe, no_off, fixed_pe
        group, size = self.n_group_channels, OFFSET_KERNELS[stage_idx]
        self.conv_offset = nn.Sequential(
            nn.Conv2d(group, group, size, stride, size // 2, groups=group, device=device, dtype=dtype),
            _ChannelNorm(group, device, dtype),
            nn.GELU(),
            nn.Conv2d(group, 2, 1, bias=False, device=device, dtype=dtype),
        )
        self.proj_q, self.proj_k, self.proj_v, self.proj_out = (
            nn.Conv2d(self.nc, self.nc, 1, device=device, dtype=dtype) for _ in range(4)
        )
        self.proj_drop = nn.Dropout(proj_drop)
        self.attn_drop = nn.Dropout(attn_drop)
        self.rpe_table = self._positional_term(device, dtype)

    def _positional_term(
        self, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> nn.Parameter | nn.Conv2d | None:
        if not self.use_pe:
            return None
        if self.dwc_pe:
            return nn.Conv2d(self.nc, self.nc, 3, padding=1, groups=self.nc, device=device, dtype=dtype)
        sizes = (2 * self.kv_h - 1, 2 * self.kv_w - 1)
        if self.fixed_pe:
            sizes = (self.q_h * self.q_w, self.kv_h * self.kv_w)
        table = torch.empty(self.n_heads, *sizes, device=device, dtype=dtype)
        return nn.Parameter(nn.init.trunc_normal_(table, std=0.01))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attend.

        Args:
            x: (N, C, H, W), H and W those of q_size where a table has a bias.

        Returns:
            The output (N, C, H, W); places and grid of the samples, (N, n_groups, Hk, Wk, 2) each: (y, x) from -1 to 1,
            which are the centres of the first and last pixel of an axis, float32 or better.

        Raises:
            ValueError: the input does not fit; the message names it.
        """
        self._check(x)
        batch, _, height, width = x.shape
        q = self.proj_q(x)
        places, grid = self._places(q)
        sampled = _sample(x.reshape(-1, self.n_group_channels, height, width), places).view(batch, self.nc, 1, -1)
        heads = (batch, self.n_heads, self.n_head_channels, -1)
        queries, keys, values = (
            each.reshape(heads).transpose(-2, -1) for each in (q, self.proj_k(sampled), self.proj_v(sampled))
        )
        bias = self._bias(places, height, width)
        out = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=None if bias is None else bias.to(queries.dtype),
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        out = out.transpose(-2, -1).reshape(batch, self.nc, height, width)
        if isinstance(self.rpe_table, nn.Conv2d):
            out = out + self.rpe_table(q)
        by_group = (batch, self.n_groups, *places.shape[1:3], 2)
        return self.proj_drop(self.proj_out(out)), places.view(by_group), grid.expand_as(places).reshape(by_group)

    def _places(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Places of the samples (N * n_groups, Hk, Wk, 2) and their grid (Hk, Wk, 2), float32 or better."""
        offset = self.conv_offset(q.reshape(-1, self.n_group_channels, *q.shape[2:])).permute(0, 2, 3, 1)
        offset = offset.to(_precise(q))
        grid = _grid(offset.shape[1], offset.shape[2], offset)
        if self.offset_range_factor > 0:
            # Each axis by its number: in a tensor, an exported program would keep the sizes of its example.
            shares = (self.offset_range_factor / side for side in offset.shape[1:3])
            axes = zip(offset.tanh().unbind(-1), shares, strict=True)
            offset = torch.stack([axis * share for axis, share in axes], -1)
        if self.no_off:
            offset = torch.zeros_like(offset)
        places = grid + offset
        return (places if self.offset_range_factor >= 0 else places.tanh()), grid

    def _bias(self, places: torch.Tensor, height: int, width: int) -> torch.Tensor | None:
        """What is added to the scores, (N or 1, n_heads, H * W, samples)."""
        if not isinstance(self.rpe_table, torch.Tensor):
            return None
        if self.fixed_pe:
            return self.rpe_table.unsqueeze(0)
        queries = _grid(height, width, places).view(-1, 1, 2)
        distance = (queries - places.flatten(1, 2).unsqueeze(1)) * 0.5  # (N * n_groups, H * W, samples, 2)
        batch = places.shape[0] // self.n_groups
        table = self.rpe_table.unflatten(0, (self.n_groups, -1)).expand(batch, -1, -1, -1, -1).flatten(0, 1)
        bias: torch.Tensor = _sample(table, distance).unflatten(0, (batch, self.n_groups))
        return bias.flatten(1, 2)

    def _check(self, x: torch.Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.nc:
            raise ValueError(f"x must be (N, {self.nc}, H, W), got shape {tuple(x.shape)}")
        if isinstance(self.rpe_table, torch.Tensor) and tuple(x.shape[2:]) != (self.q_h, self.q_w):
            raise ValueError(f"x must be {self.q_h}x{self.q_w} as q_size is, got {x.shape[2]}x{x.shape[3]}")


class _ChannelNorm(nn.Module):
    """LayerNorm over the channels of an NCHW image; nested as the authors', whose nesting is in the names."""

    def __init__(self, channels: int, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, device=device, dtype=dtype)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(image.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


def _precise(tensor: torch.Tensor) -> torch.dtype:
    """The dtype of places: half precision would move them by hundredths of a pixel."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _grid(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """(height, width, 2): the centres of equal parts of the range from -1 to 1, (y, x)."""
    y, x = (
        (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) * (2 / side) - 1 for side in (height, width)
    )
    return torch.stack([y.view(-1, 1).expand(-1, width), x.expand(height, -1)], -1)


def _sample(image: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Samples (N, C, ...) of NCHW images at (y, x) places (N, Hk, Wk, 2), in the dtype of the image."""
    sampled = F.grid_sample(image.to(places.dtype), places.flip(-1), align_corners=True)
    return sampled.to(image.dtype)
