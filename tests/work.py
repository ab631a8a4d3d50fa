"""Work counted instead of timed: calls, bytes read and open files are the same on a slow or a busy machine."""

import sys
from contextlib import contextmanager


class Calls:
    """Calls of Python and C functions by one thread."""

    count = 0


@contextmanager
def counted_calls():
    """Counts the calls that this thread makes inside."""
    calls, before = Calls(), sys.getprofile()

    def hook(frame, event, argument):
        if event in ("call", "c_call"):
            calls.count += 1

    sys.setprofile(hook)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def bytes_read(process):
    """Bytes that a psutil process has read so far, cached or not; 0 where the system counts none."""
    counters = process.io_counters() if hasattr(process, "io_counters") else None
    return getattr(counters, "read_chars", 0)
