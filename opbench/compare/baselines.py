"""Runs kept to compare with, in FOLDER/<key>/<name>/: copies of run.json and journal.jsonl, and baseline.json.

The key says hardware and software (opbench.device.identity.Identity). baseline.json holds the checksums
of the two, so that a copy that was cut short or edited is an error and not a baseline.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opbench.compare.readings import Arm
from opbench.compare.verdicts import Comparison, Verdict
from opbench.device.identity import Identity, device_slug
from opbench.errors import ResultsError, UsageError
from opbench.files import PART_SUFFIX, storage_errors
from opbench.results.journal import JOURNAL
from opbench.results.measurement import Status
from opbench.results.run import Run
from opbench.results.run_json import RUN
from opbench.text import one_line

__all__ = [
    "Baseline",
    "find_baseline",
    "is_baseline_folder",
    "list_baselines",
    "newest_baseline",
    "no_baseline",
    "read_baseline",
    "remove_baseline",
    "save_baseline",
]

SCHEMA_VERSION = 1
BASELINE = "baseline.json"
KEPT = (RUN, JOURNAL)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Baseline:
    """One baseline on disk, checked when it was read.

    Attributes:
        path: its folder.
        name: as given, or the run's id.
        key: short name of hardware and software: the folder that it lies in.
        identity: what the key stands for, by name.
        saved_at: ISO 8601, UTC.
        run: what was saved.
    """

    path: Path
    name: str
    key: str
    identity: Identity
    saved_at: str
    run: Run


def save_baseline(run: Run, folder: Path, name: str | None = None) -> Baseline:
    """Keep a copy of a run.

    Raises:
        UsageError: a name that is no file's name.
        ResultsError: there is a baseline of that name, or the run has no measured cell.
        StorageError: it cannot be written.
    """
    name = run.run_id if name is None else name
    if not NAME.fullmatch(name):
        raise UsageError(f"--name must be letters, digits, '.', '_' and '-', at most 100, got {one_line(name)!r}")
    if not any(measurement.status is Status.OK for measurement in run.measurements()):
        raise ResultsError(f"{run.path}: no cell was measured; nothing could be compared with it")
    identity = Identity.of(run.environment)
    path = folder / _key(identity, run.environment) / name
    if path.exists():
        raise ResultsError(f"{path} already holds a baseline; choose another --name, or remove it with baseline rm")
    part = path.with_name(f"{name}.{os.getpid()}{PART_SUFFIX}")
    about = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "saved_at": datetime.now(UTC).isoformat(),
        "identity": identity.parts,
        "sha256": {kept: _digest(run.path / kept) for kept in KEPT},
    }
    with storage_errors(path):
        try:
            part.mkdir(parents=True)
            for kept in KEPT:
                shutil.copyfile(run.path / kept, part / kept)
            (part / BASELINE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            part.rename(path)  # refuses a folder that another process filled in between
        except BaseException:
            with suppress(OSError):
                shutil.rmtree(part)
            raise
    return read_baseline(path)


def is_baseline_folder(path: Path) -> bool:
    """Whether a folder holds baselines."""
    return path.is_dir() and not (path / RUN).exists() and any(path.glob(f"*/*/{BASELINE}"))


def list_baselines(folder: Path) -> list[Baseline]:
    """All of a folder, the oldest first.

    Raises:
        ResultsError: there is no such folder, or a baseline in it is damaged.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no folder of baselines there")
    found = (read_baseline(file.parent) for file in folder.glob(f"*/*/{BASELINE}") if file.parent.suffix != PART_SUFFIX)
    return sorted(found, key=lambda baseline: (baseline.saved_at, baseline.name))


def find_baseline(folder: Path, name: str) -> Path:
    """The folder of the baseline called NAME, or KEY/NAME where several keys have one of that name; it is not read.

    Raises:
        ResultsError: none, or several.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no folder of baselines there")
    paths = {f"{file.parent.parent.name}/{file.parent.name}": file.parent for file in folder.glob(f"*/*/{BASELINE}")}
    found = [text for text in paths if name in (text, text.partition("/")[2])]
    if len(found) == 1:
        return paths[found[0]]
    if found:
        raise ResultsError(f"{folder}: several baselines are called {name}: {', '.join(sorted(found))}")
    known = ", ".join(sorted(map(one_line, paths))) or "none"
    raise ResultsError(f"{folder}: no baseline {one_line(name)!r}; there are: {known}")


def read_baseline(path: Path) -> Baseline:
    """Read and check one.

    Raises:
        ResultsError: it is damaged, or a newer opbench wrote it.
    """
    file = path / BASELINE
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        if about["schema_version"] != SCHEMA_VERSION:
            raise ResultsError(
                f"{file}: schema_version must be {SCHEMA_VERSION}, got {one_line(repr(about['schema_version']), 60)}; "
                "another version of opbench wrote it"
            )
        saved_at, identity, digests = str(about["saved_at"]), Identity(dict(about["identity"])), dict(about["sha256"])
        datetime.fromisoformat(saved_at)
    except OSError as error:
        raise ResultsError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ResultsError(f"{file}: damaged: {one_line(repr(error))}") from None
    for kept in KEPT:
        if _digest(path / kept) != digests.get(kept):
            raise ResultsError(f"{path / kept}: damaged: not what was saved (its checksum differs)")
    run = Run.open(path)
    if Identity.of(run.environment) != identity:
        raise ResultsError(f"{file}: damaged: its key is not that of its run")
    return Baseline(path, path.name, path.parent.name, identity, saved_at, run)


def remove_baseline(folder: Path, name: str) -> Path:
    """Remove a baseline, damaged or not; returns the folder that it was in.

    Raises:
        ResultsError: none of that name, or several.
        StorageError: it cannot be removed.
    """
    path = find_baseline(folder, name)
    with storage_errors(path):
        for file in (BASELINE, *KEPT):  # and nothing that somebody else put there
            (path / file).unlink(missing_ok=True)
        path.rmdir()
        with suppress(OSError):
            path.parent.rmdir()  # unless other baselines are there
    return path


def newest_baseline(folder: Path, head: Arm, allow: Collection[str] = ()) -> Arm | None:
    """The baseline that was saved last on the head's hardware and software, but for what is allowed to differ.

    Raises:
        ResultsError: a baseline is damaged.
    """
    wanted = _identity(head)
    every = list_baselines(folder)
    same = [one for one in every if wanted.parts and not one.identity.differences(wanted, allowed=allow)]
    return Arm.of_run(same[-1].run, str(same[-1].path)) if same else None


def no_baseline(folder: Path, head: Arm, tolerance: float) -> Comparison:
    """What a comparison is where newest_baseline finds none: not comparable, with the keys that there are."""
    here = ", ".join(f"{name} {value}" for name, value in _identity(head).parts.items()) or "a run without cells"
    keys = ", ".join(dict.fromkeys(baseline.key for baseline in list_baselines(folder)))
    reason = f"no baseline of {here}; there are: {keys}"
    return Comparison(str(folder), head.name, tolerance, (), Verdict.NOT_COMPARABLE, reason)


def _identity(arm: Arm) -> Identity:
    """Hardware and software of the first cell that tells; no parts if none does."""
    told = next((reading.identity for reading in arm.readings.values() if reading.identity.parts), Identity())
    return told.without("timer", "cache")


def _key(identity: Identity, environment: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(dict(sorted(identity.parts.items()))).encode()).hexdigest()[:8]
    device = device_slug(identity.parts["device"], str(environment.get("device", "")))
    return f"{device}-torch-{_slug(identity.parts['torch'])}-{digest}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "none"


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ResultsError(f"{file}: cannot be read: {error.strerror}") from None
