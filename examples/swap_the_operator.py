"""What does an operator cost in a network? The same network with several operators in its blocks, and with none.

    python examples/swap_the_operator.py internimage_t figures
    python examples/swap_the_operator.py convnext_tiny figures depthwise_conv,dcnv4_lightweight,none

The network gets random weights. On a CPU it takes one small image, and on a GPU the shapes of the list backbone.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import opbench
from opbench import models


def main(network: str, folder: str, operators: str = "dcnv3,dcnv4,conv3x3,none", budget: str = "0.5") -> None:
    if network in models.names():
        with torch.device("meta"):
            print(f"{network}: {models.parameter_count(models.create(network)) / 1e6:.1f} M parameters")
    out = Path(folder)
    run = opbench.sweep(
        ops=network,
        level="model",
        dtypes="fp32",
        settings=[f"{network}.operator={operators}"],
        time_budget=float(budget),
        ceilings_budget=0,
        plots=False,
        out=out / "run",
    )
    frame = opbench.load_results(run.path)
    frame["inside"] = frame["settings"].str.extract(r"operator=([^;]+)")
    ok = frame[frame["status"] == "ok"]
    first = ok[ok["shape"] == ok["shape"].iloc[0]].set_index("inside")
    rest = first["latency_ms"].get("none", 0.0)
    table = first[["latency_ms", "images_per_second", "parameter_count"]].assign(
        share=1 - rest / first["latency_ms"],
    )
    print(table.to_string(float_format="{:.3g}".format))

    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    inside = table.drop(index="none", errors="ignore")
    modules = (inside["latency_ms"] - rest).clip(lower=0)  # below 0 where the machine was disturbed
    axes.barh(inside.index, inside["latency_ms"] - modules, color="0.8", label="rest of the network")
    axes.barh(inside.index, modules, left=inside["latency_ms"] - modules, label="the operator's modules")
    axes.set_xlabel("latency (ms)")
    axes.set_title(f"{network}, {first['shape'].iloc[0]}, fp32, {run.device_name}", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(out / f"{network}.png", dpi=150)
    print(f"figure: {out / f'{network}.png'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
