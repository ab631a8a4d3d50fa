"""Runs a cell under Nsight Compute or Nsight Systems, where they are installed, and reads what they print.

Written after the tools' documentation; their real output was not read by it yet, for want of a GPU.
"""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from opbench.errors import UsageError
from opbench.profiling.profile import KernelTime
from opbench.results.measurement import Measurement
from opbench.sweeps.request import RunOptions
from opbench.text import one_line
from opbench.workload.case import Cell

__all__ = ["COUNTERS", "External", "ncu", "ncu_command", "nsys", "nsys_command"]

COUNTERS = {
    "time (us)": ("gpu__time_duration.sum", 1e-3),
    "warp instructions": ("smsp__inst_executed.sum", 1.0),
    "issue slots (%)": ("smsp__issue_active.avg.pct_of_peak_sustained_active", 1.0),
    "occupancy (%)": ("sm__warps_active.avg.pct_of_peak_sustained_active", 1.0),
    "L1 hits (%)": ("l1tex__t_sector_hit_rate.pct", 1.0),
    "sectors/load": ("l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_ld.ratio", 1.0),
}
"""Of Nsight Compute, by their heading here: what a gather is limited by. With the factor to the heading's unit; the
command asks for base units, so a duration is in ns."""


@dataclass(frozen=True, slots=True)
class External:
    """What a tool found.

    Attributes:
        measurement: of the cell, checked in the same process.
        counters: a row a kernel: its name under `kernel`, and a text for each of COUNTERS. Of ncu.
        kernels: of nsys.
    """

    measurement: Measurement
    counters: tuple[dict[str, str], ...] = ()
    kernels: tuple[KernelTime, ...] = ()


def ncu_command(program: Sequence[str]) -> list[str]:
    """The command line of Nsight Compute for a program that marks its range."""
    metrics = ",".join(metric for metric, _ in COUNTERS.values())
    shown = ["--csv", "--page", "raw", "--print-units", "base"]
    return ["ncu", "--profile-from-start", "off", *shown, "--metrics", metrics, *program]


def nsys_command(program: Sequence[str], report: Path) -> list[str]:
    """The command line of Nsight Systems for a program that marks its range."""
    captured = ["--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--trace=cuda"]
    return ["nsys", "profile", *captured, "--force-overwrite=true", f"--output={report}", *program]


def ncu(cell: Cell, options: RunOptions) -> External:
    """Counters of every kernel of one launch.

    Raises:
        UsageError: the tool is not installed, or fails.
    """
    with _program(cell, options) as (program, measured):
        text = _run(ncu_command(program))
        rows = [line for line in text.splitlines() if line.startswith('"')]
        table = [*csv.DictReader(rows)][1:]  # the first row has the units
        counters = tuple({"kernel": row["Kernel Name"], **_counters(row)} for row in table)
        return External(_measurement(measured), counters=counters)


def nsys(cell: Cell, options: RunOptions) -> External:
    """The kernels of one launch, with their time.

    Raises:
        UsageError: the tool is not installed, or fails.
    """
    with _program(cell, options) as (program, measured):
        report = measured.with_name("report")
        _run(nsys_command(program, report))
        text = _run(["nsys", "stats", "--report", "cuda_gpu_kern_sum", "--format", "csv", f"{report}.nsys-rep"])
        lines = text.splitlines()
        head = next((at for at, line in enumerate(lines) if line.startswith("Time (%)")), len(lines))
        kernels = tuple(
            KernelTime(row["Name"], float(row["Instances"]), float(row["Total Time (ns)"]) / 1e3)
            for row in csv.DictReader(lines[head:])
        )
        return External(_measurement(measured), kernels=kernels)


def _counters(row: dict[str, str]) -> dict[str, str]:
    values = {}
    for heading, (metric, factor) in COUNTERS.items():
        text = row.get(metric, "").replace(",", "")
        values[heading] = f"{float(text) * factor:.6g}" if text and text != "n/a" else "n/a"
    return values


@contextmanager
def _program(cell: Cell, options: RunOptions) -> Iterator[tuple[list[str], Path]]:
    """The command that launches a cell once, and the file that gets its measurement."""
    with TemporaryDirectory(prefix="opbench-profile-") as folder:
        measured = Path(folder) / "measurement.json"
        arguments = [json.dumps(cell.to_json()), json.dumps(asdict(options)), str(measured)]
        yield [sys.executable, "-m", "opbench.profiling.one_launch", *arguments], measured


def _measurement(path: Path) -> Measurement:
    return Measurement.from_json(json.loads(path.read_text()))


def _run(command: list[str]) -> str:
    """What a tool prints.

    Raises:
        UsageError: it is not installed, or fails; with the last line that it printed.
    """
    tool = command[0]
    if not shutil.which(tool):
        raise UsageError(f"--tool {tool} needs {tool} on PATH, a part of NVIDIA Nsight, which the CUDA toolkit brings")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise UsageError(f"{tool} failed ({done.returncode}): {one_line(said[-1] if said else 'it said nothing')}")
    return done.stdout
