"""What ONNX has for the torch.library operators here: DeformConv, of opset 19.

DCNv2 is that operator. DCNv3 and DCNv4 are its depthwise form with a weight of ones, so that each channel is the sum of
its samples; their points have another order, and offset_scale becomes a constant that is added to the offsets. In half
precision all of it is computed in float32, as coordinates and sums are in the Triton kernels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx_ir import DataType, tensor
from onnxscript import opset18, opset19
from onnxscript.onnx_types import TensorType
from opbench_kernels.deform.geometry import Geometry, geometry_of

__all__ = ["TRANSLATIONS"]

op: Any = opset18
"""Untyped: onnxscript's types want to know the dtype of each tensor."""
Channel = Callable[[int, int], int]
"""The channel of a number of a group g's point k, both counted from 0."""
HALF = (DataType.FLOAT16, DataType.BFLOAT16)


def _dcnv2(
    image: TensorType, offset: TensorType, mask: TensorType, weight: TensorType, bias: TensorType | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, deform_groups: int,
) -> TensorType:  # fmt: skip
    return _deform_conv(
        image, weight, offset, bias, mask, stride, padding, dilation, groups, deform_groups, image.dtype in HALF
    )


def _dcnv3(
    value: TensorType, offset: TensorType, mask: TensorType, groups: int, kernel: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], offset_scale: float, remove_center: bool,
) -> TensorType:  # fmt: skip
    geometry = geometry_of(kernel, stride, padding, dilation, offset_scale, remove_center)
    points = geometry.points
    return _sample(
        value, offset, mask, groups, geometry, lambda g, k: 2 * (points * g + k), lambda g, k: points * g + k
    )


def _dcnv4(
    value: TensorType, offset_mask: TensorType, groups: int, kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], offset_scale: float, remove_center: bool,
) -> TensorType:  # fmt: skip
    geometry = geometry_of(kernel, stride, padding, dilation, offset_scale, remove_center)
    points = geometry.points
    return _sample(
        value, offset_mask, offset_mask, groups, geometry,
        lambda g, k: 3 * points * g + 2 * k, lambda g, k: points * (3 * g + 2) + k,
    )  # fmt: skip


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.opbench_kernels.dcnv2.default: _dcnv2,
    torch.ops.opbench_kernels.dcnv3.default: _dcnv3,
    torch.ops.opbench_kernels.dcnv4.default: _dcnv4,
}
"""For torch.onnx.export(custom_translation_table=...)."""


def _sample(
    value: TensorType, offset: TensorType, mask: TensorType, groups: int, geometry: Geometry, x_of: Channel,
    mask_of: Channel,
) -> TensorType:  # fmt: skip
    """DCNv3's and DCNv4's sum of samples, channels last; y follows x in `offset`."""
    (kernel_h, kernel_w), scale = geometry.kernel, geometry.offset_scale
    number = {tap: point for point, tap in enumerate(geometry.taps())}
    taps = [(j, i) for j in range(kernel_h) for i in range(kernel_w)]
    # A centre that was left out has the offsets of another point, and no weight.
    points = [(g, number.get(tap, 0)) for g in range(groups) for tap in taps]
    offset = _channels_first(offset, [x_of(g, k) + axis for g, k in points for axis in (1, 0)])
    mask = _channels_first(mask, [mask_of(g, k) for g, k in points])
    image = op.Transpose(value, perm=[0, 3, 1, 2])
    half = value.dtype in HALF
    if half:
        offset = op.Cast(offset, to=DataType.FLOAT)
    if scale != 1:
        # DeformConv does not scale its grid: what is missing from a tap to where it belongs.
        steps = [
            (base - tap[axis] * dilation) * (1 - scale)
            for tap in taps
            for axis, (base, dilation) in enumerate(zip(geometry.base, geometry.dilation, strict=True))
        ]
        moved = op.CastLike(_constant(np.reshape(steps * groups, (1, -1, 1, 1))), offset)
        offset = op.Add(op.Mul(offset, op.CastLike(_constant(np.array(scale)), offset)), moved)
    assert value.shape is not None  # noqa: S101 - of a traced tensor it is known
    channels = value.shape[3]
    ones = np.array([tap in number for tap in taps], np.float64).reshape(1, 1, kernel_h, kernel_w)
    weight = op.CastLike(_constant(np.tile(ones, (channels, 1, 1, 1)).astype(np.float32)), value)
    out = _deform_conv(
        image,
        weight,
        offset,
        None,
        mask,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        channels,
        groups,
        half,
    )
    result: TensorType = op.Transpose(out, perm=[0, 2, 3, 1])
    return result


def _deform_conv(
    image: TensorType, weight: TensorType, offset: TensorType, bias: TensorType | None, mask: TensorType,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, deform_groups: int, half: bool,
) -> TensorType:  # fmt: skip
    operands = (image, weight, offset, bias, mask)
    like = op.Cast(image, to=DataType.FLOAT) if half else image
    deform_conv: Any = opset19.DeformConv
    out = deform_conv(
        *(operand if operand is None else op.CastLike(operand, like) for operand in operands),
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        group=groups,
        offset_group=deform_groups,
    )
    result: TensorType = op.CastLike(out, image)
    return result


def _channels_first(tensor: TensorType, channels: Sequence[int]) -> TensorType:
    """Those channels of (N, Ho, Wo, channels) as (N, channels, Ho, Wo)."""
    result: TensorType = op.Transpose(op.Gather(tensor, _constant(np.array(channels)), axis=3), perm=[0, 3, 1, 2])
    return result


def _constant(array: np.ndarray[Any, Any]) -> TensorType:
    result: TensorType = op.Constant(value=tensor(array))
    return result
