"""What a network costs, counted by walking its layers with the operators' own formulas; nothing is computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from opbench_kernels import DAttention, DCNv3, DCNv4
from opbench_kernels.sizes import pair
from timm.layers.attention import Attention
from timm.models.swin_transformer import WindowAttention as SwinAttention
from torch import nn

from opbench.backbones.networks import Part, part_of
from opbench.models.clip_head import CrossAttention
from opbench.models.core_operators import WindowAttention
from opbench.models.dat_windows import LocalAttention
from opbench.operators import dat_attention, dcnv3, dcnv4, dcnv4_lightweight
from opbench.workload.case import Case, Direction, Dtype, Level, SettingValue, Shape
from opbench.workload.operator import Operator

__all__ = ["Work", "work_of"]

Settings = dict[str, SettingValue]

SAMPLE_MACS = 5
"""Of a channel at a point of DCNv3 or DCNv4: four for the bilinear sample, one for the mask; as the authors count."""


@dataclass
class Work:
    """Sums over the layers of a network for one image.

    Attributes:
        forward_flops, backward_flops: a multiply-add counts two.
        macs: multiply-accumulates of the forward pass as papers count them.
        elements: that layers with such work read and write, weights apart.
        gathered: elements that samples read.
        kept: elements that all layers give; a backward pass needs them.
        largest: elements that one layer reads and gives at most.
        parameters: that are trained.
        roundings: values on the way through all layers that are rounded to the dtype.
        lengths: of the sums of all layers, added up.
    """

    forward_flops: int = 0
    backward_flops: int = 0
    macs: int = 0
    elements: int = 0
    gathered: int = 0
    kept: int = 0
    largest: int = 0
    parameters: int = 0
    roundings: int = 0
    lengths: float = field(default=0.0)

    def add(self, given: int, out: int, *, roundings: int = 1, length: float = 0.0) -> None:
        """A layer that reads and gives so many elements."""
        self.kept += out
        self.largest = max(self.largest, given + out)
        self.roundings += roundings
        self.lengths += length

    def add_product(self, macs: int, elements: int) -> None:
        """Products; their backward pass is one for the input and one for the weight."""
        self.forward_flops += 2 * macs
        self.backward_flops += 4 * macs
        self.macs += macs
        self.elements += elements


def work_of(case: Case) -> Work:
    """Of what the case measures, for one image, whatever its direction and dtype.

    Raises:
        ValueError: as part_of.
    """
    shape = Shape(1, case.shape.height, case.shape.width, case.shape.channels)
    return _counted(Case(case.operator, case.level, Direction.FWD, "", shape, Dtype.FP32, case.settings))


@cache
def _counted(case: Case) -> Work:
    part = part_of(case, "meta")
    work = Work(parameters=sum(parameter.numel() for parameter in part.module.parameters()))
    _walk(part, work)
    return work


def _walk(part: Part, work: Work) -> None:
    """Run the network on shapes alone: layers with a formula are counted, and give an empty tensor."""
    for module in part.module.modules():
        for kind, count in COUNTERS.items():
            if isinstance(module, kind):
                module.forward = partial(count, work, module)
                break
    with torch.no_grad():
        part.run(torch.empty(part.input_shape, device="meta"))


def _linear(work: Work, module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = x.new_empty((*x.shape[:-1], module.out_features))
    work.add_product(x.numel() * module.out_features, x.numel() + out.numel())
    work.add(x.numel(), out.numel(), length=module.in_features)
    return out


def _convolution(work: Work, module: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    padding: Any = module.padding
    sides = [
        (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for side, pad, dilation, kernel, stride in zip(
            x.shape[2:], padding, module.dilation, module.kernel_size, module.stride, strict=True
        )
    ]
    out = x.new_empty((x.shape[0], module.out_channels, *sides))
    taps = math.prod(module.kernel_size) * module.in_channels // module.groups
    work.add_product(out.numel() * taps, x.numel() + out.numel())
    work.add(x.numel(), out.numel(), length=taps)
    return out


def _elementwise(work: Work, _: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A normalisation or an activation: no products."""
    work.add(x.numel(), x.numel())
    return x


def _dcnv4(work: Work, module: DCNv4, x: torch.Tensor) -> torch.Tensor:
    operator = dcnv4_lightweight.OPERATOR if module.without_pointwise else dcnv4.OPERATOR
    return _deformable(operator, work, module, x)


def _deformable(operator: Operator, work: Work, module: DCNv3 | DCNv4, x: torch.Tensor) -> torch.Tensor:
    """By the formulas of the operator at its module level."""
    settings: Settings = {
        "group_channels": module.group_channels,
        "kernel_size": module.geometry.kernel[0],
        "offset_std_px": 1.0,
        "dw_kernel_size": pair(module.dw_kernel_size or 0, "dw_kernel_size", 0)[0],
    }
    weights = sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)
    _add_operator(work, operator, x, settings)
    work.elements -= weights
    if module.center_feature_scale:
        extra = module.center_feature_scale_proj_weight.numel() * x.numel() // x.shape[-1]
        work.forward_flops += 2 * extra
        work.backward_flops += 4 * extra
    points = module.geometry.points
    work.macs += weights * (x.numel() // x.shape[-1]) + SAMPLE_MACS * points * x.numel()
    length = 2 * module.channels + points + 4 * max(x.shape[1:3]) ** 2  # a coordinate is as large as the image
    work.add(2 * points * x.numel(), 4 * x.numel(), roundings=6, length=length)
    return x


def _add_operator(work: Work, operator: Operator, x: torch.Tensor, settings: Settings) -> None:
    """What an operator at its module level says of an NHWC image."""
    batch, height, width, channels = x.shape
    shape = Shape(batch, height, width, channels)
    forward, backward = (
        Case(operator.name, Level.MODULE, direction, "", shape, Dtype.FP32, tuple(settings.items()))
        for direction in (Direction.FWD, Direction.BWD)
    )
    work.forward_flops += operator.flop_count(forward)
    work.backward_flops += operator.flop_count(backward)
    work.elements += operator.bytes_moved(forward) // forward.dtype.element_bytes
    work.gathered += operator.gathered_bytes(forward) // forward.dtype.element_bytes


def _sampled_attention(
    work: Work, module: DAttention, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """DAT's, by the formulas of its operator."""
    depthwise: Any = module.conv_offset[0]
    settings: Settings = {
        "head_dim": module.n_head_channels,
        "group_channels": module.n_group_channels,
        "dw_kernel_size": depthwise.kernel_size[0],
        "offset_range_factor": int(module.offset_range_factor),
    }
    image = x.permute(0, 2, 3, 1)
    _add_operator(work, dat_attention.OPERATOR, image, settings)
    pixels, channels = image.shape[1] * image.shape[2], image.shape[3]
    group = module.n_group_channels
    offset_macs = (depthwise.weight.numel() + 2 * group) * module.n_groups
    samples = 4 * pixels * (channels + (pixels * module.n_heads if module.by_distance else 0))
    work.macs += pixels * (4 * channels**2 + offset_macs) + 2 * pixels**2 * channels + samples
    scores = pixels**2 * module.n_heads
    work.add(scores, 5 * x.numel() + scores, roundings=8, length=2 * channels + pixels)
    return x, x, x


def _window_attention(work: Work, module: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Of an NHWC image; at its edge windows are filled up."""
    side = module.window_size
    windows = x.shape[0] * math.ceil(x.shape[1] / side) * math.ceil(x.shape[2] / side)
    _add_attention(work, windows, side**2, x.shape[-1], module.num_heads)
    return x


def _local_attention(work: Work, module: LocalAttention, x: torch.Tensor) -> torch.Tensor:
    """Of an NCHW image that its windows divide."""
    tokens = math.prod(module.window_size)
    _add_attention(work, x.numel() // x.shape[1] // tokens, tokens, x.shape[1], module.heads)
    return x


def _attention(work: Work, module: SwinAttention | Attention, x: torch.Tensor, **_: object) -> torch.Tensor:
    """Of (sequences, tokens, C)."""
    sequences, tokens, channels = x.shape
    _add_attention(work, sequences, tokens, channels, module.num_heads)
    return x


def _add_attention(work: Work, sequences: int, tokens: int, channels: int, heads: int) -> None:
    """With projections to three times C and from C."""
    elements = sequences * tokens * channels
    work.add_product(4 * elements * channels + 2 * tokens * elements, 10 * elements)
    scores = sequences * tokens**2 * heads
    work.add(4 * elements, 5 * elements + scores, roundings=5, length=2 * channels + tokens)


def _cross_attention(work: Work, module: nn.Module, query: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """Of one query; its Linears are counted on their own."""
    macs = 2 * query.shape[1] * others[0].numel()
    work.add_product(macs, 2 * others[0].numel())
    out: torch.Tensor = type(module).forward(module, query, *others)
    return out


NORMALISATIONS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
ACTIVATIONS = (nn.GELU, nn.ReLU, nn.SiLU)
COUNTERS: dict[Any, Callable[..., Any]] = {
    DCNv3: partial(_deformable, dcnv3.OPERATOR),
    DCNv4: _dcnv4,
    DAttention: _sampled_attention,
    WindowAttention: _window_attention,
    LocalAttention: _local_attention,
    (SwinAttention, Attention): _attention,
    CrossAttention: _cross_attention,
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    (*NORMALISATIONS, *ACTIVATIONS): _elementwise,
}
"""By class of layer, the first that fits: counts it, and gives what its forward would, without values."""
