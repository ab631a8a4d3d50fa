"""What a new user waits for: `opbench sweep` with a fresh cache, on this processor and on weaker ones emulated on it.

Prints a Markdown table; run it on an otherwise idle machine: `make first-minute`. The figures of docs/first-minute.md
come from it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

PROCESSORS = {
    "as it is": {},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
}
"""Variables that take instructions away; `default` leaves PyTorch's own kernels without vector instructions."""

CELL = re.compile(r"\[ *\d+/\d+\] .*: .*(samples|error|timeout|wrong|out_of_memory|not_applicable)")


@dataclass
class Watched:
    """Seconds from the start at which lines came."""

    started: float = field(default_factory=time.monotonic)
    times: list[float] = field(default_factory=list)
    first_cell: float | None = None
    ceilings: tuple[float, float] | None = None

    def hear(self, line: str) -> None:
        """A line came."""
        now = time.monotonic() - self.started
        self.times.append(now)
        if line.startswith("measuring what this device can do"):
            self.ceilings = (now, now)
        elif self.ceilings and line.startswith("ceilings "):
            self.ceilings = (self.ceilings[0], now)
        elif self.first_cell is None and CELL.match(line):
            self.first_cell = now

    @property
    def longest_silence(self) -> float:
        """Most seconds between two lines, or before the first."""
        return max(later - sooner for sooner, later in zip([0.0, *self.times], self.times, strict=False))


def first_minute(variables: dict[str, str], folder: Path) -> list[str]:
    """A row of the table: one sweep with the defaults, in a pipe."""
    environment = os.environ | variables | {"XDG_CACHE_HOME": str(folder / "cache")}
    run = folder / "run"
    command = [sys.executable, "-m", "opbench", "sweep", "--out", str(run)]
    watched = Watched()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, bufsize=1
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            watched.hear(line.rstrip())
            print(line, end="", file=sys.stderr)
    end = time.monotonic() - watched.started
    ceilings = json.loads((run / "ceilings.json").read_text(encoding="utf-8"))
    command_kept = json.loads((run / "run.json").read_text(encoding="utf-8"))["command"]
    first, last = watched.ceilings or (0.0, 0.0)
    return [
        f"{watched.times[0]:.1f}",
        f"{watched.first_cell:.1f}" if watched.first_cell is not None else "none",
        f"{end:.1f}",
        f"{watched.longest_silence:.1f}",
        f"{last - first:.1f} ({len(ceilings.get('probes', []))} figures, {len(ceilings.get('missing', []))} missing)",
        ", ".join(command_kept["dtypes"]),
        str(process.returncode),
    ]


def main() -> None:
    """Print the table."""
    from opbench.device.environment import collect_environment

    environment = collect_environment("cpu")
    cpu = environment["cpu"]
    print(f"{cpu['model']}, {cpu['torch_threads']} threads, load {cpu['load_average'][0]:.2f}, ", end="")
    print(f"torch {environment['packages']['torch']}\n")
    print(
        "| processor | first line, s | first cell, s | end, s | longest silence, s | ceilings, s | dtypes | exit code |"
    )
    print("|---|---:|---:|---:|---:|---:|---|---:|")
    for name, variables in PROCESSORS.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {' | '.join([name, *first_minute(variables, Path(folder))])} |", flush=True)


if __name__ == "__main__":
    main()
