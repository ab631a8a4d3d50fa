"""What the operating system says about memory and processes; None wherever it does not say, as without /proc."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from opbench.errors import UsageError

__all__ = [
    "SILENT",
    "available_memory_bytes",
    "child_pids",
    "data_limit",
    "require_unix",
    "says_out_of_memory",
    "total_memory_bytes",
]

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""A control group's limit, its use, and the part of it that the kernel can take back: version 2, then version 1."""

OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "alloc_failed",
    "bad_alloc",
)
"""What Triton, PyTorch's CPU allocator, the system, cuBLAS and C++ say in errors that have no class of their own."""
UNCLEAR_WORDS = ("could not create a primitive", "could not execute a primitive", "can't start new thread")
"""What oneDNN and Python say where memory ran out, but not only there."""
LITTLE_BYTES = 2**26
"""Less than that is left where they mean it: room for oneDNN's code and a thread's stack."""

POSIX = os.name == "posix"

SILENT = (OSError, RuntimeError, ValueError, LookupError, AttributeError)
"""What psutil raises, beside its own errors, where a file of /proc or a function of the system is missing."""


def require_unix(what: str) -> None:
    """Refuse what needs descriptors passed between processes, file locks and signals.

    Raises:
        UsageError: this is Windows.
    """
    if not POSIX:
        raise UsageError(
            f"{what} needs Linux or macOS: cells run in worker processes that Windows does not have; "
            "use WSL. Reading results (report, compare, history, load_results) works here"
        )


def says_out_of_memory(text: str, needed_bytes: int = 0) -> bool:
    """Whether an error's text says that memory ran out; an unclear one does where less is left than was needed."""
    lower = text.lower()
    if any(words in lower for words in OUT_OF_MEMORY_WORDS):
        return True
    if not any(words in lower and f"{words} descriptor" not in lower for words in UNCLEAR_WORDS):
        return False
    left = available_memory_bytes()
    return left is not None and left < max(needed_bytes, LITTLE_BYTES)


def total_memory_bytes() -> int | None:
    """Memory of this machine."""
    import psutil

    with suppress(psutil.Error, *SILENT):
        return int(psutil.virtual_memory().total)
    return None


def available_memory_bytes() -> int | None:
    """Memory that a process can have without swapping: of the machine, or what its container has left."""
    import psutil

    found = list(_left_in_cgroups())
    with suppress(psutil.Error, *SILENT):
        found.append(int(psutil.virtual_memory().available))
    with suppress(ImportError, psutil.Error, *SILENT):
        import resource

        if (limit := resource.getrlimit(resource.RLIMIT_DATA)[0]) != resource.RLIM_INFINITY:
            found.append(max(0, limit - _data_bytes()))
    return min(found, default=None)


@contextmanager
def data_limit(growth_bytes: int) -> Iterator[bool]:
    """Hold the private writable memory of this process to what it is now and a growth; yields whether that works.

    Linux alone counts it. A lower limit that somebody set stays.
    """
    import psutil

    try:
        import resource

        before = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = _data_bytes() + growth_bytes
        if before[0] == resource.RLIM_INFINITY or wanted < before[0]:
            resource.setrlimit(resource.RLIMIT_DATA, (wanted, before[1]))
    except (ImportError, psutil.Error, *SILENT):
        yield False
        return
    try:
        yield True
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _data_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().data)


def child_pids() -> list[int] | None:
    """Processes that this one started or, on Linux, adopted."""
    import psutil

    with suppress(psutil.Error, *SILENT):
        return [child.pid for child in psutil.Process().children()]
    return None


def _left_in_cgroups() -> Iterator[int]:
    """What the limit of each control group above this process leaves; a container with 2 GiB is one."""
    for folder in _own_cgroups():
        for limit, used, reclaimable in CGROUP_FILES:
            with suppress(OSError, ValueError):  # ValueError: no limit is `max`
                limit_bytes, used_bytes = (int((folder / name).read_bytes()) for name in (limit, used))
                yield max(0, limit_bytes - used_bytes + _statistic(folder, reclaimable))


def _own_cgroups() -> Iterator[Path]:
    """Folders of the memory controller for this process, and of the groups that hold it."""
    with suppress(OSError):
        for line in OWN_CGROUPS.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            folder = CGROUPS / "memory" if controllers else CGROUPS
            yield folder
            for part in Path(path).parts[1:]:  # a container may show its own group as the root, whatever the path says
                folder /= part
                yield folder


def _statistic(folder: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
