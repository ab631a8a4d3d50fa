"""Multi-scale deformable attention written from its formula, to check the fast implementations against."""

from collections.abc import Sequence

import torch
from opbench_kernels.bilinear_reference import sample

__all__ = ["attend"]


def attend(
    value: torch.Tensor, shapes: Sequence[tuple[int, int]], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """out[n, q, m] = sum over levels l and points p of weights * bilinear(value of level l; y, x), one at a time.

    x = location x * W_l - 0.5 and y = location y * H_l - 0.5: a location is a share of the image, whose pixels have
    their centres half a pixel from their corners. A point counts only where -1 < x < W_l and -1 < y < H_l.

    Args:
        value: (N, S, M, D), the levels one after the other, each row by row.
        shapes: (H_l, W_l) of each level.
        locations: (N, Lq, M, L, P, 2), (x, y).
        weights: (N, Lq, M, L, P).

    Returns:
        (N, Lq, M, D).

    Source: Zhu et al., Deformable DETR, ICLR 2021, equation 3.
    """
    out = value.new_zeros(())
    levels = value.split([height * width for height, width in shapes], dim=1)
    for level, (height, width) in enumerate(shapes):
        image = levels[level].unflatten(1, (height, width))
        for point in range(locations.shape[4]):
            x, y = locations[:, :, :, level, point].unbind(-1)
            samples = sample(image, (y * height - 0.5).unsqueeze(1), (x * width - 0.5).unsqueeze(1)).squeeze(1)
            out = out + samples * weights[:, :, :, level, point].unsqueeze(-1)
    return out
