"""Which Triton kernels a cell starts when it is built and launched once."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from opbench.sweeps.check import make_tensors
from opbench.sweeps.global_state import restored_state, seeded
from opbench.sweeps.timed import timed_closure
from opbench.timing.precision import torch_precision
from opbench.timing.trials import trials_for
from opbench.workload.case import Case, Direction
from opbench.workload.operator import Operator, Provider
from opbench.workload.trials import trials_of_cell

__all__ = ["UnknownKernelsError", "launched_kernels"]

CHOICES_VARIABLE = "OPBENCH_KERNELS_CACHE"
"""Where opbench_kernels keeps what it has chosen by timing (opbench_kernels.tuning)."""


class UnknownKernelsError(Exception):
    """Which kernels a cell starts cannot be told; says why."""


def launched_kernels(operator: Operator, provider: Provider, case: Case, device: str) -> list[Any]:
    """What functions under triton.jit, in any package, were compiled to: Triton's CompiledKernel of each, once.

    They run. Where a provider chooses among several by timing, it chooses anew, so that all of them are among these.

    Raises:
        UnknownKernelsError: torch.compile may have put kernels into code of its own, or Triton's interpreter is on.
        Exception: whatever the operator raises.
    """
    with (
        tempfile.TemporaryDirectory(prefix="opbench-kernels-") as folder,
        restored_state(),
        patch.dict(os.environ, {CHOICES_VARIABLE: str(Path(folder, "choices.json"))}),
        seeded(0, device),
        nullcontext() if device == "cpu" else torch.cuda.device(device),
        torch_precision(case.dtype),
        trials_of_cell(trials_for(device, "warm")),
        provider.around(),
        torch.set_grad_enabled(case.direction is not Direction.FWD),
        _recorded(device) as found,
    ):
        timed_closure(case, provider, make_tensors(operator, case, device, 0)).launch()
    return found


@contextmanager
def _recorded(device: str) -> Iterator[list[Any]]:
    """Gives a list that gets every kernel that is launched, once; what it holds is complete after the block."""
    found: list[Any] = []
    if find_spec("triton") is None:
        yield found
        return
    import triton
    from triton.runtime.jit import JITFunction

    if triton.knobs.runtime.interpret:
        raise UnknownKernelsError("Triton's interpreter is on")
    run: Any = JITFunction.run

    def recording(kernel: Any, *positional: Any, **named: Any) -> Any:  # noqa: ANN401 - Triton's
        compiled = run(kernel, *positional, **named)
        if all(compiled is not other for other in found):
            found.append(compiled)
        return compiled

    graphs = _compiled_graphs()
    with patch.object(JITFunction, "run", recording):
        yield found
    if device != "cpu" and _compiled_graphs() != graphs:
        raise UnknownKernelsError("torch.compile may have put kernels into code of its own")


def _compiled_graphs() -> int:
    """Graphs that torch.compile has made in this process; those of before are forgotten, and so made again."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return 0
    dynamo.reset()
    return int(dynamo.utils.counters["stats"]["unique_graphs"])
