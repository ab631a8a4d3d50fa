"""DCNv2 as a function: modulated deformable convolution of NCHW images."""

import torch
from opbench_kernels.deform import dcnv2_operators, dcnv2_torch
from opbench_kernels.deform.geometry import Geometry
from opbench_kernels.implementation import Implementation, in_autocast_dtype, takes_operator
from opbench_kernels.sizes import Size, pair

__all__ = ["dcnv2"]


def dcnv2(
    input: torch.Tensor,  # noqa: A002 - as torchvision's
    offset: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    deform_groups: int = 1,
    *,
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """Deformable convolution v2: a convolution whose points move by offsets, and whose samples have masks as factors.

    Point k of the kernel, in row k // kw and column k % kw, samples at y = oy * stride - padding + row * dilation + dy,
    bilinear, and x likewise. It counts only where -1 < y < H and -1 < x < W; a neighbour outside the image is zero.

    Args:
        input: (N, Ci, H, W), float32, float16 or bfloat16 (float64 too in torch). Triton reads channels_last memory in
            place, and copies any other first. Under autocast, float32 is taken in the lower precision.
        offset: (N, 2 * K * deform_groups, Ho, Wo), pixels, K = kh * kw: of each deformable group K pairs (dy, dx).
            Any floating dtype: coordinates are float32 or better.
        mask: (N, K * deform_groups, Ho, Wo), any floating dtype.
        weight: (Co, Ci / groups, kh, kw); taken in the dtype of `input`, as bias is.
        bias: (Co,), or None.
        stride, padding, dilation: an integer or (height, width).
        groups: of the convolution; divides Ci and Co.
        deform_groups: groups of input channels with offsets and masks of their own; divides Ci.
        implementation: "auto" takes Triton on a CUDA device, if it is installed, and torch elsewhere.

    Returns:
        (N, Co, Ho, Wo) in the dtype of `input`, channels last in memory where `input` is.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Zhu et al., Deformable ConvNets v2, CVPR 2019. Arguments as mmcv's modulated_deform_conv2d.
    """
    _check_image_and_weight(input, weight, bias, groups, deform_groups)
    geometry = Geometry(
        kernel=(weight.shape[2], weight.shape[3]),
        stride=pair(stride, "stride", 1),
        padding=pair(padding, "padding", 0),
        dilation=pair(dilation, "dilation", 1),
    )
    out_size = geometry.output_size(input.shape[2], input.shape[3])
    for name, tensor, numbers in (("offset", offset, 2), ("mask", mask, 1)):
        _check_points(name, tensor, input, (numbers * geometry.points * deform_groups, *out_size))
    input = in_autocast_dtype(input)  # noqa: A001
    whole = takes_operator("input", input, implementation, in_onnx_since=19)
    convolve = dcnv2_operators.convolve if whole else dcnv2_torch.convolve
    weight, bias = weight.to(input.dtype), None if bias is None else bias.to(input.dtype)
    return convolve(input, offset, mask, weight, bias, geometry, groups, deform_groups)


def _check_image_and_weight(
    image: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, groups: int, deform_groups: int
) -> None:
    for name, tensor in (("input", image), ("weight", weight)):
        if not isinstance(tensor, torch.Tensor) or tensor.dim() != 4 or 0 in tensor.shape[1:]:
            got = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ValueError(f"{name} must be a tensor of four axes, none but the batch empty, got {got}")
    channels, outputs = image.shape[1], weight.shape[0]
    for name, number in (("groups", groups), ("deform_groups", deform_groups)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1 or channels % number:
            raise ValueError(f"{name} must divide the {channels} channels of input, got {number!r}")
    if outputs % groups:
        raise ValueError(f"groups must divide the {outputs} output channels of weight, got {groups}")
    if weight.shape[1] != channels // groups:
        raise ValueError(
            f"weight must have {channels // groups} input channels, those of input / groups, got {tuple(weight.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise ValueError(f"bias must have shape ({outputs},), got {tuple(bias.shape)}")
    for name, other in (("weight", weight), ("bias", bias)):
        if other is not None and other.device != image.device:
            raise ValueError(f"{name} must be on {image.device} as input is, got {other.device}")


def _check_points(name: str, tensor: torch.Tensor, image: torch.Tensor, shape: tuple[int, int, int]) -> None:
    """ValueError unless `tensor` is floating, on image's device, and of `shape` for each image."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise ValueError(f"{name} must be a floating tensor, got {got}")
    if tensor.device != image.device:
        raise ValueError(f"{name} must be on {image.device} as input is, got {tensor.device}")
    if tuple(tensor.shape) != (image.shape[0], *shape):
        raise ValueError(f"{name} must have shape {(image.shape[0], *shape)}, got {tuple(tensor.shape)}")
