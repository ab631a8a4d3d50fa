"""A run in a notebook: its figures, and the example."""

from pathlib import Path

import pytest
from report_fixtures import make_run, measurement

import opbench
from opbench.errors import UnknownNameError, UsageError
from opbench.results.measurement import Status
from opbench.results.row import COLUMNS
from opbench.workload.case import Shape

EXAMPLES = Path(__file__).parents[1] / "examples"
SHAPES = [Shape(1, 8, 8, 16), Shape(1, 4, 4, 32)]


@pytest.fixture
def run(tmp_path):
    cells = [
        measurement("conv3x3", shape, "fp32", 2.0, level=level) for shape in SHAPES for level in ("module", "core")
    ]
    return opbench.Run.open(make_run(tmp_path / "run", cells).path)


def test_a_frame_says_the_units_of_its_columns(run):
    units = opbench.load_results(run.path).attrs["units"]
    assert units == {column.name: column.unit for column in COLUMNS if column.unit}
    assert (units["latency_ms"], units["tflops"], "status" in units) == ("ms", "1e12 FLOP/s", False)
    assert opbench.load_samples(run.path).attrs["units"] == {"latency_ms": "ms"}
    assert opbench.load_results("published").attrs["units"] == units


def test_a_run_draws_one_figure(run):
    first, second = (run.plot("flops", table=f"standard-{level}-fwd") for level in ("module", "core"))
    assert first.get_suptitle() == run.plot("flops").get_suptitle() != second.get_suptitle()
    assert run.plot().axes  # throughput


def test_what_it_cannot_draw_is_one_line(run, tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown kind of figure 'rooflin'; .*did you mean 'roofline'"):
        run.plot("rooflin")
    with pytest.raises(UnknownNameError, match="unknown table 'standard-module-bwd'; known: standard-module-fwd"):
        run.plot(table="standard-module-bwd")
    failed = make_run(tmp_path / "failed", [measurement("conv3x3", SHAPES[0], "fp32", Status.OUT_OF_MEMORY)])
    with pytest.raises(UsageError, match="has nothing to draw as roofline"):
        opbench.Run.open(failed.path).plot("roofline")


@pytest.mark.slow  # a kernel of its own
@pytest.mark.filterwarnings("ignore")  # of the kernel's packages
def test_the_example_runs_and_shows_tables_and_figures():
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "read_a_run.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # it is kept as it was written
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert sum("image/png" in output["data"] for output in shown) == 2
    assert "<table>" in shown[0]["data"]["text/html"]
    assert "speedup" in shown[2]["data"]["text/html"]
