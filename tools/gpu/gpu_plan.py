"""The cells that the steps of gpu_steps.py measure on the GPU at hand."""

from collections.abc import Iterator

from gpu_steps import STEPS, Step

from opbench.registry import registry
from opbench.sweeps.plan import plan_cells
from opbench.sweeps.reproduction import parts_for
from opbench.sweeps.request import make_request
from opbench.workload.case import Cell
from opbench.workload.shapes import load_shape_lists

__all__ = ["planned_cells", "reproducing_steps"]

LISTS = ("ops", "dtypes", "providers")


def reproducing_steps() -> list[Step]:
    """Those that `opbench reproduce` carries out."""
    return [step for step in STEPS if step.command[:3] == ("-m", "opbench", "reproduce")]


def planned_cells(step: Step) -> Iterator[tuple[str, list[Cell]]]:
    """The parts of a step with their cells."""
    words = step.command[3:]
    given = dict(zip(words[::2], words[1::2], strict=True))
    options: dict[str, object] = {name: given[f"--{name}"].split(",") for name in LISTS if f"--{name}" in given}
    if "--shapes" in given:
        options["shapes"] = [given["--shapes"]]
    operators, parts = registry.registered(), {part.name: part for part in parts_for("cuda")}
    for name in given["--parts"].split(","):
        request = make_request({**parts[name].options, **options, "device": "cuda"}, operators)
        yield name, plan_cells(request, load_shape_lists(request.shapes), operators)
