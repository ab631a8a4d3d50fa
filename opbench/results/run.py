"""A run's folder: run.json (what was asked, where), ceilings.json (the device's limits), journal.jsonl (the truth),
measurements.csv (derived).

Reading needs neither torch nor a GPU; only load_results needs pandas.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from opbench.cell_warning import join_warnings
from opbench.device.ceilings import Ceilings, limit_columns, read_ceilings
from opbench.errors import ResultsError, StorageError
from opbench.files import remove_leftovers, storage_errors, write_whole
from opbench.results import columns
from opbench.results.columns import names
from opbench.results.journal import JOURNAL, JournalWriter, lock, open_journal, read_journal
from opbench.results.measurement import Measurement, Status
from opbench.results.metrics import derived_metrics
from opbench.results.repetitions import by_cell
from opbench.text import one_line
from opbench.workload.case import Cell

__all__ = ["CEILINGS", "COLUMNS", "SCHEMA_VERSION", "Run", "RunFolder", "free_run_path"]

SCHEMA_VERSION = 1
RUN = "run.json"
CEILINGS = "ceilings.json"

COLUMNS = names(columns.COLUMNS)
"""Of a row, in their order; opbench/results/columns.py says what each is."""


class RunFolder:
    """One run on disk; create it, or open one that exists."""

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        self.run = run
        self._plan = [Cell.from_json(cell) for cell in run["plan"]]
        self.differences: tuple[str, ...] = ()
        """How what is measured from now on differs from what run.json says, accepted by whoever resumed the run."""

    @classmethod
    def create(
        cls, path: Path, *, command: Mapping[str, Any], environment: Mapping[str, Any], plan: list[Cell]
    ) -> Self:
        """Make the folder and write run.json.

        Raises:
            ResultsError: the folder already holds a run, or another sweep is making one there.
            StorageError: it cannot be written.
        """
        started = datetime.now(UTC)
        run = {
            "schema_version": SCHEMA_VERSION,
            "run_id": f"{started:%Y%m%dT%H%M%SZ}-{os.urandom(3).hex()}",
            "started_at": started.isoformat(timespec="seconds"),
            "environment": dict(environment),
            "command": dict(command),
            "plan": [cell.to_json() for cell in plan],
        }
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            with open_journal(path / JOURNAL) as journal:
                lock(journal, path)
                if (path / RUN).exists() or journal.read(1):
                    raise ResultsError(
                        f"{path} already holds a run; choose another --out, or continue it with --resume"
                    )
                remove_leftovers(path)
                text = json.dumps(run, indent=1, allow_nan=False)
                created = cls(path, json.loads(text))  # what cannot be read back is not written
                write_whole(path / RUN, text + "\n")
        return created

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read run.json of an existing run.

        Raises:
            ResultsError: there is no run, it is damaged, or a newer opbench wrote it.
        """
        path = Path(path)
        file = path / RUN
        try:
            if not file.exists():
                raise ResultsError(f"{path}: no run there (run.json is missing)")
            if not file.is_file():
                raise ResultsError(f"{file}: must be a regular file")
            run = json.loads(file.read_text(encoding="utf-8"))
            version = run["schema_version"]
            if version != SCHEMA_VERSION:
                raise ResultsError(
                    f"{file}: schema_version must be {SCHEMA_VERSION}, got {one_line(repr(version), 60)}; "
                    "another version of opbench wrote it"
                )
            _check_run(run)
            opened = cls(path, run)
            _check_plan(opened.plan())
            return opened
        except OSError as error:
            raise ResultsError(f"{path}: cannot read run.json: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ResultsError(f"{file}: damaged: {one_line(repr(error))}") from None

    @cached_property
    def ceilings(self) -> Ceilings | None:
        """The measured limits of the run's device; None where the run has none.

        Raises:
            ResultsError: ceilings.json is damaged.
        """
        return read_ceilings(self.path / CEILINGS)

    def write_ceilings(self, ceilings: Ceilings | str) -> None:
        """Write ceilings.json; a text says why there are none."""
        data = {"reason": ceilings} if isinstance(ceilings, str) else ceilings.to_json()
        write_whole(self.path / CEILINGS, json.dumps(data, indent=1, allow_nan=False) + "\n")
        self.__dict__.pop("ceilings", None)

    @property
    def device_name(self) -> str:
        """Name of the device that the run measured."""
        return str(self.run["environment"]["device_name"])

    def plan(self) -> list[Cell]:
        """Every cell of the run, finished or not."""
        return list(self._plan)

    def measurements(self) -> Iterator[Measurement]:
        """Every line of the journal, in the order in which the cells ended; of a cell retried or repeated, each.

        A last line that a kill cut short is left out; any other damage is an error.

        Raises:
            ResultsError: there is no journal, or a line of it is not a measurement.
        """
        return (measurement for measurement, _ in read_journal(self.path / JOURNAL))

    def finished(self) -> dict[str, Measurement]:
        """What is known of each cell that has a line, by its key, as opbench.results.repetitions.by_cell says.

        Raises:
            ResultsError: as measurements().
        """
        return by_cell(self.measurements())

    @contextmanager
    def append(self) -> Iterator[JournalWriter]:
        """Open the journal to add measurements, after cutting off a line that a kill left unfinished.

        Raises:
            ResultsError: another sweep has it open.
            StorageError: it cannot be written.
        """
        with open_journal(self.path / JOURNAL) as file:
            lock(file, self.path)
            remove_leftovers(self.path)
            if self.differences:
                self._note_differences()
            yield JournalWriter(
                file, self.path / JOURNAL, whole=sum(size for _, size in read_journal(self.path / JOURNAL))
            )

    def __repr__(self) -> str:
        """Folder, size, device and day: `<opbench.Run results/gpu: 70 cells on NVIDIA H100, 2026-11-21>`."""
        cells, day = len(self._plan), str(self.run.get("started_at", ""))[:10]
        return f"<opbench.Run {self.path}: {cells} cells on {self.device_name}{day and f', {day}'}>"

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per planned cell with every column; None where there is no value."""
        finished = self.finished()
        rows = []
        for cell in self.plan():
            measurement = finished.get(cell.key) or Measurement(
                cell, Status.NOT_RUN, reason="the run ended before this cell"
            )
            rows.append(self._row(measurement))
        return rows

    def write_measurements_csv(self) -> Path:
        """Write measurements.csv from the journal."""
        path = self.path / "measurements.csv"
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(self.rows())
        write_whole(path, text.getvalue())
        return path

    def _note_differences(self) -> None:
        """Keep in run.json that the run goes on under other circumstances, and which."""
        noted = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "differences": list(self.differences),
        }
        self.run = {**self.run, "resumed": [*self.run.get("resumed", ()), noted]}
        write_whole(self.path / RUN, json.dumps(self.run, indent=1, allow_nan=False) + "\n")

    def _row(self, measurement: Measurement) -> dict[str, Any]:
        case = measurement.cell.case
        values = {
            "run_id": self.run["run_id"],
            **case.labels(),
            "provider": measurement.cell.provider,
            "batch": case.shape.batch,
            "height": case.shape.height,
            "width": case.shape.width,
            "channels": case.shape.channels,
            "device": self.device_name,
            "timer": measurement.timer or self.run["command"]["timer"],
            "cache": measurement.cache or self.run["command"]["cache"],
            "status": str(measurement.status),
            "reason": measurement.reason,
            "warnings": join_warnings(measurement.warnings),
            "stop_reason": str(measurement.stop_reason) if measurement.stop_reason else None,
            "flop_count": measurement.cell.flop_count,
            "bytes_moved": measurement.cell.bytes_moved,
            "peak_memory_bytes": measurement.peak_memory_bytes,
            "max_rel_error": measurement.max_rel_error,
            "tolerance": measurement.tolerance,
            "kernel_source_hash": measurement.kernel_source_hash or None,
            "configuration": measurement.configuration or None,
            **derived_metrics(measurement),
            "processes": measurement.processes if measurement.status is Status.OK else None,
        }
        values |= limit_columns(self.ceilings, values)
        return {column: values[column] for column in COLUMNS}


Run = RunFolder
"""The public name: `opbench.Run.open(path)`, and what `opbench.sweep` returns."""


def _check_run(run: Mapping[str, Any]) -> None:
    """Refuse a run.json whose parts are not what reading relies on; ValueError, KeyError or TypeError says which."""
    environment, command = run["environment"], run["command"]
    for name, value in {
        "run_id": run["run_id"],
        "started_at": run.get("started_at", ""),
        "device_name": environment["device_name"],
        "timer": command["timer"],
        "cache": command["cache"],
    }.items():
        if not (isinstance(value, str) and value.isprintable()):
            raise ValueError(f"{name} must be printable text, got {value!r:.60}")
    for name, part in (("packages", environment.get("packages")), ("cpu", environment.get("cpu"))):
        if not isinstance(part, dict | None):
            raise TypeError(f"{name} must be an object, got {part!r:.60}")


def _check_plan(plan: list[Cell]) -> None:
    """Refuse a plan that has a cell twice: of its measurements only one would be read."""
    seen: set[str] = set()
    for cell in plan:
        if cell.key in seen:
            raise ValueError(f"the plan has {cell.key} twice")
        seen.add(cell.key)


def free_run_path(parent: Path, device_slug: str) -> Path:
    """Make the first folder `<date>-<device>-<n>` under `parent` that does not exist yet.

    Raises:
        StorageError: it cannot be made.
    """
    stem = f"{datetime.now(UTC):%Y-%m-%d}-{device_slug}"
    number = 1
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                (parent / f"{stem}-{number}").mkdir()
            except FileExistsError:  # also by a sweep that started in the same moment
                number += 1
            else:
                return parent / f"{stem}-{number}"
    except OSError as error:
        raise StorageError(
            f"{parent}: cannot be written: {error.strerror}; choose another place for results with --out"
        ) from None
