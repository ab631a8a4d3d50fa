"""DCNv2's Triton kernels as torch.library operators with derivatives; importing opbench_kernels registers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from opbench_kernels.autograd import Context, refuse_second_derivative
from opbench_kernels.deform.geometry import Geometry
from opbench_kernels.fixed_point import from_fixed_point, units

if TYPE_CHECKING:
    from opbench_kernels.deform.dcnv2_launch import Convolved

__all__ = ["convolve"]


def _convolved(
    image: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, deform_groups: int,
) -> Convolved:  # fmt: skip
    """The kernels' operands: an image in channels_last memory is read in place, any other is copied."""
    from opbench_kernels.deform.dcnv2_launch import Convolved

    kernel, channels = (weight.shape[2], weight.shape[3]), weight.shape[1]
    stride_h, stride_w = stride
    pad_h, pad_w = padding
    dilation_h, dilation_w = dilation
    by_point = weight.view(groups, -1, channels, kernel[0] * kernel[1]).permute(0, 3, 2, 1).contiguous()
    backend: Any = torch.backends.cudnn  # torch has no types for `conv`
    return Convolved(
        image.permute(0, 2, 3, 1).contiguous(),
        offset,
        mask,
        by_point,
        Geometry(kernel, (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)),
        deform_groups,
        allow_tf32=image.dtype == torch.float32 and backend.conv.fp32_precision == "tf32",
    )


def _is_channels_last(image: torch.Tensor) -> bool:
    return image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()


def _empty_output(
    image: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor, *, channels_last: bool
) -> torch.Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (image.shape[0], weight.shape[0], *mask.shape[2:])
    return torch.empty(shape, device=image.device, dtype=image.dtype, memory_format=layout)


@torch.library.custom_op("opbench_kernels::dcnv2", mutates_args=())
def _dcnv2(
    image: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, deform_groups: int,
) -> torch.Tensor:  # fmt: skip
    from opbench_kernels.deform.dcnv2_configs import choose_forward
    from opbench_kernels.deform.dcnv2_launch import forward_launch

    convolved = _convolved(image, offset, mask, weight, stride, padding, dilation, groups, deform_groups)
    out = _empty_output(image, mask, weight, channels_last=True)
    if out.numel():
        last = out.permute(0, 2, 3, 1)
        forward_launch(convolved, bias, last, choose_forward(convolved, bias, last))()
    return out if _is_channels_last(image) else out.contiguous()


@torch.library.custom_op("opbench_kernels::dcnv2_backward", mutates_args=())
def _dcnv2_backward(
    grad_out: torch.Tensor, image: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, deform_groups: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    from opbench_kernels.deform.dcnv2_configs import choose_backward, choose_weight_grad
    from opbench_kernels.deform.dcnv2_launch import backward_launch, weight_grad_launch, weight_grad_slices

    convolved = _convolved(image, offset, mask, weight, stride, padding, dilation, groups, deform_groups)
    grad = grad_out.permute(0, 2, 3, 1).contiguous()
    fixed_point = None
    if torch.are_deterministic_algorithms_enabled():
        shares = mask.shape[2] * mask.shape[3] * convolved.weight.shape[1]
        fixed_point = units(shares, grad, mask, weight.abs().sum(0, dtype=torch.float32))
    # Many points add to one pixel, so the sum is kept in 32 bits or more whatever the storage.
    sum_dtype = torch.float32 if fixed_point is None else torch.int64
    grad_image = torch.zeros(convolved.image.shape, device=image.device, dtype=sum_dtype)
    grad_offset, grad_mask = (
        torch.empty(tensor.permute(0, 2, 3, 1).shape, device=image.device, dtype=tensor.dtype)
        for tensor in (offset, mask)
    )
    partial = torch.zeros(weight_grad_slices(convolved), *convolved.weight.shape, device=image.device)
    if grad.numel():
        gradients = (grad, grad_image, grad_offset, grad_mask, fixed_point)
        backward_launch(convolved, *gradients, choose_backward(convolved, *gradients))()
        weight_grad_launch(convolved, grad, partial, choose_weight_grad(convolved, grad, partial))()
    if fixed_point is not None:
        grad_image = from_fixed_point(grad_image, fixed_point)
    grad_weight = partial.sum(0).permute(0, 3, 2, 1).to(weight.dtype).contiguous().view(weight.shape)
    return (
        grad_image.to(image.dtype).permute(0, 3, 1, 2),
        grad_offset.permute(0, 3, 1, 2),
        grad_mask.permute(0, 3, 1, 2),
        grad_weight,
    )


@_dcnv2.register_fake
def _fake(
    image: torch.Tensor, _offset: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor, *_: object
) -> torch.Tensor:
    return _empty_output(image, mask, weight, channels_last=_is_channels_last(image))


@_dcnv2_backward.register_fake
def _backward_fake(_grad_out: torch.Tensor, *inputs: object) -> tuple[torch.Tensor, ...]:
    image, offset, mask, weight = (tensor for tensor in inputs if isinstance(tensor, torch.Tensor))
    return (
        *(torch.empty_like(tensor, memory_format=torch.channels_last) for tensor in (image, offset, mask)),
        torch.empty(weight.shape, device=weight.device, dtype=weight.dtype),
    )


def _save(ctx: Context, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.settings = inputs[5:]


def _differentiate(ctx: Context, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    gradients = _dcnv2_backward(grad_out, *ctx.saved_tensors, *ctx.settings)
    grad_bias = grad_out.sum((0, 2, 3)) if ctx.needs_input_grad[4] else None
    return *gradients, grad_bias, *(None for _ in ctx.settings)


_dcnv2.register_autograd(_differentiate, setup_context=_save)
_dcnv2_backward.register_autograd(refuse_second_derivative(_dcnv2._qualname))


def convolve(
    image: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    groups: int,
    deform_groups: int,
) -> torch.Tensor:
    """As opbench_kernels.dcnv2, by Triton, without checks of the arguments; differentiable once.

    An image in channels_last memory is read in place, offsets and masks in any. A sample is interpolated in the image's
    dtype; sums of samples are accumulated in float32.
    """
    pairs = map(list, (geometry.stride, geometry.padding, geometry.dilation))
    result: torch.Tensor = _dcnv2(image, offset, mask, weight, bias, *pairs, groups, deform_groups)
    return result
