"""Which Triton kernels one launch of a cell starts: recorded, not run."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from opbench.sweeps.check import make_tensors
from opbench.sweeps.global_state import restored_state, seeded
from opbench.sweeps.timed import timed_closure
from opbench.timing.precision import torch_precision
from opbench.workload.case import Case, Direction
from opbench.workload.operator import Operator, Provider

__all__ = ["LaunchedKernel", "UnknownKernelsError", "launched_kernels"]


class LaunchedKernel(NamedTuple):
    """A launch of a function under triton.jit, which may be in any package.

    Attributes:
        kernel: the function.
        arguments: tensors and numbers by name.
        constants: compile-time constants by name.
        options: of Triton's compiler.
    """

    kernel: Any
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    options: Mapping[str, Any]


class UnknownKernelsError(Exception):
    """Which kernels a cell starts cannot be told; says why."""


def launched_kernels(operator: Operator, provider: Provider, case: Case, device: str) -> list[LaunchedKernel]:
    """The launches of one call of what is timed, with those of its set-up; none of the kernels runs.

    Raises:
        UnknownKernelsError: torch.compile may have put kernels into code of its own, or Triton's interpreter is on.
        Exception: whatever the operator raises.
    """
    with (
        restored_state(),
        seeded(0, device),
        torch_precision(case.dtype),
        provider.around(),
        torch.set_grad_enabled(case.direction is not Direction.FWD),
        _recorded(device) as found,
    ):
        timed_closure(case, provider, make_tensors(operator, case, device, 0)).launch()
    return found


@contextmanager
def _recorded(device: str) -> Iterator[list[LaunchedKernel]]:
    found: list[LaunchedKernel] = []
    if find_spec("triton") is None:
        yield found
        return
    import triton
    from triton.runtime.jit import JITFunction

    if triton.knobs.runtime.interpret:
        raise UnknownKernelsError("Triton's interpreter is on")

    def run(kernel: Any, *positional: Any, grid: Any, warmup: bool, **named: Any) -> None:  # noqa: ANN401
        found.append(_bound(kernel, positional, named))

    graphs = _compiled_graphs()
    runs: Any = JITFunction
    before, runs.run = runs.run, run
    try:
        yield found
    finally:
        runs.run = before
    if device != "cpu" and _compiled_graphs() != graphs:
        raise UnknownKernelsError("torch.compile may have put kernels into code of its own")


def _bound(kernel: Any, positional: tuple[Any, ...], named: Mapping[str, Any]) -> LaunchedKernel:  # noqa: ANN401
    signature = inspect.Signature([parameter._param for parameter in kernel.params])
    bound = signature.bind(*positional, **{name: named[name] for name in named if name in kernel.arg_names})
    bound.apply_defaults()
    fixed = {p.name for p in kernel.params if p.is_constexpr or bound.arguments[p.name] is None}
    return LaunchedKernel(
        kernel,
        {name: value for name, value in bound.arguments.items() if name not in fixed},
        {name: value for name, value in bound.arguments.items() if name in fixed},
        {name: value for name, value in named.items() if name not in kernel.arg_names},
    )


def _compiled_graphs() -> int:
    """Graphs that torch.compile has made in this process; those of before are forgotten, and so made again."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return 0
    dynamo.reset()
    return int(dynamo.utils.counters["stats"]["unique_graphs"])
