"""Limits of the process that measures: its memory, and the threads that torch uses."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from opbench.host.system import data_limit

__all__ = ["memory_limit", "torch_threads"]


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use that many threads of the CPU; None leaves it as it is."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def memory_limit(gib: float | None, device: str) -> Iterator[bool]:
    """Hold this process to a limit: the CUDA allocator's share of the device, or on the CPU the growth of its data.

    Args:
        gib: GiB; None for none.
        device: as RunOptions.

    Yields:
        Whether the limit holds; only Linux counts the data of a process.
    """
    if gib is None:
        yield False
        return
    limit_bytes = int(gib * 2**30)
    if device != "cpu":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), device)
        try:
            yield True
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    with data_limit(limit_bytes) as held:
        yield held
