"""What the DCNv3 and DCNv4 modules share: settings, image layouts, kernel centres, the centre-feature scale."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from opbench_kernels.deform.geometry import Geometry
from opbench_kernels.implementation import Implementation, check_implementation
from opbench_kernels.sizes import Size, pair
from torch import nn

__all__ = ["DeformableConvolution"]


class DeformableConvolution(nn.Module):
    """A module that samples an image at learned offsets; `_convolve` of a subclass says how.

    Arguments and attributes are as DCNv4's in opbench_kernels.deform.modules.

    Raises:
        ValueError: an argument that does not fit; the message names it.
    """

    center_feature_scale_proj_weight: nn.Parameter  # (G, C)
    center_feature_scale_proj_bias: nn.Parameter  # (G,)

    def __init__(
        self,
        channels: int,
        kernel_size: Size,
        stride: Size,
        pad: Size,
        dilation: Size,
        group: int,
        offset_scale: float,
        dw_kernel_size: Size | None,
        center_feature_scale: bool,
        remove_center: bool,
        implementation: Implementation,
    ) -> None:
        super().__init__()
        for name, number in (("channels", channels), ("group", group)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"{name} must be a positive integer, got {number!r}")
        if channels % group:
            raise ValueError(f"group must divide the {channels} channels, got {group}")
        if not isinstance(offset_scale, int | float) or not math.isfinite(offset_scale):
            raise ValueError(f"offset_scale must be a finite number, got {offset_scale!r}")
        if dw_kernel_size is not None and any(size % 2 == 0 for size in pair(dw_kernel_size, "dw_kernel_size", 1)):
            raise ValueError(f"dw_kernel_size must be odd, to keep the image's size, got {dw_kernel_size!r}")
        if remove_center not in (False, True):
            raise ValueError(f"remove_center must be True or False, got {remove_center!r}")
        check_implementation(implementation)
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.pad = pad
        self.dilation = dilation
        self.group = group
        self.group_channels = channels // group
        self.offset_scale = offset_scale
        self.dw_kernel_size = dw_kernel_size
        self.center_feature_scale = center_feature_scale
        self.remove_center = bool(remove_center)
        self.implementation = implementation
        if remove_center and (self.geometry.points < 1 or any(size % 2 == 0 for size in self.geometry.kernel)):
            raise ValueError(f"remove_center needs an odd kernel_size above 1, got {kernel_size!r}")

    @property
    def geometry(self) -> Geometry:
        """The sampling grid, from the attributes as they are now."""
        return Geometry(
            kernel=pair(self.kernel_size, "kernel_size", 1),
            stride=pair(self.stride, "stride", 1),
            padding=pair(self.pad, "pad", 0),
            dilation=pair(self.dilation, "dilation", 1),
            offset_scale=float(self.offset_scale),
            remove_center=self.remove_center,
        )

    @property
    def _sampling(self) -> dict[str, Any]:
        """Keyword arguments of dcnv3 and dcnv4."""
        return {
            "groups": self.group,
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.pad,
            "dilation": self.dilation,
            "offset_scale": self.offset_scale,
            "remove_center": self.remove_center,
            "implementation": self.implementation,
        }

    def extra_repr(self) -> str:
        names = (
            "channels",
            "kernel_size",
            "stride",
            "pad",
            "dilation",
            "group",
            "offset_scale",
            "dw_kernel_size",
            "center_feature_scale",
            "remove_center",
            "implementation",
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _depthwise(self, size: Size, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Conv2d:
        height, width = pair(size, "dw_kernel_size", 1)
        padding = (height // 2, width // 2)
        return nn.Conv2d(
            self.channels,
            self.channels,
            (height, width),
            padding=padding,
            groups=self.channels,
            device=device,
            dtype=dtype,
        )

    def _add_center_scale(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        weight = torch.zeros(self.group, self.channels, device=device, dtype=dtype)
        self.center_feature_scale_proj_weight = nn.Parameter(weight)
        self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(self.group, device=device, dtype=dtype))

    def forward(self, input: torch.Tensor, shape: tuple[int, int] | None = None) -> torch.Tensor:  # noqa: A002 - the official name
        """Sample `input` at learned offsets.

        Args:
            input: (N, H, W, C), or (N, L, C) with L = H * W.
            shape: (H, W); needed with (N, L, C) unless the image is square.

        Returns:
            (N, Ho, Wo, C), or (N, Ho * Wo, C) where the input was (N, L, C).

        Raises:
            ValueError: the input does not fit `channels` or `shape`, or is smaller than the kernel.
        """
        out = self._convolve(self._as_image(input, shape))
        return out.flatten(1, 2) if input.dim() == 3 else out

    def _convolve(self, image: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _as_image(self, features: torch.Tensor, shape: tuple[int, int] | None) -> torch.Tensor:
        """`features` as (N, H, W, C)."""
        sizes = tuple(features.shape)
        if features.dim() not in (3, 4) or sizes[-1] != self.channels or any(size < 1 for size in sizes[1:]):
            raise ValueError(f"input must be (N, H, W, {self.channels}) or (N, L, {self.channels}), got shape {sizes}")
        if features.dim() == 4:
            if shape is not None and tuple(shape) != sizes[1:3]:
                raise ValueError(f"shape must be {sizes[1:3]} for an input of shape {sizes}, got {shape!r}")
            return features
        length = sizes[1]
        if shape is None:
            side = int(math.sqrt(length))  # torch.compile traces sqrt, not isqrt
            if side * side != length:
                raise ValueError(f"shape=(H, W) is needed where L is not a square, got input of shape {sizes}")
            shape = (side, side)
        if len(shape) != 2 or shape[0] < 1 or shape[0] * shape[1] != length:
            raise ValueError(f"shape must be (H, W) with H * W = {length}, got {shape!r}")
        image: torch.Tensor = features.unflatten(1, tuple(shape))
        return image

    def _at_kernel_centres(self, features: torch.Tensor) -> torch.Tensor:
        """`features` (N, H, W, C) under the centre of each output pixel's kernel, (N, Ho, Wo, C).

        A centre outside the image takes the nearest pixel of it.
        """
        geometry = self.geometry
        for axis, out_size in enumerate(geometry.output_size(features.shape[1], features.shape[2])):
            size = features.shape[axis + 1]
            first = geometry.base[axis] - geometry.padding[axis]
            step = geometry.stride[axis]
            last = first + (out_size - 1) * step
            if (first, step) == (0, 1) and out_size == size:
                continue
            if first >= 0 and last < size:
                features = features[(slice(None),) * (axis + 1) + (slice(first, last + 1, step),)]
            else:
                centres = torch.arange(out_size, device=features.device) * step + first
                features = features.index_select(axis + 1, centres.clamp(0, size - 1))
        return features

    def _blend_centre(self, out: torch.Tensor, value: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """`out` * (1 - c) + `value` * c per group with c = sigmoid(W `features` + b); all (N, Ho, Wo, C)."""
        weight, bias = self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
        scale = F.linear(features, weight, bias).sigmoid().unsqueeze(-1)
        groups = (self.group, self.group_channels)
        return torch.lerp(out.unflatten(-1, groups), value.unflatten(-1, groups), scale).flatten(-2)
