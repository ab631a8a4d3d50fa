"""DCNv4 put into other networks, as in the supplement of its paper: ConvNeXt, ViT, and a residual block of a U-Net.

```python
import timm
from opbench.models import transplant

model = transplant(timm.create_model("convnext_base"), "dcnv4_lightweight")
```

All that is not replaced stays as it was, with its weights. The supplement (table 4 and figure 1) does not say how many
channels a group has; here 32, or all where there are fewer.

Source: Xiong et al., Efficient Deformable ConvNets, CVPR 2024.
"""

from collections.abc import Callable
from typing import Any

import torch
from opbench_kernels import DCNv4
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from opbench.models.layers import to_nchw, to_nhwc

__all__ = ["TRANSPLANTS", "OverNHWC", "OverTokens", "UNetBlock", "replace_operators", "transplant"]

GROUP_CHANNELS = 32


class OverNHWC(nn.Module):
    """A module of NHWC images, for NCHW ones.

    Args:
        inner: maps (N, H, W, C) to the same shape.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        return to_nchw(self.inner(to_nhwc(x)))


class OverTokens(nn.Module):
    """A module of NHWC images, for tokens in the place of an attention.

    Args:
        inner: maps (N, H, W, C) to the same shape.
        grid_size: height and width of the map of tokens.
    """

    def __init__(self, inner: nn.Module, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.inner = inner
        self.grid_size = grid_size

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        """(N, H W, C) to the same shape; there is no attention that a mask could be for.

        Raises:
            ValueError: a mask, or another number of tokens than the grid has.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("a mask is for attention, which DCNv4 has replaced")
        height, width = self.grid_size
        if x.shape[1] != height * width:
            raise ValueError(f"x must have {height * width} tokens, a map of {height}x{width}, got {x.shape[1]}")
        out: torch.Tensor = self.inner(x.unflatten(1, (height, width)))
        return out.flatten(1, 2)


class UNetBlock(nn.Module):
    """A residual block of a diffusion model's U-Net: twice GroupNorm, SiLU and 3x3 convolution, or DCNv4 for it; NCHW.

    Args:
        channels: C, a multiple of 32.
        operator: "conv3x3" or "dcnv4".
        time_channels: of an embedding of the time step that is added between the two; None for none.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022.
    """

    def __init__(self, channels: int, operator: str = "conv3x3", time_channels: int | None = None) -> None:
        super().__init__()
        makers: dict[str, Callable[[], nn.Module]] = {
            "conv3x3": lambda: nn.Conv2d(channels, channels, 3, padding=1),
            "dcnv4": lambda: OverNHWC(dcnv4(channels)),
        }
        if operator not in makers:
            raise ValueError(f"operator must be one of {', '.join(makers)}, got {operator!r}")
        if channels % GROUP_CHANNELS:
            raise ValueError(f"channels must be a multiple of {GROUP_CHANNELS}, got {channels}")
        self.norm1, self.norm2 = nn.GroupNorm(32, channels), nn.GroupNorm(32, channels)
        self.operator1, self.operator2 = makers[operator](), makers[operator]()
        self.act = nn.SiLU()
        self.time = nn.Linear(time_channels, channels) if time_channels else None

    def forward(self, x: torch.Tensor, time: torch.Tensor | None = None) -> torch.Tensor:
        """(N, C, H, W), and the embedding (N, time_channels) where there is one, to (N, C, H, W)."""
        hidden = self.operator1(self.act(self.norm1(x)))
        if self.time is not None and time is not None:
            hidden = hidden + self.time(self.act(time))[:, :, None, None]
        out: torch.Tensor = x + self.operator2(self.act(self.norm2(hidden)))
        return out


def dcnv4(channels: int, *, lightweight: bool = False) -> DCNv4:
    """DCNv4 for a feature map of so many channels."""
    return DCNv4(channels, group=max(1, channels // GROUP_CHANNELS), without_pointwise=lightweight)


TRANSPLANTS = {
    "convnext": ("depthwise_conv", "dcnv4_lightweight", "none"),
    "vit": ("attention", "dcnv4", "none"),
}
"""By architecture: the operator of its blocks, the one that can take its place, and none, to see what they cost."""


def transplant(model: nn.Module, operator: str) -> nn.Module:
    """Put another operator into every block of timm's ConvNeXt or ViT, in place.

    Args:
        model: ConvNeXt, whose 7x7 depthwise convolutions lightweight DCNv4 replaces, or VisionTransformer without a
            class token (`class_token=False, global_pool="avg"`), whose attentions DCNv4 replaces.
        operator: one that the architecture has in TRANSPLANTS; its own changes nothing, none leaves it out.

    Returns:
        The model.

    Raises:
        ValueError: an operator that does not fit the model, or a model of another architecture.
    """
    kind = "convnext" if isinstance(model, ConvNeXt) else "vit" if isinstance(model, VisionTransformer) else ""
    if not kind:
        raise ValueError(f"model must be timm's ConvNeXt or VisionTransformer, got {type(model).__name__}")
    own, other, none = TRANSPLANTS[kind]
    if operator not in TRANSPLANTS[kind]:
        raise ValueError(f"operator must be one of {', '.join(TRANSPLANTS[kind])}, got {operator!r}")
    if operator != own and getattr(model, "num_prefix_tokens", False):
        raise ValueError('a ViT must have no class token: class_token=False, global_pool="avg"')
    if operator == other:
        replace_operators(model, lambda channels: dcnv4(channels, lightweight=kind == "convnext"))
    elif operator == none:
        replace_operators(model, lambda _: nn.Identity())
    return model


def replace_operators(model: nn.Module, make: Callable[[int], nn.Module]) -> None:
    """Replace the operator of every block of timm's ConvNeXt or ViT, in place.

    Args:
        model: of one of the two.
        make: from channels to a module that maps (N, H, W, C) to the same shape.
    """
    patches: Any = getattr(model, "patch_embed", None)
    for block in model.modules():
        if isinstance(block, ConvNeXtBlock):
            block.conv_dw = OverNHWC(make(block.conv_dw.in_channels))
        elif isinstance(block, Block):
            norm: Any = block.norm1
            block.attn = OverTokens(make(norm.normalized_shape[-1]), patches.grid_size)
