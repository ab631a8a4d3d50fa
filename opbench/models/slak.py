"""SLaK, ConvNeXt's blocks with kernels of up to 51 x 51 in two strips; parameters named as the authors' are."""

import itertools
from collections.abc import Sequence

import torch
from opbench_kernels import SLaKConv
from torch import nn

from opbench.models.backbone import Backbone
from opbench.models.layers import (
    LayerNormNCHW,
    SequentialStage,
    drop_path,
    drop_path_rates,
    initialise,
    to_nchw,
    to_nhwc,
)

__all__ = ["SLaK"]


class SLaKBlock(nn.Module):
    """The large-kernel convolution, then LayerNorm and two Linears, in one residual branch; NCHW.

    Args:
        dim: C of input and output.
        drop_path_rate: probability of dropping the branch in training.
        layer_scale_init_value: initial factor on the branch; 0 for none.
        kernel_size: sides of the large and the small kernel, pixels.
        Decom, bn: of SLaKConv.
    """

    def __init__(
        self,
        dim: int,
        drop_path_rate: float,
        layer_scale_init_value: float,
        kernel_size: tuple[int, int],
        Decom: bool,
        bn: bool,
    ) -> None:
        super().__init__()
        large, small = kernel_size
        self.large_kernel = SLaKConv(dim, dim, large, stride=1, groups=dim, small_kernel=small, Decom=Decom, bn=bn)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale_init_value)) if layer_scale_init_value > 0 else None
        self.drop_path = drop_path(drop_path_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        out = self.pwconv2(self.act(self.pwconv1(self.norm(to_nhwc(self.large_kernel(x))))))
        if self.gamma is not None:
            out = self.gamma * out
        result: torch.Tensor = x + self.drop_path(to_nchw(out))
        return result


class SLaK(Backbone):
    """SLaK with the authors' constructor arguments; their checkpoints load with strict=True.

    The network is dense: weights that the authors' training sets to zero are stored and computed as zeros. Of an image
    whose sides 32 does not divide, the last rows and columns are left out, as in ConvNeXt.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        depths: blocks of each stage.
        dims: channels of each stage, before `width_factor`.
        drop_path_rate: stochastic depth of the last block.
        layer_scale_init_value: initial factor on each residual branch; 0 for none.
        head_init_scale: factor on the classifier's initial weights.
        kernel_size: side of the large kernel in each of the four stages, then of the small kernel; pixels, odd.
        width_factor: factor on `dims`.
        Decom: two strips, tall and wide, in the place of each large kernel. (The authors' default value is None.)
        bn: batch normalisation after each kernel.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Liu et al., More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using Sparsity, ICLR 2023.
    """

    first_conv = "downsample_layers.0.0"
    stem_names = r"downsample_layers\.0\."
    block_names = r"stages\.(\d+)\.(\d+)\."
    downsampling_names = r"downsample_layers\.(\d+)\."
    stage_after_downsampling = 0

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        head_init_scale: float = 1.0,
        kernel_size: Sequence[int] = (51, 49, 47, 13, 5),
        width_factor: float = 1.0,
        Decom: bool | None = None,
        bn: bool = True,
    ) -> None:
        if not len(depths) == len(dims) == len(kernel_size) - 1:
            raise ValueError(
                "depths and dims must have one entry a stage, and kernel_size one more, "
                f"got {depths!r}, {dims!r} and {kernel_size!r}"
            )
        widths = [int(dim * width_factor) for dim in dims]
        super().__init__(num_classes=num_classes, channels=widths)
        stem = nn.Sequential(nn.Conv2d(in_chans, widths[0], 4, stride=4), LayerNormNCHW(widths[0], eps=1e-6))
        between = [
            nn.Sequential(LayerNormNCHW(before, eps=1e-6), nn.Conv2d(before, after, 2, stride=2))
            for before, after in itertools.pairwise(widths)
        ]
        self.downsample_layers = nn.ModuleList([stem, *between])
        *large, small = kernel_size
        self.stages = nn.ModuleList(
            SequentialStage(
                *[SLaKBlock(width, rate, layer_scale_init_value, (side, small), bool(Decom), bn) for rate in rates]
            )
            for width, side, rates in zip(widths, large, drop_path_rates(drop_path_rate, depths), strict=True)
        )
        self.norm: nn.Module = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], num_classes) if num_classes else nn.Identity()
        self.apply(initialise)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.mul_(head_init_scale)

    def _downsample(self, index: int, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.downsample_layers[index](x)
        return result

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.norm(x.mean((2, 3))) if self.global_pool else to_nchw(self.norm(to_nhwc(x)))
        return pooled

    def _drop_after(self, last: int) -> None:
        self.downsample_layers = self.downsample_layers[: last + 1]
        self.norm = nn.Identity()

    def structural_reparam(self) -> None:
        """Fold the normalisations of the large-kernel convolutions, and run their kernels in one; for inference."""
        for module in self.modules():
            if isinstance(module, SLaKConv):
                module.merge_kernel()
