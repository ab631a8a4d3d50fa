"""InternImage, a backbone of DCNv3, and FlashInternImage, the same with DCNv4; parameters named as the authors' are."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from opbench_kernels import DCNv3, DCNv4
from torch import nn

from opbench.models.backbone import Backbone
from opbench.models.clip_head import CLIP_HEADS, AttentionPooling
from opbench.models.core_operators import CoreSettings, WindowAttention
from opbench.models.intern_image_blocks import (
    BlockSettings,
    Downsample,
    InternImageStage,
    Stem,
    activation,
    normalisation,
)
from opbench.models.layers import drop_path_rates, initialise_linear, to_nchw, to_nhwc

__all__ = ["FlashInternImage", "InternImage"]

CLIP_TOKEN_CHANNELS, CLIP_CHANNELS = 1024, 768
POST_NORMED_STAGE = 2
"""The stage with normalisation between its blocks in InternImage-H."""


class InternImage(Backbone):
    """InternImage with the authors' constructor arguments; their checkpoints load with strict=True.

    Args:
        core_op: operator of the blocks: "DCNv3" as published, "DCNv4", "WindowAttention" or "Conv3x3".
        channels: of the first stage; each later one has twice as many.
        depths: blocks of each stage.
        groups: of the operator in each stage; heads for WindowAttention.
        num_classes: 0 for no classifier.
        mlp_ratio: hidden channels of the MLP per channel.
        drop_rate: dropout after the stem and in the MLPs.
        drop_path_rate: stochastic depth of the last block.
        drop_path_type: "linear" or "uniform", see drop_path_rates.
        act_layer: "GELU", "ReLU" or "SiLU".
        norm_layer: "LN" or "BN", of stem, downsampling and DCNv3; the blocks have LayerNorm.
        layer_scale: initial factor on each residual branch; None for none.
        offset_scale: factor on the operator's offsets.
        post_norm: normalise after operator and MLP instead of before.
        cls_scale: channels of the head's convolution per channel of the last stage.
        with_cp: keep no activations inside the blocks for the backward pass, but compute them again.
        dw_kernel_size: of the operator's depthwise convolution.
        use_clip_projector: InternImage-H's head, over the last two stages.
        level2_post_norm, level2_post_norm_block_ids: normalise after these blocks of the third stage.
        res_post_norm: normalise after operator and MLP as well as before; without layer_scale.
        center_feature_scale, remove_center: of the operator.
        mlp_fc2_bias, dcn_output_bias: whether the second Linear of the MLPs, and DCNv4's output projection, have a
            bias; FlashInternImage's arguments.
        in_chans: channels of the image.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Wang et al., InternImage, CVPR 2023.
    """

    channels_last = True
    stages_name = "levels"
    first_conv = "patch_embed.conv1"
    has_head_dropout = False
    stem_names = r"patch_embed\."
    block_names = r"levels\.(\d+)\.blocks\.(\d+)\."
    downsampling_names = r"levels\.(\d+)\.(?:downsample|norm)\."

    def __init__(
        self,
        core_op: str = "DCNv3",
        channels: int = 64,
        depths: Sequence[int] = (3, 4, 18, 5),
        groups: Sequence[int] = (3, 6, 12, 24),
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        drop_path_type: str = "linear",
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        layer_scale: float | None = None,
        offset_scale: float = 1.0,
        post_norm: bool = False,
        cls_scale: float = 1.5,
        with_cp: bool = False,
        dw_kernel_size: int | None = None,
        use_clip_projector: bool = False,
        level2_post_norm: bool = False,
        level2_post_norm_block_ids: Sequence[int] | None = None,
        res_post_norm: bool = False,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        *,
        mlp_fc2_bias: bool = True,
        dcn_output_bias: bool = True,
        in_chans: int = 3,
    ) -> None:
        if len(depths) != len(groups):
            raise ValueError(f"depths and groups must have one entry a stage, got {depths!r} and {groups!r}")
        widths = [channels * 2**index for index in range(len(depths))]
        hidden = CLIP_CHANNELS if use_clip_projector else int(widths[-1] * cls_scale)
        super().__init__(num_classes=num_classes, channels=widths, head_hidden_size=hidden)
        self.use_clip_projector = use_clip_projector
        core = CoreSettings(
            channels=channels,
            groups=groups[0],
            offset_scale=offset_scale,
            act_layer=act_layer,
            norm_layer=norm_layer,
            dw_kernel_size=dw_kernel_size,
            center_feature_scale=center_feature_scale,
            remove_center=remove_center,
            output_bias=dcn_output_bias,
        )
        settings = BlockSettings(
            core_op=core_op,
            core=core,
            mlp_ratio=mlp_ratio,
            mlp_fc2_bias=mlp_fc2_bias,
            drop_rate=drop_rate,
            post_norm=post_norm,
            res_post_norm=res_post_norm,
            layer_scale=layer_scale,
        )
        self.patch_embed = Stem(in_chans, channels, act_layer, norm_layer)
        self.pos_drop = nn.Dropout(drop_rate)
        self.levels = nn.ModuleList()
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths, drop_path_type)):
            ids = level2_post_norm_block_ids if level2_post_norm and index == POST_NORMED_STAGE else None
            downsample = Downsample(widths[index], norm_layer) if index < len(depths) - 1 else None
            stage = replace(settings, core=replace(core, channels=widths[index], groups=groups[index]))
            self.levels.append(InternImageStage(stage, rates, ids or (), downsample))
        self._add_head(widths, hidden, act_layer)
        self.set_grad_checkpointing(with_cp)
        self._initialise()

    def _add_head(self, widths: Sequence[int], hidden: int, act_layer: str) -> None:
        if self.use_clip_projector:
            self.num_features = CLIP_TOKEN_CHANNELS
            self.dcnv3_head_x4 = nn.Sequential(nn.Conv2d(widths[-1], 4 * CLIP_TOKEN_CHANNELS, 1), nn.PixelShuffle(2))
            self.dcnv3_head_x3 = nn.Conv2d(widths[-2], CLIP_TOKEN_CHANNELS, 1)
            self.clip_projector = AttentionPooling(CLIP_TOKEN_CHANNELS, CLIP_HEADS, hidden)
            self.fc_norm = normalisation(hidden)
        else:
            norm = normalisation(hidden, "BN", "NCHW", "NCHW")
            self.conv_head: nn.Module = nn.Sequential(
                nn.Conv2d(widths[-1], hidden, 1, bias=False), norm, activation(act_layer)
            )
        self.head = nn.Linear(hidden, self.num_classes) if self.num_classes else nn.Identity()

    def _initialise(self) -> None:
        self.apply(initialise_linear)
        for module in self.modules():
            if isinstance(module, DCNv3 | DCNv4 | WindowAttention):
                module._reset_parameters()

    def check_size(self, height: int, width: int) -> None:
        """ValueError where InternImage-H cannot join its last two stages."""
        if not self.use_clip_projector:
            return
        for name, size in (("height", height), ("width", width)):
            if -(-size // 16) % 2:
                raise ValueError(f"{name} must give stage 3 an even size, as a multiple of 32 does, got {size}")

    def _downsample(self, index: int, x: torch.Tensor) -> torch.Tensor:
        if not index:
            stem: torch.Tensor = self.pos_drop(self.patch_embed(x))
            return stem
        downsample = cast(InternImageStage, self.levels[index - 1]).downsample
        return x if downsample is None else downsample(x)

    def _join(self, before_last: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        if not self.use_clip_projector:
            return last
        return to_nhwc(self.dcnv3_head_x4(to_nchw(last)) + self.dcnv3_head_x3(to_nchw(before_last)))

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        if not self.use_clip_projector:
            hidden: torch.Tensor = self.conv_head(to_nchw(x))
            return hidden.mean((2, 3)) if self.global_pool else hidden
        pooled: torch.Tensor = self.fc_norm(self.clip_projector(x.flatten(1, 2))) if self.global_pool else to_nchw(x)
        return pooled

    def _drop_after(self, last: int) -> None:
        cast(InternImageStage, self.levels[last]).downsample = None
        self.conv_head, self.use_clip_projector = nn.Identity(), False
        for name in ("dcnv3_head_x4", "dcnv3_head_x3", "clip_projector", "fc_norm"):
            self._modules.pop(name, None)


class FlashInternImage(InternImage):
    """FlashInternImage, with the authors' constructor arguments; their checkpoints load with strict=True.

    Blocks work on (N, H, W, C), where the authors' flatten an image to (N, H * W, C).

    Args:
        core_op, offset_scale, mlp_fc2_bias, dcn_output_bias: as InternImage's, with the authors' default values.
        arguments: InternImage's others.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Xiong et al., Efficient Deformable ConvNets, CVPR 2024.
    """

    def __init__(
        self,
        core_op: str = "DCNv4",
        *,
        offset_scale: float = 0.5,
        mlp_fc2_bias: bool = False,
        dcn_output_bias: bool = False,
        **arguments: Any,  # noqa: ANN401 - as InternImage's
    ) -> None:
        super().__init__(
            core_op,
            offset_scale=offset_scale,
            mlp_fc2_bias=mlp_fc2_bias,
            dcn_output_bias=dcn_output_bias,
            **arguments,
        )
