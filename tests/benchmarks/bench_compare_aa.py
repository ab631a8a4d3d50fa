"""How often `opbench compare` takes two runs of the same code for different ones: sweeps in pairs, one after the other.

    python tests/benchmarks/bench_compare_aa.py --pairs 20 [--repeat 5] [--out DIR] [-- more options of the sweep]

Prints the verdicts on pairs and cells, and beside them what the intervals alone would have said, as compare did before
it knew of noise between processes. Exits with 1 where a pair came out slower or faster.
"""

import argparse
import csv
import math
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from opbench.compare.noise import known_noise
from opbench.compare.open_arm import open_arm
from opbench.compare.runs import DEFAULT_TOLERANCE, compare_runs, judge, ratio_interval
from opbench.compare.verdicts import Verdict
from opbench.results.run import Run
from opbench.workload.cell_warning import disturb_comparison

CELLS = ("--shapes", "smoke", "--ops", "conv3x3,dcnv4", "--level", "core", "--dtypes", "fp32", "--device", "cpu",
         "--time-budget", "0.1", "--ceilings-budget", "0", "--no-plots", "--quiet")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="CSV with a row per pair and cell")
    parser.add_argument("more", nargs="*")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = asked.out or Path(folder)
        found = [pair(out / f"{number:02d}", asked) for number in range(1, asked.pairs + 1)]
    print(f"pairs: {counts(one.verdict for one, _ in found)}")
    print(f"cells: {counts(cell.verdict for one, _ in found for cell in one.cells)}")
    print(f"cells, by their intervals alone: {counts(verdict for _, alone in found for verdict in alone)}")
    if asked.table:
        write_table(asked.table, found)
    ratios = [cell.change.value for one, _ in found for cell in one.cells if cell.change]
    print(f"ratios: {min(ratios):.3f} to {max(ratios):.3f}")
    sys.exit(any(one.verdict in (Verdict.SLOWER, Verdict.FASTER) for one, _ in found))


def pair(folder, asked):
    """The comparison of two sweeps, and what intervals alone say of their cells; kept sweeps are not made again."""
    arms = []
    for name in ("base", "head"):
        if not (folder / name / "measurements.csv").exists():
            command = [sys.executable, "-m", "opbench", "sweep", *CELLS, "--repeat", str(asked.repeat),
                       "--out", str(folder / name), *asked.more]  # fmt: skip
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        arms.append(open_arm(folder / name))
    found = compare_runs(*arms, noise=known_noise(Run.open(folder / "head").environment))
    readings = ((arms[0].readings[cell.cell.key], arms[1].readings[cell.cell.key]) for cell in found.cells)
    alone = [judge(ratio_interval(a.estimate, b.estimate), DEFAULT_TOLERANCE) for a, b in readings]
    worst = max((abs(math.log(cell.change.value)) for cell in found.cells if cell.change), default=0.0)
    print(f"{folder.name}: {found.verdict}, farthest ratio {math.exp(worst):.3f}", flush=True)
    return found, alone


def write_table(path, found):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = "pair,cell,base_ms,head_ms,ratio,low,high,verdict,by_interval,disturbed"
        writer.writerow(names.split(","))
        for number, (comparison, alone) in enumerate(found, start=1):
            for cell, verdict in zip(comparison.cells, alone, strict=True):
                figures = (cell.base_ms, cell.head_ms, cell.change.value, cell.change.low, cell.change.high)
                place = (number, cell.cell.key, *(f"{figure:.4g}" for figure in figures))
                writer.writerow((*place, cell.verdict, verdict, disturb_comparison(cell.warnings, ())))


def counts(verdicts):
    return ", ".join(f"{count} {verdict}" for verdict, count in Counter(map(str, verdicts)).most_common())


if __name__ == "__main__":
    main()
