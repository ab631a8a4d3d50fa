"""The process that runs cells, forked by the supervisor: one JSON line in per cell, JSON lines out.

In: first the options, then cells. Out: {"ready": true}, then per cell any number of {"stage": name} and one
{"measurement": ..., "must_restart": ...}, where a worker that must restart may run no other cell.
A cell that kills this process costs the sweep one row. Or in: one line, {"ceilings": ...}, which
opbench.sweeps.ceiling_step answers.
"""

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from opbench.host.system import available_memory_bytes
from opbench.registry import registry
from opbench.registry.places import resolve_ops
from opbench.sweeps.ceiling_step import serve_ceilings
from opbench.sweeps.process_limits import memory_limit, torch_threads
from opbench.sweeps.request import RunOptions
from opbench.sweeps.runner import CellRunner
from opbench.workload.case import Cell

__all__ = ["serve"]

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
OUT_OF_MEMORY_SCORE = Path("/proc/self/oom_score_adj")


def serve(connection: socket.socket) -> None:
    """Run the cells that come through a socket until it is closed."""
    pid = os.getpid()
    _be_killed_first()
    lines = connection.makefile("r", encoding="utf-8")

    def answer(**message: Any) -> None:  # noqa: ANN401
        if os.getpid() != pid:
            os._exit(0)  # a cell forked, and its child has come back up to here
        connection.sendall(json.dumps(message).encode() + b"\n")

    first = json.loads(lines.readline())
    if "ceilings" in first:
        serve_ceilings(first["ceilings"], answer)
        return
    sources = first.pop("sources", ())
    options = RunOptions(**first)
    runner = CellRunner(options, resolve_ops({"ops": sources})[1].__getitem__ if sources else registry.find)
    limit_gib = _limit_gib(options)
    if options.threads:
        # What a cell loads or starts reads these; torch itself is here already.
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(options.threads)))
    with torch_threads(options.threads), memory_limit(limit_gib, options.device) as held:
        if limit_gib is not None and not held:
            runner.estimate_limit_bytes = int(limit_gib * 2**30)
        answer(ready=True)
        for line in lines:
            measurement = runner.run(Cell.from_json(json.loads(line)), on_stage=lambda stage: answer(stage=stage))
            answer(measurement=json.loads(measurement.to_json_line()), must_restart=runner.must_restart)


def _limit_gib(options: RunOptions) -> float | None:
    if options.memory_limit_gib is None and options.device == "cpu":
        # A cell that needs more than there is must fail on its own, not push the machine into swap.
        available = available_memory_bytes()
        return None if available is None else available / 2**30
    return options.memory_limit_gib


def _be_killed_first() -> None:
    """Where memory runs out all the same, have Linux end this process and not the sweep's."""
    with suppress(OSError):
        OUT_OF_MEMORY_SCORE.write_text("1000", encoding="ascii")
