"""Lightweight DCNv4 for inference in one kernel: it predicts offsets and masks, and samples with them.

The offset_mask tensor is never written to memory. The kernel is in dcnv4_fused_triton.
"""

import os
from collections.abc import Sequence

import torch
import triton
from opbench_kernels.deform.dcnv4_fused_triton import from_input_kernel
from opbench_kernels.deform.geometry import Geometry
from opbench_kernels.deform.launch import is_wide
from opbench_kernels.launch import Arguments, Launch

__all__ = ["dcnv4_from_input", "from_input_launch", "pack_offset_mask"]

COLUMNS = 4
"""Of one point and group in the packed weight: dx, dy, mask and zeros. Splitting four in half twice separates them."""
NUM_WARPS = 4
MAX_REGISTERS = 168
"""Three programs of 128 threads per SM. Left to itself, the compiler spills a few registers for a fourth."""


def pack_offset_mask(
    weight: torch.Tensor, bias: torch.Tensor, groups: int, points: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The offset_mask Linear in the order that dcnv4_from_input reads it.

    Args:
        weight: (M, C), rows as DCNv4 packs offset_mask.
        bias: (M,).
        groups: G.
        points: K.

    Returns:
        Weight (K, C, G * 4) and bias (K, G * 4); the four of a point and group are dx, dy, mask and zeros.
    """

    def pack(parameter: torch.Tensor) -> torch.Tensor:
        used = parameter[: 3 * points * groups].unflatten(0, (groups, 3 * points))
        offset = used[:, : 2 * points].unflatten(1, (points, 2))
        mask = used[:, 2 * points :].unsqueeze(2)
        four = torch.cat([offset, mask, torch.zeros_like(mask)], dim=2)  # (G, K, 4, ...)
        return four.transpose(0, 1).flatten(1, 2)  # (K, G * 4, ...)

    return pack(weight).transpose(1, 2).contiguous(), pack(bias).contiguous()


def from_input_launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    groups: int,
    geometry: Geometry,
    *,
    allow_tf32: bool,
) -> Launch:
    """The launch of from_input_kernel, which writes `out`; arguments are taken as checked.

    Args:
        x, out: (N, H, W, C), contiguous.
        weight, bias: from pack_offset_mask, contiguous.
        groups: G.
        geometry: stride 1 and a padding that keeps the image's size.
        allow_tf32: whether float32 products may be rounded to tf32.
    """
    batch, height, width, channels = x.shape
    group_channels = channels // groups
    pixels = batch * height * width
    # A matrix product has at least 16 columns; with 32, float32 spills.
    block_g = max(4, min(8 if x.element_size() == 2 else 4, triton.next_power_of_2(groups)))
    block_d = triton.next_power_of_2(group_channels)
    block_p = max(16, min(64, 2048 // (block_g * block_d)))
    # With 64, half precision takes a stack frame on sm_100: docs/tuning.md.
    block_c = max(16, min(32 if x.element_size() == 2 else 64, triton.next_power_of_2(channels)))
    constants = {
        "C": channels,
        "G": groups,
        "DG": group_channels,
        **geometry.constants,
        "STRICT": min(height, width) < 2,
        "WIDE": is_wide((height, width), geometry, channels, pixels),
        "PRECISION": "tf32" if allow_tf32 else "ieee",
        # Triton's interpreter multiplies the bits of bfloat16 as integers.
        "UPCAST": x.dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1",
        "BLOCK_P": block_p,
        "BLOCK_G": block_g,
        "BLOCK_C": block_c,
        "BLOCK_D": block_d,
    }
    bases = (base * (1.0 - geometry.offset_scale) for base in geometry.base)
    arguments: Arguments = (x, weight, bias, out, pixels, height, width, geometry.offset_scale, *bases)
    options = {"num_warps": NUM_WARPS, "enable_fp_fusion": True}
    if torch.version.hip is None:  # AMD's compiler has no such option
        options["maxnreg"] = MAX_REGISTERS
    grid = (triton.cdiv(pixels, block_p), triton.cdiv(groups, block_g))
    return Launch(from_input_kernel, arguments, constants, options, grid)


def dcnv4_from_input(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, groups: int, geometry: Geometry
) -> torch.Tensor:
    """dcnv4(x, linear(x)) in one kernel; not differentiable. Autocast does not reach it.

    Args:
        x: (N, H, W, C), float32, float16 or bfloat16, on a CUDA device (or on the CPU under Triton's interpreter).
        weight, bias: from pack_offset_mask, (K, C, G * 4) and (K, G * 4), in the dtype of `x`.
        groups: G, a divisor of C.
        geometry: stride 1 and a padding that keeps the image's size.

    Returns:
        (N, H, W, C) in the dtype of `x`. Offsets and masks stay in float32 until then.

    Raises:
        ValueError: an argument that does not fit, a geometry that changes the image's size, or gradients are wanted.

    Source: Xiong et al., Efficient Deformable ConvNets, CVPR 2024, section 3.
    """
    if x.dim() != 4 or x.shape[-1] % groups or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"x must be (N, H, W, C), C a multiple of {groups} groups, in float32, float16 or bfloat16, "
                         f"got shape {tuple(x.shape)} in {x.dtype}")  # fmt: skip
    if geometry.output_size(*x.shape[1:3]) != tuple(x.shape[1:3]) or geometry.stride != (1, 1):
        raise ValueError(f"geometry must keep the image's size {tuple(x.shape[1:3])}, got {geometry}")
    columns = COLUMNS * groups
    shapes = {"weight": (geometry.points, x.shape[-1], columns), "bias": (geometry.points, columns)}
    for (name, shape), tensor in zip(shapes.items(), (weight, bias), strict=True):
        if (tensor.shape, tensor.dtype, tensor.device) != (shape, x.dtype, x.device):
            raise ValueError(f"{name} must be {shape} in {x.dtype} on {x.device}, as pack_offset_mask makes it, "
                             f"got {tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}")  # fmt: skip
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, weight, bias)):
        raise ValueError("dcnv4_from_input has no gradient: call it under torch.no_grad(), or use dcnv4")
    sizes = list(geometry.kernel), list(geometry.padding), list(geometry.dilation)
    result: torch.Tensor = _from_input(x, weight, bias, groups, *sizes, geometry.offset_scale, geometry.remove_center)
    return result


@torch.library.custom_op("opbench_kernels::dcnv4_from_input", mutates_args=())
def _from_input(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, kernel: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], offset_scale: float, remove_center: bool,
) -> torch.Tensor:  # fmt: skip
    (kernel_h, kernel_w), (pad_h, pad_w), (dilation_h, dilation_w) = kernel, padding, dilation
    geometry = Geometry((kernel_h, kernel_w), (1, 1), (pad_h, pad_w), (dilation_h, dilation_w), offset_scale,
                        remove_center)  # fmt: skip
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        allow_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        from_input_launch(x, weight, bias, out, groups, geometry, allow_tf32=allow_tf32)()
    return out


@_from_input.register_fake
def _from_input_fake(x: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
