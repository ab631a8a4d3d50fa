"""DAT (v1), window attention and deformable attention in turns; parameters named as the authors' are."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from opbench.models.backbone import Backbone
from opbench.models.dat_blocks import StageSettings, TransformerStage
from opbench.models.dat_windows import LayerNormProxy
from opbench.models.layers import drop_path_rates

__all__ = ["DAT"]

STAGES = 4
TABLES = ("relative_position_bias_table", "rpe_table")
"""Parameters whose size depends on that of the image or window, and that can be interpolated."""


class DAT(Backbone):
    """DAT (v1) with the authors' constructor arguments; their checkpoints load with strict=True.

    `forward` gives the logits alone; the authors' gives the sampling positions too. Sequences have an entry a stage.

    Args:
        img_size: of the only images that it takes, a side or (height, width), pixels.
        patch_size: pixels per pixel of the first stage, in each direction.
        num_classes: 0 for no classifier.
        expansion: hidden channels of the MLPs per channel.
        dim_stem: channels of the first layer.
        dims: channels of each stage, each twice those before.
        depths: blocks of each stage.
        heads: of attention.
        window_sizes: side of the windows, pixels.
        drop_rate, attn_drop_rate: dropout in MLPs and after attention, and of attention weights.
        drop_path_rate: stochastic depth of the last block.
        strides, offset_range_factor, groups, use_pes, dwc_pes, fixed_pes, no_offs: of deformable attention, see
            opbench_kernels.DAttention.
        stage_spec: the blocks of each stage: "L" attends in windows, "S" in shifted windows, "D" to sampled positions.
        use_dwc_mlps: a depthwise convolution in the MLPs.
        use_conv_patches: overlapping kernels in the downsampling layers.
        sr_ratios, ns_per_pts: without effect, as in the authors' code.
        in_chans: channels of the image.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Xia et al., Vision Transformer with Deformable Attention, CVPR 2022.
    """

    classifier_name = "cls_head"
    first_conv = "patch_proj.0"
    has_fixed_size = True
    has_head_dropout = False
    stem_names = r"patch_proj\."
    block_names = r"stages\.(\d+)\.(?:layer_norms|attns|mlps)\.(\d+)\."
    downsampling_names = r"down_projs\.(\d+)\."

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        num_classes: int = 1000,
        expansion: int = 4,
        dim_stem: int = 96,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window_sizes: Sequence[int] = (7, 7, 7, 7),
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        strides: Sequence[int] = (-1, -1, -1, -1),
        offset_range_factor: Sequence[float] = (1, 2, 3, 4),
        stage_spec: Sequence[Sequence[str]] = (("L", "D"), ("L", "D"), ("L", "D", "L", "D", "L", "D"), ("L", "D")),
        groups: Sequence[int] = (-1, -1, 3, 6),
        use_pes: Sequence[bool] = (False, False, False, False),
        dwc_pes: Sequence[bool] = (False, False, False, False),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        fixed_pes: Sequence[bool] = (False, False, False, False),
        no_offs: Sequence[bool] = (False, False, False, False),
        ns_per_pts: Sequence[int] = (4, 4, 4, 4),
        use_dwc_mlps: Sequence[bool] = (False, False, False, False),
        use_conv_patches: bool = False,
        in_chans: int = 3,
    ) -> None:
        super().__init__(num_classes=num_classes, channels=dims)
        if any(after != 2 * before for before, after in pairwise(dims)):
            raise ValueError(f"dims must double from stage to stage, got {tuple(dims)}")
        if [len(spec) for spec in stage_spec] != list(depths):
            raise ValueError(f"stage_spec must have the blocks of depths {tuple(depths)}, got {stage_spec!r}")
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.patch_proj = _downsampling(in_chans, dim_stem, patch_size, use_conv_patches, bias=True)
        self.stages = nn.ModuleList()
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            settings = StageSettings(
                index=index,
                fmap_size=self._fmap_size(patch_size * 2**index),
                dim_in=dims[index] if index else dim_stem,
                dim=dims[index],
                spec=stage_spec[index],
                heads=heads[index],
                window_size=window_sizes[index],
                groups=groups[index],
                use_pe=use_pes[index],
                dwc_pe=dwc_pes[index],
                fixed_pe=fixed_pes[index],
                no_off=no_offs[index],
                stride=strides[index],
                offset_range_factor=offset_range_factor[index],
                use_dwc_mlp=use_dwc_mlps[index],
                expansion=expansion,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
            )
            self.stages.append(TransformerStage(settings, rates))
        self.down_projs = nn.ModuleList(
            _downsampling(dims[index], dims[index + 1], 2, use_conv_patches, bias=False) for index in range(STAGES - 1)
        )
        self.cls_norm: nn.Module = LayerNormProxy(dims[-1])
        self.cls_head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()

    def _fmap_size(self, reduction: int) -> tuple[int, int]:
        height, width = self.img_size
        if height % reduction or width % reduction:
            raise ValueError(f"img_size must be a multiple of {reduction}, got {height}x{width}")
        return height // reduction, width // reduction

    def check_size(self, height: int, width: int) -> None:
        """ValueError unless the image is of img_size."""
        if (height, width) != self.img_size:
            wanted = "x".join(map(str, self.img_size))
            raise ValueError(f"images must be {wanted}, the img_size of this DAT, got {height}x{width}")

    def _downsample(self, index: int, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down_projs[index - 1](x) if index else self.patch_proj(x)
        return result

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = self.cls_norm(x)
        return normalised.mean((2, 3)) if self.global_pool else normalised

    def _drop_after(self, last: int) -> None:
        self.down_projs = self.down_projs[:last]
        self.cls_norm = nn.Identity()

    def _place(self, coarse: bool, name: str) -> tuple[int, ...]:
        if found := re.match(r"stages\.(\d+)\.proj\.", name):
            return (1, int(found[1])) if coarse else (1, int(found[1]), 0)
        place = super()._place(coarse, name)
        # Two normalisations a block.
        return (*place[:2], place[2] // 2) if ".layer_norms." in name and not coarse else place

    def no_weight_decay(self) -> set[str]:
        """The tables of position biases."""
        return {name for name, _ in self.named_parameters() if name.endswith(TABLES)}

    def adapt_checkpoint(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A checkpoint of another img_size: tables of position biases are interpolated, bicubic as the authors' are.

        Args:
            state: names with tensors; the buffers that follow from the sizes are taken from the model.
        """
        own = self.state_dict()
        adapted = dict(state)
        for name in own.keys() & state.keys():
            if state[name].shape == own[name].shape:
                continue
            if name.endswith(TABLES):
                adapted[name] = _interpolated(state[name], own[name])
            elif name.endswith(("relative_position_index", "attn_mask")):
                adapted[name] = own[name]
        return adapted


def _downsampling(in_channels: int, out_channels: int, stride: int, overlapping: bool, bias: bool) -> nn.Sequential:
    """A strided convolution with LayerNorm; NCHW."""
    side, padding = (2 * stride - 1, stride - 1) if overlapping else (stride, 0)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, side, stride, padding, bias=bias), LayerNormProxy(out_channels)
    )


def _interpolated(table: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A table of position biases in the size of another: (positions of a square, heads), or (heads, rows, columns)."""
    flat = table.dim() == 2
    sides = [math.isqrt(each.shape[0]) for each in (table, like)] if flat else []
    image = table.T.unflatten(1, (sides[0], sides[0])) if flat else table
    size = (sides[1], sides[1]) if flat else like.shape[1:]
    resized: Any = F.interpolate(image.unsqueeze(0), size=tuple(size), mode="bicubic").squeeze(0)
    result: torch.Tensor = resized.flatten(1).T if flat else resized
    return result
