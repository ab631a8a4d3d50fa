"""journal.jsonl, the truth of a run: one line per finished cell, and the lock of whoever writes it."""

import json
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from opbench.errors import ResultsError
from opbench.files import storage_errors
from opbench.host.system import require_unix
from opbench.results.measurement import Measurement
from opbench.results.repetitions import by_cell
from opbench.text import one_line

__all__ = ["JOURNAL", "Journal", "JournalReader", "JournalWriter", "lock", "open_journal"]

JOURNAL = "journal.jsonl"


def open_journal(path: Path) -> IO[bytes]:
    """Open a journal to read and append, unbuffered: what could not be written must not be tried again on closing.

    Raises:
        StorageError: it cannot be made or written, or is a link.
        UsageError: this is Windows.
    """
    require_unix("measuring")
    with storage_errors(path):
        return os.fdopen(
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b", buffering=0
        )


def lock(file: IO[bytes], folder: Path) -> None:
    """Hold an open file for this process alone, until it is closed or the process ends in any way.

    Raises:
        ResultsError: another process holds it, or the file system knows no locks.
    """
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ResultsError(f"{folder}: another sweep is writing there; wait for it, or choose another --out") from None
    except OSError as error:
        raise ResultsError(f"{folder}: cannot lock journal.jsonl: {error.strerror}; choose another --out") from None


@dataclass(frozen=True)
class Journal:
    """What a journal held when it was read.

    Attributes:
        measurements: of its lines, in their order; a last line that a kill cut short is left out.
        whole_bytes: size of these lines.
    """

    measurements: tuple[Measurement, ...] = ()
    whole_bytes: int = 0

    @cached_property
    def by_cell(self) -> Mapping[str, Measurement]:
        """What is known of each cell, by its key, as opbench.results.repetitions.by_cell says."""
        return by_cell(self.measurements)


class JournalReader:
    """Reads a journal, and reads it again only where the file is another or has grown since: by size and time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = Journal()
        self._state: tuple[int, ...] = ()

    def read(self) -> Journal:
        """What the journal holds.

        Raises:
            ResultsError: there is no journal, or a line of it is not a measurement.
        """
        try:
            found = self._path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise ResultsError(f"{self._path}: must be a regular file")
            if _state(found) != self._state:
                with self._path.open("rb") as file:
                    # Before the lines: those that another process adds while they are read are seen next time.
                    state = _state(os.fstat(file.fileno()))
                    self._read = self._parse(file)
                self._state = state
        except FileNotFoundError:
            raise ResultsError(f"{self._path.parent}: no journal there (journal.jsonl is missing)") from None
        except OSError as error:
            raise ResultsError(f"{self._path}: cannot be read: {error.strerror}") from None
        return self._read

    def _parse(self, lines: Iterable[bytes]) -> Journal:
        measurements, whole_bytes = [], 0
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n"):  # only the last one may not: a write was cut short
                measurements.append(_measurement(line, f"{self._path}:{number}"))
                whole_bytes += len(line)
        return Journal(tuple(measurements), whole_bytes)


class JournalWriter:
    """Appends measurements, each durable before the next cell starts.

    Args:
        file: the journal, unbuffered.
        path: its name, for errors.
        whole: bytes of it that are whole lines; what follows them is cut off.
    """

    def __init__(self, file: IO[bytes], path: Path, whole: int) -> None:
        self._file = file
        self._path = path
        self._whole = whole
        self._cut()

    def write(self, measurement: Measurement) -> None:
        """Append one line and push it to the disk.

        Raises:
            StorageError: the disk is full or refuses; the lines before stay whole.
        """
        line = measurement.to_json_line().encode() + b"\n"
        with storage_errors(self._path):
            written = 0
            try:
                while written < len(line):
                    written += self._file.write(line[written:])
                os.fsync(self._file.fileno())
            except BaseException as error:
                # A line that is there in full stays when only waiting for the disk was interrupted, by Ctrl-C say.
                if isinstance(error, OSError) or written < len(line):
                    with suppress(OSError):
                        self._cut()
                else:
                    self._whole += len(line)
                raise
        self._whole += len(line)

    def _cut(self) -> None:
        self._file.truncate(self._whole)
        self._file.seek(self._whole)


def _measurement(line: bytes, place: str) -> Measurement:
    try:
        return Measurement.from_json(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ResultsError(f"{place}: damaged line: {one_line(repr(error))}") from None


def _state(found: os.stat_result) -> tuple[int, ...]:
    """What differs once a file is another one or was written to."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
