"""Tables of a run, and their four forms."""

import csv
import io
import re
import statistics
import subprocess
import sys

import pytest
from report_fixtures import DEVICE, make_run, measurement
from rich.console import Console

from opbench.errors import UnknownNameError
from opbench.report import FORMATS, Table, print_tables, render, run_tables, speedup_tables, write_tables
from opbench.report.layout import OPERATOR_LABELS
from opbench.report.value_text import three_digits
from opbench.results.measurement import Status
from opbench.results.published import published_cells
from opbench.workload.case import Shape

SMALL = Shape(64, 14, 14, 512)
LARGE = Shape(64, 56, 56, 128)


def parsed(table: Table) -> dict[str, dict[str, str]]:
    """The table read back from its CSV, by row label."""
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert {row.pop("Table") for row in rows} == {table.name}
    return {row["Operator"]: row for row in rows}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.833, "0.833"),
        (32.0, "32.0"),
        (4.06, "4.06"),
        (0.0912, "0.0912"),
        (1, "1.00"),
        (0.99951, "1.00"),
        (9.996, "10.0"),
        (123.4, "123"),
        (12345.6, "12300"),
        (0.000012345, "0.0000123"),
    ],
)
def test_three_digits_as_the_paper_prints_them(value, text):
    assert three_digits(value) == text


def test_labels_and_their_order_are_the_papers():
    printed = {cell.operator: cell.row_label for cell in published_cells().values()}
    assert list(printed.items()) == list(OPERATOR_LABELS.items())[: len(printed)]


def test_cells_are_the_medians_of_the_raw_samples(tmp_path):
    cells = [
        measurement(operator, shape, dtype, base * scale)
        for operator, base in (("dcnv3", 0.7), ("dcnv4", 0.31))
        for shape, scale in ((LARGE, 7.3), (SMALL, 1.0))
        for dtype, scale in (("fp32", 2.1 * scale), ("fp16", scale))
    ]
    (table,) = run_tables(make_run(tmp_path, cells))
    medians = {
        (m.cell.case.operator, m.cell.case.shape, str(m.cell.case.dtype)): statistics.median(m.latencies_ms)
        for m in cells
    }
    rows = parsed(table)
    assert list(rows) == ["DCNv3", "DCNv4"]
    for label, operator in (("DCNv3", "dcnv3"), ("DCNv4", "dcnv4")):
        for shape, column in ((LARGE, "56×56×128"), (SMALL, "14×14×512")):
            values = [float(text) for text in rows[label][f"{column} fp32 / fp16 (ms)"].split(" / ")]
            assert values == pytest.approx(
                [medians[operator, shape, "fp32"], medians[operator, shape, "fp16"]], rel=5e-3
            )


def test_operators_stand_in_the_papers_order_and_unknown_ones_after(tmp_path):
    names = ["zeta", *reversed(OPERATOR_LABELS), "alpha"]
    (table,) = run_tables(make_run(tmp_path, [measurement(name, SMALL, "fp32", 1.0) for name in names]))
    assert [row[0] for row in table.rows] == [*OPERATOR_LABELS.values(), "zeta", "alpha"]


def test_a_cell_without_a_value_says_why(tmp_path):
    texts = {
        Status.NOT_APPLICABLE: "N/A",
        Status.OUT_OF_MEMORY: "OOM",
        Status.WRONG: "wrong",
        Status.ERROR: "error",
        Status.TIMEOUT: "timeout",
        Status.UNAVAILABLE: "unavailable",
        Status.NOT_RUN: "—",
    }
    cells = [measurement(f"op_{status}", SMALL, "fp32", status, reason=f"why {status}") for status in texts]
    (table,) = run_tables(make_run(tmp_path, [*cells, measurement("fine", SMALL, "fp16", 0.5)]))
    shown = {row[0]: row[2] for row in table.rows}
    assert shown == {f"op_{status}": f"{text} / —" for status, text in texts.items()} | {"fine": "— / 0.500"}
    notes = "\n".join(table.notes)
    for status in set(texts) - {Status.NOT_RUN}:
        assert f"{texts[status]}: why {status} (op_{status}; 1 cell)." in notes
    assert table.notes[-1] == "1 cell planned but not run: the run ended before."
    assert len(table.notes) == 1 + len(texts)  # the provenance, and one for each status


def test_every_dtype_of_the_run_in_one_order(tmp_path):
    cells = [measurement("dcnv4", SMALL, dtype, ms) for dtype, ms in (("bf16", 4), ("fp16", 3), ("tf32", 2))]
    (table,) = run_tables(make_run(tmp_path, [*cells, measurement("dcnv4", SMALL, "fp32", 1)]))
    assert table.columns[2] == "14×14×512\nfp32 / tf32 / fp16 / bf16 (ms)"
    assert table.rows[0][2] == "1.00 / 2.00 / 3.00 / 4.00"
    assert "fp32 / tf32 / fp16 / bf16" in table.title


def test_several_providers_and_settings_get_a_row_each(tmp_path):
    cells = [
        measurement("dcnv4", SMALL, "fp32", 1.0, provider="torch"),
        measurement("dcnv4", SMALL, "fp32", 0.5, provider="triton"),
        measurement("dcnv3", SMALL, "fp32", 2.0, settings=(("group_channels", 16), ("same", 1))),
        measurement("dcnv3", SMALL, "fp32", 3.0, settings=(("group_channels", 32), ("same", 1))),
        measurement("conv3x3", SMALL, "fp32", 4.0, settings=(("unused", 1),)),
        measurement("pconv", SMALL, "fp32", 5.0, settings=(("same", 1),)),
        measurement("pconv", SMALL, "fp32", 6.0, settings=(("same", 1), ("style", "fancy"))),
    ]
    (table,) = run_tables(make_run(tmp_path, cells))
    assert table.rows == (
        ("Conv (3×3)", "torch", "4.00"),
        ("DCNv3 [group_channels=16]", "torch", "2.00"),
        ("DCNv3 [group_channels=32]", "torch", "3.00"),
        ("DCNv4 [torch]", "torch", "1.00"),
        ("DCNv4 [triton]", "triton", "0.500"),
        ("PConv [default]", "torch", "5.00"),
        ("PConv [style=fancy]", "torch", "6.00"),
    )


def test_one_table_per_shape_list_level_and_direction(tmp_path):
    places = [("standard", "module", "fwd"), ("standard", "core", "fwd_bwd"), ("my list/2", "core", "bwd")]
    cells = [
        measurement("dcnv4", shape, "fp32", 1.0, shape_list=name, level=level, direction=direction)
        for name, level, direction in places
        for shape in (SMALL, Shape(2 if name == "my list/2" else 64, 7, 7, 32))
    ]
    tables = run_tables(make_run(tmp_path, cells))
    assert [table.name for table in tables] == [
        "standard-module-fwd",
        "standard-core-fwd_bwd",
        "my-list-2-core-bwd",
    ]
    assert "batch 64, core, fwd_bwd" in tables[1].title
    assert tables[1].columns[2].startswith("14×14×512\n")
    assert "batch" not in tables[2].title
    assert tables[2].columns[3].startswith("2×7×7×32\n")


def test_shape_lists_that_would_share_a_file_name_do_not(tmp_path):
    cells = [measurement("dcnv4", SMALL, "fp32", 1.0, shape_list=name) for name in ("a b", "a/b")]
    assert [t.name for t in run_tables(make_run(tmp_path, cells))] == ["a-b-module-fwd", "a-b-module-fwd-2"]


def test_notes_name_device_timer_cache_and_date(tmp_path):
    cells = [
        measurement("dcnv4", SMALL, "fp32", 1.0),
        measurement("dcnv3", SMALL, "fp32", Status.ERROR, reason="x" * 400 + "\nsecond line"),
        *(measurement(f"op{i}", SMALL, "fp32", Status.WRONG, reason=f"error {i}") for i in range(20)),
    ]
    run = make_run(tmp_path, cells)
    (table,) = run_tables(run)
    assert table.notes[0] == f"Device: {DEVICE}; timer: cuda-event; cache: cold; {run.started_at[:10]}."
    assert table.notes[1].startswith("error: xxx")
    assert len(table.notes[1]) < 200
    assert table.notes[-1] == "9 more reasons: see the column `reason` of measurements.csv."
    assert not any("\n" in note for note in table.notes)


def test_speedup_is_fp32_latency_over_half_latency(tmp_path):
    cells = [
        measurement("dcnv4", LARGE, "fp32", 3.0),
        measurement("dcnv4", LARGE, "fp16", 1.2),
        measurement("dcnv4", LARGE, "bf16", 0.1),
        measurement("attention", LARGE, "fp32", Status.OUT_OF_MEMORY),
        measurement("attention", LARGE, "fp16", 1.0),
        measurement("flash_attention_2", LARGE, "fp16", 1.0),
        measurement("dcnv3", LARGE, "fp32", Status.NOT_RUN),
        measurement("dcnv3", LARGE, "fp16", Status.WRONG),
    ]
    (table,) = speedup_tables(make_run(tmp_path, cells))
    assert table.name == "speedup-standard-module-fwd-fp32-fp16"
    assert {row[0]: row[2] for row in table.rows} == {
        "DCNv4": "2.50",
        "Attention (torch)": "fp32 OOM",
        "FlashAttention-2": "—",
        "DCNv3": "fp16 wrong",
    }


def test_bf16_stands_in_for_fp16_and_is_named(tmp_path):
    cells = [measurement("dcnv4", SMALL, "fp32", 1.0), measurement("dcnv4", SMALL, "bf16", 4.0)]
    (table,) = speedup_tables(make_run(tmp_path, cells))
    assert table.rows[0][2] == "0.250"
    assert table.name.endswith("fp32-bf16")
    for text in (table.title, table.columns[2], table.notes[1]):
        assert "bf16" in text
        assert "fp16" not in text.replace("bf16", "")


@pytest.mark.parametrize("dtypes", [["fp32"], ["fp16", "bf16"], ["tf32", "fp16"]])
def test_no_speedup_without_fp32_and_a_half(tmp_path, dtypes):
    cells = [measurement("dcnv4", SMALL, dtype, 1.0) for dtype in dtypes]
    assert speedup_tables(make_run(tmp_path, cells)) == []


def test_written_files_hold_the_tables(tmp_path):
    cells = [
        measurement(operator, SMALL, dtype, ms, shape_list="smoke")
        for operator, ms in (("dcnv3", 2.0), ("dcnv4", 1.0))
        for dtype in ("fp32", "fp16")
    ]
    run = make_run(tmp_path, cells)
    written = write_tables(run)
    stems = {
        "smoke-module-fwd",
        "speedup-smoke-module-fwd-fp32-fp16",
        "paper-ratios-smoke-module-fwd-fp32",
        "paper-ratios-smoke-module-fwd-fp16",
        "paper-smoke-module-fwd-64x14x14x512",
    }
    assert {path.name for path in written} == {f"{s}{x}" for s in stems for x in (".md", ".csv", ".tex")}
    assert set(written) == set((tmp_path / "tables").iterdir())
    assert write_tables(run) == written
    rows = [line.split(",") for line in (tmp_path / "tables/smoke-module-fwd.csv").read_text().splitlines()]
    assert rows[2] == ["smoke-module-fwd", "DCNv4", "torch", "1.00 / 1.00"]


HOSTILE = Table(
    name="hostile",
    title="50% of a_b & c",
    columns=("Name", "Provider", "56×56×128\nfp32 (ms)"),
    rows=(("x|y_z", "[red]torch[/red]", "1.00"), ("a,b", 'q"q', "—")),
    notes=("why: {brace} $5 #1 ~ ^ \\ <b> *star* _it_ flash_attention_2 :smile:",),
)


def test_markdown():
    lines = render(HOSTILE, "markdown").splitlines()
    assert lines[0] == "**50% of a_b & c**"
    assert lines[2:6] == [
        "| Name | Provider | 56×56×128<br>fp32 (ms) |",
        "| --- | --- | ---: |",
        r"| x\|y_z | \[red\]torch\[/red\] | 1.00 |",
        '| a,b | q"q | — |',
    ]
    assert lines[7] == r"- why: {brace} $5 #1 ~ ^ \\ \<b> \*star\* \_it\_ flash_attention_2 :smile:"


def test_csv_reads_back():
    rows = list(csv.reader(io.StringIO(render(HOSTILE, "csv"))))
    assert rows == [
        ["Table", "Name", "Provider", "56×56×128 fp32 (ms)"],
        ["hostile", "x|y_z", "[red]torch[/red]", "1.00"],
        ["hostile", "a,b", 'q"q', "—"],
    ]


def test_latex():
    text = render(HOSTILE, "latex")
    assert r"\caption{50\% of a\_b \& c}" in text
    assert r"\begin{tabular}{llr}" in text
    assert r"    Name & Provider & \shortstack{56$\times$56$\times$128\\fp32 (ms)} \\" in text.splitlines()
    assert r"    x|y\_z & [red]torch[/red] & 1.00 \\" in text.splitlines()
    assert r"\{brace\} \$5 \#1 \textasciitilde{} \textasciicircum{} \textbackslash{} \textless{}b" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1
    assert not re.search(r"[×—]", text)


def test_terminal_takes_no_text_for_markup():
    text = render(HOSTILE, "terminal")
    for part in (HOSTILE.title, "x|y_z", "[red]torch[/red]", "56×56×128", HOSTILE.notes[0]):
        assert part in text


def test_unknown_format_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="unknown format 'html'; known: terminal, markdown, csv, latex"):
        render(HOSTILE, "html")


def test_a_row_must_fit_its_columns():
    with pytest.raises(ValueError, match="bad: a row of 1 values under 2 columns"):
        Table("bad", "", ("a", "b"), (("1",),))


@pytest.mark.parametrize("form", FORMATS)
def test_printing_neither_wraps_nor_marks_up(form):
    stream = io.StringIO()
    print_tables([HOSTILE, HOSTILE], form, Console(file=stream, width=20))
    assert stream.getvalue() == render(HOSTILE, form) + "\n" + render(HOSTILE, form)


def test_a_terminal_gets_colour_and_wrapping():
    stream = io.StringIO()
    print_tables([HOSTILE], "terminal", Console(file=stream, width=60, force_terminal=True))
    assert "\x1b[1m" in stream.getvalue()
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in stream.getvalue().splitlines()) <= 60


def test_reporting_imports_nothing_heavy(tmp_path):
    make_run(tmp_path, [measurement("dcnv4", SMALL, dtype, 1.0) for dtype in ("fp32", "fp16")])
    code = """
import sys
from pathlib import Path
from opbench.report import paper_tables, render, run_tables, speedup_tables
from opbench.results.run import Run
run = Run.open(Path(sys.argv[1]))
for table in (*run_tables(run), *speedup_tables(run), *paper_tables(run)):
    for form in ("terminal", "markdown", "csv", "latex"):
        render(table, form)
print(sorted({"torch", "numpy", "pandas", "scipy", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_an_uncertain_median_is_marked_and_explained(tmp_path):
    shape = Shape(64, 56, 56, 128)
    run = make_run(
        tmp_path / "run",
        [measurement("conv3x3", shape, "fp32", 2.0, wide=True), measurement("conv3x3", shape, "fp16", 1.0)],
    )
    [table] = run_tables(run)
    assert table.rows[0][-1] == "~2.00 / 1.00"
    assert any(note.startswith("~: the median's 95 % interval is wider than ±5 % (1 cell)") for note in table.notes)
