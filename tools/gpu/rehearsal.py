"""The steps of on_gpu.py without a GPU: the same programs, with something else where the GPU would be.

usage: python tools/gpu/rehearsal.py reproduce|ceilings|env|gate OPTIONS...     as `opbench` takes them

`reproduce` plans the parts of a GPU, and measures them on the CPU at one small shape by a timer that makes up its
latencies: its rows name the timer `fake`. A gate is not carried out, nor is the part as-paper-convolutions.

OPBENCH_REHEARSAL_FAULTS plants faults: a JSON object from a part of a cell's key to one of FAULTS.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never
from unittest.mock import patch

from gpu_steps import Step

if TYPE_CHECKING:
    from opbench.timing import Timer
    from opbench.workload.case import Case
    from opbench.workload.operator import Operator, Provider

ROOT = Path(__file__).parents[2]
IN_WORKERS = "as-paper-convolutions"
"""A part that runs in processes of its own, which know no rehearsal."""
SHAPE = "tools/gpu/rehearsal_shape.yaml"
PLANTED = "OPBENCH_REHEARSAL_FAULTS"
ESTIMATE_S, LIMIT_S = 8, 240


def rehearsed(step: Step) -> Step:
    """A step with a command for a machine without a GPU."""
    return replace(step, command=_rehearsed_command(step.command), estimate_s=ESTIMATE_S, limit_s=LIMIT_S)


def _rehearsed_command(command: tuple[str, ...]) -> tuple[str, ...]:
    match command:
        case ("-m", "opbench", *rest):
            return ("tools/gpu/rehearsal.py", *(word.replace("triton_fused", "torch") for word in rest))
        case ("-m", "pytest", *_):
            return (*command, "--collect-only")
        case ("tools/gpu/compile_kernels.py", *_):
            return (*command, "--dry-run", "--processes", "2")
        case _:
            return (*command, "--dry-run")


def illegal_access() -> Never:
    """What a cell's context is after it, every later call has: no other cell can run in this process."""
    from opbench.timing import SpoiledProcessError

    raise SpoiledProcessError("planted: CUDA error: an illegal memory access was encountered")


def hang() -> Never:
    """It never ends."""
    while True:
        time.sleep(60)


def crash() -> Never:
    """The process ends at once."""
    os.abort()


FAULTS = {"illegal access": illegal_access, "hang": hang, "crash": crash}


def reproduce(options: Sequence[str]) -> None:
    """`opbench reproduce` with the parts of a GPU."""
    from opbench.sweeps.check import CheckResult, check
    from opbench.sweeps.reproduction import parts_for
    from opbench.timing.timers import TIMERS

    planted: dict[str, str] = json.loads(os.environ.get(PLANTED, "{}"))

    def checked(operator: "Operator", provider: "Provider", case: "Case", *rest: Any) -> CheckResult:
        for place, fault in planted.items():
            if place in f"{case.key}@{provider.name}":
                FAULTS[fault]()
        return check(operator, provider, case, *rest)

    made_up = {name: replace(entry, device_types=("cuda", "cpu"), make=_made_up) for name, entry in TIMERS.items()}
    small = ("--shapes", SHAPE, "--device", "cpu", "--time-budget", "0.001")
    with (
        patch("opbench.sweeps.reproduction.parts_for", lambda _device_type: parts_for("cuda")),
        patch("opbench.sweeps.runner.check", checked),
        patch("opbench.sweeps.run_cells.default_budget_s", lambda _device: 0.0),
        patch.dict(TIMERS, made_up),
    ):
        _opbench("reproduce", *_without_shapes(options), *small)


def _made_up(_device: str, _cache: str) -> "Timer":
    """The tests' timer, whose clock moves only when it is told to."""
    sys.path.insert(0, str(ROOT / "tests"))
    timer: Timer = importlib.import_module("fake_timer").FakeTimer([1.0, 1.1, 0.9])
    return timer


def _without_shapes(options: Sequence[str]) -> list[str]:
    if "--shapes" not in options:
        return list(options)
    place = options.index("--shapes")
    return [*options[:place], *options[place + 2 :]]


def _opbench(*arguments: str) -> None:
    from opbench.cli.app import main

    sys.argv = ["opbench", *arguments]
    main()


def main() -> None:
    """Rehearse one command of opbench."""
    name, *options = sys.argv[1:]
    if name == "reproduce" and IN_WORKERS not in options:
        reproduce(options)
    elif name == "ceilings":
        _opbench("ceilings", "--device", "cpu", "--budget", "1")
    elif name == "env":
        _opbench("env")
    else:
        print(f"{name} is not rehearsed: {' '.join(options)}")


if __name__ == "__main__":
    main()
