"""opbench.plots: each function of a results frame, what its figures show, and the files of a run."""

import dataclasses
import itertools

import pandas as pd
import pytest
from ceiling_fixtures import example_ceilings
from matplotlib.figure import Figure
from report_fixtures import make_run, measurement

import opbench
from opbench.errors import UsageError
from opbench.report import write_plots
from opbench.report.plots import files
from opbench.report.plots.kinds import KINDS
from opbench.results.measurement import Status
from opbench.workload.case import Shape

SHAPES = [Shape(1, side, side, 64) for side in (8, 16, 32)]
ERRORS = {"fp32": 1e-6, "fp16": 1e-3}


def cells(*, timer="cuda-event", factor=1.0):
    found = []
    for (rank, operator), level, shape, dtype in itertools.product(
        enumerate(("conv3x3", "dcnv3", "dcnv4")), ("module", "core"), SHAPES, ERRORS
    ):
        value = factor * (rank + 1) * shape.pixels * 1e-3 * (1 if dtype == "fp32" else 0.5)
        value *= 1 if level == "module" else 0.75
        if (operator, shape, dtype) == ("dcnv4", SHAPES[0], "fp16"):
            value = Status.OUT_OF_MEMORY
        cell = measurement(operator, shape, dtype, value, level=level, flop_count=shape.pixels * 10**5)
        changes = {} if isinstance(value, Status) else {"max_rel_error": ERRORS[dtype] * (rank + 1), "timer": timer}
        found.append(dataclasses.replace(cell, **changes))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("plots") / "run", cells())
    run.write_ceilings(example_ceilings())
    return run


@pytest.fixture(scope="module")
def frame(run):
    return opbench.load_results(run.path)


def marked(figure, panel):
    """The points of each drawn series of a panel: series are the lines with a marker."""
    lines = [line for line in figure.axes[panel].lines if line.get_marker() not in ("None", None, "")]
    return [sorted((float(x), float(y)) for x, y in line.get_xydata()) for line in lines]


def texts(figure):
    return " ".join(text.get_text() for axes in figure.axes for text in axes.texts)


@pytest.mark.parametrize("name", opbench.plots.__all__)
def test_every_function_takes_a_frame_and_an_empty_one(name, frame):
    draw = getattr(opbench.plots, name)
    figures = draw(frame)
    expected = {"launch_overhead": [], "offset_spread": [], "time_split": ["standard-module-fwd"]}
    assert sorted(figures) == expected.get(name, ["standard-core-fwd", "standard-module-fwd"])
    assert all(isinstance(figure, Figure) for figure in figures.values())
    assert draw(frame[frame["status"] != "ok"]) == {}
    assert draw(frame.iloc[:0]) == {}
    with pytest.raises(UsageError, match="not a results frame: it lacks the columns latency_ms"):
        draw(frame.drop(columns="latency_ms"))


def test_the_roofline_shows_rows_under_the_measured_ceilings(frame):
    figure = opbench.plots.roofline(frame)["standard-module-fwd"]
    rows = frame[(frame["level"] == "module") & (frame["dtype"] == "fp32") & (frame["operator"] == "conv3x3")]
    expected = sorted(zip(rows["flop_count"] / rows["bytes_moved"], rows["tflops"], strict=True))
    assert marked(figure, 0)[0] == [pytest.approx(point) for point in expected]
    assert "10.0 TFLOP/s" in texts(figure)  # fp32's ceiling
    assert "40.0 TFLOP/s" in texts(figure)  # fp16's
    for line in figure.axes[0].lines:
        if line.get_linestyle() in ("--", ":"):
            gbps = 1000 if line.get_linestyle() == "--" else 4000
            assert [y for _, y in line.get_xydata()] == [
                pytest.approx(min(10, x * gbps / 1e3)) for x, _ in line.get_xydata()
            ]
    without = opbench.plots.roofline(frame, ceilings={})["standard-module-fwd"]
    assert "TFLOP/s" not in texts(without)
    assert "no ceilings were measured" in without.get_suptitle()


def test_throughput_has_the_same_ceiling(frame):
    figure = opbench.plots.throughput(frame)["standard-module-fwd"]
    levels = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert levels == [pytest.approx(10.0)]
    assert "10.0 TFLOP/s measured" in texts(figure)


def test_the_split_adds_up_to_the_module(frame):
    figure = opbench.plots.time_split(frame)["standard-module-fwd"]
    bars = [(bar.get_y(), bar.get_height()) for bar in figure.axes[0].patches]
    assert len(bars) == 2 * 9  # three operators at three shapes
    cores, rest = bars[::2], bars[1::2]
    for (_, core), (bottom, projections) in zip(cores, rest, strict=True):
        assert core == pytest.approx(75.0)
        assert bottom == pytest.approx(75.0)
        assert core + projections == pytest.approx(100.0)


def test_the_heat_map_divides_by_the_chosen_operator(frame):
    default = opbench.plots.heatmap(frame)["standard-module-fwd"]
    assert "Speed-up against DCNv3" in default.get_suptitle()
    figure = opbench.plots.heatmap(frame, against="conv3x3")["standard-module-fwd"]
    shown = [text.get_text() for text in figure.axes[0].texts if text.get_text()[0].isdigit()]
    assert shown.count("1.00") == 6  # conv3x3 itself
    assert shown.count("0.500") == 6  # dcnv3 takes twice as long
    assert shown.count("0.333") == 5  # dcnv4 thrice, where it has a value
    assert opbench.plots.heatmap(frame, against="nothing") == {}


def test_precision_shows_the_error_beside_the_speed(frame):
    figure = opbench.plots.precision(frame)["standard-module-fwd"]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["fp32", "fp16"]
    assert {x for line in marked(figure, 0) for x, _ in line} == {1.0}
    fp16 = marked(figure, 1)
    assert {x for line in fp16 for x, _ in line} == {2.0}
    assert sorted({y for line in fp16 for _, y in line}) == [pytest.approx(1e-3 * n) for n in (1, 2, 3)]


def test_scaling_prints_the_exponent(frame):
    figure = opbench.plots.scaling(frame)["standard-module-fwd"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    # Latency is proportional to pixels at 64 channels; dcnv4 has two fp16 cells only, too few to fit.
    assert labels == ["Conv (3×3): fp32 1.00, fp16 1.00", "DCNv3: fp32 1.00, fp16 1.00", "DCNv4: fp32 1.00"]


def test_event_against_graph_takes_two_runs(run, frame, tmp_path, monkeypatch):
    graph_run = make_run(tmp_path / "graph", cells(timer="cuda-graph", factor=0.5))
    both = pd.concat([frame, opbench.load_results(graph_run.path)])
    figure = opbench.plots.launch_overhead(both)["standard-module-fwd"]
    assert all(y == pytest.approx(2 * x) for line in marked(figure, 0) for x, y in line)
    assert sum(len(line) for line in marked(figure, 0)) == 9
    monkeypatch.setattr("opbench.report.plots.files.KINDS", {"launches": KINDS["launches"]})
    names = {path.name for path in write_plots(run, graph_run)}
    assert names == {f"launches-standard-{level}-fwd{end}" for level in ("module", "core") for end in (".png", ".svg")}
    # Two runs in a frame: a figure for each.
    assert len(opbench.plots.roofline(both)) == 4
    assert all("/" in name for name in opbench.plots.roofline(both))


def test_a_new_figure_is_one_entry_and_a_function(monkeypatch, run):
    assert len(KINDS) == len(opbench.plots.__all__)
    monkeypatch.setattr(files, "KINDS", {"again": KINDS["flops"]})  # the others are drawn elsewhere
    assert "again-standard-module-fwd.svg" in {path.name for path in write_plots(run)}


def test_the_files_of_a_run(run):
    names = {path.name for path in write_plots(run)}
    kinds = ["throughput", "roofline", "flops", "speedup", "resolution", "scaling", "heatmap", "precision"]
    expected = {f"{kind}-standard-{level}-fwd" for kind in kinds for level in ("module", "core")}
    assert names == {f"{stem}{end}" for stem in {*expected, "split-standard-module-fwd"} for end in (".png", ".svg")}


def test_suspicious_rows_are_counted_in_the_figure(tmp_path):
    run = make_run(tmp_path, [measurement("conv3x3", SHAPES[0], "fp32", 0.01, flop_count=10**9)])
    run.write_ceilings(example_ceilings())
    figure = opbench.plots.throughput(opbench.load_results(tmp_path))["standard-module-fwd"]
    assert "1 cell suspicious, faster than the measured limits allow" in figure.get_suptitle()


def test_a_run_shows_itself_in_a_notebook_with_everything_escaped(tmp_path):
    hostile = "<script>alert(1)</script>"
    run = make_run(tmp_path, [measurement(hostile, SHAPES[0], "fp32", 1.25, provider=hostile)])
    html = opbench.Run.open(tmp_path)._repr_html_()
    assert run.device_name in html
    assert "1.25</td>" in html
    assert "<script" not in html
    assert "&lt;script&gt;" in html
