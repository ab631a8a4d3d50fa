"""run.json, what was asked for and where: made when a run starts, checked when it is opened. And where new runs go."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opbench.errors import ResultsError, StorageError
from opbench.results.origins import Origin
from opbench.results.shards import own_places
from opbench.text import one_line
from opbench.workload.case import Cell

__all__ = [
    "RUN",
    "SCHEMA_VERSION",
    "free_run_path",
    "new_run",
    "origins_of",
    "own_cells",
    "planned_cells",
    "read_run",
    "run_text",
]

SCHEMA_VERSION = 1
RUN = "run.json"


def new_run(command: Mapping[str, Any], environment: Mapping[str, Any], plan: Sequence[Cell]) -> dict[str, Any]:
    """What run.json holds of a run that starts now; of a shard the whole plan, and which of its cells are its own."""
    started = datetime.now(UTC)
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": f"{started:%Y%m%dT%H%M%SZ}-{os.urandom(3).hex()}",
        "started_at": started.isoformat(timespec="seconds"),
        "environment": dict(environment),
        "command": dict(command),
        "plan": [cell.to_json() for cell in plan],
        **({"own_cells": own_places(plan, command["shard"])} if command.get("shard") else {}),
    }


def run_text(stored: Mapping[str, Any]) -> str:
    """The text of run.json; ValueError or TypeError where it would not be JSON."""
    return json.dumps(stored, indent=1, allow_nan=False) + "\n"


def read_run(path: Path) -> tuple[dict[str, Any], list[Cell]]:
    """What run.json in a run's folder holds, and its plan.

    Raises:
        ResultsError: there is no run, it is damaged, or a newer opbench wrote it.
    """
    file = path / RUN
    try:
        if not file.exists():
            raise ResultsError(f"{path}: no run there (run.json is missing)")
        if not file.is_file():
            raise ResultsError(f"{file}: must be a regular file")
        stored = json.loads(file.read_text(encoding="utf-8"))
        version = stored["schema_version"]
        if version != SCHEMA_VERSION:
            raise ResultsError(
                f"{file}: schema_version must be {SCHEMA_VERSION}, got {one_line(repr(version), 60)}; "
                "another version of opbench wrote it"
            )
        _check_texts(stored)
        plan = planned_cells(stored)
        own_cells(stored, plan)
        origins_of(stored)
        return stored, plan
    except OSError as error:
        raise ResultsError(f"{path}: cannot read run.json: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ResultsError(f"{file}: damaged: {one_line(repr(error))}") from None


def planned_cells(stored: Mapping[str, Any]) -> list[Cell]:
    """The plan; ValueError, KeyError or TypeError where it is none, or has a cell twice."""
    plan = [Cell.from_json(cell) for cell in stored["plan"]]
    seen: set[str] = set()
    for cell in plan:
        if cell.key in seen:  # of its measurements only one would be read
            raise ValueError(f"the plan has {cell.key} twice")
        seen.add(cell.key)
    return plan


def own_cells(stored: Mapping[str, Any], plan: Sequence[Cell]) -> list[Cell]:
    """The cells of the plan that the run itself measures: all but in a shard; ValueError or TypeError as above."""
    places = stored.get("own_cells")
    if places is None:
        return [*plan]
    if not (isinstance(places, list) and all(type(place) is int and 0 <= place < len(plan) for place in places)):
        raise ValueError(f"own_cells must be places in the plan, got {places!r:.60}")
    return [plan[place] for place in dict.fromkeys(places)]


def origins_of(stored: Mapping[str, Any]) -> dict[str, Origin]:
    """The runs that a merged run was made of, by run_id; ValueError, KeyError or TypeError as above."""
    origins = map(Origin.from_json, stored.get("origins", ()))
    return {origin.run_id: origin for origin in origins}


def _check_texts(stored: Mapping[str, Any]) -> None:
    """Refuse a run.json whose parts are not what reading relies on; ValueError, KeyError or TypeError says which."""
    environment, command = stored["environment"], stored["command"]
    for name, value in {
        "run_id": stored["run_id"],
        "started_at": stored.get("started_at", ""),
        "device_name": environment["device_name"],
        "timer": command["timer"],
        "cache": command["cache"],
    }.items():
        if not (isinstance(value, str) and value.isprintable()):
            raise ValueError(f"{name} must be printable text, got {value!r:.60}")
    for name, part in (("packages", environment.get("packages")), ("cpu", environment.get("cpu"))):
        if not isinstance(part, dict | None):
            raise TypeError(f"{name} must be an object, got {part!r:.60}")


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
