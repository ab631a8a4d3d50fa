"""Published checkpoints into models, with messages that say what does not fit."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn

__all__ = ["load_checkpoint"]

CONTAINERS = ("model", "state_dict", "module")
"""Keys under which training scripts store the weights, the first one that is there."""
MOST_SHOWN = 4


def load_checkpoint(model: nn.Module, checkpoint: Mapping[str, Any] | str | PathLike[str]) -> None:
    """Load weights strictly: every parameter and buffer of the model, and nothing else.

    Args:
        model: it is changed only if all fits.
        checkpoint: names with tensors, as state_dict() gives, or what a training script stored with them under "model",
            "state_dict" or "module"; or the path of such a file, read with weights_only=True. A prefix "module." of all
            names, which DistributedDataParallel leaves, is ignored.

    Raises:
        ValueError: names that are missing or unknown, or tensors of another size; the message has the first few, sizes
            with both shapes.
    """
    stored = checkpoint
    if not isinstance(stored, Mapping):
        stored = torch.load(stored, map_location="cpu", weights_only=True)
    state = _state_of(stored)
    wanted = model.state_dict()
    problems = [
        *_shown("of another size", _other_sizes(state, wanted)),
        *_shown("missing", sorted(wanted.keys() - state.keys())),
        *_shown("unknown", sorted(state.keys() - wanted.keys())),
    ]
    if problems:
        raise ValueError(f"the checkpoint does not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(state)


def _state_of(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Names with tensors, out of what a training script stored."""
    for key in CONTAINERS:
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    wrapped = all(name.startswith("module.") for name in checkpoint)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in checkpoint.items()}


def _other_sizes(state: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> list[str]:
    return [
        f"{name} is {tuple(state[name].shape)}, the model's {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]


def _shown(problem: str, found: list[str]) -> list[str]:
    """The first of what was found as one text, or nothing."""
    more = [f"and {len(found) - MOST_SHOWN} more"] if len(found) > MOST_SHOWN else []
    return [f"{problem}: {', '.join(found[:MOST_SHOWN] + more)}"] if found else []
