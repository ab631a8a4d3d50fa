"""Blocks and stages of InternImage and FlashInternImage; NHWC, parameters named as the authors' are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from opbench.models.core_operators import CoreSettings, core_operator
from opbench.models.layers import Stage, ToNCHW, ToNHWC, drop_path, to_nchw

__all__ = ["BlockSettings", "Downsample", "InternImageStage", "Stem", "activation", "normalisation"]

ACTIVATIONS = {"GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU}


def activation(name: str) -> nn.Module:
    """GELU, ReLU or SiLU by name; ValueError for another."""
    if name not in ACTIVATIONS:
        raise ValueError(f"act_layer must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    layer: nn.Module = ACTIVATIONS[name]()
    return layer


def normalisation(channels: int, kind: str = "LN", reads: str = "NHWC", gives: str = "NHWC") -> nn.Sequential:
    """LayerNorm or BatchNorm2d over the channels between two layouts; nested as the authors', for parameters' names.

    Args:
        channels: C.
        kind: "LN" or "BN".
        reads, gives: "NHWC" or "NCHW".
    """
    if kind not in ("LN", "BN"):
        raise ValueError(f"norm_layer must be 'LN' or 'BN', got {kind!r}")
    works_on = "NHWC" if kind == "LN" else "NCHW"
    norm = nn.LayerNorm(channels, eps=1e-6) if kind == "LN" else nn.BatchNorm2d(channels)
    into = [] if reads == works_on else [ToNHWC() if works_on == "NHWC" else ToNCHW()]
    out_of = [] if gives == works_on else [ToNCHW() if works_on == "NHWC" else ToNHWC()]
    return nn.Sequential(*into, norm, *out_of)


@dataclass(frozen=True)
class BlockSettings:
    """What the blocks of a stage have in common; names as InternImage's arguments."""

    core_op: str
    core: CoreSettings
    mlp_ratio: float
    mlp_fc2_bias: bool
    drop_rate: float
    post_norm: bool
    res_post_norm: bool
    layer_scale: float | None


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2: (N, in_chans, H, W) to (N, H / 4, W / 4, channels), sizes rounded up."""

    def __init__(self, in_chans: int, channels: int, act_layer: str, norm_layer: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, channels // 2, 3, stride=2, padding=1)
        self.norm1 = normalisation(channels // 2, norm_layer, "NCHW", "NCHW")
        self.act = activation(act_layer)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = normalisation(channels, norm_layer, "NCHW", "NHWC")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return result


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2: (N, H, W, C) to (N, H / 2, W / 2, 2C), sizes rounded up."""

    def __init__(self, channels: int, norm_layer: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = normalisation(2 * channels, norm_layer, "NCHW", "NHWC")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.conv(to_nchw(x)))
        return result


class MLP(nn.Module):
    """Linear, activation, Linear, over the channels."""

    def __init__(self, settings: BlockSettings) -> None:
        super().__init__()
        channels = settings.core.channels
        hidden = int(channels * settings.mlp_ratio)
        self.fc1 = nn.Linear(channels, hidden)
        self.act = activation(settings.core.act_layer)
        self.fc2 = nn.Linear(hidden, channels, bias=settings.mlp_fc2_bias)
        self.drop = nn.Dropout(settings.drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        return result


class InternImageBlock(nn.Module):
    """The operator, then an MLP, each in a residual branch with normalisation; (N, H, W, C) to the same shape."""

    def __init__(self, settings: BlockSettings, drop_path_rate: float) -> None:
        super().__init__()
        channels = settings.core.channels
        self.post_norm = settings.post_norm
        self.norm1 = normalisation(channels)
        self.dcn = core_operator(settings.core_op, settings.core)
        self.drop_path = drop_path(drop_path_rate)
        self.norm2 = normalisation(channels)
        self.mlp = MLP(settings)
        self.gamma1 = self.gamma2 = None
        if settings.layer_scale is not None:
            self.gamma1 = nn.Parameter(torch.full((channels,), float(settings.layer_scale)))
            self.gamma2 = nn.Parameter(torch.full((channels,), float(settings.layer_scale)))
        self.res_post_norm1 = normalisation(channels) if settings.res_post_norm else None
        self.res_post_norm2 = normalisation(channels) if settings.res_post_norm else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._branch(x, self.dcn, self.norm1, self.res_post_norm1, self.gamma1)
        return x + self._branch(x, self.mlp, self.norm2, self.res_post_norm2, self.gamma2)

    def _branch(
        self,
        x: torch.Tensor,
        layer: nn.Module,
        norm: nn.Module,
        last_norm: nn.Module | None,
        scale: torch.Tensor | None,
    ) -> torch.Tensor:
        out: torch.Tensor = norm(layer(x)) if self.post_norm else layer(norm(x))
        if scale is not None:
            out = scale * out
        elif last_norm is not None and not self.post_norm:
            out = last_norm(out)
        dropped: torch.Tensor = self.drop_path(out)
        return dropped


class InternImageStage(Stage):
    """Blocks at one resolution; `downsample` leads to the next stage, and the model calls it."""

    def __init__(
        self,
        settings: BlockSettings,
        drop_path_rates: Sequence[float],
        post_norm_block_ids: Sequence[int],
        downsample: nn.Module | None,
    ) -> None:
        super().__init__()
        channels = settings.core.channels
        self.blocks = nn.ModuleList([InternImageBlock(settings, rate) for rate in drop_path_rates])
        normalised = not settings.post_norm or settings.core.center_feature_scale
        self.norm = normalisation(channels) if normalised else nn.Identity()
        self.post_norm_block_ids = list(post_norm_block_ids)
        if self.post_norm_block_ids:
            self.post_norms = nn.ModuleList([normalisation(channels) for _ in self.post_norm_block_ids])
        self.downsample = downsample

    def residual_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self.blocks):
            x = self._run(block, x)
            if index in self.post_norm_block_ids:
                x = self.post_norms[self.post_norm_block_ids.index(index)](x)
        result: torch.Tensor = self.norm(x)
        return result
