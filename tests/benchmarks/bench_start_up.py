"""How long commands take to start, as a ratio to `python -c pass`: `python tests/benchmarks/bench_start_up.py 15`.

The aim: at most 8 times for --help, 12 for list; the others are for comparison. No test asserts it:
tests/test_architecture.py holds what is imported.
"""

import os
import subprocess
import sys
import time

from opbench.stats import median

NOTHING = ("-c", "pass")
COMMANDS = {
    "opbench --help": ("-m", "opbench", "--help"),
    "opbench sweep --help": ("-m", "opbench", "sweep", "--help"),
    "opbench list operators": ("-m", "opbench", "list", "operators"),
    "opbench list providers": ("-m", "opbench", "list", "providers"),
    "opbench list shapes": ("-m", "opbench", "list", "shapes"),
    "opbench env": ("-m", "opbench", "env"),
    "opbench report results/xeon-2core": ("-m", "opbench", "report", "results/xeon-2core"),
}


def seconds(arguments):
    """Wall clock and processor time of one process and its children."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - start, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main(rounds):
    """Every command in turns, so that all of them meet the same load."""
    every = {"python -c pass": NOTHING, **COMMANDS}
    found = {name: [] for name in every}
    for number in range(rounds + 1):
        for name, arguments in every.items():
            taken = seconds(arguments)
            if number:  # the first reads the files from the disk
                found[name].append(taken)
    walls, processors = ({name: median([t[i] for t in times]) for name, times in found.items()} for i in (0, 1))
    print(f"median of {rounds} rounds, as a ratio to python -c pass ({1e3 * walls['python -c pass']:.0f} ms)")
    print(f"{'command':<36}{'ms':>6}{'ratio':>8}{'processor time, ratio':>24}")
    for name in COMMANDS:
        ratios = (times[name] / times["python -c pass"] for times in (walls, processors))
        print("{:<36}{:>6.0f}{:>8.1f}{:>24.1f}".format(name, 1e3 * walls[name], *ratios))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
