"""Makes one run of shards: one plan, one journal, each row with the run that it is from."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opbench.device.identity import GPU_UUID, Identity
from opbench.errors import ResultsError
from opbench.files import PART_SUFFIX, storage_errors, write_whole
from opbench.results.journal import JOURNAL
from opbench.results.measurement import Measurement
from opbench.results.origins import Origin
from opbench.results.run import CEILINGS, Run
from opbench.results.run_json import RUN, SCHEMA_VERSION, run_text
from opbench.sweeps.conduct import DEFAULT_CONDUCT
from opbench.sweeps.plan import plan_differences
from opbench.sweeps.start import refused_differences
from opbench.text import one_line

__all__ = ["merge_runs"]

OWN_PARTS = ("shard", "device", "fleet", *DEFAULT_CONDUCT.to_json())
"""Of a command, what each shard may have of its own: a node's cards are cuda:0, cuda:1 and so on."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a journal.

    Attributes:
        text: as it stands there, without its end.
        place: file and number of the line.
        measurement: what it says.
    """

    text: str
    place: str
    measurement: Measurement


@dataclass(frozen=True, slots=True)
class _Part:
    """What one run measured, and its lines."""

    origin: Origin
    path: Path
    lines: tuple[_Line, ...]


def merge_runs(folders: Sequence[Path], out: Path, *, accept_differences: bool | Collection[str] = False) -> Run:
    """Write the rows of shards of one plan, or of other runs of it that share no cell, as one run.

    The merged run's environment and ceilings are those of its first origin, in the order of shard and run_id; each row
    is read with the environment and the ceilings of its own. The same runs give the same bytes, in whatever order they
    are named. A merged run may be merged with others; its rows keep their origins.

    Args:
        folders: of the runs.
        out: of the new run; must not exist, or be empty.
        accept_differences: as continue_run takes it. Cards of one model may always differ.

    Raises:
        ResultsError: no run there, another plan, request, device or version, a cell that two of them have, or
            something in `out`.
        StorageError: it cannot be written.
    """
    runs = [Run.open(folder) for folder in folders]
    parts = sorted(
        (part for run in runs for part in _parts(run)), key=lambda part: (_number(part.origin), part.origin.run_id)
    )
    _check_one_request(runs, parts, accept_differences)
    _check_no_cell_twice(parts)
    first = next(run for run in runs if run.path == parts[0].path)
    stored = _stored(first, [part.origin for part in parts])
    journal = "".join(f"{text}\n" for part in parts for text in _texts(part))
    return _write(out, stored, journal)


def _parts(run: Run) -> Iterator[_Part]:
    """Of each origin of a merged run its own, and what the run measured itself where there is such a line."""
    lines: dict[str, list[_Line]] = {run_id: [] for run_id in run.origins}
    texts = (run.path / JOURNAL).read_text(encoding="utf-8").split("\n")
    for number, (text, measurement) in enumerate(zip(texts, run.measurements(), strict=False), start=1):
        origin = measurement.origin if measurement.origin in run.origins else ""
        lines.setdefault(origin, []).append(_Line(text, f"{run.path / JOURNAL}:{number}", measurement))
    itself = Origin(
        run.run_id, run.started_at, str(run.command.get("shard") or ""), dict(run.environment), run.ceilings
    )
    if not run.origins:
        lines.setdefault("", [])
    for run_id, own in lines.items():
        yield _Part(run.origins.get(run_id, itself), run.path, tuple(own))


def _number(origin: Origin) -> int:
    return int(origin.shard.partition("/")[0] or 0)


def _texts(part: _Part) -> Iterator[str]:
    """The lines with their origin; the rest of each stays as it was written, byte for byte."""
    for line in part.lines:
        if line.measurement.origin == part.origin.run_id:
            yield line.text
        else:
            yield f'{line.text.rstrip()[:-1]}, "origin": {json.dumps(part.origin.run_id)}}}'


def _check_one_request(runs: Sequence[Run], parts: Sequence[_Part], accepted: bool | Collection[str]) -> None:
    first = runs[0]
    for run in runs[1:]:
        found = [
            f"{name}: {first.command.get(name)!r} there, {run.command.get(name)!r} here"
            for name in dict.fromkeys([*first.command, *run.command])
            if name not in OWN_PARTS and first.command.get(name) != run.command.get(name)
        ]
        if found := found or plan_differences(first.whole_plan, run.whole_plan):
            raise ResultsError(f"{run.path} is no part of what {first.path} is: {one_line('; '.join(found), 1000)}")
    one = parts[0]
    for part in parts[1:]:
        there, here = (Identity.of(of.origin.environment, code=True).without(GPU_UUID) for of in (one, part))
        if refused := refused_differences(there, here, accepted, []):
            raise ResultsError(
                f"{part.path} was measured on another set-up than {one.path}: {one_line('; '.join(refused), 1000)} "
                "(--accept-differences merges them all the same)"
            )


def _check_no_cell_twice(parts: Sequence[_Part]) -> None:
    places: dict[str, tuple[_Part, str]] = {}
    for part in parts:
        for line in part.lines:
            key = line.measurement.cell.key
            other, place = places.setdefault(key, (part, line.place))
            if other is not part:
                raise ResultsError(f"{place} and {line.place} both have {key}: one run has a cell once")
    for number, part in enumerate(parts):
        for other in parts[:number]:
            if other.origin.run_id == part.origin.run_id:
                raise ResultsError(f"{other.path} and {part.path} hold the same run, {part.origin.run_id}")


def _stored(run: Run, origins: Sequence[Origin]) -> dict[str, Any]:
    """What run.json holds of the merged run; its run_id follows from those of its origins."""
    started_at = min(origin.started_at for origin in origins)
    digest = hashlib.sha256("\n".join(origin.run_id for origin in origins).encode()).hexdigest()[:6]
    command = {**run.command, "device": origins[0].environment.get("device", run.command.get("device"))}
    command.pop("shard", None)
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": f"{min(origin.run_id for origin in origins).partition('-')[0]}-{digest}",
        "started_at": started_at,
        "environment": dict(origins[0].environment),
        "command": command,
        "plan": [cell.to_json() for cell in run.whole_plan],
        "origins": [origin.to_json() for origin in origins],
    }


def _write(out: Path, stored: dict[str, Any], journal: str) -> Run:
    """Write a folder beside `out` and give it its name, so that no half of a run is ever there."""
    with storage_errors(out):
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise ResultsError(f"{out} is not empty; choose another --out")
        part = out.absolute().with_name(f"{out.absolute().name}.{os.getpid()}{PART_SUFFIX}")
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            write_whole(part / JOURNAL, journal)
            if ceilings := stored["origins"][0]["ceilings"]:
                write_whole(part / CEILINGS, json.dumps(ceilings, indent=1, allow_nan=False) + "\n")
            write_whole(part / RUN, run_text(stored))
            part.replace(out.absolute())
        except BaseException:
            with suppress(OSError):
                shutil.rmtree(part)
            raise
    return Run.open(out)
