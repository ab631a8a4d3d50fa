"""Depthwise convolution written from its formula, to check the fast implementations against.

Plain differentiable torch, any floating dtype (meant for float64) and any device; a loop over the taps of the kernel,
one shifted image at a time.
"""

import torch
import torch.nn.functional as F
from opbench_kernels.depthwise.geometry import Kernel

__all__ = ["depthwise"]


def depthwise(x: torch.Tensor, weight: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """out[n, y, x, c] = the sum over j, i of x[n, y + j - pad_h, x + i - pad_w, c] * weight[j, i, c].

    Pixels outside the image are zero.

    Args:
        x: (N, H, W, C).
        weight: (kernel height, kernel width, C).
        kernel: size and padding.

    Returns:
        (N, Ho, Wo, C).
    """
    height, width = kernel.output_size(x.shape[1], x.shape[2])
    padded = F.pad(x, (0, 0, kernel.pad_w, kernel.pad_w, kernel.pad_h, kernel.pad_h))
    out = x.new_zeros(())
    for j in range(kernel.height):
        for i in range(kernel.width):
            out = out + padded[:, j : j + height, i : i + width] * weight[j, i]
    return out
