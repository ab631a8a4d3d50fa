"""The paper's tables and what stands beside them, in one resumable go: `python -m opbench.reproduce --out DIR`.

Both published shape lists, every operator, every dtype that the device has, module and core, forward; the deformable
operators backward too. On a GPU each by CUDA events, with a cold and with a warm cache, and by CUDA graphs. Each part
is a run of its own, DIR/<part>, as `opbench sweep` makes it, without plots: `opbench report DIR/<part> --write` draws
them, on any machine. DIR/<part>/tables has the published figures beside the measured; DIR/reproduce.json says how long
each part took.

Cells share one process, because starting one for each operator and shape of every part would take longer than
measuring: after a crash, go on with --isolation process. A cell that breaks the GPU's context ends the command: the
cells after it are measured when it is given again.

Exit codes: 0 every cell measured (or not applicable, or out of memory), 1 some cell wrong, error, timeout or
unavailable, 2 usage or bad input, 3 results cannot be written, 130 interrupted; the same command again goes on.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from opbench.cli.shared import EXIT_INTERRUPTED, interrupt_on_termination
from opbench.errors import OpbenchError, StorageError
from opbench.files import write_whole

if TYPE_CHECKING:
    from opbench.workload.operator import Operator

__all__ = ["Part", "main", "parts_for"]

SHAPES = ("standard", "high_resolution")
DEFORMABLE = ("dcnv3", "dcnv4_lightweight", "dcnv4")
DTYPES = {"cuda": ("fp32", "tf32", "fp16", "bf16"), "cpu": ("fp32", "bf16")}
TIMERS = {
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
TIME_BUDGET_S = 0.05
"""Sampling per cell: with 2400 cells on a GPU, what lies around the samples takes longer than they do."""


@dataclass(frozen=True, slots=True)
class Part:
    """One sweep: its name, and its options as opbench.sweep takes them."""

    name: str
    options: dict[str, object]


def parts_for(device_type: str) -> list[Part]:
    """Every part for "cpu" or "cuda", what the paper has first."""
    return [
        Part(f"{name}-{way}", {**options, "timer": timer, "cache": cache, "dtypes": list(DTYPES[device_type])})
        for way, (timer, cache) in TIMERS[device_type].items()
        for name, options in PASSES.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every part that is not complete; returns the exit code."""
    given = _parser().parse_args(arguments)
    interrupt_on_termination()
    try:
        return _reproduce(given)
    except OpbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, StorageError) else 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m opbench.reproduce", description=description)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="made, or gone on with")
    parser.add_argument("--parts", metavar="a,b", help="these alone [default: all]")
    parser.add_argument("--shapes", action="append", metavar="NAME|FILE", help=f"[default: {' and '.join(SHAPES)}]")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N")
    parser.add_argument("--time-budget", type=float, default=TIME_BUDGET_S, metavar="SECONDS_PER_CELL")
    parser.add_argument("--isolation", choices=("process", "none"), default="none", help="as for sweep [default: none]")
    parser.add_argument("--retry", metavar="error,timeout", help="measure finished cells of these statuses again")
    parser.add_argument("--accept-differences", action="store_true", help="go on although plan or environment differ")
    parser.add_argument("--dry-run", action="store_true", help="print the parts and their cells, run nothing")
    return parser


def _reproduce(given: argparse.Namespace) -> int:
    from opbench.device.environment import resolve_device
    from opbench.errors import UnknownNameError
    from opbench.registry import registry
    from opbench.results.measurement import FAILURES
    from opbench.sweeps.sweep import make_request, plan

    device = resolve_device(given.device)
    parts = {part.name: part for part in parts_for(device.partition(":")[0])}
    names = given.parts.split(",") if given.parts else list(parts)
    for name in names:
        if name not in parts:
            raise UnknownNameError("part", name, parts)
    common = {"shapes": given.shapes or list(SHAPES), "device": device, "time_budget": given.time_budget}
    known = registry.registered()
    failed = False
    for name in names:
        options = {**common, **parts[name].options}
        print(f"{name}: {len(plan(make_request(options, known), known))} cells", flush=True)
        if not given.dry_run:
            started = time.monotonic()
            counts = _run_part(given.out / name, options, known, given)
            _note(given.out, name, time.monotonic() - started, counts)
            print(f"{name}: " + ", ".join(f"{count} {status}" for status, count in counts.items()), flush=True)
            failed = failed or any(status in counts for status in FAILURES)
    return int(failed)


def _run_part(
    path: Path, options: dict[str, object], known: "Mapping[str, Operator]", given: argparse.Namespace
) -> dict[str, int]:
    """Start a part or go on with it; returns how many cells have each status."""
    from opbench.report import write_tables
    from opbench.sweeps import sweep as api
    from opbench.sweeps.console_progress import ConsoleProgress

    # To a part that begins, --retry says nothing: none of its cells has a status.
    retry = given.retry.split(",") if given.retry else None
    conduct = api.make_conduct({"isolation": given.isolation, "retry": retry}, resume=True)
    if (path / "run.json").exists():
        run = api.continue_run(path, options, known, accept_differences=given.accept_differences)
    else:
        run = api.start_run(api.make_request(options, known), known, path, conduct)
    try:
        with ConsoleProgress() as progress:
            api.run_cells(run, known, progress, conduct)
    finally:
        run.write_measurements_csv()
        write_tables(run)
    return dict(Counter(row["status"] for row in run.rows()))


def _note(out: Path, name: str, seconds: float, counts: dict[str, int]) -> None:
    """Keep how long a part took this time: one entry for each time that it was carried out."""
    path = out / "reproduce.json"
    notes = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    notes.append({"part": name, "ended_at": ended, "seconds": round(seconds, 1), "cells": counts})
    write_whole(path, json.dumps(notes, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
