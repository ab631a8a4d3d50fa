"""How many kernels are compiled while a cell is checked and built."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["counted_kernels"]


@contextmanager
def counted_kernels(device_type: str) -> Iterator[Callable[[], int]]:
    """Gives a function that says how many kernels were compiled for this process since the beginning.

    Those are Triton's, without what its cache on disk had, or those that torch.compile has generated, whichever are
    more: what it generates for a GPU it has Triton compile, in processes of its own or in this one.
    """
    before, found = _generated(), list[object]()
    if device_type == "cpu" or importlib.util.find_spec("triton") is None:
        yield lambda: _generated() - before
        return
    import triton

    def on_compiled(*, src: object, cache_hit: bool, **_: Any) -> None:  # noqa: ANN401
        if not cache_hit:
            found.append(src)

    knobs: Any = triton.knobs.compilation
    previous, knobs.listener = knobs.listener, on_compiled
    try:
        yield lambda: max(len(found), _generated() - before)
    finally:
        knobs.listener = previous


def _generated() -> int:
    """Kernels that torch.compile has generated in this process."""
    metrics = sys.modules.get("torch._inductor.metrics")
    return getattr(metrics, "generated_kernel_count", 0)
