"""Seeded random tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Standard normal float32 numbers on the generator's device."""
    import torch

    return torch.randn(*shape, generator=generator, device=generator.device)
