"""FasterNet's partial convolution as a module with the official parameter names."""

import torch
from opbench_kernels.implementation import Implementation, check_implementation
from opbench_kernels.partial.functional import partial_conv3x3
from torch import nn

__all__ = ["PartialConv3"]

FORMS = ("slicing", "split_cat")


class PartialConv3(nn.Module):
    """A 3x3 convolution of the first dim // n_div channels of an NCHW image; the others stay as they are.

    The official class is called Partial_conv3. A new module has the initial values of torch.nn.Conv2d, as that one.

    Args:
        dim: C, channels of the input and the output.
        n_div: the convolution takes dim // n_div of them.
        forward: how torch computes, "slicing" (into a copy of the input) or "split_cat" (a concatenation); Triton has
            one form for both. No value depends on it.
        implementation: see opbench_kernels.partial_conv3x3.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument that does not fit; the message names it.

    Source: Chen et al., Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks, CVPR 2023.
    """

    def __init__(
        self,
        dim: int,
        n_div: int = 4,
        forward: str = "split_cat",
        *,
        implementation: Implementation = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, number in (("dim", dim), ("n_div", n_div)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"{name} must be a positive integer, got {number!r}")
        if n_div > dim:
            raise ValueError(f"n_div must be at most the {dim} channels, got {n_div}")
        if forward not in FORMS:
            raise ValueError(f"forward must be 'slicing' or 'split_cat', got {forward!r}")
        check_implementation(implementation)
        self.dim_conv3 = dim // n_div
        self.dim_untouched = dim - self.dim_conv3
        self.form = forward
        self.implementation = implementation
        self.partial_conv3 = nn.Conv2d(
            self.dim_conv3, self.dim_conv3, 3, padding=1, bias=False, device=device, dtype=dtype
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, H, W).

        Raises:
            ValueError: an image with another number of channels.
        """
        channels = self.dim_conv3 + self.dim_untouched
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"x must be (N, {channels}, H, W), got shape {tuple(x.shape)}")
        in_torch = self.implementation == "torch" or (self.implementation == "auto" and x.device.type != "cuda")
        if self.form == "slicing" and in_torch:
            return self._sliced(x)
        return partial_conv3x3(x, self.partial_conv3.weight, implementation=self.implementation)

    def _sliced(self, x: torch.Tensor) -> torch.Tensor:
        convolved = self.partial_conv3(x[:, : self.dim_conv3])
        out = x.to(convolved.dtype, copy=True)
        out[:, : self.dim_conv3] = convolved
        return out

    def extra_repr(self) -> str:
        return f"dim_conv3={self.dim_conv3}, dim_untouched={self.dim_untouched}, forward={self.form}"
