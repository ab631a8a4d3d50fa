"""The process that runs cells: `python -m opbench.worker`, one JSON line in per cell, JSON lines out.

In: first the options, then cells. Out: {"ready": true}, then per cell any number of {"stage": name} and one
{"measurement": ..., "device_broken": ...}. A cell that kills this process costs the sweep one row.
"""

import json
import os
import sys
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Serve cells until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers

    def answer(**message: Any) -> None:  # noqa: ANN401
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    import psutil

    from opbench import registry
    from opbench.case import Cell
    from opbench.runner import CellRunner, RunOptions, memory_limit

    options = RunOptions(**json.loads(sys.stdin.readline()))
    runner = CellRunner(options, registry.find)
    limit_gib = options.memory_limit_gib
    if limit_gib is None and options.device == "cpu":
        # A cell that needs more than there is must fail on its own, not push the machine into swap.
        limit_gib = psutil.virtual_memory().available / 2**30
    with memory_limit(limit_gib, options.device):
        answer(ready=True)
        for line in sys.stdin:
            measurement = runner.run(Cell.from_json(json.loads(line)), on_stage=lambda stage: answer(stage=stage))
            answer(measurement=json.loads(measurement.to_json_line()), device_broken=runner.device_broken)


if __name__ == "__main__":
    main()
