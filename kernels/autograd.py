"""What operators keep from a forward pass for their backward pass, and that the latter has no derivative of its own."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

__all__ = ["Context", "refuse_second_derivative"]


class Context(Protocol):
    """autograd's, as the operators here use it.

    Attributes:
        saved_tensors: what save_for_backward was given.
        needs_input_grad: for each input, whether its gradient is wanted.
        settings: what else the backward pass needs.
    """

    saved_tensors: tuple[Any, ...]
    needs_input_grad: tuple[bool, ...]
    settings: Any

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None: ...

    def mark_non_differentiable(self, *outputs: torch.Tensor) -> None: ...


def refuse_second_derivative(name: str) -> Callable[..., None]:
    """What a backward operator registers as its own derivative; `name` is the forward operator's."""

    def refuse(_ctx: Context, *_grads: torch.Tensor) -> None:
        raise NotImplementedError(f"{name} has no second derivative: differentiate it once")

    return refuse
