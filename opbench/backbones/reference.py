"""A network's operators by their formulas, for the float64 network that values are checked against."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from opbench_kernels import DCNv3, DCNv4
from opbench_kernels.deform.reference import deformable_sample
from opbench_kernels.depthwise.modules import DepthwiseConv2d
from torch import nn

__all__ = ["use_reference_operators"]


def use_reference_operators(module: nn.Module) -> None:
    """Replace the sampling of DCNv3 and DCNv4, and the large-kernel convolutions, in place.

    All other layers are PyTorch's and timm's; attention at sampled places samples by PyTorch's grid_sample.
    """
    for owner in module.modules():
        for kind, forward in REFERENCES.items():
            if isinstance(owner, kind):
                owner.forward = partial(forward, owner)


def _dcnv4(module: DCNv4, x: torch.Tensor) -> torch.Tensor:
    features = x if module.dw_kernel_size is None else _over_channels_first(module.offset_mask_dw, x)
    groups, points = module.group, module.geometry.points
    used = module.offset_mask(features)[..., : 3 * points * groups].unflatten(-1, (groups, 3 * points))
    value = x if module.without_pointwise else module.value_proj(x)
    out = _sample(module, value, used[..., : 2 * points], used[..., 2 * points :])
    if module.center_feature_scale:
        out = _blend(module, out, value, out)
    return out if module.without_pointwise else module.output_proj(out)


def _dcnv3(module: DCNv3, x: torch.Tensor) -> torch.Tensor:
    features = module.dw_conv(x.permute(0, 3, 1, 2))
    value = module.input_proj(x)
    offset = module.offset(features).unflatten(-1, (module.group, -1))
    mask = module.mask(features).unflatten(-1, (module.group, -1)).softmax(-1)
    out = _sample(module, value, offset, mask)
    if module.center_feature_scale:
        out = _blend(module, out, value, features)
    projected: torch.Tensor = module.output_proj(out)
    return projected


def _sample(module: DCNv3 | DCNv4, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """value (N, H, W, C) at offset (N, H, W, G, 2 K), weighted by mask (N, H, W, G, K); (N, H, W, C)."""
    split = value.unflatten(-1, (module.group, -1))
    points = offset.unflatten(-1, (-1, 2))
    return deformable_sample(split, points, mask, module.geometry).flatten(-2)


def _blend(module: DCNv3 | DCNv4, out: torch.Tensor, value: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The centre-feature scale: c value + (1 - c) out, with one c for each pixel and group."""
    weight, bias = module.center_feature_scale_proj_weight, module.center_feature_scale_proj_bias
    scale = torch.sigmoid(features @ weight.T + bias).repeat_interleave(module.group_channels, dim=-1)
    return scale * value + (1 - scale) * out


def _depthwise(module: DepthwiseConv2d, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, module.weight, module.bias, padding=module.padding, groups=module.groups)


def _over_channels_first(convolution: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A convolution of an NHWC image, NHWC."""
    out: torch.Tensor = convolution(x.permute(0, 3, 1, 2))
    return out.permute(0, 2, 3, 1)


REFERENCES: dict[type[nn.Module], Callable[..., torch.Tensor]] = {
    DCNv3: _dcnv3,
    DCNv4: _dcnv4,
    DepthwiseConv2d: _depthwise,
}
"""By class: computes what the module's forward does for an NHWC image of stride 1, or an NCHW one."""
