"""ParCNetV2, a backbone of kernels larger than the image, with gates; parameters named as the authors' are."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from opbench_kernels import BGU, ParCV2
from torch import nn

from opbench.models.backbone import Backbone
from opbench.models.layers import SequentialStage, drop_path, drop_path_rates, initialise, to_nchw, to_nhwc

__all__ = ["ParCNetV2"]

Layer = Callable[..., nn.Module]


class LayerNormGeneral(nn.Module):
    """The authors' normalisation: centred over the last axis and divided by its L2 norm, not its deviation.

    Args:
        dim: C.
        bias: whether to add a bias.
        eps: the least norm to divide by.
    """

    def __init__(self, dim: int, bias: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) to the same shape."""
        centred = x - x.mean(-1, keepdim=True)
        out: torch.Tensor = centred / centred.norm(2, -1, keepdim=True).clamp_min(self.eps) * self.weight
        return out if self.bias is None else out + self.bias


class Downsampling(nn.Module):
    """A strided convolution with a normalisation before or after it; the result is NHWC.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: of the convolution.
        pre_norm: makes a normalisation of `in_channels`; the input is then NHWC.
        post_norm: makes one of `out_channels`; the input is then NCHW.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int,
        pre_norm: Layer | None = None,
        post_norm: Layer | None = None,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm(in_channels) if pre_norm else None
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
        self.post_norm = post_norm(out_channels) if post_norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pre_norm is not None:
            x = to_nchw(self.pre_norm(x))
        result: torch.Tensor = self.post_norm(to_nhwc(self.conv(x)))
        return result


class Scale(nn.Module):
    """A trained factor per channel, the last axis."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


MLP = partial(BGU, mlp_ratio=5)
NORM = partial(LayerNormGeneral, eps=1e-6, bias=False)
OUTPUT_NORM = partial(nn.LayerNorm, eps=1e-6)
STEM = partial(Downsampling, kernel_size=7, stride=4, padding=2, post_norm=NORM)
HALVING = partial(Downsampling, kernel_size=3, stride=2, padding=1, pre_norm=NORM)


class ParCNetV2Block(nn.Module):
    """The mixer of pixels, then an MLP, each in a residual branch; (N, H, W, C) to the same shape.

    Args:
        dim: C.
        token_mixer, mlp: the layers, of `dim` channels.
        norm_layer: makes a normalisation of `dim` channels.
        drop_path_rate: probability of dropping a branch in training.
        layer_scale_init_value, res_scale_init_value: initial factor on branches, and on what they are added to; None
            for none.
    """

    def __init__(
        self,
        dim: int,
        token_mixer: nn.Module,
        mlp: nn.Module,
        norm_layer: Layer,
        drop_path_rate: float,
        layer_scale_init_value: float | None,
        res_scale_init_value: float | None,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.token_mixer = token_mixer
        self.drop_path1 = drop_path(drop_path_rate)
        self.layer_scale1 = _scale(dim, layer_scale_init_value)
        self.res_scale1 = _scale(dim, res_scale_init_value)
        self.norm2 = norm_layer(dim)
        self.mlp = mlp
        self.drop_path2 = drop_path(drop_path_rate)
        self.layer_scale2 = _scale(dim, layer_scale_init_value)
        self.res_scale2 = _scale(dim, res_scale_init_value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.res_scale1(x) + self.layer_scale1(self.drop_path1(self.token_mixer(self.norm1(x))))
        result: torch.Tensor = self.res_scale2(x) + self.layer_scale2(self.drop_path2(self.mlp(self.norm2(x))))
        return result


def _scale(dim: int, init_value: float | None) -> nn.Module:
    return Scale(dim, init_value) if init_value else nn.Identity()


class ParCNetV2(Backbone):
    """ParCNetV2 with the authors' constructor arguments; their checkpoints load with strict=True.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        depths: blocks of each stage.
        dims: channels of each stage.
        downsample_layers: make the layer before each stage, from the channels before and after it.
        token_mixers: makes the mixer of pixels, with arguments dim and global_kernel_size; one for all stages or each.
        global_kernel_sizes: length of the oversized kernels in each stage, pixels, odd. 2 H - 1 covers the image; the
            default values do at 224 pixels.
        mlps: makes the MLP, with the argument dim; one for all stages or each.
        norm_layers: makes a normalisation over the channels; one for all stages or each.
        drop_path_rate: stochastic depth of the last block.
        head_dropout: dropout before the classifier. (The authors hand it to `head_fn`.)
        layer_scale_init_values, res_scale_init_values: initial factor on branches, and on what they are added to; None
            for none; one for all stages or each.
        output_norm: makes the normalisation of the pooled features.
        head_fn: makes the classifier from the numbers of channels and classes.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Xu et al., ParCNetV2: Oversized Kernel with Enhanced Attention, ICCV 2023.
    """

    channels_last = True
    first_conv = "downsample_layers.0.conv"
    stem_names = r"downsample_layers\.0\."
    block_names = r"stages\.(\d+)\.(\d+)\."
    downsampling_names = r"downsample_layers\.(\d+)\."
    stage_after_downsampling = 0

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (64, 128, 320, 512),
        downsample_layers: Sequence[Layer] = (STEM, HALVING, HALVING, HALVING),
        token_mixers: Layer | Sequence[Layer] = ParCV2,
        global_kernel_sizes: Sequence[int] = (111, 55, 27, 13),
        mlps: Layer | Sequence[Layer] = MLP,
        norm_layers: Layer | Sequence[Layer] = NORM,
        drop_path_rate: float = 0.0,
        head_dropout: float = 0.0,
        layer_scale_init_values: float | Sequence[float | None] | None = None,
        res_scale_init_values: float | Sequence[float | None] | None = (None, None, 1.0, 1.0),
        output_norm: Layer = OUTPUT_NORM,
        head_fn: Layer = nn.Linear,
    ) -> None:
        super().__init__(num_classes=num_classes, channels=dims)
        each = {
            "dims": dims,
            "downsample_layers": downsample_layers,
            "token_mixers": token_mixers,
            "global_kernel_sizes": global_kernel_sizes,
            "mlps": mlps,
            "norm_layers": norm_layers,
            "layer_scale_init_values": layer_scale_init_values,
            "res_scale_init_values": res_scale_init_values,
        }
        by_stage = {name: _by_stage(name, value, len(depths)) for name, value in each.items()}
        sizes = zip([in_chans, *dims[:-1]], dims, by_stage["downsample_layers"], strict=True)
        self.downsample_layers = nn.ModuleList(layer(before, after) for before, after, layer in sizes)
        self.stages = nn.ModuleList()
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            stage = {name: values[index] for name, values in by_stage.items()}
            self.stages.append(SequentialStage(*[_block(stage, rate) for rate in rates]))
        self.norm = output_norm(dims[-1])
        self.head = head_fn(dims[-1], num_classes) if num_classes else nn.Identity()
        self.drop_rate = head_dropout
        self.apply(initialise)

    def _downsample(self, index: int, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.downsample_layers[index](x)
        return result

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.norm(x.mean((1, 2))) if self.global_pool else to_nchw(self.norm(x))
        return pooled

    def _drop_after(self, last: int) -> None:
        self.downsample_layers = self.downsample_layers[: last + 1]
        self.norm = nn.Identity()


def _by_stage(name: str, value: Any, stages: int) -> list[Any]:  # noqa: ANN401 - an argument of ParCNetV2
    """One value for each stage, of one for all or of as many as there are stages."""
    if not isinstance(value, list | tuple):
        return [value] * stages
    if len(value) != stages:
        raise ValueError(f"{name} must have one entry for each of the {stages} stages of depths, got {len(value)}")
    return list(value)


def _block(stage: dict[str, Any], drop_path_rate: float) -> ParCNetV2Block:
    """A block from the arguments of ParCNetV2, one stage's."""
    dim = stage["dims"]
    return ParCNetV2Block(
        dim,
        stage["token_mixers"](dim=dim, global_kernel_size=stage["global_kernel_sizes"]),
        stage["mlps"](dim=dim),
        stage["norm_layers"],
        drop_path_rate,
        stage["layer_scale_init_values"],
        stage["res_scale_init_values"],
    )
