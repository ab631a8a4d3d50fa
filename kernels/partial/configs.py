"""The choice of a configuration of the partial convolution's kernel, and what it depends on."""

import torch
from opbench_kernels import tuning
from opbench_kernels.launch import INDEX_LIMIT, place_in_vector
from opbench_kernels.partial.launch import CONFIGS, Config, partial_conv3x3_launch

__all__ = ["FORWARD", "choose"]

FORWARD = "partial_conv3x3"
SOURCES = tuple(f"opbench_kernels.{name}" for name in ("launch", "partial.launch", "partial.partial_triton"))


def choose(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, *, allow_tf32: bool) -> Config:
    """The configuration of a launch; arguments as partial_conv3x3_launch takes them.

    Images are contiguous; counts of pixels are rounded up to a power of two, so that few sizes are new.
    """
    if not tuning.is_enabled():
        return tuning.taken(FORWARD, CONFIGS[0])
    pixels = x.shape[:3].numel()
    facts = (
        x.dtype, x.shape[3], weight.shape[1], allow_tf32, *(place_in_vector(tensor) for tensor in (x, weight, out)),
        x.numel() >= INDEX_LIMIT, (pixels - 1).bit_length(),
    )  # fmt: skip
    return tuning.choose(
        tuning.Key(FORWARD, x.device, facts, SOURCES),
        CONFIGS,
        lambda config: partial_conv3x3_launch(x, weight, out, allow_tf32=allow_tf32, config=config).__call__,
    )
