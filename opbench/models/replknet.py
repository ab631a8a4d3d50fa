"""RepLKNet, a backbone of depthwise convolutions with large kernels; parameters named as the authors' are."""

import itertools
from collections.abc import Sequence

import torch
from opbench_kernels import RepLKBlock, RepLKConv
from torch import nn

from opbench.models.backbone import Backbone
from opbench.models.layers import Stage, drop_path, drop_path_rates

__all__ = ["RepLKNet"]


def _convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1, activated: bool = True
) -> nn.Sequential:
    """A convolution with batch normalisation and ReLU, named as the authors'; the size is kept or divided by stride."""
    padding = kernel_size // 2
    layers = nn.Sequential()
    layers.add_module(
        "conv", nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    )
    layers.add_module("bn", nn.BatchNorm2d(out_channels))
    if activated:
        layers.add_module("nonlinear", nn.ReLU())
    return layers


class ConvFFN(nn.Module):
    """Batch normalisation and two 1x1 convolutions in a residual branch; NCHW.

    Args:
        channels: C of input and output.
        hidden: channels between the convolutions.
        drop_path_rate: probability of dropping the branch in training.
    """

    def __init__(self, channels: int, hidden: int, drop_path_rate: float) -> None:
        super().__init__()
        self.drop_path = drop_path(drop_path_rate)
        self.preffn_bn = nn.BatchNorm2d(channels)
        self.pw1 = _convolution(channels, hidden, 1, activated=False)
        self.pw2 = _convolution(hidden, channels, 1, activated=False)
        self.nonlinear = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        result: torch.Tensor = x + self.drop_path(self.pw2(self.nonlinear(self.pw1(self.preffn_bn(x)))))
        return result


class RepLKNetStage(Stage):
    """Pairs of RepLKBlock and ConvFFN; `norm` is for feature maps alone, not for the next stage."""

    def __init__(self, pairs: Sequence[tuple[RepLKBlock, ConvFFN]], norm: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block for pair in pairs for block in pair])
        self.norm = norm

    def residual_blocks(self) -> list[nn.Module]:
        return list(self.blocks)


class RepLKNet(Backbone):
    """RepLKNet with the authors' constructor arguments; their checkpoints load with strict=True.

    Args:
        large_kernel_sizes: side of each stage's kernel, pixels, odd.
        layers: pairs of a large-kernel block and a ConvFFN in each stage.
        channels: of each stage.
        drop_path_rate: stochastic depth of the last pair.
        small_kernel: side of a second kernel beside the large one, added to it; None for none.
        dw_ratio: channels of the large convolution per channel.
        ffn_ratio: hidden channels of the ConvFFN per channel.
        in_channels: of the image.
        num_classes: 0 for no classifier; None for no last normalisation either.
        out_indices: stages whose maps `forward` gives, as a list, in place of logits; num_classes is then None.
        use_checkpoint: keep no activations inside the blocks for the backward pass, but compute them again.
        small_kernel_merged: build both kernels as one, for inference.
        use_sync_bn: normalise over the batches of all processes. (The authors' default value is True.)
        norm_intermediate_features: a normalisation of each stage's map in `out_indices`.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Ding et al., Scaling Up Your Kernels to 31x31, CVPR 2022.
    """

    in_chans_name = "in_channels"
    first_conv = "stem.0.conv"
    stem_names = r"stem\."
    block_names = r"stages\.(\d+)\.blocks\.(\d+)\."
    downsampling_names = r"transitions\.(\d+)\."

    def __init__(
        self,
        large_kernel_sizes: Sequence[int],
        layers: Sequence[int],
        channels: Sequence[int],
        drop_path_rate: float,
        small_kernel: int | None,
        dw_ratio: float = 1,
        ffn_ratio: float = 4,
        in_channels: int = 3,
        num_classes: int | None = 1000,
        out_indices: Sequence[int] | None = None,
        use_checkpoint: bool = False,
        small_kernel_merged: bool = False,
        use_sync_bn: bool = False,
        norm_intermediate_features: bool = False,
    ) -> None:
        if not len(large_kernel_sizes) == len(layers) == len(channels):
            raise ValueError(
                "large_kernel_sizes, layers and channels must have one entry a stage, "
                f"got {large_kernel_sizes!r}, {layers!r} and {channels!r}"
            )
        if (num_classes is None) == (out_indices is None):
            raise ValueError(f"give one of num_classes and out_indices, got {num_classes!r} and {out_indices!r}")
        if norm_intermediate_features and out_indices is None:
            raise ValueError("norm_intermediate_features needs out_indices")
        super().__init__(num_classes=num_classes, channels=channels)
        self.out_indices = out_indices
        width = channels[0]
        self.stem = nn.ModuleList(
            [
                _convolution(in_channels, width, 3, stride=2),
                _convolution(width, width, 3, groups=width),
                _convolution(width, width, 1),
                _convolution(width, width, 3, stride=2, groups=width),
            ]
        )
        self.stages = nn.ModuleList()
        for kernel, count, rates in zip(
            large_kernel_sizes, channels, drop_path_rates(drop_path_rate, layers), strict=True
        ):
            wide, hidden = int(count * dw_ratio), int(count * ffn_ratio)
            pairs = [
                (
                    RepLKBlock(count, wide, kernel, small_kernel, rate, small_kernel_merged),
                    ConvFFN(count, hidden, rate),
                )
                for rate in rates
            ]
            norm = nn.BatchNorm2d(count) if norm_intermediate_features else nn.Identity()
            self.stages.append(RepLKNetStage(pairs, norm))
        self.transitions = nn.ModuleList(
            nn.Sequential(_convolution(before, after, 1), _convolution(after, after, 3, stride=2, groups=after))
            for before, after in itertools.pairwise(channels)
        )
        self.norm = nn.Identity() if num_classes is None else nn.BatchNorm2d(channels[-1])
        self.head = nn.Linear(channels[-1], num_classes) if num_classes else nn.Identity()
        self.set_grad_checkpointing(use_checkpoint)
        if use_sync_bn:
            nn.SyncBatchNorm.convert_sync_batchnorm(self)

    def _downsample(self, index: int, x: torch.Tensor) -> torch.Tensor:
        layers = [self.transitions[index - 1]] if index else self.stem
        for layer in layers:
            x = layer(x)
        return x

    def _feature(self, index: int, x: torch.Tensor) -> torch.Tensor:
        feature: torch.Tensor = self.get_submodule(f"stages.{index}.norm")(x)
        return feature

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = self.norm(x)
        return normalised.mean((2, 3)) if self.global_pool else normalised

    def _drop_after(self, last: int) -> None:
        self.transitions = self.transitions[:last]
        self.norm = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:  # type: ignore[override]
        """Logits (N, num_classes) of images (N, C, H, W), or the maps of `out_indices`, NCHW."""
        if self.out_indices is None:
            return super().forward(x)
        return self._run(x, self._taken(self.out_indices), len(self.stages))[1]

    def structural_reparam(self) -> None:
        """Make one kernel of each large and small one with their normalisation; for inference."""
        for module in self.modules():
            if isinstance(module, RepLKConv):
                module.merge_kernel()
