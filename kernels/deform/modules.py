"""DCNv3 and DCNv4 as torch modules with the official parameter names, so that published checkpoints load.

A residual block for channels-last images; between two of them the image is halved:

```python
import torch
from opbench_kernels import DCNv3, DCNv4
from torch import nn


class Block(nn.Module):
    def __init__(self, channels, group):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.dcn = DCNv4(channels, group=group, dw_kernel_size=3)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x):  # (N, H, W, C)
        x = x + self.dcn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


model = nn.Sequential(Block(64, group=4), DCNv3(64, group=4, stride=2), Block(64, group=4))
out = model(torch.randn(2, 28, 20, 64))  # (2, 14, 10, 64)
out.square().mean().backward()
```
"""

import torch
from opbench_kernels.deform.functional import dcnv3, dcnv4
from opbench_kernels.deform.geometry import padded_offset_mask_channels
from opbench_kernels.deform.module_base import DeformableConvolution
from opbench_kernels.implementation import Implementation
from opbench_kernels.sizes import Size
from torch import nn

__all__ = ["DCNv3", "DCNv4"]

ACTIVATIONS = {"GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU}
NORMS = ("LN", "BN")


class DCNv4(DeformableConvolution):
    """Deformable convolution v4 with its projections; arguments, parameters and initial values of the official one.

    Masks start at zero, as in the official one, so a new module's output and its input's gradient are zero unless
    center_feature_scale is set: it belongs in a residual branch.

    Args:
        channels: C, of the input and the output.
        kernel_size, stride, pad, dilation: of the sampling grid; an integer or (height, width). With a stride or a
            padding that changes the image's size, offsets and masks are predicted at the output's resolution, from
            the features under each output pixel's kernel centre.
        group: channel groups, each with offsets and masks of its own; any divisor of `channels`.
        offset_scale: factor on offsets and on the sampling grid.
        dw_kernel_size: odd size of a depthwise convolution before the offset_mask Linear; None leaves it out.
        center_feature_scale: blend the centre's own value into the output, c = sigmoid(W out + b) per group.
        remove_center: leave the centre point out; kernel_size must be odd.
        output_bias: whether output_proj has a bias.
        without_pointwise: the lightweight variant, without value_proj and output_proj.
        implementation: of the sampling, see opbench_kernels.dcnv4.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Xiong et al., Efficient Deformable ConvNets, CVPR 2024.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: Size = 3,
        stride: Size = 1,
        pad: Size = 1,
        dilation: Size = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: Size | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        *,
        implementation: Implementation = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            kernel_size,
            stride,
            pad,
            dilation,
            group,
            offset_scale,
            dw_kernel_size,
            center_feature_scale,
            remove_center,
            implementation,
        )
        self.output_bias = output_bias
        self.without_pointwise = without_pointwise
        if dw_kernel_size is not None:
            self.offset_mask_dw = self._depthwise(dw_kernel_size, device, dtype)
        packed = padded_offset_mask_channels(group, self.geometry.points)
        self.offset_mask = nn.Linear(channels, packed, device=device, dtype=dtype)
        if not without_pointwise:
            self.value_proj = nn.Linear(channels, channels, device=device, dtype=dtype)
            self.output_proj = nn.Linear(channels, channels, bias=output_bias, device=device, dtype=dtype)
        if center_feature_scale:
            self._add_center_scale(device, dtype)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        # The official backbones call this name after their own initialisation.
        _set_to_zero(self.offset_mask)
        if not self.without_pointwise:
            _set_to_xavier(self.value_proj)
            _set_to_xavier(self.output_proj)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, output_bias={self.output_bias}, without_pointwise={self.without_pointwise}"

    def _convolve(self, image: torch.Tensor) -> torch.Tensor:
        features = image
        if self.dw_kernel_size is not None:
            features = self.offset_mask_dw(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        offset_mask = self.offset_mask(self._at_kernel_centres(features))
        # Under autocast the lightweight variant samples in the lower precision too, as a convolution would.
        value = image.to(offset_mask.dtype) if self.without_pointwise else self.value_proj(image)
        out = dcnv4(
            value,
            offset_mask,
            **self._sampling,
        )
        if self.center_feature_scale:
            out = self._blend_centre(out, self._at_kernel_centres(value), out)
        return out if self.without_pointwise else self.output_proj(out)


class DCNv3(DeformableConvolution):
    """Deformable convolution v3 with its projections; arguments, parameters and initial values of the official one.

    Offsets and masks come from a depthwise convolution with normalisation and activation; a softmax over the points
    of a group normalises the masks.

    Args:
        channels, kernel_size, stride, pad, dilation, group, offset_scale, remove_center: as DCNv4.
        dw_kernel_size: odd size of the depthwise convolution; None takes `kernel_size`.
        act_layer: "GELU", "ReLU" or "SiLU".
        norm_layer: "LN" (LayerNorm) or "BN" (BatchNorm2d).
        center_feature_scale: blend the centre's own value into the output, c = sigmoid(W features + b) per group
            with the depthwise branch's features.
        implementation: of the sampling, see opbench_kernels.dcnv3.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Wang et al., InternImage, CVPR 2023.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: Size = 3,
        dw_kernel_size: Size | None = None,
        stride: Size = 1,
        pad: Size = 1,
        dilation: Size = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
        *,
        implementation: Implementation = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        super().__init__(
            channels,
            kernel_size,
            stride,
            pad,
            dilation,
            group,
            offset_scale,
            dw_kernel_size,
            center_feature_scale,
            remove_center,
            implementation,
        )
        if act_layer not in ACTIVATIONS:
            raise ValueError(f"act_layer must be one of {', '.join(ACTIVATIONS)}, got {act_layer!r}")
        if norm_layer not in NORMS:
            raise ValueError(f"norm_layer must be one of {', '.join(NORMS)}, got {norm_layer!r}")
        self.act_layer = act_layer
        self.norm_layer = norm_layer
        # Nested as the official one, whose nesting is in the parameters' names: dw_conv.1.1.weight, dw_conv.1.0.weight.
        if norm_layer == "LN":
            norm = nn.Sequential(_ChannelsLast(), nn.LayerNorm(channels, eps=1e-6, device=device, dtype=dtype))
        else:
            norm = nn.Sequential(nn.BatchNorm2d(channels, device=device, dtype=dtype), _ChannelsLast())
        self.dw_conv = nn.Sequential(self._depthwise(dw_kernel_size, device, dtype), norm, ACTIVATIONS[act_layer]())
        numbers = group * self.geometry.points
        self.offset = nn.Linear(channels, 2 * numbers, device=device, dtype=dtype)
        self.mask = nn.Linear(channels, numbers, device=device, dtype=dtype)
        self.input_proj = nn.Linear(channels, channels, device=device, dtype=dtype)
        self.output_proj = nn.Linear(channels, channels, device=device, dtype=dtype)
        if center_feature_scale:
            self._add_center_scale(device, dtype)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        # The official backbones call this name after their own initialisation.
        _set_to_zero(self.offset)
        _set_to_zero(self.mask)
        _set_to_xavier(self.input_proj)
        _set_to_xavier(self.output_proj)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act_layer={self.act_layer!r}, norm_layer={self.norm_layer!r}"

    def _convolve(self, image: torch.Tensor) -> torch.Tensor:
        value = self.input_proj(image)
        features = self._at_kernel_centres(self.dw_conv(image.permute(0, 3, 1, 2)))
        mask = self.mask(features).unflatten(-1, (self.group, -1)).softmax(-1).flatten(-2)
        out = dcnv3(
            value,
            self.offset(features),
            mask.to(value.dtype),  # CUDA's autocast computes a softmax in float32
            **self._sampling,
        )
        if self.center_feature_scale:
            out = self._blend_centre(out, self._at_kernel_centres(value), features)
        projected: torch.Tensor = self.output_proj(out)
        return projected


class _ChannelsLast(nn.Module):
    """(N, C, H, W) to (N, H, W, C), a view."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.permute(0, 2, 3, 1)


def _set_to_zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


def _set_to_xavier(linear: nn.Linear) -> None:
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
