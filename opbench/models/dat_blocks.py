"""Blocks and stages of DAT; NCHW, parameters named as the authors' are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from opbench_kernels import DAttention
from torch import nn

from opbench.models.dat_windows import LayerNormProxy, LocalAttention, ShiftWindowAttention
from opbench.models.layers import Stage, drop_path, to_nchw, to_nhwc

__all__ = ["StageSettings", "TransformerStage"]

KINDS = ("L", "S", "D")
"""Blocks that attend in windows, in shifted windows, and to sampled positions."""


class TransformerMLP(nn.Module):
    """Linear, GELU, Linear over the channels of (N, C, H, W).

    Args:
        channels: C.
        expansion: hidden channels per channel.
        drop: dropout after each Linear.
    """

    def __init__(self, channels: int, expansion: int, drop: float) -> None:
        super().__init__()
        self.chunk = nn.Sequential()
        self.chunk.add_module("linear1", nn.Linear(channels, channels * expansion))
        self.chunk.add_module("act", nn.GELU())
        self.chunk.add_module("drop1", nn.Dropout(drop))
        self.chunk.add_module("linear2", nn.Linear(channels * expansion, channels))
        self.chunk.add_module("drop2", nn.Dropout(drop))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return to_nchw(self.chunk(to_nhwc(x)))


class TransformerMLPWithConv(nn.Module):
    """1x1 convolution, depthwise 3x3 convolution, GELU, 1x1 convolution; arguments as TransformerMLP's."""

    def __init__(self, channels: int, expansion: int, drop: float) -> None:
        super().__init__()
        hidden = channels * expansion
        self.linear1 = nn.Conv2d(channels, hidden, 1)
        self.drop1 = nn.Dropout(drop)
        self.act = nn.GELU()
        self.linear2 = nn.Conv2d(hidden, channels, 1)
        self.drop2 = nn.Dropout(drop)
        self.dwc = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.drop1(self.act(self.dwc(self.linear1(x))))
        result: torch.Tensor = self.drop2(self.linear2(hidden))
        return result


class BlockParts(NamedTuple):
    """The layers of a block."""

    norm1: nn.Module
    attention: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    drop_path: nn.Module


class DATBlock(nn.Module):
    """Attention, then an MLP, each in a residual branch with normalisation; (N, C, H, W) to the same shape."""

    def __init__(self, parts: BlockParts) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2, self.mlp, self.drop_path = parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _residual_branches(BlockParts(self.norm1, self.attention, self.norm2, self.mlp, self.drop_path), x)


def _residual_branches(parts: BlockParts, x: torch.Tensor) -> torch.Tensor:
    attended = parts.attention(parts.norm1(x))
    if isinstance(attended, tuple):  # deformable attention also gives the places where it sampled
        attended = attended[0]
    x = x + parts.drop_path(attended)
    result: torch.Tensor = x + parts.drop_path(parts.mlp(parts.norm2(x)))
    return result


@dataclass(frozen=True)
class StageSettings:
    """The arguments of DAT that concern one stage, by its number `index`; fmap_size is its image's, pixels."""

    index: int
    fmap_size: tuple[int, int]
    dim_in: int
    dim: int
    spec: Sequence[str]
    heads: int
    window_size: int
    groups: int
    use_pe: bool
    dwc_pe: bool
    fixed_pe: bool
    no_off: bool
    stride: int
    offset_range_factor: float
    use_dwc_mlp: bool
    expansion: int
    drop: float
    attn_drop: float

    def __post_init__(self) -> None:
        if self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"heads must divide the {self.dim} channels of stage {self.index}, got {self.heads}")
        if unknown := set(self.spec) - set(KINDS):
            raise ValueError(f"stage_spec has {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
        height, width = self.fmap_size
        in_windows = {"L", "S"} & set(self.spec)
        if in_windows and (self.window_size < 1 or height % self.window_size or width % self.window_size):
            raise ValueError(
                f"window_sizes must divide the {height}x{width} pixels of stage {self.index}, got {self.window_size}"
            )

    def attention(self, kind: str) -> nn.Module:
        """The attention of a block of this kind."""
        window = (self.window_size, self.window_size)
        if kind == "L":
            return LocalAttention(self.dim, self.heads, window, self.attn_drop, self.drop)
        if kind == "S":
            shift = math.ceil(self.window_size / 2)
            return ShiftWindowAttention(self.dim, self.heads, window, self.attn_drop, self.drop, shift, self.fmap_size)
        return DAttention(
            self.fmap_size,
            self.fmap_size,
            self.heads,
            self.dim // self.heads,
            self.groups,
            self.attn_drop,
            self.drop,
            self.stride,
            self.offset_range_factor,
            self.use_pe,
            self.dwc_pe,
            self.no_off,
            self.fixed_pe,
            self.index,
        )


class TransformerStage(Stage):
    """Blocks whose parts lie in one list per kind, as the authors' do."""

    def __init__(self, settings: StageSettings, drop_path_rates: Sequence[float]) -> None:
        super().__init__()
        dim, depth = settings.dim, len(settings.spec)
        self.proj = nn.Conv2d(settings.dim_in, dim, 1) if settings.dim_in != dim else nn.Identity()
        mlp = TransformerMLPWithConv if settings.use_dwc_mlp else TransformerMLP
        self.layer_norms = nn.ModuleList(LayerNormProxy(dim) for _ in range(2 * depth))
        self.mlps = nn.ModuleList(mlp(dim, settings.expansion, settings.drop) for _ in range(depth))
        self.attns = nn.ModuleList(settings.attention(kind) for kind in settings.spec)
        self.drop_path = nn.ModuleList(drop_path(rate) for rate in drop_path_rates)

    def _parts(self) -> list[BlockParts]:
        """The layers of each block."""
        norms = self.layer_norms
        layers = zip(norms[::2], self.attns, norms[1::2], self.mlps, self.drop_path, strict=True)
        return [BlockParts(*of_block) for of_block in layers]

    def residual_blocks(self) -> list[nn.Module]:
        """The blocks, each put together from the lists' layers anew: the lists stay their only owners."""
        return [DATBlock(parts) for parts in self._parts()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(x)
        for parts in self._parts():
            x = self._run(partial(_residual_branches, parts), x)
        return x
