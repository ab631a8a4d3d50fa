"""A run beside the published figures."""

import csv
import re
from collections import Counter
from dataclasses import replace
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_fixtures import make_run, measurement
from scipy.stats import kendalltau

from opbench.report import Table, paper_tables, write_tables
from opbench.report.measured_and_published import kendall_tau
from opbench.report.value_text import three_digits
from opbench.results.measurement import Status
from opbench.results.published import PUBLISHED_LABEL, published_cells
from opbench.workload.case import Shape

STANDARD = Shape(64, 56, 56, 128)
HIGH = Shape(1, 200, 320, 128)
# fp32 and fp16 latencies of Table 2 at 56x56x128, in ms, copied from the paper's text.
PAPER_56 = {
    "conv3x3": (0.833, 0.596),
    "attention": (32.0, 20.3),
    "window_attention": (4.48, 1.87),
    "dcnv3": (3.28, 2.98),
    "dcnv4_lightweight": (0.762, 0.547),
    "dcnv4": (1.28, 0.873),
}


def shape_tables(run) -> list[Table]:
    """The comparisons shape by shape, without the overview of a list."""
    return [table for table in paper_tables(run) if not table.name.startswith("paper-ratios-")]


def columns(table: Table) -> dict[str, dict[str, str]]:
    """Cells by row label and heading."""
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def tau_note(table: Table, dtype: str) -> tuple[str, int]:
    """Kendall's tau as printed, and n."""
    (note,) = [note for note in table.notes if f"order, {dtype} measured" in note]
    tau, count = re.search(r": (\S+) \(n = (\d)\)", note).groups()
    return tau, int(count)


def test_published_figures_are_the_shipped_ones():
    text = files("opbench_published").joinpath("dcnv4_module_level.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(published_cells()) == len(rows) == 140
    for row in rows:
        shape = Shape({"2": 64, "5": 1}[row["table"]], int(row["height"]), int(row["width"]), int(row["channels"]))
        cell = published_cells()[row["operator"], shape, row["dtype"]]
        assert cell.status == row["status"]
        assert cell.latency_ms == (float(row["latency_ms"]) if row["latency_ms"] else None)
    for operator, latencies in PAPER_56.items():
        found = [published_cells()[operator, STANDARD, dtype].latency_ms for dtype in ("fp32", "fp16")]
        assert found == list(latencies)


def test_measured_stands_beside_published_with_both_ratios(tmp_path):
    measured = {"dcnv3": 2.0, "dcnv4": 0.5, "conv3x3": 0.3}
    cells = [
        measurement(operator, STANDARD, dtype, ms * scale)
        for operator, ms in measured.items()
        for dtype, scale in (("fp32", 2.0), ("fp16", 1.0))
    ]
    (table,) = shape_tables(make_run(tmp_path, cells))
    shown = columns(table)
    assert list(shown) == ["Conv (3×3)", "DCNv3", "DCNv4"]
    for label, operator in (("Conv (3×3)", "conv3x3"), ("DCNv3", "dcnv3"), ("DCNv4", "dcnv4")):
        for index, (dtype, scale) in enumerate((("fp32", 2.0), ("fp16", 1.0))):
            row = shown[label]
            published = PAPER_56[operator][index]
            assert float(row[f"measured\n{dtype} (ms)"]) == pytest.approx(measured[operator] * scale, rel=5e-3)
            assert float(row[f"A100 2023\n{dtype} (ms)"]) == published
            ratio = measured[operator] / measured["dcnv3"]
            assert float(row[f"measured\n{dtype} / DCNv3"]) == pytest.approx(ratio, rel=5e-3)
            ratio = published / PAPER_56["dcnv3"][index]
            assert float(row[f"A100 2023\n{dtype} / DCNv3"]) == pytest.approx(ratio, rel=5e-3)
    assert "64×56×56×128" in table.title
    notes = "\n".join(table.notes)
    for part in ("Table 2;", "A100 80GB SXM", "batch of 64 is inferred", "TF32 on (inferred)"):
        assert part in notes


def test_tau_is_over_operators_with_both_values(tmp_path):
    """fp32 in the published order, fp16 in its reverse; a cell without a value does not count."""
    full, half = (sorted(PAPER_56, key=lambda name, i=i: PAPER_56[name][i]) for i in (0, 1))
    cells = [measurement(name, STANDARD, "fp32", 1.0 + rank) for rank, name in enumerate(full)]
    cells += [measurement(name, STANDARD, "fp16", 10.0 - rank) for rank, name in enumerate(half[1:])]
    cells += [
        measurement("flash_attention_2", STANDARD, "fp32", 0.001),
        measurement(half[0], STANDARD, "fp16", Status.WRONG),
    ]
    (table,) = shape_tables(make_run(tmp_path, cells))
    assert tau_note(table, "fp32") == ("1.00", 6)
    assert tau_note(table, "fp16") == ("-1.00", 5)


def test_tau_of_a_partly_changed_order(tmp_path):
    latencies = {"conv3x3": 1.3, "attention": 7.0, "window_attention": 5.0, "dcnv3": 4.0, "dcnv4": 0.9}
    cells = [measurement(name, STANDARD, "fp32", ms) for name, ms in latencies.items()]
    (table,) = shape_tables(make_run(tmp_path, cells))
    expected = kendalltau(list(latencies.values()), [PAPER_56[name][0] for name in latencies]).statistic
    assert tau_note(table, "fp32") == (f"{expected:.2f}", 5)
    assert 0 < abs(expected) < 1


def test_every_pair_in_the_other_order_is_named_with_both_ratios(tmp_path):
    """Published at fp32: DCNv4 light 0.762, Conv 0.833, DCNv4 1.28, DCNv3 3.28; here Conv is first and DCNv3 second."""
    latencies = {"conv3x3": 0.5, "dcnv3": 0.8, "dcnv4": 1.0, "dcnv4_lightweight": 2.0}
    cells = [measurement(name, STANDARD, "fp32", ms) for name, ms in latencies.items()]
    cells += [measurement(name, STANDARD, "fp16", ms) for name, ms in zip(latencies, (2.0, 5.0, 3.0, 1.0), strict=True)]
    (table,) = shape_tables(make_run(tmp_path, cells))
    [note] = [note for note in table.notes if "Reversed order" in note]  # none in fp16
    assert note.startswith("Reversed order, fp32: ")
    found = re.findall(r"(?:: |; )(.+?) before (.+?) \(ratio (\S+), A100 2023 (\S+?)\)", note)
    expected = [
        ("Conv (3×3)", "DCNv4 (lightweight)", 0.5 / 2.0, 0.833 / 0.762),
        ("DCNv3", "DCNv4 (lightweight)", 0.8 / 2.0, 3.28 / 0.762),
        ("DCNv3", "DCNv4", 0.8 / 1.0, 3.28 / 1.28),
        ("DCNv4", "DCNv4 (lightweight)", 1.0 / 2.0, 1.28 / 0.762),
    ]
    assert [pair[:2] for pair in found] == [pair[:2] for pair in expected]
    for pair, wanted in zip(found, expected, strict=True):
        assert [float(number) for number in pair[2:]] == pytest.approx(wanted[2:], rel=5e-3)


def test_no_tau_and_no_ratio_without_enough_operators(tmp_path):
    (table,) = shape_tables(make_run(tmp_path, [measurement("dcnv4", STANDARD, "fp32", 1.0)]))
    assert tau_note(table, "fp32") == ("—", 1)
    row = columns(table)["DCNv4"]
    assert row["measured\nfp32 / DCNv3"] == "—"
    assert float(row["A100 2023\nfp32 / DCNv3"]) == pytest.approx(1.28 / 3.28, rel=5e-3)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_kendall_tau_is_scipys(pairs):
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    tau = kendall_tau(first, second)
    if len(set(first)) < 2 or len(set(second)) < 2:
        assert tau is None
    else:
        assert tau == pytest.approx(kendalltau(first, second).statistic)


def test_tf32_is_compared_with_published_fp32_and_says_so(tmp_path):
    cells = [measurement("dcnv3", STANDARD, dtype, ms) for dtype, ms in (("fp32", 9.0), ("tf32", 3.0))]
    (table,) = shape_tables(make_run(tmp_path, cells))
    assert [text.replace("\n", " ") for text in table.columns[2:]] == [
        "measured fp32 (ms)",
        "A100 2023 fp32 (ms)",
        "measured fp32 / DCNv3",
        "A100 2023 fp32 / DCNv3",
        "measured tf32 (ms)",
        "A100 2023 fp32 (ms)",
        "measured tf32 / DCNv3",
        "A100 2023 fp32 / DCNv3",
    ]
    assert table.rows[0][2:] == ("9.00", "3.28", "1.00", "1.00", "3.00", "3.28", "1.00", "1.00")
    assert any("tf32 measured against fp32 A100 2023" in note for note in table.notes)


def test_a_lists_ratios_stand_in_one_table_with_the_agreement_of_the_order(tmp_path):
    other = Shape(64, 28, 28, 256)
    latencies = {"conv3x3": (1.0, 4.0), "dcnv3": (2.0, 8.0), "dcnv4": (3.0, Status.OUT_OF_MEMORY)}
    cells = [
        measurement(name, shape, "fp32", value)
        for name, values in latencies.items()
        for shape, value in zip((STANDARD, other), values, strict=True)
    ]
    overview, *shapes = paper_tables(make_run(tmp_path, cells))
    assert len(shapes) == 2
    assert overview.title == "Latency / DCNv3's, measured fp32 / A100 2023 fp32: standard"
    assert overview.columns == ("Operator", "56×56×128", "28×28×256")
    published = [published_cells()[name, shape, "fp32"].latency_ms for name in latencies for shape in (STANDARD, other)]
    conv, conv_other, dcnv3, dcnv3_other, dcnv4, dcnv4_other = published
    assert overview.rows == (
        ("Conv (3×3)", f"0.500 / {three_digits(conv / dcnv3)}", f"0.500 / {three_digits(conv_other / dcnv3_other)}"),
        ("DCNv3", "1.00 / 1.00", "1.00 / 1.00"),
        ("DCNv4", f"1.50 / {three_digits(dcnv4 / dcnv3)}", f"— / {three_digits(dcnv4_other / dcnv3_other)}"),
        ("Kendall's tau of the order", "0.33", "1.00"),
    )


def test_bf16_is_compared_with_published_fp16_and_says_so(tmp_path):
    cells = [measurement(name, STANDARD, "bf16", ms) for name, ms in (("dcnv3", 9.0), ("dcnv4", 3.0))]
    (table,) = shape_tables(make_run(tmp_path, cells))
    row = columns(table)["DCNv4"]
    assert row["A100 2023\nfp16 (ms)"] == three_digits(PAPER_56["dcnv4"][1])
    assert row["measured\nbf16 / DCNv3"] == "0.333"
    assert "bf16 stands beside the fp16 of A100 2023: both take half of fp32's bytes." in table.notes


def test_a_batch_that_the_paper_lacks_is_compared_by_ratios_and_says_so(tmp_path):
    shape = replace(STANDARD, batch=1)
    latencies = {"conv3x3": 1.0, "dcnv3": 2.0, "dcnv4": 3.0}  # published: 0.833, 3.28, 1.28
    cells = [measurement(name, shape, "fp32", ms, shape_list="standard_batch1") for name, ms in latencies.items()]
    (table,) = shape_tables(make_run(tmp_path, cells))
    assert "1×56×56×128 (standard_batch1" in table.title
    row = columns(table)["DCNv4"]
    assert row["A100 2023\nfp32 (ms)"] == "1.28"
    assert row["measured\nfp32 / DCNv3"] == "1.50"
    notes = "\n".join(table.notes)
    assert "Its batch of 64 is inferred" in notes
    assert "Measured with batch 1: compare ratios and the order, not latencies" in notes
    assert "Reversed order, fp32: DCNv3 before DCNv4 (ratio 0.667, A100 2023 2.56)." in notes
    (same,) = shape_tables(make_run(tmp_path / "same", [measurement("dcnv3", STANDARD, "fp32", 1.0)]))
    assert "Measured with batch" not in "\n".join(same.notes)


def test_cells_without_a_value_on_either_side(tmp_path):
    cells = [
        measurement("attention", HIGH, "fp16", 2.0),
        measurement("flash_attention_2", HIGH, "fp32", Status.NOT_APPLICABLE),
        measurement("dcnv3", HIGH, "fp16", Status.OUT_OF_MEMORY),
        measurement("dcnv4", HIGH, "fp16", Status.NOT_RUN),
    ]
    (table,) = shape_tables(make_run(tmp_path, cells))
    rows = {row[0]: row[2:] for row in table.rows}
    assert rows["Attention (torch)"] == ("—", "OOM", "—", "—", "2.00", "OOM", "—", "—")
    assert rows["FlashAttention-2"][:2] == ("N/A", "N/A")
    assert rows["FlashAttention-2"][4:] == ("—", "13.4", "—", "13.9")
    assert rows["DCNv3"][4:] == ("OOM", "0.964", "—", "1.00")
    assert rows["DCNv4"][4:6] == ("—", "0.346")
    assert "Table 5;" in "\n".join(table.notes)
    assert "batch of 1 is inferred" in "\n".join(table.notes)


def test_one_provider_per_operator_enters_ratios_and_order(tmp_path):
    cells = [
        measurement("dcnv3", STANDARD, "fp32", Status.UNAVAILABLE, provider="cuda"),
        measurement("dcnv3", STANDARD, "fp32", 2.0, provider="triton"),
        measurement("dcnv3", STANDARD, "fp32", 50.0, provider="torch"),
        measurement("dcnv4", STANDARD, "fp32", 1.0, provider="triton"),
        measurement("dcnv4", STANDARD, "fp32", 100.0, provider="torch"),
    ]
    (table,) = shape_tables(make_run(tmp_path, cells))
    ratios = {row[0]: row[4] for row in table.rows}
    assert ratios == {
        "DCNv3 [cuda]": "—",
        "DCNv3 [triton]": "1.00",
        "DCNv3 [torch]": "25.0",
        "DCNv4 [triton]": "0.500",
        "DCNv4 [torch]": "50.0",
    }
    assert tau_note(table, "fp32") == ("1.00", 2)
    assert any("one provider per operator: DCNv3 [triton], DCNv4 [triton]." in note for note in table.notes)


def test_every_published_figure_is_labelled(tmp_path):
    """Measured values are made so that no published one can be mistaken for them."""
    shapes = list(dict.fromkeys(cell.shape for cell in published_cells().values()))
    operators = list(dict.fromkeys(cell.operator for cell in published_cells().values()))
    cells = [
        measurement(operator, shape, dtype, 777.0, shape_list="both")
        for shape in shapes
        for operator in operators
        for dtype in ("fp32", "fp16")
    ]
    tables = shape_tables(make_run(tmp_path, cells))
    assert len(tables) == 10
    assert len({table.name for table in tables}) == 10
    published = 0
    for table in tables:
        for row in table.rows:
            for heading, text in list(zip(table.columns, row, strict=True))[2:]:
                if PUBLISHED_LABEL in heading:
                    published += "(ms)" in heading
                else:
                    assert text in ("777", "1.00")
    assert published == 140


@pytest.mark.parametrize(
    "change",
    [
        {"shape": Shape(64, 56, 56, 64)},
        {"shape": Shape(1, 200, 300, 128)},
        {"level": "core"},
        {"direction": "fwd_bwd"},
        {"operator": "my_operator"},
    ],
)
def test_nothing_published_is_said_plainly(tmp_path, change):
    values = {"operator": "dcnv4", "shape": STANDARD, "dtype": "fp32", "value": 1.0} | change
    run = make_run(tmp_path, [measurement(**values)])
    (table,) = paper_tables(run)
    assert table.title == "No row of this run has a published counterpart (A100 2023)"
    assert Counter(row[0] for row in table.rows) == {"Table 2": 5, "Table 5": 5}
    assert ("Table 2", "standard", "64×56×56×128") in table.rows
    assert ("Table 5", "high_resolution", "1×200×320×128") in table.rows
    assert not [path for path in write_tables(run) if path.name.startswith("paper")]
