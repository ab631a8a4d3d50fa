"""Plots of a run: what they show, that nothing overlaps, and that they cannot fail on a poor run."""

import itertools
import math
import statistics
import struct
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from report_fixtures import DEVICE, make_run, measurement

from opbench.report import write_plots
from opbench.report.layout import PAPER_LABELS, Group, group_rows
from opbench.report.plots.flops import flops_figure
from opbench.report.plots.offsets import offsets_figure
from opbench.report.plots.resolution import resolution_figure
from opbench.report.plots.source import source_of_run
from opbench.report.plots.speedup import speedup_figure
from opbench.report.plots.style import plot_style, series_styles, si
from opbench.report.plots.throughput import throughput_figure
from opbench.report.spreads import SpreadLine, distributions
from opbench.report.value_text import shape_text
from opbench.results.measurement import Measurement, Status
from opbench.results.run import Run
from opbench.workload.case import Dtype, Shape

SHAPES = [
    Shape(64, 56, 56, 128),
    Shape(64, 28, 28, 256),
    Shape(64, 14, 14, 512),
    Shape(64, 7, 7, 1024),
    Shape(64, 14, 14, 768),
]


SMALL, LARGE = Shape(1, 8, 8, 64), Shape(1, 16, 16, 64)


def rate(rank: int, place: int, dtype: str) -> float:
    """The TFLOP/s that full_run is made to reach, by place of operator and shape."""
    return 20.0 - 2 * place if dtype == "fp32" else 50.0 - 7 * rank


def full_run() -> list[Measurement]:
    """Seven operators, five shapes, two dtypes; the flash row has no fp32."""
    cells = []
    for (rank, operator), (place, shape) in itertools.product(enumerate(PAPER_LABELS), enumerate(SHAPES)):
        flop_count = (rank + 1) * (9 - place) * 700_000_000
        for dtype in ("fp32", "fp16"):
            value = flop_count / rate(rank, place, dtype) / 1e9
            if operator == "flash_attention_2" and dtype == "fp32":
                value = Status.NOT_APPLICABLE
            cells.append(measurement(operator, shape, dtype, value, flop_count=flop_count))
    return cells


def only_group(run: Run) -> Group:
    (group,) = group_rows(run.rows())
    return group


def points(figure: Figure, panel: int, label_index: int) -> list[tuple[float, float]]:
    """The data of one drawn series: series are the lines with a marker."""
    lines = [line for line in figure.axes[panel].lines if line.get_marker() not in ("None", None, "")]
    return [(float(x), float(y)) for x, y in lines[label_index].get_xydata()]


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, full_run())


@pytest.fixture(autouse=True)
def _style():
    with plot_style():
        yield


def test_files_are_readable_and_named_after_their_table(run):
    written = write_plots(run)
    kinds = ("throughput", "roofline", "flops", "speedup", "resolution", "scaling", "heatmap")
    assert [path.name for path in written] == [
        f"{kind}-standard-module-fwd{suffix}" for kind in kinds for suffix in (".png", ".svg")
    ]
    for path in written:
        if path.suffix == ".png":
            width, height = struct.unpack(">II", path.read_bytes()[16:24])
            assert width == 1200
            assert 400 < height < 900
        else:
            assert ET.parse(path).getroot().tag.endswith("svg")  # noqa: S314 - our own file


def test_svg_is_the_same_every_time(tmp_path, one_plot):
    run = make_run(tmp_path, [measurement("dcnv4", SHAPES[0], dtype, 1.0) for dtype in ("fp32", "fp16")])
    first = {path: path.read_bytes() for path in write_plots(run)}
    assert {path: path.read_bytes() for path in write_plots(run)} == first
    assert not any(b"dc:date" in data for data in first.values())


def test_throughput_points_are_rate_against_median(run):
    figure = throughput_figure(run, only_group(run))
    assert [axes.get_title() for axes in figure.axes] == ["fp32", "fp16"]
    expected = {
        (statistics.median(m.latencies_ms), m.cell.flop_count / statistics.median(m.latencies_ms) / 1e9)
        for m in full_run()
        if m.cell.case.operator == "dcnv3" and m.cell.case.dtype == "fp16"
    }
    drawn = points(figure, panel=1, label_index=list(PAPER_LABELS).index("dcnv3"))
    np.testing.assert_allclose(sorted(drawn), sorted(expected))
    assert [y for _, y in drawn] == pytest.approx([50.0 - 7 * 4] * 5)
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("median latency (ms)", "TFLOP/s")


def test_grey_lines_have_equal_flop_count(run):
    figure = throughput_figure(run, only_group(run))
    for axes in figure.axes:
        lines = [line.get_xydata() for line in axes.lines if line.get_marker() in ("None", None, "")]
        counts = [sorted({round(math.log10(x * y * 1e9), 9) for x, y in line}) for line in lines]
        assert counts == [[9], [10], [11]]
        drawn = np.concatenate([line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 5])
        assert 10.0 ** counts[0][0] <= (drawn[:, 0] * drawn[:, 1]).min() * 1e9
        assert 10.0 ** counts[-1][0] >= (drawn[:, 0] * drawn[:, 1]).max() * 1e9
        assert len(axes.texts) >= 2
        for text in axes.texts:
            x, y = text.get_position()
            assert text.get_text() == si(round(x * y * 1e9), "FLOP")


def test_flops_points_are_median_against_count(run):
    figure = flops_figure(run, only_group(run))
    expected = [
        (m.cell.flop_count, statistics.median(m.latencies_ms))
        for m in full_run()
        if m.cell.case.operator == "conv3x3" and m.cell.case.dtype == "fp32"
    ]
    np.testing.assert_allclose(points(figure, panel=0, label_index=0), expected)
    assert figure.axes[0].get_xlabel() == "FLOP count of one pass"


def test_speedup_is_fp32_over_fp16(run):
    figure = speedup_figure(run, only_group(run))
    (axes,) = figure.axes
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [label for name, label in PAPER_LABELS.items() if name != "flash_attention_2"]
    for index, label in enumerate(labels):
        rank = list(PAPER_LABELS.values()).index(label)
        drawn = points(figure, panel=0, label_index=index)
        assert [round(x) for x, _ in drawn] == [0, 1, 2, 3, 4]
        assert [y for _, y in drawn] == pytest.approx([rate(rank, i, "fp16") / rate(rank, i, "fp32") for i in range(5)])
    assert [text.get_text() for text in axes.get_xticklabels()][:2] == ["56×56\n×128", "28×28\n×256"]
    low, high = axes.get_ylim()
    assert low < 1 < high


def test_resolution_goes_up_with_the_pixels(run):
    figure = resolution_figure(run, only_group(run))
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["7×7\n×1024", "14×14\n×512", "14×14\n×768", "28×28\n×256", "56×56\n×128"]
    by_shape = {
        m.cell.case.shape: statistics.median(m.latencies_ms)
        for m in full_run()
        if m.cell.case.operator == "conv3x3" and m.cell.case.dtype == "fp32"
    }
    order = [SHAPES[3], SHAPES[2], SHAPES[4], SHAPES[1], SHAPES[0]]
    expected = [(i, by_shape[shape]) for i, shape in enumerate(order)]
    np.testing.assert_allclose(points(figure, 0, 0), expected)


def test_resolution_is_height_times_width_whatever_the_channels(tmp_path):
    shapes = [Shape(1, 14, 14, 32), Shape(1, 7, 7, 1024), Shape(1, 3, 100, 8)]
    run = make_run(tmp_path, [measurement("dcnv4", shape, "fp32", 1.0) for shape in shapes])
    (axes,) = resolution_figure(run, only_group(run)).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["7×7\n×1024", "14×14\n×32", "3×100\n×8"]


def test_a_shape_without_a_value_breaks_the_line(tmp_path):
    shapes = SHAPES[1:4]
    values = [1.0, Status.OUT_OF_MEMORY, 3.0]
    cells = [measurement("dcnv4", s, "fp32", v) for s, v in zip(shapes, values, strict=True)]
    run = make_run(tmp_path, cells)
    drawn = points(resolution_figure(run, only_group(run)), 0, 0)
    assert [y for _, y in drawn] == pytest.approx([3.0, math.nan, 1.0], nan_ok=True)


def test_titles_say_what_was_measured_and_what_is_missing(run):
    group = only_group(run)
    for draw in (throughput_figure, flops_figure, speedup_figure, resolution_figure):
        title = draw(run, group).get_suptitle()
        for part in (DEVICE, "fp32, fp16", "module", "fwd", "batch 64", "cuda-event", "cold"):
            assert part in title
        assert title.endswith("5 cells without a value: see the table")


def test_nothing_is_said_to_be_missing_from_a_full_run(tmp_path):
    run = make_run(tmp_path, [measurement("dcnv4", SHAPES[0], "fp32", 1.0)])
    assert "without a value" not in throughput_figure(run, only_group(run)).get_suptitle()


def test_each_series_has_its_own_look(tmp_path):
    names = [*PAPER_LABELS, *(f"extra{i}" for i in range(9))]
    cells = [measurement(name, SHAPES[0], "fp32", 1.0) for name in names]
    cells.append(measurement("dcnv4", SHAPES[0], "fp32", 2.0, provider="triton"))
    styles = series_styles(only_group(make_run(tmp_path, cells)))
    looks = [(style.colour, style.look.marker, style.look.filled) for style in styles.values()]
    assert len(set(looks)) == len(names) + 1
    known = [(style.colour, style.look.marker) for series, style in styles.items() if series.provider == "torch"][:7]
    assert len({colour for colour, _ in known}) == len({marker for _, marker in known}) == 7


def test_providers_of_one_operator_differ_in_colour_and_marker_and_lines_in_dashes(tmp_path):
    names = [f"provider{n}" for n in range(12)]
    cells = [
        measurement("mine", shape, "fp32", 1.0 + n, provider=name) for n, name in enumerate(names) for shape in SHAPES
    ]
    group = only_group(make_run(tmp_path, cells))
    drawn = list(resolution_figure(source_of_run(Run.open(tmp_path)), group).axes[0].lines)
    assert len(drawn) == len({line.get_color() for line in drawn}) == len({line.get_marker() for line in drawn}) == 12
    assert len({str(line._dash_pattern) for line in drawn}) > 1


def test_a_series_looks_the_same_in_every_table_of_its_run(tmp_path):
    cells = [measurement("first", SHAPES[0], "fp32", 1.0), measurement("mine", SHAPES[0], "fp32", 1.0)]
    cells += [measurement("mine", SHAPES[0], "fp32", 1.0, level="core")]
    module, core = group_rows(make_run(tmp_path, cells).rows())
    [(series, style)] = series_styles(core).items()
    assert style.look == series_styles(module)[series].look != series_styles(module)[module.series[0]].look


def test_an_operator_looks_the_same_whatever_else_was_run(tmp_path, run):
    few = only_group(make_run(tmp_path / "few", [measurement("dcnv4", SHAPES[0], "fp32", 1.0)]))
    (alone,) = series_styles(few).values()
    assert alone in series_styles(only_group(run)).values()


@pytest.mark.parametrize("draw", [throughput_figure, flops_figure, speedup_figure, resolution_figure])
def test_no_texts_overlap(run, draw):
    figure = draw(run, only_group(run))
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    boxes = [legend, figure._suptitle.get_window_extent()]
    for axes in figure.axes:
        boxes.append(axes.get_window_extent())
        boxes += [axes.xaxis.label.get_window_extent(), axes.yaxis.label.get_window_extent()]
        boxes.append(axes.title.get_window_extent())
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            shown = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            boxes += [text.get_window_extent() for place, text in shown if low <= place <= high]
    page = figure.bbox
    for first, second in itertools.combinations(boxes, 2):
        assert not first.overlaps(second)
    for box in boxes:
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1


def test_a_run_without_values_draws_nothing(tmp_path):
    statuses = (Status.ERROR, Status.NOT_RUN, Status.WRONG)
    cells = [measurement("dcnv4", s, "fp32", status) for s, status in zip(SHAPES, statuses, strict=False)]
    assert write_plots(make_run(tmp_path, cells)) == []
    assert write_plots(make_run(tmp_path / "empty", [])) == []


def test_a_run_of_one_cell_draws_all_but_the_speedup(tmp_path):
    run = make_run(tmp_path, [measurement("my $op_$", SHAPES[0], "bf16", 1.0, provider="a_b")])
    assert [path.stem.split("-")[0] for path in write_plots(run)[::2]] == [
        "throughput",
        "roofline",
        "flops",
        "resolution",
    ]


def test_an_operator_without_flops_has_no_rate_but_a_latency(tmp_path):
    run = make_run(tmp_path, [measurement("pad", SHAPES[0], "fp32", 1.0, flop_count=0)])
    group = only_group(run)
    assert throughput_figure(run, group) is None
    assert flops_figure(run, group) is None
    assert points(resolution_figure(run, group), 0, 0) == [(0.0, 1.0)]


def test_speedup_needs_both_cells_ok(tmp_path):
    cells = [
        measurement("dcnv4", SHAPES[0], "fp32", 1.0),
        measurement("dcnv4", SHAPES[0], "fp16", Status.WRONG),
    ]
    run = make_run(tmp_path, cells)
    assert speedup_figure(run, only_group(run)) is None


def test_varied_batches_are_named_on_the_axis(tmp_path):
    shapes = [Shape(1, 7, 7, 32), Shape(2, 9, 9, 32)]
    run = make_run(tmp_path, [measurement("dcnv4", shape, "fp32", 1.0) for shape in shapes])
    (axes,) = resolution_figure(run, only_group(run)).axes
    assert axes.get_xlabel().startswith("batch × height × width × channels")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1×7×7\n×32", "2×9×9\n×32"]


def test_the_longest_name_of_an_axis_fits_its_panel(tmp_path):
    shapes = [Shape(2, 9, 13, 96), Shape(1, 28, 28, 64)]
    run = make_run(
        tmp_path, [measurement("dcnv4", shape, dtype, 1.0) for shape in shapes for dtype in ("fp32", "fp16")]
    )
    [group] = group_rows(run.rows())
    with plot_style():
        figure = resolution_figure(source_of_run(run), group)
        figure.canvas.draw()
        left, right = (axes.xaxis.label.get_window_extent() for axes in figure.axes)
    assert left.x1 < right.x0
    assert right.x1 < figure.bbox.x1


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path):
    run = make_run(tmp_path, [measurement("dcnv4", SHAPES[0], "fp32", 1.0)])
    with mpl.rc_context({"font.size": 31.0, "svg.hashsalt": None}):
        before = dict(mpl.rcParams)
        write_plots(run)
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e9, "1 GFLOP"), (2.5e10, "25 GFLOP"), (1e12, "1 TFLOP"), (3e6, "3 MFLOP"), (12, "12 FLOP")],
)
def test_decimal_prefixes(value, text):
    assert si(value, "FLOP") == text


def spread_cells(*, operators=("dcnv2", "dcnv4"), shapes=(SMALL,)):
    """Latency = 1 ms x (rank + 1) + the spread; uniform ones half of that."""
    found = []
    for (rank, operator), shape, spread, distribution in itertools.product(
        enumerate(operators), shapes, (4.0, 0.5, 2.0), ("", "uniform")
    ):
        settings = (("kernel_size", 3), ("offset_std_px", spread))
        settings += (("offset_distribution", distribution),) if distribution else ()
        value = (rank + 1 + spread) * (0.5 if distribution else 1)
        found.append(measurement(operator, shape, "fp32", value, settings=settings))
    zero = (("kernel_size", 3), ("offset_std_px", 0.0), ("offset_distribution", "zero"))
    return [*found, measurement("dcnv4", SMALL, "fp32", 1.25, settings=zero)]


def test_latency_stands_against_the_spread_of_the_offsets(tmp_path):
    alone = measurement("dcnv3", SMALL, "fp32", 9.0, settings=(("offset_std_px", 1.0),))
    cells = [*spread_cells(), alone, measurement("conv3x3", SMALL, "fp32", 7.0)]
    made = make_run(tmp_path / "one", cells)
    figure = offsets_figure(source_of_run(made), only_group(made))
    [axes] = figure.axes
    lines = [[tuple(map(float, point)) for point in line.get_xydata()] for line in axes.lines]
    assert lines == [
        [(0.0, 1.25), (0.5, 2.5), (2.0, 4.0), (4.0, 6.0)],
        [(0.5, 1.25), (2.0, 2.0), (4.0, 3.0)],
        [(0.5, 1.5), (2.0, 3.0), (4.0, 5.0)],
        [(0.5, 0.75), (2.0, 1.5), (4.0, 2.5)],
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["DCNv4", "DCNv2", "normal", "uniform"]
    colours, dashes = [line.get_color() for line in axes.lines], [str(line._dash_pattern) for line in axes.lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert dashes[0] == dashes[2] != dashes[1] == dashes[3]
    assert axes.get_title() == "fp32, 8×8×64"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.5", "2", "4"]
    once = make_run(tmp_path / "two", [alone, spread_cells()[0]])
    assert offsets_figure(source_of_run(once), only_group(once)) is None


def test_each_shape_and_dtype_has_a_panel_of_its_own_heights(tmp_path):
    cells = spread_cells(shapes=(SMALL, LARGE), operators=("dcnv4",))
    half = [replace(cell, cell=replace(cell.cell, case=replace(cell.cell.case, dtype=Dtype.FP16))) for cell in cells]
    made = make_run(tmp_path, [*cells, *half])
    figure = offsets_figure(source_of_run(made), only_group(made))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"{dtype}, {shape_text(shape)}" for dtype in ("fp32", "fp16") for shape in (SMALL, LARGE)]
    assert all(len(axes.lines) == 2 for axes in figure.axes)


def test_files_of_one_name_are_told_apart():
    lines = [SpreadLine(None, text, SMALL, "fp32", ()) for text in ("trained:a@12", "normal", "trained:b@3")]
    assert list(distributions(lines).items()) == [
        ("normal", "normal"), ("trained:a@12", "trained:a"), ("trained:b@3", "trained:b"),
    ]  # fmt: skip
    lines.append(replace(lines[0], distribution="trained:a@99"))
    assert set(distributions(lines).values()) == {"normal", "trained:a@12", "trained:a@99", "trained:b"}
