"""The closure that is timed, with what it reads and gives."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from opbench.sweeps.check import output_gradient
from opbench.timing import Launch
from opbench.workload.case import Case, Direction
from opbench.workload.operator import NETWORK_INPUT, Provider, Tensors

__all__ = ["Timed", "timed_closure"]


@dataclass(frozen=True, slots=True)
class Timed:
    """One launch of a cell.

    Attributes:
        launch: what the timer runs; gives the output, or a gradient of each tensor.
        tensors: inputs and parameters that it reads, by name.
        output: of the forward pass before a backward one, which alone is timed then; else None.
        gradient: of the output, which a backward pass reads; None of a forward pass.
    """

    launch: Launch
    tensors: Tensors
    output: torch.Tensor | None = None
    gradient: torch.Tensor | None = None

    def values(self) -> Tensors:
        """What one launch gives, by the names that the check has for it: output, or gradient of each tensor."""
        given = self.launch()
        if isinstance(given, torch.Tensor):
            return {"output": given}
        names = [name for name, tensor in self.tensors.items() if tensor.requires_grad]
        return {f"gradient of {name}": grad for name, grad in zip(names, given, strict=True)}  # type: ignore[call-overload]


def timed_closure(case: Case, provider: Provider, tensors: Tensors) -> Timed:
    """What is timed of a provider, built with `tensors`; for gradients they become leaves."""
    if case.direction is Direction.FWD:
        return Timed(provider.build(case, tensors), tensors)
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    forward = provider.build(case, leaves)
    inputs = list(leaves.values())
    out = forward()
    gradient = output_gradient(out)
    if case.direction is Direction.BWD:
        return Timed(_backward(out, inputs, gradient), leaves, out, gradient)
    if case.direction is Direction.TRAIN:
        leaves[NETWORK_INPUT].requires_grad_(False)
        trained = [leaf for leaf in inputs if leaf.requires_grad]
        return Timed(_step(forward, trained, gradient), leaves, gradient=gradient)
    return Timed(lambda: torch.autograd.grad(forward(), inputs, gradient), leaves, gradient=gradient)


def _step(
    forward: Callable[[], torch.Tensor], parameters: list[torch.Tensor], gradient: torch.Tensor
) -> Callable[[], object]:
    """A step of training, which gives the gradients. Its rate is 0: the work is the same, and every step is alike."""
    optimizer = torch.optim.SGD(parameters, lr=0.0)

    def step() -> list[torch.Tensor | None]:
        optimizer.zero_grad()
        torch.autograd.backward(forward(), gradient)
        optimizer.step()
        return [parameter.grad for parameter in parameters]

    return step


def _backward(out: torch.Tensor, inputs: list[torch.Tensor], gradient: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True)
