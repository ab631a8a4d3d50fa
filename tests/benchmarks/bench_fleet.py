"""What a fleet costs the sweep that drives it: processor time of this process a cell, against a sweep without one.

`python tests/benchmarks/bench_fleet.py 1 2 4 8` starts a Ray cluster of so many nodes, each with one processor, and has
them measure 500 cells that take no time. Processor time, because nodes that share a machine wait for each other.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import opbench

OPERATORS = Path(__file__).parents[1] / "fleet_operators.py"
SHAPES, FACTORS = 20, 25


def seconds_per_cell(folder, name, **options):
    """Processor time and wall clock."""
    factors = ",".join(map(str, range(1, 1 + FACTORS)))
    before, start = os.times(), time.perf_counter()
    run = opbench.sweep(
        ops=str(OPERATORS), shapes=str(folder / "shapes.yaml"), dtypes="fp32", device="cpu", threads=1,
        settings=[f"twice.factor={factors}"], ceilings_budget=0, plots=False, out=folder / name, **options,
    )  # fmt: skip
    wall, after = time.perf_counter() - start, os.times()
    rows = run.rows()
    assert {row.status for row in rows} == {"ok"}
    return (after.user + after.system - before.user - before.system) / len(rows), wall / len(rows)


def main(counts):
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    folder = Path(tempfile.mkdtemp())
    rows = "".join(f"  - {{batch: 1, height: {1 + n}, width: 4, channels: 8}}\n" for n in range(SHAPES))
    (folder / "shapes.yaml").write_text(f"shapes:\n{rows}")
    seconds_per_cell(folder, "warm-up")
    plain, wall = seconds_per_cell(folder, "plain")
    print(f"no fleet: {1e3 * plain:.2f} ms of processor time a cell, {1e3 * wall:.1f} ms of wall clock")
    for count in counts:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            for _ in range(count):
                cluster.add_node(num_cpus=1)
            own, wall = seconds_per_cell(folder, f"fleet-{count}", fleet=f"ray:{cluster.address}")
        finally:
            cluster.shutdown()
        print(f"{count} actors: {1e3 * own:.2f} ms ({own / plain:.2f} x), {1e3 * wall:.1f} ms of wall clock")


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [1, 2, 4, 8])
