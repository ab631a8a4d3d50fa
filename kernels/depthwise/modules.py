"""The large-kernel convolutions of RepLKNet and SLaK, and RepLKNet's block; parameters named as the authors' are.

Batch normalisation is nn.BatchNorm2d; torch.nn.SyncBatchNorm.convert_sync_batchnorm makes it the synchronised one that
the authors train with, whose parameters have the same names.
"""

import torch
import torch.nn.functional as F
from opbench_kernels.depthwise.functional import depthwise_conv2d, depthwise_conv2d_sum
from opbench_kernels.implementation import Implementation, check_implementation
from torch import nn

__all__ = ["DepthwiseConv2d", "RepLKBlock", "RepLKConv", "SLaKConv"]


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d with one channel per group, stride 1 and the image's size kept, by depthwise_conv2d."""

    def __init__(self, channels: int, kernel_size: tuple[int, int], bias: bool, implementation: Implementation) -> None:
        padding = kernel_size[0] // 2, kernel_size[1] // 2
        super().__init__(channels, channels, kernel_size, padding=padding, groups=channels, bias=bias)
        self.implementation = implementation

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Conv2d's name
        return depthwise_conv2d(input, self.weight, self.bias, implementation=self.implementation)


class _DepthwiseSum(nn.Module):
    """The sum of depthwise convolutions, in one kernel on a GPU."""

    def __init__(self, weights: list[torch.Tensor], bias: torch.Tensor, implementation: Implementation) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self.bias = nn.Parameter(bias)
        self.implementation = implementation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return depthwise_conv2d_sum(x, list(self.weights), self.bias, implementation=self.implementation)


class _DropPath(nn.Module):
    """Stochastic depth: in training an image's branch is dropped with this probability, the others are scaled up."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        kept = 1 - self.probability
        return x * (x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(kept) / kept)

    def extra_repr(self) -> str:
        return f"{self.probability}"


class _ReparamConv(nn.Module):
    """What the two large-kernel convolutions share: arguments, branches with normalisation, and the merged form."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        groups: int,
        small_kernel: int | None,
        implementation: Implementation,
    ) -> None:
        super().__init__()
        check_implementation(implementation)
        for name, size in (("kernel_size", kernel_size), ("small_kernel", small_kernel)):
            if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1 or size % 2 == 0):
                raise ValueError(f"{name} must be a positive odd integer, got {size!r}")
        if small_kernel is not None and small_kernel > kernel_size:
            raise ValueError(f"small_kernel must be at most kernel_size {kernel_size}, got {small_kernel}")
        if not in_channels == out_channels == groups or groups < 1:
            raise ValueError(
                "in_channels, out_channels and groups must be the same positive integer (a depthwise convolution), "
                f"got {in_channels}, {out_channels} and {groups}"
            )
        if stride != 1:
            raise ValueError(f"stride must be 1, got {stride!r}")
        self.channels = groups
        self.kernel_size = kernel_size
        self.small_kernel = small_kernel
        self.implementation = implementation

    def _branch(self, height: int, width: int, normalized: bool = True) -> nn.Sequential:
        branch = nn.Sequential()
        branch.add_module("conv", DepthwiseConv2d(self.channels, (height, width), False, self.implementation))
        if normalized:
            branch.add_module("bn", nn.BatchNorm2d(self.channels))
        return branch

    def _merged_conv(self) -> DepthwiseConv2d:
        return DepthwiseConv2d(self.channels, (self.kernel_size, self.kernel_size), True, self.implementation)

    def _branches(self) -> list[nn.Sequential]:
        """Those that add up to the output; none once merged."""
        return [branch for branch in self.children() if isinstance(branch, nn.Sequential)]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Convolve (N, C, H, W) to the same shape."""
        if hasattr(self, "lkb_reparam"):
            merged: torch.Tensor = self.lkb_reparam(inputs)
            return merged
        first, *others = self._branches()
        out: torch.Tensor = first(inputs)
        for branch in others:
            out = out + branch(inputs)
        return out

    def get_equivalent_kernel_bias(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The kernel (C, 1, k, k) and bias (C,) that do alone what the branches do in evaluation."""
        folded = [_fold(branch) for branch in self._branches()]
        size = self.kernel_size
        return (
            torch.stack([_in_centre_of(weight, size) for weight, _ in folded]).sum(0),
            torch.stack([bias for _, bias in folded]).sum(0),
        )

    @torch.no_grad()
    def merge_kernel(self) -> None:
        """Replace the branches by one convolution, `lkb_reparam`; for inference. Once merged, nothing changes."""
        if hasattr(self, "lkb_reparam"):
            return
        weight, bias = self.get_equivalent_kernel_bias()
        merged = self._merged_conv().to(weight)
        merged.weight.copy_(weight)
        merged.bias.copy_(bias)  # type: ignore[union-attr]
        self._replace_branches(merged)

    def _replace_branches(self, merged: nn.Module) -> None:
        for name, child in list(self.named_children()):
            if isinstance(child, nn.Sequential):
                delattr(self, name)
        self.lkb_reparam = merged


def _fold(branch: nn.Sequential) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution with its batch normalisation in evaluation, as one convolution."""
    weight: torch.Tensor = branch.get_parameter("conv.weight")
    norm: nn.BatchNorm2d | None = getattr(branch, "bn", None)
    if norm is None:
        return weight, weight.new_zeros(weight.shape[0])
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale: torch.Tensor = norm.weight / torch.sqrt(variance + norm.eps)
    return weight * scale.view(-1, 1, 1, 1), norm.bias - mean * scale


def _in_centre_of(weight: torch.Tensor, size: int) -> torch.Tensor:
    """A smaller kernel with zeros around it, `size` x `size`."""
    rows, columns = (size - weight.shape[2]) // 2, (size - weight.shape[3]) // 2
    return F.pad(weight, (columns, columns, rows, rows))


class RepLKConv(_ReparamConv):
    """RepLKNet's large depthwise convolution: a large and a small kernel, each with batch normalisation, added.

    The authors call it ReparamLargeKernelConv; checkpoints of theirs load.

    Args:
        in_channels, out_channels, groups: all C.
        kernel_size: odd side of the large kernel, pixels.
        stride: 1.
        small_kernel: odd side of the small kernel, at most `kernel_size`; None for none.
        small_kernel_merged: build the merged form, one convolution with a bias.
        implementation: of the convolutions, see opbench_kernels.depthwise_conv2d.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Ding et al., Scaling Up Your Kernels to 31x31, CVPR 2022.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        groups: int,
        small_kernel: int | None,
        small_kernel_merged: bool = False,
        *,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, groups, small_kernel, implementation)
        if small_kernel_merged:
            self.lkb_reparam = self._merged_conv()
            return
        self.lkb_origin = self._branch(kernel_size, kernel_size)
        if small_kernel is not None:
            self.small_conv = self._branch(small_kernel, small_kernel)


class SLaKConv(_ReparamConv):
    """SLaK's large depthwise convolution: with `Decom`, the sum of a tall, a wide and a small kernel.

    The authors call it ReparamLargeKernelConv; checkpoints of theirs load. Merged, the three kernels stay three and
    run in one launch: one kernel of k x k would have many times their taps. (The authors merge without `Decom` alone.)

    Args:
        in_channels, out_channels, groups: all C.
        kernel_size: odd side of the large kernel, pixels.
        stride: 1.
        small_kernel: odd; with `Decom` the narrow side of `LoRA1` (kernel_size x small_kernel) and `LoRA2`. Where it is
            smaller than `kernel_size`, also the side of the small kernel.
        small_kernel_merged: build one convolution of kernel_size x kernel_size with a bias.
        Decom: whether the large kernel is decomposed.
        bn: whether each kernel has batch normalisation.
        implementation: of the convolutions, see opbench_kernels.depthwise_conv2d.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Liu et al., More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using Sparsity, ICLR 2023.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        groups: int,
        small_kernel: int | None,
        small_kernel_merged: bool = False,
        Decom: bool = False,
        bn: bool = True,
        *,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, groups, small_kernel, implementation)
        self.Decom = Decom
        if small_kernel_merged:
            self.lkb_reparam = self._merged_conv()
            return
        if not Decom:
            self.lkb_origin = self._branch(kernel_size, kernel_size, bn)
        elif small_kernel is None:
            raise ValueError("small_kernel must be given with Decom, got None")
        else:
            self.LoRA1 = self._branch(kernel_size, small_kernel, bn)
            self.LoRA2 = self._branch(small_kernel, kernel_size, bn)
        if small_kernel is not None and small_kernel < kernel_size:
            self.small_conv = self._branch(small_kernel, small_kernel, bn)

    @torch.no_grad()
    def merge_kernel(self) -> None:
        """Fold the normalisations and run the kernels in one launch; for inference. Once merged, nothing changes."""
        if not self.Decom or hasattr(self, "lkb_reparam"):
            super().merge_kernel()
            return
        folded = [_fold(branch) for branch in self._branches()]
        bias = torch.stack([bias for _, bias in folded]).sum(0)
        self._replace_branches(_DepthwiseSum([weight for weight, _ in folded], bias, self.implementation))


class RepLKBlock(nn.Module):
    """RepLKNet's residual block: norm, 1x1, large depthwise convolution, 1x1; NCHW as the authors'.

    Args:
        in_channels: C of input and output.
        dw_channels: of the large convolution.
        block_lk_size: odd side of its large kernel, pixels.
        small_kernel: odd side of its small kernel; None for none.
        drop_path: probability of dropping the branch in training, in [0, 1).
        small_kernel_merged: build the large convolution in its merged form.
        implementation: of the depthwise convolutions, see opbench_kernels.depthwise_conv2d.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Ding et al., Scaling Up Your Kernels to 31x31, CVPR 2022.
    """

    def __init__(
        self,
        in_channels: int,
        dw_channels: int,
        block_lk_size: int,
        small_kernel: int | None,
        drop_path: float,
        small_kernel_merged: bool = False,
        *,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {drop_path!r}")
        self.pw1 = _pointwise(in_channels, dw_channels)
        self.pw1.add_module("nonlinear", nn.ReLU())
        self.pw2 = _pointwise(dw_channels, in_channels)
        self.large_kernel = RepLKConv(
            dw_channels,
            dw_channels,
            block_lk_size,
            stride=1,
            groups=dw_channels,
            small_kernel=small_kernel,
            small_kernel_merged=small_kernel_merged,
            implementation=implementation,
        )
        self.lk_nonlinear = nn.ReLU()
        self.prelkb_bn = nn.BatchNorm2d(in_channels)
        self.drop_path = _DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output (N, C, H, W) for x of the same shape."""
        out = self.lk_nonlinear(self.large_kernel(self.pw1(self.prelkb_bn(x))))
        result: torch.Tensor = x + self.drop_path(self.pw2(out))
        return result


def _pointwise(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 1x1 convolution with batch normalisation."""
    layers = nn.Sequential()
    layers.add_module("conv", nn.Conv2d(in_channels, out_channels, 1, bias=False))
    layers.add_module("bn", nn.BatchNorm2d(out_channels))
    return layers
