"""Small parts that several backbones have: layouts, stochastic depth, stages."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from timm.layers.drop import DropPath
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = [
    "LayerNormNCHW",
    "SequentialStage",
    "Stage",
    "ToNCHW",
    "ToNHWC",
    "drop_path",
    "drop_path_rates",
    "initialise",
    "initialise_linear",
    "to_nchw",
    "to_nhwc",
]


def to_nchw(x: torch.Tensor) -> torch.Tensor:
    """(N, H, W, C) to (N, C, H, W), a view."""
    return x.permute(0, 3, 1, 2)


def to_nhwc(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) to (N, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


class ToNCHW(nn.Module):
    """to_nchw in an nn.Sequential."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return to_nchw(x)


class ToNHWC(nn.Module):
    """to_nhwc in an nn.Sequential."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return to_nhwc(x)


class LayerNormNCHW(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.LayerNorm's name
        return to_nchw(super().forward(to_nhwc(input)))


class Stage(nn.Module, ABC):
    """Residual blocks at one resolution, one after another."""

    grad_checkpointing = False

    @abstractmethod
    def residual_blocks(self) -> list[nn.Module]:
        """The blocks in order; each maps a tensor to one of the same shape."""

    def _run(self, block: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """A block's output; under checkpointing its activations are not kept."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            result: torch.Tensor = checkpoint(block, x, use_reentrant=False)
        else:
            result = block(x)
        return result

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.residual_blocks():
            x = self._run(block, x)
        return x


class SequentialStage(nn.Sequential, Stage):
    """A stage of blocks that are named by their number."""

    def residual_blocks(self) -> list[nn.Module]:
        return list(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Stage.forward(self, x)


def drop_path_rates(last: float, depths: Sequence[int], kind: str = "linear") -> list[list[float]]:
    """The rate of stochastic depth of each block, by stage.

    Args:
        last: rate of the last block, in [0, 1).
        depths: blocks of each stage.
        kind: "linear" rises from 0 to `last` over all blocks, "uniform" is `last` everywhere.

    Raises:
        ValueError: an unknown kind, or a rate out of range.
    """
    if kind not in ("linear", "uniform"):
        raise ValueError(f"drop_path_type must be 'linear' or 'uniform', got {kind!r}")
    if not 0 <= last < 1:
        raise ValueError(f"drop_path_rate must be in [0, 1), got {last!r}")
    blocks = sum(depths)
    rates = iter([last if kind == "uniform" else last * index / max(blocks - 1, 1) for index in range(blocks)])
    return [[next(rates) for _ in range(depth)] for depth in depths]


def drop_path(rate: float) -> nn.Module:
    """Stochastic depth in a residual branch; Identity where nothing is dropped."""
    return DropPath(rate) if rate > 0 else nn.Identity()


def initialise_linear(module: nn.Module) -> None:
    """For nn.Module.apply: a Linear's weight from a normal distribution of std 0.02 cut at 2, its bias 0."""
    if isinstance(module, nn.Linear):
        _initialise(module)


def initialise(module: nn.Module) -> None:
    """For nn.Module.apply: as initialise_linear, of convolutions too."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        _initialise(module)


def _initialise(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
