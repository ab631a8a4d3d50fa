"""Prints the table of docs/models.md: parameters and multiply-accumulates of each model beside the published ones.

Usage: python tools/model_table.py
"""

import csv
import json
import re
from pathlib import Path

import timm
import torch

from opbench.models import mac_count, parameter_count

PUBLISHED = Path(__file__).parents[1] / "results" / "published" / "models.csv"
UNITS = {"M": 1e6, "G": 1e9, "B": 1e9}
HEAD = """\
| model | image | parameters (M) | published | MACs (G) | published | source | deviation |
| --- | --- | ---: | ---: | ---: | ---: | --- | --- |"""


def published():
    """The published figures, a dictionary a row."""
    with PUBLISHED.open(newline="") as file:
        return list(csv.DictReader(file))


def agrees(printed, number):
    """Whether a number rounds to what is printed, such as 15.3G; nothing printed agrees with every number."""
    if not printed:
        return True
    figure, decimals, unit = re.fullmatch(r"(\d+\.?(\d*))([MGB])", printed).groups()
    return f"{number / UNITS[unit]:.{len(decimals)}f}" == figure


def counts(row):
    """Parameters and multiply-accumulates of a row's model at its image size."""
    height, width = int(row["height"]), int(row["width"])
    arguments = json.loads(row["arguments"] or "{}")
    if timm.get_pretrained_cfg(row["model"]).fixed_input_size:
        arguments["img_size"] = (height, width)
    with torch.device("meta"):
        model = timm.create_model(row["model"], **arguments)
    return parameter_count(model), mac_count(model, height=height, width=width)


def line(row):
    """A row of the table; ValueError where a difference is not explained, or an explanation has none."""
    parameters, macs = counts(row)
    if bool(row["deviation"]) == (agrees(row["parameters"], parameters) and agrees(row["macs"], macs)):
        raise ValueError(f"{row['model']} at {row['height']}: {parameters} and {macs}, deviation {row['deviation']!r}")
    cells = (
        row["model"], f"{row['height']}×{row['width']}", f"{parameters / 1e6:.2f}", row["parameters"],
        f"{macs / 1e9:.2f}", row["macs"], row["source"], row["deviation"],
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join([HEAD, *map(line, published())]))
