"""DCNv2 as a torch module, with the parameters' names of mmcv's ModulatedDeformConv2dPack."""

import math
from typing import Any

import torch
from opbench_kernels.deform.dcnv2 import dcnv2
from opbench_kernels.deform.geometry import Geometry
from opbench_kernels.implementation import Implementation, check_implementation
from opbench_kernels.sizes import Size, pair
from torch import nn

__all__ = ["DCNv2"]


class DCNv2(nn.Module):
    """Deformable convolution v2 with the convolution that predicts its offsets and masks.

    Arguments, parameters and initial values of mmcv's ModulatedDeformConv2dPack. That convolution starts at zero: a new
    module samples the plain grid with masks of 1/2.

    Args:
        in_channels, out_channels: Ci and Co.
        kernel_size, stride, padding, dilation: an integer or (height, width).
        groups: of the convolution; divides both channels. The convolution of offsets and masks has one group.
        deform_groups: groups of input channels with offsets and masks of their own.
        bias: whether there is one; mmcv's "auto" counts as yes.
        implementation: of the convolution, see opbench_kernels.dcnv2.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Zhu et al., Deformable ConvNets v2, CVPR 2019.
    """

    _version = 2  # of mmcv's state dictionaries

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool | str = True,
        *,
        implementation: Implementation = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        numbers = {"in_channels": in_channels, "out_channels": out_channels}
        numbers |= {"groups": groups, "deform_groups": deform_groups}
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a positive integer, got {number!r}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups must divide {in_channels} in_channels and {out_channels} out_channels: {groups}")
        if in_channels % deform_groups:
            raise ValueError(f"deform_groups must divide the {in_channels} in_channels, got {deform_groups}")
        check_implementation(implementation)
        self.implementation = implementation
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair(kernel_size, "kernel_size", 1)
        self.stride = pair(stride, "stride", 1)
        self.padding = pair(padding, "padding", 0)
        self.dilation = pair(dilation, "dilation", 1)
        self.groups = groups
        self.deform_groups = deform_groups
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size, **options))
        self.bias = nn.Parameter(torch.empty(out_channels, **options)) if bias else None
        self._numbers = self.kernel_size[0] * self.kernel_size[1] * deform_groups
        self.conv_offset = nn.Conv2d(
            in_channels,
            3 * self._numbers,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            **options,
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Set the initial values; mmcv's models call this name."""
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size[0] * self.kernel_size[1])
        nn.init.uniform_(self.weight, -bound, bound)
        for zero in (self.bias, self.conv_offset.weight, self.conv_offset.bias):
            if zero is not None:
                nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, Ci, H, W) to (N, Co, Ho, Wo).

        Raises:
            ValueError: the input does not fit in_channels, or is smaller than the kernel.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be (N, {self.in_channels}, H, W), got shape {tuple(x.shape)}")
        geometry = Geometry(self.kernel_size, self.stride, self.padding, self.dilation)
        geometry.output_size(x.shape[2], x.shape[3])
        offset, logits = self.conv_offset(x).tensor_split((2 * self._numbers,), dim=1)
        return dcnv2(
            x,
            offset,
            logits.sigmoid(),
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deform_groups,
            implementation=self.implementation,
        )

    def extra_repr(self) -> str:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
        values = [f"{name}={getattr(self, name)}" for name in (*names, "groups", "deform_groups")]
        return ", ".join([*values, f"bias={self.bias is not None}"])

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *rest: Any,  # noqa: ANN401 - torch's own, handed on
    ) -> None:
        # Before version 2 the convolution stood beside this module: conv2_offset.weight for conv2.conv_offset.weight.
        # A loader that hands on the whole dictionary, as mmengine's does, finds it; torch's own does not.
        if (local_metadata.get("version") or 1) < 2:
            for kind in ("weight", "bias"):
                old, new = f"{prefix[:-1]}_offset.{kind}", f"{prefix}conv_offset.{kind}"
                if old in state_dict and new not in state_dict:
                    state_dict[new] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
