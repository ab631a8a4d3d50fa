"""Files that are whole or not there, and one error for a disk that refuses."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from opbench.errors import StorageError

__all__ = ["PART_SUFFIX", "free_stem", "make_folder", "remove_leftovers", "storage_errors", "write_whole"]

PART_SUFFIX = ".part"
"""Of a file that is being written; only a process that is killed while it writes leaves one."""

STEM_BYTES = 150
"""File systems take 255 bytes, and prefixes and suffixes come on top."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a machine that loses power, sees the old one or the new one, never half.

    Raises:
        StorageError: the disk is full or refuses; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    # The process's number: two that write the same report must not share the unfinished file.
    part = path.with_name(f"{path.name}.{os.getpid()}{PART_SUFFIX}")
    with storage_errors(path):
        try:
            part.unlink(missing_ok=True)  # a killed process of the same number left it, or it is a link
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise


def make_folder(path: Path) -> None:
    """Have a folder inside a run's; a link would lead out of it, and who sent the run may have chosen where to.

    Raises:
        StorageError: it cannot be made, or is a link.
    """
    with storage_errors(path):
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link")
        path.mkdir(exist_ok=True)


def free_stem(name: str, taken: set[str]) -> str:
    """A file name without its suffix that is not taken, on any file system; it joins `taken`."""
    plain = re.sub(r"[^\w.]+", "-", name).strip("-.").encode()[:STEM_BYTES].decode(errors="ignore") or "unnamed"
    stem, number = plain, 2
    while stem.casefold() in taken:
        stem, number = f"{plain}-{number}", number + 1
    taken.add(stem.casefold())
    return stem


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files that killed processes left in a run's folder and the folders in it."""
    for pattern in (f"*{PART_SUFFIX}", f"*/*{PART_SUFFIX}"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                path.unlink()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the system says about a file that cannot be written into a StorageError that names it."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {error.strerror}; what was written before stays readable"
        ) from None
