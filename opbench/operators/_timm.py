"""What providers of timm's layers share: whether they are here, and a case's tensors in the place of parameters."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["NEEDS", "share", "unavailable"]

NEEDS = "the package timm"


def unavailable(module: str) -> str | None:
    """Why timm's models/MODULE.py is not here, or None. Imports nothing, since timm takes seconds."""
    spec = importlib.util.find_spec("timm")
    if spec is None:
        return "the package timm is not installed (pip install timm)"
    if not any((Path(folder) / "models" / f"{module}.py").exists() for folder in spec.submodule_search_locations or ()):
        return f"the installed timm has no models/{module}.py (pip install --upgrade timm)"
    return None


def share(layer: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor of the case in the place of a parameter, so that gradients reach it; functional_call costs time."""
    delattr(layer, name)
    setattr(layer, name, tensor)
