"""From a run's rows to an answer: which operator to use, what half precision costs, how far from the device's limit.

    python examples/read_a_run.py results/xeon-2core figures

In a notebook, `opbench.Run.open("results/xeon-2core")` as the last line of a cell shows the run's tables.
"""

import sys
from pathlib import Path

import opbench


def main(run: str, folder: str) -> None:
    frame = opbench.load_results(run)
    ok = frame[(frame["status"] == "ok") & (frame["level"] == frame["level"].iloc[0])]

    print("Fastest per shape and dtype, ms:")
    fastest = ok.loc[ok.groupby(["shape", "dtype"], sort=False)["latency_ms"].idxmin()]
    print(fastest[["shape", "dtype", "operator", "provider", "latency_ms"]].to_string(index=False))

    print("\nSpeed-up over fp32 with the largest error against fp64 beside it (median over shapes):")
    keys = ["operator", "provider", "shape"]
    full = ok[ok["dtype"] == "fp32"].set_index(keys)["latency_ms"]
    other = ok[ok["dtype"] != "fp32"].set_index(keys)
    gains = other.assign(speedup=full / other["latency_ms"]).groupby(["operator", "dtype"], sort=False)
    print(gains[["speedup", "max_rel_error"]].median().to_string(float_format="{:.3g}".format))

    if ok["limit_fraction"].notna().any():
        print("\nShare of what the device can do, and what binds (median over shapes):")
        bound = ok.groupby(["operator", "dtype"], sort=False)
        limits = bound.agg(limit_fraction=("limit_fraction", "median"), bound_by=("bound_by", "first"))
        print(limits.to_string(float_format="{:.1%}".format))

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    for draw in (opbench.plots.roofline, opbench.plots.scaling):
        for table, figure in draw(frame).items():
            figure.savefig(out / f"{draw.__name__}-{table}.png")
    print(f"\nfigures in {out}: " + ", ".join(sorted(path.name for path in out.glob("*.png"))))


if __name__ == "__main__":
    main(*sys.argv[1:3])
