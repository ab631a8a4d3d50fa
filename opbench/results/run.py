"""A run's folder: run.json (what was asked, where), ceilings.json (the device's limits), journal.jsonl (the truth),
measurements.csv (derived).

Reading needs neither torch nor a GPU; only load_results needs pandas.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from opbench.device.ceilings import Ceilings, read_ceilings
from opbench.errors import ResultsError
from opbench.files import remove_leftovers, storage_errors, write_whole
from opbench.results.journal import JOURNAL, Journal, JournalReader, JournalWriter, lock, open_journal
from opbench.results.measurement import Measurement, Status
from opbench.results.origins import Origin
from opbench.results.row import COLUMN_NAMES, Row
from opbench.results.rows import row_of
from opbench.results.run_json import RUN, new_run, origins_of, own_cells, planned_cells, read_run, run_text
from opbench.workload.case import Cell

__all__ = ["CEILINGS", "Run"]

CEILINGS = "ceilings.json"


class Run:
    """One run on disk; create it, or open one that exists.

    Its journal is read when it is first asked for, and again only after the file has changed.

    Attributes:
        path: its folder.
        run_id: when it was started, in UTC, and six random digits.
        started_at: date and time, ISO 8601; empty where it is not known.
        environment: where it was measured: device, versions, machine, revisions.
        command: what was asked for, as `opbench sweep` understood it.
        whole_plan: every cell that was asked for; of a shard with those of the other shards.
        origins: the runs that a merged run was made of, or the cards of a fleet, by run_id; empty of one that was
            measured as it is.
        differences: how what is measured from now on differs from what run.json says, accepted by whoever resumed the
            run.
    """

    def __init__(self, path: Path, stored: Mapping[str, Any], plan: Sequence[Cell]) -> None:
        self.path = path
        self.run_id: str = stored["run_id"]
        self.started_at: str = stored.get("started_at", "")
        self.environment: Mapping[str, Any] = stored["environment"]
        self.command: Mapping[str, Any] = stored["command"]
        self.differences: tuple[str, ...] = ()
        self._stored = stored
        self.whole_plan = tuple(plan)
        self.origins: Mapping[str, Origin] = origins_of(stored)
        self._plan = tuple(own_cells(stored, plan))
        self._journal = JournalReader(path / JOURNAL)
        self._rows: tuple[Row, ...] = ()
        self._rows_of: Journal | None = None

    @classmethod
    def create(
        cls, path: Path, *, command: Mapping[str, Any], environment: Mapping[str, Any], plan: list[Cell]
    ) -> Self:
        """Make the folder and write run.json.

        Raises:
            ResultsError: the folder already holds a run, or another sweep is making one there.
            StorageError: it cannot be written.
        """
        text = run_text(new_run(command, environment, plan))
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            with open_journal(path / JOURNAL) as journal:
                lock(journal, path)
                if (path / RUN).exists() or journal.read(1):
                    raise ResultsError(
                        f"{path} already holds a run; choose another --out, or continue it with --resume"
                    )
                remove_leftovers(path)
                stored = json.loads(text)
                created = cls(path, stored, planned_cells(stored))  # what cannot be read back is not written
                write_whole(path / RUN, text)
        return created

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read run.json of an existing run.

        Raises:
            ResultsError: there is no run, it is damaged, or a newer opbench wrote it.
        """
        return cls(Path(path), *read_run(Path(path)))

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
        self._rows_of = None

    @property
    def device_name(self) -> str:
        """Name of the device that the run measured."""
        return str(self.environment["device_name"])

    def plan(self) -> list[Cell]:
        """Every cell of the run, finished or not."""
        return list(self._plan)

    def environment_of(self, measurement: Measurement) -> Mapping[str, Any]:
        """Where a line of the journal was measured: in a merged run, where its origin was."""
        origin = self.origins.get(measurement.origin)
        return origin.environment if origin else self.environment

    def measurements(self) -> tuple[Measurement, ...]:
        """Every line of the journal, in the order in which the cells ended; of a cell retried or repeated, each.

        A last line that a kill cut short is left out; any other damage is an error.

        Raises:
            ResultsError: there is no journal, or a line of it is not a measurement.
        """
        return self.journal().measurements

    def finished(self) -> Mapping[str, Measurement]:
        """What is known of each cell that has a line, by its key, as opbench.results.repetitions.by_cell says.

        Raises:
            ResultsError: as measurements().
        """
        return self.journal().by_cell

    def journal(self) -> Journal:
        """What the journal holds now.

        Raises:
            ResultsError: as measurements().
        """
        return self._journal.read()

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
            yield JournalWriter(file, self.path / JOURNAL, whole=self.journal().whole_bytes)

    def __repr__(self) -> str:
        """Folder, size, device and day: `<opbench.Run results/gpu: 70 cells on NVIDIA H100, 2026-11-21>`."""
        cells, day = len(self._plan), self.started_at[:10]
        return f"<opbench.Run {self.path}: {cells} cells on {self.device_name}{day and f', {day}'}>"

    def rows(self) -> list[Row]:
        """One per planned cell, in the order of the plan.

        Raises:
            ResultsError: as measurements().
        """
        journal = self.journal()
        if self._rows_of is not journal:
            self._rows = tuple(self._row(cell, journal) for cell in self._plan)
            self._rows_of = journal
        return list(self._rows)

    def write_measurements_csv(self) -> Path:
        """Write measurements.csv from the journal."""
        path = self.path / "measurements.csv"
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(COLUMN_NAMES)
        writer.writerows(row.values() for row in self.rows())
        write_whole(path, text.getvalue())
        return path

    def add_origins(self, origins: Sequence[Origin]) -> None:
        """Keep in run.json where lines of the journal will be from; only while append() holds the journal.

        Raises:
            StorageError: it cannot be written.
        """
        self.origins = {**self.origins, **{origin.run_id: origin for origin in origins}}
        self._stored = {**self._stored, "origins": [origin.to_json() for origin in self.origins.values()]}
        with storage_errors(self.path):
            write_whole(self.path / RUN, run_text(self._stored))
        self._rows_of = None

    def _row(self, cell: Cell, journal: Journal) -> Row:
        measurement = journal.by_cell.get(cell.key)
        origin = self.origins.get(measurement.origin) if measurement else None
        return row_of(
            measurement or Measurement(cell, Status.NOT_RUN, reason="the run ended before this cell"),
            run_id=self.run_id,
            environment=self.environment_of(measurement) if measurement else {"device_name": self.device_name},
            command=self.command,
            ceilings=origin.ceilings if origin else self.ceilings,
            actor=origin.actor if origin else "",
        )

    def _note_differences(self) -> None:
        """Keep in run.json that the run goes on under other circumstances, and which."""
        noted = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "differences": list(self.differences),
        }
        self._stored = {**self._stored, "resumed": [*self._stored.get("resumed", ()), noted]}
        write_whole(self.path / RUN, run_text(self._stored))
