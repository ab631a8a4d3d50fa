"""A run's folder: run.json (what was asked, where), ceilings.json (the device's limits), journal.jsonl (the truth),
measurements.csv (derived).

Reading needs neither torch nor a GPU; only load_results needs pandas.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from opbench.case import Cell
from opbench.ceilings import Ceilings, limit_columns, read_ceilings
from opbench.errors import ResultsError
from opbench.measurement import Measurement, Status
from opbench.metrics import derived_metrics

if TYPE_CHECKING:
    import pandas

__all__ = ["COLUMNS", "SCHEMA_VERSION", "RunFolder", "free_run_path", "load_results", "write_text"]

SCHEMA_VERSION = 1

COLUMNS = (
    "run_id", "operator", "provider", "level", "direction", "shape_list", "shape", "batch", "height", "width",
    "channels", "dtype", "device", "timer", "cache", "settings", "status", "reason", "latency_ms",
    "latency_ms_p20", "latency_ms_p80", "latency_ms_min", "ci_low_ms", "ci_high_ms", "samples", "stop_reason",
    "flop_count", "bytes_moved", "tflops", "gbps", "peak_memory_bytes", "max_rel_error", "kernel_source_hash",
    "configuration", "limit_ms", "limit_fraction", "bound_by", "suspicious",
)  # fmt: skip
INTEGER_COLUMNS = (
    "batch", "height", "width", "channels", "samples", "flop_count", "bytes_moved", "peak_memory_bytes",
)  # fmt: skip
FLOAT_COLUMNS = (
    "latency_ms", "latency_ms_p20", "latency_ms_p80", "latency_ms_min", "ci_low_ms", "ci_high_ms", "tflops",
    "gbps", "max_rel_error", "limit_ms", "limit_fraction",
)  # fmt: skip


class RunFolder:
    """One run on disk; create it, or open one that exists."""

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        self.run = run

    @classmethod
    def create(
        cls, path: Path, *, command: Mapping[str, Any], environment: Mapping[str, Any], plan: list[Cell]
    ) -> Self:
        """Make the folder and write run.json.

        Raises:
            ResultsError: the folder already holds a run, or cannot be written.
        """
        if (path / "run.json").exists():
            raise ResultsError(f"{path} already holds a run; choose another --out, or continue it with --resume")
        started = datetime.now(UTC)
        run = {
            "schema_version": SCHEMA_VERSION,
            "run_id": f"{started:%Y%m%dT%H%M%SZ}-{os.urandom(3).hex()}",
            "started_at": started.isoformat(timespec="seconds"),
            "environment": dict(environment),
            "command": dict(command),
            "plan": [cell.to_json() for cell in plan],
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_text(path / "run.json", json.dumps(run, indent=1, allow_nan=False) + "\n")
            (path / "journal.jsonl").touch()
        except OSError as error:
            raise ResultsError(f"{path}: cannot write a run there: {error.strerror}") from None
        return cls(path, run)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read run.json of an existing run.

        Raises:
            ResultsError: there is no run, it is damaged, or a newer opbench wrote it.
        """
        try:
            run = json.loads((path / "run.json").read_text(encoding="utf-8"))
            version = run["schema_version"]
            for field in ("run_id", "environment", "command", "plan"):
                run[field]
        except FileNotFoundError:
            raise ResultsError(f"{path}: no run there (run.json is missing)") from None
        except OSError as error:
            raise ResultsError(f"{path}: cannot read run.json: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{path / 'run.json'}: damaged: {error!r}") from None
        if version != SCHEMA_VERSION:
            raise ResultsError(
                f"{path / 'run.json'}: schema_version must be {SCHEMA_VERSION}, got {version!r}; "
                "another version of opbench wrote it"
            )
        return cls(path, run)

    @cached_property
    def ceilings(self) -> Ceilings | None:
        """The measured limits of the run's device; None where the run has none.

        Raises:
            ResultsError: ceilings.json is damaged.
        """
        return read_ceilings(self.path / "ceilings.json")

    def write_ceilings(self, ceilings: Ceilings | str) -> None:
        """Write ceilings.json; a text says why there are none."""
        data = {"reason": ceilings} if isinstance(ceilings, str) else ceilings.to_json()
        write_text(self.path / "ceilings.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
        self.__dict__.pop("ceilings", None)

    @property
    def device_name(self) -> str:
        """Name of the device that the run measured."""
        return str(self.run["environment"]["device_name"])

    def plan(self) -> list[Cell]:
        """Every cell of the run, finished or not."""
        return [Cell.from_json(cell) for cell in self.run["plan"]]

    def measurements(self) -> list[Measurement]:
        """Every finished cell, in the order in which they ended.

        A last line that a kill cut short is left out; any other damage is an error.

        Raises:
            ResultsError: a line of the journal is not a measurement.
        """
        return [Measurement.from_json(data) for data, _ in self._journal_lines()]

    @contextmanager
    def append(self) -> Iterator["JournalWriter"]:
        """Open the journal to add measurements, after cutting off a line that a kill left unfinished."""
        whole = sum(size for _, size in self._journal_lines())
        with (self.path / "journal.jsonl").open("r+b") as file:
            file.truncate(whole)
            file.seek(whole)
            yield JournalWriter(file)

    def _repr_html_(self) -> str:
        """The run's tables and its one-line summary, as a notebook shows it."""
        from opbench.report.notebook import run_html

        return run_html(self)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per planned cell with every column; None where there is no value."""
        finished = {measurement.cell.key: measurement for measurement in self.measurements()}
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
        temporary = path.with_suffix(".csv.part")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows())
        temporary.replace(path)
        return path

    def _row(self, measurement: Measurement) -> dict[str, Any]:
        case = measurement.cell.case
        values = {
            "run_id": self.run["run_id"],
            "operator": case.operator,
            "provider": measurement.cell.provider,
            "level": str(case.level),
            "direction": str(case.direction),
            "shape_list": case.shape_list,
            "shape": str(case.shape),
            **asdict(case.shape),
            "dtype": str(case.dtype),
            "device": self.device_name,
            "timer": measurement.timer or self.run["command"]["timer"],
            "cache": measurement.cache or self.run["command"]["cache"],
            "settings": case.settings_text,
            "status": str(measurement.status),
            "reason": measurement.reason,
            "stop_reason": str(measurement.stop_reason) if measurement.stop_reason else None,
            "flop_count": measurement.cell.flop_count,
            "bytes_moved": measurement.cell.bytes_moved,
            "peak_memory_bytes": measurement.peak_memory_bytes,
            "max_rel_error": measurement.max_rel_error,
            "kernel_source_hash": measurement.kernel_source_hash or None,
            "configuration": measurement.configuration or None,
            **derived_metrics(measurement),
        }
        values |= limit_columns(self.ceilings, values)
        return {column: values[column] for column in COLUMNS}

    def _journal_lines(self) -> list[tuple[dict[str, Any], int]]:
        """Parsed lines with their sizes in bytes."""
        path = self.path / "journal.jsonl"
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            raise ResultsError(f"{self.path}: no journal there (journal.jsonl is missing)") from None
        parsed = []
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):  # only the last one can be: a write was cut short
                break
            try:
                data = json.loads(line)
                Measurement.from_json(data)
            except (ValueError, KeyError, TypeError) as error:
                raise ResultsError(f"{path}:{number}: damaged line: {error!r}") from None
            parsed.append((data, len(line)))
        return parsed


Run = RunFolder
"""The public name: `opbench.Run.open(path)`, and what `opbench.sweep` returns."""


class JournalWriter:
    """Appends measurements, each durable before the next cell starts."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, measurement: Measurement) -> None:
        """Append one line and push it to the disk."""
        self._file.write(measurement.to_json_line().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def load_results(path: str | Path) -> "pandas.DataFrame":
    """Read a run into a tidy frame: one row per planned cell, the columns of measurements.csv.

    Medians and rates are derived from the raw latencies in the journal. A cell without a value is NaN (NA in
    the integer columns) and its status and reason say why; it is never 0.

    Args:
        path: folder of a run, as `opbench sweep` prints it; "published" for the paper's figures.

    Returns:
        pandas.DataFrame with latencies and limit_ms in milliseconds, tflops in 1e12 FLOP/s, gbps in 1e9 byte/s;
        attrs["ceilings"] keeps the limits of the device for opbench.plots.

    Raises:
        ResultsError: there is no run at `path`, or it is damaged.
    """
    import pandas as pd

    from opbench.report.published import open_run

    run = open_run(Path(path))
    frame = pd.DataFrame(run.rows(), columns=list(COLUMNS))
    if run.ceilings:
        frame.attrs["ceilings"] = {run.run["run_id"]: run.ceilings.to_json()}
    return frame.astype(dict.fromkeys(INTEGER_COLUMNS, "Int64") | dict.fromkeys(FLOAT_COLUMNS, "float64"))


def free_run_path(parent: Path, device_slug: str) -> Path:
    """The first `<date>-<device>-<n>` under `parent` that does not exist yet."""
    stem = f"{datetime.now(UTC):%Y-%m-%d}-{device_slug}"
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never half."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
