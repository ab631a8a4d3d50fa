"""ParCNetV2's operators as modules with the official parameter names."""

from collections.abc import Callable

import torch
from opbench_kernels.depthwise.modules import DepthwiseConv2d
from opbench_kernels.implementation import Implementation, check_implementation
from torch import nn

__all__ = ["BGU", "OversizeConv2d", "ParCV2"]


class OversizeConv2d(nn.Module):
    """A depthwise convolution of kernel_size rows, then one of kernel_size columns; the image keeps its size.

    Args:
        dim: C.
        kernel_size: K, odd; from 2 H - 1 on every pixel reaches all others.
        bias: whether both convolutions have a bias.
        implementation: see opbench_kernels.depthwise_conv2d.

    Raises:
        ValueError: an even kernel_size.

    Source: Xu et al., ParCNetV2: Oversized Kernel with Enhanced Attention, ICCV 2023, section 3.1.
    """

    def __init__(
        self, dim: int, kernel_size: int, bias: bool = False, *, implementation: Implementation = "auto"
    ) -> None:
        super().__init__()
        _check_odd("kernel_size", kernel_size)
        check_implementation(implementation)
        self.conv_h = DepthwiseConv2d(dim, (kernel_size, 1), bias, implementation)
        self.conv_w = DepthwiseConv2d(dim, (1, kernel_size), bias, implementation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        out: torch.Tensor = self.conv_w(self.conv_h(x))
        return out


class ParCV2(nn.Module):
    """Oversized convolution with a gate; the official class is called ParC_V2.

    A 1x1 convolution doubles the channels. The activation of one half goes through the oversized and through a small
    depthwise convolution; their sum times the other half goes through a second 1x1 convolution.

    Args:
        dim: C.
        expansion_ratio: the first 1x1 convolution has int(expansion_ratio * dim) channels, an even number.
        act_layer: makes the activation.
        bias: whether all convolutions but the first have a bias; the first always has.
        kernel_size: side of the small kernel, odd.
        global_kernel_size: K of the oversized one, odd.
        padding: of the small convolution; kernel_size // 2 alone keeps the image's size.
        drop: has no effect, as in the official class; blocks give it to every mixer.
        implementation: of the depthwise convolutions, see opbench_kernels.depthwise_conv2d.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Xu et al., ParCNetV2: Oversized Kernel with Enhanced Attention, ICCV 2023, sections 3.1 and 3.2.
    """

    def __init__(
        self,
        dim: int,
        expansion_ratio: float = 2,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        bias: bool = False,
        kernel_size: int = 7,
        global_kernel_size: int = 13,
        padding: int = 3,
        drop: float = 0.0,
        *,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__()
        channels = int(expansion_ratio * dim)
        if channels < 2 or channels % 2:
            raise ValueError(
                f"expansion_ratio * dim must be an even number of channels, got {expansion_ratio} * {dim} = {channels}"
            )
        _check_odd("kernel_size", kernel_size)
        if padding != kernel_size // 2:
            raise ValueError(f"padding must be {kernel_size // 2} for kernel_size {kernel_size}, got {padding}")
        self.pwconv1 = nn.Conv2d(dim, channels, 1)
        self.act = act_layer()
        self.dwconv1 = OversizeConv2d(channels // 2, global_kernel_size, bias, implementation=implementation)
        self.dwconv2 = DepthwiseConv2d(channels // 2, (kernel_size, kernel_size), bias, implementation)
        self.pwconv2 = nn.Conv2d(channels // 2, dim, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) to (N, H, W, C).

        Raises:
            ValueError: another number of axes or channels.
        """
        if x.dim() != 4 or x.shape[-1] != self.pwconv1.in_channels:
            raise ValueError(f"x must be (N, H, W, {self.pwconv1.in_channels}), got {tuple(x.shape)}")
        carried, gate = self.pwconv1(x.permute(0, 3, 1, 2)).chunk(2, dim=1)
        gate = self.act(gate)
        out: torch.Tensor = self.pwconv2(carried * (self.dwconv1(gate) + self.dwconv2(gate)))
        return out.permute(0, 2, 3, 1)


def _check_odd(name: str, size: int) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1 or size % 2 == 0:
        raise ValueError(f"{name} must be a positive odd integer, got {size!r}")


class BGU(nn.Module):
    """Bifurcate Gate Unit: a Linear, one half of its channels times the activation of the other, a Linear.

    Args:
        dim: C, channels of the input; the last axis.
        mlp_ratio: the first Linear has int(mlp_ratio * dim) channels, an even number.
        out_features: channels of the output; None takes `dim`.
        act_layer: makes the activation.
        drop: probability of the dropouts before and after the second Linear, or one of each.
        bias: whether the second Linear has a bias; the first always has.
        device, dtype: of the parameters.

    Raises:
        ValueError: the channels between the Linears are odd or none.

    Source: Xu et al., ParCNetV2: Oversized Kernel with Enhanced Attention, ICCV 2023, section 3.3.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 4,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float | tuple[float, float] = 0.0,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        if hidden < 2 or hidden % 2:
            raise ValueError(f"mlp_ratio * dim must be an even number of channels, got {mlp_ratio} * {dim} = {hidden}")
        before, after = drop if isinstance(drop, tuple) else (drop, drop)
        self.fc1 = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.act = act_layer()
        self.drop1 = nn.Dropout(before)
        self.fc2 = nn.Linear(hidden // 2, out_features or dim, bias=bias, device=device, dtype=dtype)
        self.drop2 = nn.Dropout(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., out_features).

        Raises:
            ValueError: another number of channels.
        """
        if x.shape[-1:] != (self.fc1.in_features,):
            raise ValueError(f"x must be (..., {self.fc1.in_features}), got {tuple(x.shape)}")
        carried, gate = self.fc1(x).chunk(2, dim=-1)
        out: torch.Tensor = self.drop2(self.fc2(self.drop1(carried * self.act(gate))))
        return out
