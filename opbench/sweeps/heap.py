"""Keeps the collection after each cell short: one that walks all that was imported takes a tenth of a second."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["short_collections"]


@contextmanager
def short_collections() -> Iterator[Callable[[], None]]:
    """Set aside what is there now (gc.freeze) until the end; leave it to the caller where it has done so itself.

    Yields:
        What sets aside the modules that a cell imported; for after the cell's collection. Of other cells nothing is set
        aside: a tensor in a cycle of references could then never be freed.
    """
    if gc.get_freeze_count():
        yield lambda: None
        return
    modules = 0

    def set_aside() -> None:
        nonlocal modules
        if modules != len(sys.modules):
            modules = len(sys.modules)
            gc.collect()
            gc.freeze()

    set_aside()
    try:
        yield set_aside
    finally:
        gc.unfreeze()
