"""The folder that the commands on a GPU share: what every step wrote, which steps ended, and the archive of it all."""

import json
import os
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from gpu_process import Ending

__all__ = ["ARCHIVE", "ARCHIVE_LIMIT_BYTES", "Entry", "WorkFolder"]

ARCHIVE = "results.tgz"
ARCHIVE_LIMIT_BYTES = 16 * 2**20
LOG_BYTES = 256 * 1024
"""Of a log's end that the archive takes."""
STEPS = "steps.jsonl"
LOCAL = "local"
DERIVED = ("measurements.csv", "tables")
"""`opbench report RUN --write` makes them again from the journal."""
COMPLETE = (0, 1)
"""Exit codes of a step that came to its end: all well, or something to look at."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of steps.jsonl.

    Attributes:
        step: its name.
        event: "started"; for one that is over an Ending, or "skipped".
        machine: identifies the machine.
        code: exit code of one that is over.
        seconds: that this attempt took.
        note: what else to know.
    """

    step: str
    event: str
    machine: str
    at: str
    code: int | None = None
    seconds: float | None = None
    note: str = ""


class WorkFolder:
    """The folder, in which each step has a folder and a log.

    Args:
        path: made where it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.local = path / LOCAL
        """What stays on the machine: compiled extensions, caches of compilers."""
        self.local.mkdir(parents=True, exist_ok=True)
        (path / "logs").mkdir(exist_ok=True)
        self._machine = self._machine_id()

    @property
    def is_new(self) -> bool:
        """No step was started here, nor in a folder that it was restored from."""
        return not (self.path / STEPS).exists()

    def step(self, name: str) -> Path:
        """The folder of a step."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        return folder

    def log(self, name: str) -> Path:
        """What a step printed, of all its attempts."""
        return self.path / "logs" / f"{name}.log"

    def note(
        self, step: str, event: str, code: int | None = None, seconds: float | None = None, note: str = ""
    ) -> None:
        """Add a line to steps.jsonl, on the disk when this returns."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Entry(step, event, self._machine, at, code, seconds, note)
        with (self.path / STEPS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> list[Entry]:
        """Every line; one that a kill cut short is left out."""
        found = []
        for line in (self.path / STEPS).read_text(encoding="utf-8").splitlines() if not self.is_new else ():
            try:
                found.append(Entry(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return found

    def completed(self, step: str, *, here: bool) -> Entry | None:
        """How a step came to its end, on this machine where that is asked; None where it has not."""
        ends = [
            entry
            for entry in self.entries()
            if entry.step == step and entry.event == Ending.ITSELF and entry.code in COMPLETE
        ]
        return next((entry for entry in reversed(ends) if not here or entry.machine == self._machine), None)

    def progress(self, step: str) -> tuple[tuple[str, int, int], ...]:
        """What changes whenever a sweep below a step's folder starts or ends a cell."""
        found = []
        for name in ("journal.jsonl", "started.json"):
            for path in sorted(self.step(step).rglob(name)):
                try:
                    state = path.stat()
                except FileNotFoundError:  # the cell has just ended
                    continue
                found.append((str(path), state.st_size, state.st_mtime_ns))
        return tuple(found)

    def restore(self, archive: Path) -> None:
        """Unpack what an earlier command, here or elsewhere, put into its archive."""
        with tarfile.open(archive) as packed:
            packed.extractall(self.path, filter="data")

    def pack(self, archive: Path) -> int:
        """Write the archive, so that at any moment there is a whole one; its size in bytes."""
        part = archive.with_name(f"{archive.name}.part")
        with tarfile.open(part, "w:gz", compresslevel=6) as packed:
            for path in self._kept():
                self._add(packed, path)
        part.replace(archive)
        return archive.stat().st_size

    def _kept(self) -> Iterator[Path]:
        for folder, folders, files in os.walk(self.path):
            here = Path(folder)
            folders[:] = sorted(name for name in folders if name not in DERIVED and here / name != self.local)
            for name in sorted(files):
                if name not in (*DERIVED, ARCHIVE) and not name.endswith(".part"):
                    yield here / name

    def _add(self, packed: tarfile.TarFile, path: Path) -> None:
        """A file as it is now: whoever writes it may go on."""
        name = path.relative_to(self.path)
        try:
            with path.open("rb") as file:
                info = packed.gettarinfo(arcname=str(name), fileobj=file)
                if name.suffix == ".log" and info.size > LOG_BYTES:
                    file.seek(info.size - LOG_BYTES)
                    info.size = LOG_BYTES
                packed.addfile(info, file)
        except FileNotFoundError:
            return

    def _machine_id(self) -> str:
        path = self.local / "machine"
        if not path.exists():
            path.write_text(uuid.uuid4().hex, encoding="ascii")
        return path.read_text(encoding="ascii")
