"""The operator inside a block of InternImage: the authors' two, and others to put in their place."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from opbench_kernels import DCNv3, DCNv4
from torch import nn

from opbench.models.layers import to_nchw, to_nhwc
from opbench.models.windows import merge, partition, relative_position_index

__all__ = ["CORE_OPERATORS", "OPERATOR_NAMES", "Conv3x3", "CoreSettings", "WindowAttention", "core_operator"]


@dataclass(frozen=True)
class CoreSettings:
    """What a block tells its operator; each operator takes what it has a use for. As InternImage's arguments."""

    channels: int
    groups: int
    offset_scale: float = 1.0
    act_layer: str = "GELU"
    norm_layer: str = "LN"
    dw_kernel_size: int | None = None
    center_feature_scale: bool = False
    remove_center: bool = False
    output_bias: bool = True


def _dcnv3(settings: CoreSettings) -> nn.Module:
    return DCNv3(
        settings.channels,
        group=settings.groups,
        offset_scale=settings.offset_scale,
        act_layer=settings.act_layer,
        norm_layer=settings.norm_layer,
        dw_kernel_size=settings.dw_kernel_size,
        center_feature_scale=settings.center_feature_scale,
        remove_center=settings.remove_center,
    )


def _dcnv4(settings: CoreSettings) -> nn.Module:
    return DCNv4(
        settings.channels,
        group=settings.groups,
        offset_scale=settings.offset_scale,
        dw_kernel_size=settings.dw_kernel_size,
        center_feature_scale=settings.center_feature_scale,
        remove_center=settings.remove_center,
        output_bias=settings.output_bias,
    )


def _window_attention(settings: CoreSettings) -> nn.Module:
    return WindowAttention(settings.channels, num_heads=settings.groups)


def _conv3x3(settings: CoreSettings) -> nn.Module:
    return Conv3x3(settings.channels)


CORE_OPERATORS: dict[str, Callable[[CoreSettings], nn.Module]] = {
    "DCNv3": _dcnv3,
    "DCNv4": _dcnv4,
    "WindowAttention": _window_attention,
    "Conv3x3": _conv3x3,
    "Identity": lambda _: nn.Identity(),
}
"""By `core_op`: makes a module that maps (N, H, W, C) to the same shape."""

OPERATOR_NAMES = {
    "dcnv3": "DCNv3",
    "dcnv4": "DCNv4",
    "window_attention": "WindowAttention",
    "conv3x3": "Conv3x3",
    "none": "Identity",
}
"""From the name of an operator in opbench to `core_op`; none leaves it out, to see what it costs."""


def core_operator(name: str, settings: CoreSettings) -> nn.Module:
    """The operator of this name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in CORE_OPERATORS:
        raise ValueError(f"core_op must be one of {', '.join(CORE_OPERATORS)}, got {name!r}")
    return CORE_OPERATORS[name](settings)


class Conv3x3(nn.Module):
    """A dense 3x3 convolution that keeps channels and size; NHWC.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) to the same shape."""
        return to_nhwc(self.conv(to_nchw(x)))


class WindowAttention(nn.Module):
    """Self-attention inside windows without shift, with Swin's relative position bias; NHWC.

    An image that the window does not divide gets zeros at its right and lower edge, as in Swin; they are attended to.

    Args:
        channels: C.
        num_heads: a divisor of C.
        window_size: side of the window, pixels.

    Raises:
        ValueError: num_heads does not divide C.

    Source: Liu et al., Swin Transformer, ICCV 2021.
    """

    def __init__(self, channels: int, num_heads: int, window_size: int = 7) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"num_heads must divide the {channels} channels, got {num_heads}")
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) to the same shape."""
        _, height, width, _ = x.shape
        side = self.window_size
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        out = self._attend(partition(x, (side, side)))
        return merge(out, (side, side), *x.shape[1:3])[:, :height, :width]

    def _attend(self, windows: torch.Tensor) -> torch.Tensor:
        """(windows, tokens, C) to the same shape."""
        qkv = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # (windows, heads, tokens, head_dim)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self._bias().to(query.dtype))
        projected: torch.Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected

    def _bias(self) -> torch.Tensor:
        """The bias of each pair of tokens, (heads, tokens, tokens)."""
        index = relative_position_index((self.window_size, self.window_size), self.relative_position_bias_table.device)
        return self.relative_position_bias_table[index].permute(2, 0, 1)
