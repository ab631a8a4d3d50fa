"""Seeded random tensors."""

import torch


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Standard normal float32 numbers on the generator's device."""
    return torch.randn(*shape, generator=generator, device=generator.device)
