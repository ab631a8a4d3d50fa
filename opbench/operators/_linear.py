"""Linear layers of modules: weights that keep the spread of their input, and the layer itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from opbench.operators._random import normal
from opbench.workload.operator import Tensors

if TYPE_CHECKING:
    import torch


def linear_weight(out: int, channels: int, std: float, generator: torch.Generator) -> torch.Tensor:
    """(out, channels), so that inputs of unit variance give outputs of standard deviation `std`."""
    return normal(generator, out, channels) * (std / math.sqrt(channels))


def linear(name: str, tensors: Tensors) -> Callable[[torch.Tensor], torch.Tensor]:
    """The Linear of a module whose parameters are `name`_weight and `name`_bias."""
    import torch.nn.functional as F

    weight, bias = tensors[f"{name}_weight"], tensors[f"{name}_bias"]
    return lambda x: F.linear(x, weight, bias)
