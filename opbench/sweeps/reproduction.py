"""The paper's tables and what stands beside them, in parts that are runs of their own and resume."""

import json
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opbench.errors import UnknownNameError
from opbench.files import write_whole
from opbench.registry.registry import PAPER_ORDER
from opbench.sweeps.as_paper import AS_PAPER
from opbench.sweeps.conduct import Conduct, Isolation
from opbench.sweeps.progress import Progress
from opbench.sweeps.request import make_request
from opbench.sweeps.run_cells import run_cells
from opbench.sweeps.start import continue_run, start_run
from opbench.sweeps.sweep import finish
from opbench.workload.operator import Operator

__all__ = ["Part", "chosen_parts", "parts_for", "run_part"]

SHAPES = ("standard", "high_resolution")
DEFORMABLE = ("dcnv3", "dcnv4_lightweight", "dcnv4")
DTYPES = {"cuda": ("fp32", "tf32", "fp16", "bf16"), "cpu": ("fp32", "bf16")}
WAYS = {
    "cuda": {
        "event-cold": ("cuda-event", "cold"),
        "event-warm": ("cuda-event", "warm"),
        "graph": ("cuda-graph", "cold"),
    },
    "cpu": {"wall": ("wall-clock", "warm")},
}
PASSES: dict[str, dict[str, list[str]]] = {
    "module": {"level": ["module"], "direction": ["fwd"]},
    "core": {"level": ["core"], "direction": ["fwd"]},
    "backward": {"ops": list(DEFORMABLE), "level": ["module", "core"], "direction": ["bwd"]},
}


@dataclass(frozen=True, slots=True)
class Part:
    """One sweep.

    Attributes:
        name: of its folder.
        options: as opbench.sweep takes them.
        own_processes: it has providers whose cells share no process with others: they are isolated in any case.
    """

    name: str
    options: dict[str, Any]
    own_processes: bool = False


def parts_for(device_type: str) -> list[Part]:
    """Every part for "cpu" or "cuda", what the paper has first."""
    ops = list(PAPER_ORDER)
    common = {"ops": ops, "shapes": SHAPES, "dtypes": list(DTYPES[device_type])}
    parts = [
        Part(f"{name}-{way}", {**common, **options, "timer": timer, "cache": cache})
        for way, (timer, cache) in WAYS[device_type].items()
        for name, options in PASSES.items()
    ]
    if device_type == "cpu":
        return parts
    return [Part("as-paper", {**AS_PAPER, "ops": ops, "direction": ["fwd"]}), *parts, *_beside_the_paper()]


def _beside_the_paper() -> list[Part]:
    """What the published tables may depend on, timed as they were: offsets, group widths, layouts and algorithms."""
    as_paper = {**AS_PAPER, "direction": ["fwd"]}
    settings = {"offset-0": "offset_std_px=0", "offset-4": "offset_std_px=4", "groups-16": "group_channels=16"}
    parts = [
        Part(
            f"as-paper-{name}",
            {**as_paper, "ops": list(DEFORMABLE), "settings": [f"{operator}.{setting}" for operator in DEFORMABLE]},
        )
        for name, setting in settings.items()
    ]
    providers = ["conv3x3=torch_nchw", "conv3x3=torch_autotuned", "dcnv3=triton_autotuned"]
    algorithms = {**as_paper, "ops": ["conv3x3", "dcnv3"], "providers": providers}
    return [*parts, Part("as-paper-convolutions", algorithms, own_processes=True)]


def chosen_parts(names: Sequence[str] | None, device: str, options: Mapping[str, Any]) -> list[Part]:
    """The parts of these names, or all, with what they have in common.

    Args:
        names: of parts; None for all.
        device: "cpu" or "cuda:N".
        options: keyword arguments as `opbench.sweep` takes them, for every part, in place of its own.

    Raises:
        UnknownNameError: a part that the device does not have.
    """
    known = {part.name: part for part in parts_for(device.partition(":")[0])}
    chosen = known if names is None else dict.fromkeys(names)
    for name in chosen:
        if name not in known:
            raise UnknownNameError("part", name, known)
    return [replace(known[name], options={**known[name].options, **options, "device": device}) for name in chosen]


def run_part(
    part: Part,
    out: Path,
    operators: Mapping[str, Operator],
    progress: Progress,
    conduct: Conduct,
    *,
    accept_differences: bool | Collection[str] = False,
) -> dict[str, int]:
    """Start a part in out/<its name>, or go on with it; out/reproduce.json says how long it took.

    Returns:
        How many cells have each status.

    Raises:
        ResultsError: as continue_run.
        StorageError, DeviceLostError: as run_cells.
    """
    started = time.monotonic()
    path = out / part.name
    if part.own_processes:
        conduct = replace(conduct, isolation=Isolation.PROCESS)
    if (path / "run.json").exists():
        run = continue_run(path, part.options, operators, accept_differences=accept_differences)
    else:
        run = start_run(make_request(part.options, operators), operators, path, conduct)
    try:
        run_cells(run, operators, progress, conduct)
    finally:
        finish(run, plots=False)
    counts = dict(Counter(row.status for row in run.rows()))
    _note(out, part.name, time.monotonic() - started, counts)
    return counts


def _note(out: Path, name: str, seconds: float, counts: Mapping[str, int]) -> None:
    """Keep how long a part took this time: one entry for each time that it was carried out."""
    path = out / "reproduce.json"
    notes = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    notes.append({"part": name, "ended_at": ended, "seconds": round(seconds, 1), "cells": counts})
    write_whole(path, json.dumps(notes, indent=1) + "\n")
