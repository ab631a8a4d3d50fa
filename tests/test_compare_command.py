"""`opbench compare` from the outside: exit codes, formats and files, and bad input."""

import csv
import io
import json
import typing
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from report_fixtures import made_noise, make_run, measurement
from test_fuzz import call

from opbench.cli.commands.report import Format
from opbench.cli.shared import ComparisonFormats
from opbench.compare.noise import keep_noise
from opbench.report.comparison import COLUMNS, COMPARISON_FORMATS, in_file
from opbench.report.render import TABLE_FORMATS
from opbench.results.measurement import Status
from opbench.results.run import Run
from opbench.workload.case import Shape
from opbench.workload.cell_warning import split_warnings

SMALL, LARGE = Shape(1, 28, 28, 64), Shape(1, 56, 56, 64)


def conv(value, shape=SMALL, **options):
    return measurement("conv3x3", shape, "fp32", value, **options)


def junit_suite(text):
    return ET.fromstring(text.encode()).find("testsuite")  # noqa: S314 - our own


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    make_run(tmp_path / "base", [conv(1.0), conv(1.0, LARGE)])
    return tmp_path


HEADS = {
    "same": (0, [conv(1.01), conv(1.0, LARGE)]),
    "faster": (0, [conv(0.5), conv(1.0, LARGE)]),
    "slower": (1, [conv(1.2), conv(1.0, LARGE)]),
    "inconclusive": (3, [conv(1.0, wide=True), conv(1.0, LARGE)]),
    "not comparable": (4, [replace(conv(1.0), timer="cuda-graph"), conv(1.0, LARGE)]),
    "missing": (5, [conv(1.0), conv(Status.ERROR, LARGE, reason="no luck")]),
}


@pytest.mark.parametrize("verdict", HEADS)
def test_each_verdict_has_its_exit_code(place, verdict):
    code, cells = HEADS[verdict]
    make_run(place / "head", cells)
    got, out, err = call("compare", "base", "head")
    assert (got, err) == (code, "")
    assert out.splitlines()[-1].startswith(f"{verdict}: ")
    accepted, _, _ = call("compare", "base", "head", "--inconclusive", "pass")
    assert accepted == (0 if verdict == "inconclusive" else code)


def test_the_worst_verdict_decides_and_accepting_inconclusive_hides_no_other(place):
    make_run(place / "head", [conv(1.0, wide=True), conv(1.5, LARGE)])
    assert call("compare", "base", "head", "--inconclusive", "pass")[0] == 1


def test_the_threshold_is_an_option(place, monkeypatch):
    make_run(place / "head", [conv(1.05), conv(1.0, LARGE)])
    assert call("compare", "base", "head")[0] == 0
    # 5 % may be two processes of the same code, unless this device is known to be quieter than that.
    assert call("compare", "base", "head", "--threshold", "3%")[0] == 3
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    keep_noise(made_noise(0.01), Run.open(place / "head").environment)
    assert call("compare", "base", "head", "--threshold", "3%")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threshold", "3"), "--threshold must be a percentage like 3% or a fraction like 0.03"),
        (("--format", "yaml"), "unknown format 'yaml'; known: terminal, markdown, csv, junit, github"),
        (("--format", "terminal", "--out", "x"), "--out is for markdown, csv, junit; --format names none of them"),
        (("--inconclusive", "maybe"), "--inconclusive must be fail or pass, got 'maybe'"),
    ],
)
def test_2_for_usage(place, arguments, message):
    code, out, err = call("compare", "base", "base", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"opbench: {message}")
    assert err.count("\n") == 1


def test_74_when_a_report_cannot_be_written(place, monkeypatch):
    (place / "file").write_text("mine")
    code, _, err = call("compare", "base", "base", "--out", "file/reports")
    assert code == 74
    assert err.startswith("opbench: file/reports: cannot be written: ")
    assert (place / "file").read_text() == "mine"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place))
    assert call("compare", "base", "base", "--format", "github")[0] == 74


def test_out_writes_every_format_whole(place):
    make_run(place / "head", HEADS["slower"][1])
    code, out, err = call("compare", "base", "head", "--out", "reports/deep")
    assert code == 1
    assert out.splitlines()[-1].startswith("slower: 1 of 2 cells")
    names = ["comparison.csv", "comparison.md", "junit.xml"]
    assert sorted(path.name for path in (place / "reports/deep").iterdir()) == names
    assert sorted(err.split()) == [f"reports/deep/{name}" for name in names]


def test_csv_is_tidy_and_unrounded(place):
    third = 1 / 3
    settings = (("offset_std_px", 1.5), ("kernel_size", 3))
    cell = measurement("dcnv4", SMALL, "bf16", third, settings=settings, provider="triton")
    make_run(
        place / "run",
        [replace(cell, kernel_source_hash="abc", warnings=split_warnings("CPU load: 20 %; x: y"))],
    )
    _, out, _ = call("compare", "run", "run", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert tuple(rows[0]) == COLUMNS
    assert {name: rows[0][name] for name in COLUMNS if not name.startswith("ratio_")} == {
        "operator": "dcnv4", "provider": "triton", "level": "module", "direction": "fwd", "shape_list": "standard",
        "shape": "1x28x28x64", "dtype": "bf16", "settings": "offset_std_px=1.5;kernel_size=3", "base_ms": repr(third),
        "head_ms": repr(third), "ratio": "1.0", "verdict": "same", "reason": "", "base_source": "abc",
        "head_source": "abc", "warnings": "CPU load: 20 %; x: y",
    }  # fmt: skip


def test_junit_has_a_case_per_cell_and_no_empty_suite(place):
    make_run(place / "head", [conv(1.2), conv(Status.ERROR, LARGE, reason="<no> & ]]> luck")])
    _, out, _ = call("compare", "base", "head", "--format", "junit")
    suite = junit_suite(out)
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "2", "failures": "1", "errors": "1", "skipped": "0",
    }  # fmt: skip
    assert suite.find("testcase/error").get("message") == "missing: error in the head: <no> & ]]> luck"
    assert suite.find("testcase/failure").get("message").startswith("slower, head / base 1.200 (1.200 to 1.200)")
    make_run(place / "empty", [])
    _, out, _ = call("compare", "empty", "empty", "--format", "junit")
    assert junit_suite(out).get("errors") == "1"


def test_junit_skips_what_is_accepted(place):
    make_run(place / "head", HEADS["inconclusive"][1])
    arguments = ("compare", "base", "head", "--format", "junit")
    for more, counts in (((), ("1", "0")), (("--inconclusive", "pass"), ("0", "1"))):
        suite = junit_suite(call(*arguments, *more)[1])
        assert (suite.get("errors"), suite.get("skipped")) == counts


def test_github_annotates_and_appends_a_summary(place, monkeypatch):
    summary = place / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    make_run(place / "head", [conv(1.2), conv(Status.ERROR, LARGE, reason="100 % wrong::x, | y")])
    _, out, _ = call("compare", "base", "head", "--format", "github")
    key = "conv3x3/module/fwd/standard/1x28x28x64/fp32@torch"
    assert out.splitlines()[0].startswith(
        f"::error title=opbench slower%3A {key}::head / base 1.200 (1.200 to 1.200); 1 ms"
    )
    assert out.splitlines()[1].endswith("::error in the head: 100 %25 wrong::x, | y")
    assert len(out.splitlines()) == 2
    text = summary.read_text()
    assert text.startswith("before\n**slower: ")
    assert "100 % wrong::x, \\| y" in text


def test_github_shows_ten_annotations_at_most(place):
    shapes = [Shape(1, 7 + index, 7, 32) for index in range(12)]
    make_run(place / "many", [conv(1.0, shape) for shape in shapes])
    make_run(place / "head", [conv(1.2 + index / 10, shape) for index, shape in enumerate(shapes)])
    lines = call("compare", "many", "head", "--format", "github")[1].splitlines()
    assert len(lines) == 10
    assert "1x18x7x32" in lines[0]  # the worst first
    assert lines[-1] == "::error title=opbench and more::12 cells in all; the job's summary lists them"


def test_what_a_run_says_is_text_in_every_format(place):
    nasty = "[red]x[/red] | `y` <b> ::error::z"
    make_run(place / "head", [conv(1.0), conv(Status.ERROR, LARGE, reason=nasty)])
    for format_, shown in (
        ("terminal", "[red]x[/red] | `y` <b> ::error::z"),
        ("markdown", "\\[red\\]x\\[/red\\] \\| \\`y\\` \\<b> ::error::z"),
        ("junit", "[red]x[/red] | `y` &lt;b&gt; ::error::z"),
    ):
        _, out, _ = call("compare", "base", "head", "--format", format_)
        assert shown in out, format_


def test_markdown_goes_to_standard_output_too(place):
    _, out, _ = call("compare", "base", "base", "--format", "markdown,csv")
    assert "| same | conv3x3 torch module fwd standard 1x28x28x64 fp32 | 1 | 1 | 1.000 | 1.000 to 1.000 |" in out
    assert "operator,provider" in out


def damage(place, what):
    """A run folder or file with one thing wrong."""
    run = make_run(place / "bad", [conv(1.0), conv(1.0, LARGE)]).path
    journal, about = run / "journal.jsonl", json.loads((run / "run.json").read_text())
    first = json.loads(journal.read_text().splitlines()[0])
    if what in ("nan", "negative", "text"):
        first["latencies_ms"][3] = {"nan": float("nan"), "negative": -1.0, "text": "1"}[what]
        journal.write_text(json.dumps(first) + "\n")
    elif what == "duplicate":
        about["plan"].append(about["plan"][0])
    elif what == "future":
        about["schema_version"] = 99
    elif what == "middle":
        journal.write_bytes(journal.read_bytes()[300:])
    elif what == "half a run.json":
        (run / "run.json").write_text((run / "run.json").read_text()[:200])
        return run
    elif what == "no journal":
        journal.unlink()
    (run / "run.json").write_text(json.dumps(about))
    return run


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", "bad/journal.jsonl:1: damaged line: ValueError('latencies must be numbers, got"),
        ("negative", "bad/journal.jsonl:1: damaged line: ValueError('a latency must be 0 or from"),
        ("text", "bad/journal.jsonl:1: damaged line: "),
        (
            "duplicate",
            "bad/run.json: damaged: ValueError('the plan has conv3x3/module/fwd/standard/1x28x28x64/fp32@torch twice",
        ),
        ("future", "bad/run.json: schema_version must be 1, got 99; another version of opbench wrote it"),
        ("middle", "bad/journal.jsonl:1: damaged line: "),
        ("half a run.json", "bad/run.json: damaged: "),
        ("no journal", "bad: no journal there (journal.jsonl is missing)"),
    ],
)
@pytest.mark.parametrize("side", ["base", "head"])
def test_a_damaged_run_is_one_line_and_2_and_overwrites_nothing(place, what, message, side):
    damage(place, what)
    (place / "out").mkdir()
    (place / "out" / "comparison.md").write_text("from before")
    arms = ("bad", "base") if side == "base" else ("base", "bad")
    code, out, err = call("compare", *arms, "--out", "out")
    assert (code, out) == (2, "")
    assert err.startswith(f"opbench: {message}")
    assert err.count("\n") == 1
    assert [path.read_text() for path in (place / "out").iterdir()] == ["from before"]


@pytest.mark.parametrize("name", ["gone", "empty folder", "base/measurements.csv", "text.json", "picture.json"])
def test_what_is_no_run_is_one_line_and_2(place, name):
    (place / "empty folder").mkdir()
    (place / "base" / "measurements.csv").write_text("operator")
    (place / "text.json").write_text("{")
    (place / "picture.json").write_bytes(b"\x89PNG\xff")
    for arms in ((name, "base"), ("base", name)):
        code, out, err = call("compare", *arms)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"opbench: {name}")


def test_a_journal_that_a_kill_cut_short_is_a_missing_cell(place):
    run = make_run(place / "cut", [conv(1.0), conv(1.0, LARGE)])
    journal = run.path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40])
    code, out, _ = call("compare", "base", "cut")
    assert code == 5
    assert "not_run in the head: the run ended before this cell" in out


def test_a_half_written_table_changes_nothing_because_it_is_not_read(place):
    run = make_run(place / "head", HEADS["same"][1])
    before = call("compare", "base", "head")
    path = run.write_measurements_csv()
    path.write_text(path.read_text()[:100])
    assert call("compare", "base", "head") == before


@pytest.mark.parametrize("cells", [[], [conv(Status.ERROR)]], ids=["empty", "all failed"])
def test_a_run_that_measured_nothing_is_5_on_either_side(place, cells):
    make_run(place / "nothing", cells)
    for arms in (("nothing", "base"), ("base", "nothing"), ("nothing", "nothing")):
        code, out, _ = call("compare", *arms)
        assert code == 5, arms
        assert "missing: " in out.splitlines()[-1]
    assert call("compare", "published", "base")[0] == 5


def test_the_readme_shows_what_the_command_prints(monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root / "results" / "compare")
    code, out, _ = call("compare", "main", "branch")
    shown = (root / "README.md").read_text().partition("$ opbench compare main branch\n")[2].partition("```")[0]
    assert code == 3
    assert [line for line in shown.splitlines() if line != "..."] == [
        line.rstrip() for line in out.splitlines() if line.rstrip() in shown.splitlines() and line.strip()
    ]


def test_a_new_format_is_one_entry(place, monkeypatch):
    make_run(place / "head", [conv(1.0)])
    monkeypatch.setitem(COMPARISON_FORMATS, "count", in_file("count.txt", lambda found, _: f"{len(found.cells)} cells"))
    assert call("compare", "base", "head", "--format", "count")[1] == "2 cells"
    call("compare", "base", "head", "--format", "count", "--out", "shown")
    assert (place / "shown" / "count.txt").read_text() == "2 cells"


def test_the_help_names_the_formats():
    names = [*COMPARISON_FORMATS]
    files = [name for name in names if COMPARISON_FORMATS[name].file]
    assert typing.get_args(ComparisonFormats)[1].help == (
        f"Of {', '.join(names)}. [default: terminal; with --out also {', '.join(files[:-1])} and {files[-1]}]"
    )
    assert [*Format] == [*TABLE_FORMATS, "html"]
