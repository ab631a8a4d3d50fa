"""What a person sees in a terminal, and what a pipe gets: colours, sparklines, the summary, progress, completion."""

import io
import os
import pty
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from builders import make_cell
from report_fixtures import make_run, measurement
from rich.console import Console

from opbench.report import print_tables, run_tables, sample_table, summary_line
from opbench.report.value_text import sparkline
from opbench.results.measurement import Measurement, Status
from opbench.results.published import PublishedRun
from opbench.sweeps.console_progress import ConsoleProgress
from opbench.workload.case import Shape

ROOT = Path(__file__).parents[1]
SHAPE = Shape(1, 8, 8, 16)
GREEN, RED = "\x1b[1;32m", "\x1b[31m"


@pytest.fixture
def run(tmp_path):
    cells = [("conv3x3", "fp32", 1.25), ("dcnv4", "fp32", 2.5), ("dcnv3", "fp32", 4.5)]
    cells += [("conv3x3", "fp16", 7.25), ("dcnv4", "fp16", 0.625), ("dcnv3", "fp16", Status.OUT_OF_MEMORY)]
    return make_run(tmp_path / "run", [measurement(operator, SHAPE, dtype, value) for operator, dtype, value in cells])


def printed(tables, **options):
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=120, **options)
    print_tables(tables, "terminal", console)
    return console.file.getvalue()


def test_best_and_worst_of_each_dtype_are_coloured(run):
    text = printed(run_tables(run))
    coloured = [part.partition("\x1b")[0] for colour in (GREEN, RED) for part in text.split(colour)[1:]]
    assert coloured == ["1.25", "0.625", "7.25", "4.50"]  # best of fp32 and fp16, then worst
    assert f"{GREEN}1.25\x1b[0m / {RED}7.25" in text


def test_one_value_is_neither_best_nor_worst(tmp_path):
    text = printed(run_tables(make_run(tmp_path, [measurement("dcnv4", SHAPE, "fp32", 1.0)])))
    assert GREEN not in text
    assert RED not in text


def test_without_colours_the_words_are_the_same(run):
    plain = printed(run_tables(run), no_color=True)
    assert "\x1b[1;32m" not in plain
    assert "\x1b[31m" not in plain
    assert "7.25" in plain


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_no_width_cuts_a_figure(width):
    for table in run_tables(PublishedRun()):
        console = Console(file=io.StringIO(), force_terminal=True, no_color=True, width=width)
        print_tables([table], "terminal", console)
        text = "".join(part.partition("m")[2] for part in f"m{console.file.getvalue()}".split("\x1b["))
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        figures = [figure for row in table.rows for figure in row[table.text_columns :]]
        assert Counter(re.findall(r"(?:N/A|[\w.]+) / (?:N/A|[\w.]+)", text.partition("─")[2])) == Counter(figures)
        for column in table.columns[table.text_columns :]:
            assert column.partition("\n")[0] in text


def in_a_terminal(*arguments, **environment):
    """What `opbench` writes to a terminal of 100 columns."""
    master, slave = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-m", "opbench", *map(str, arguments)], stdout=slave, stderr=slave, cwd=ROOT,
        env=variables | {"TERM": "xterm-256color", "COLUMNS": "100", **environment},
    )  # fmt: skip
    os.close(slave)
    text = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        text += part
    os.close(master)
    assert process.wait(timeout=60) == 0
    return text.decode()


def test_no_color_and_its_variable_reach_the_output(run):
    assert GREEN in in_a_terminal("report", run.path)
    assert "\x1b[1;32m" not in in_a_terminal("report", run.path, "--no-color")
    assert "\x1b[1;32m" not in in_a_terminal("report", run.path, NO_COLOR="1")


def test_a_pipe_gets_plain_text_with_the_summary(run):
    done = subprocess.run(
        [sys.executable, "-m", "opbench", "report", str(run.path), "--samples"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "\x1b" not in done.stdout
    assert done.stdout.rstrip().splitlines()[-1] == summary_line(run)
    assert "Samples per cell" in done.stdout


def test_a_sparkline_is_the_histogram():
    assert sparkline([]) == ""
    assert sparkline([1.0] * 30) == "█"
    # Ten bins from 0 to the 95 % quantile, 95: ten or nine samples each, and 86 to 100, fifteen, in the last.
    assert sparkline([float(n) for n in range(101)]) == "▆▅▆▅▆▅▆▅▆█"
    skewed = [0.0] * 80 + [10.0] * 20
    assert sparkline(skewed) == "█        ▂"


def test_every_ok_cell_has_its_samples(run):
    table = sample_table(run)
    assert len(table.rows) == 5
    row = next(row for row in table.rows if row[0].startswith("dcnv4 module fwd 1x8x8x16 fp32"))
    assert row[3:] == ("2.25", "2.50", "2.50", "30")


def measured_cells(count):
    return [Measurement(make_cell(), Status.OK, latencies_ms=(1.0, 1.5, 2.0)) for _ in range(count)]


def show_progress(width=100, **options):
    console = Console(file=io.StringIO(), width=width, highlight=False, **options)
    with ConsoleProgress(console=console) as progress:
        for number, measurement_ in enumerate(measured_cells(3), start=1):
            progress.started(measurement_.cell, number, 3)
            progress.stage("timing")
            progress._bar.refresh()
            progress.ended(measurement_)
    return console.file.getvalue()


def test_a_terminal_shows_the_cell_the_count_and_the_time_left(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    text = show_progress(force_terminal=True)
    assert "1/3" in text
    assert "[2/3] double (right) core fwd 1x4x4x8 fp32: timing" in text
    assert "━" in text
    assert "--:--" in text or "00:00" in text  # time left, once there is one


def test_a_pipe_gets_one_line_a_cell():
    text = show_progress(force_terminal=False)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert [line.partition("]")[0] for line in lines] == ["[1/3", "[2/3", "[3/3"]
    assert "1.50 ms ±33.3 % " in lines[0]
    assert "(3 samples" in lines[0]


def test_ci_gets_plain_lines_even_from_something_like_a_terminal(monkeypatch):
    monkeypatch.setenv("CI", "true")
    text = show_progress(force_terminal=True)
    assert "━" not in text
    assert text.count("[2/3]") == 1


def complete(words):
    code = "import sys; sys.argv = ['opbench']; from opbench.cli.app import main; main()"
    variables = {"_OPBENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | variables)
    return done.stdout.split()


def test_the_shell_completes_commands_options_and_shape_lists():
    assert complete("opbench ce") == ["ceilings"]
    assert complete("opbench report --no-c") == ["--no-color"]
    assert complete("opbench sweep --shapes s") == ["smoke", "standard", "standard_batch1"]
    assert complete("opbench report --format h") == ["html"]


def test_the_example_runs(tmp_path):
    run = ROOT / "results" / "xeon-2core"
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "read_a_run.py", run, tmp_path / "figures"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Fastest per shape and dtype" in done.stdout
    assert {path.name for path in (tmp_path / "figures").iterdir()} >= {"roofline-smoke-module-fwd.png"}


@pytest.mark.slow  # a network on a CPU
def test_the_example_with_a_network_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "swap_the_operator.py", "internimage_t", tmp_path, "dcnv4,none", "0.01"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "internimage_t: 29.9 M parameters" in done.stdout
    assert (tmp_path / "internimage_t.png").stat().st_size > 0
    dcnv4, none = (line.split() for line in done.stdout.splitlines() if line.startswith(("dcnv4", "none")))
    assert float(dcnv4[4]) > float(none[4]) == 0  # shares of the network


def test_a_cell_of_other_settings_than_the_first_says_so():
    console = Console(file=io.StringIO(), width=120)
    with ConsoleProgress(console=console) as progress:
        for number, spread in enumerate((0.5, 0.5, 2.0), start=1):
            settings = (("kernel_size", 3), ("offset_std_px", spread))
            done = measurement("dcnv4", SHAPE, "fp32", 1.0, settings=settings)
            progress.started(done.cell, number, 3)
            progress.ended(done)
    lines = [
        line.partition(":")[0].rpartition("fp32")[2] for line in console.file.getvalue().splitlines() if "dcnv4" in line
    ]
    assert lines == ["", "", " offset_std_px=2.0"]


def fleet_progress(**options):
    """Two cards at work, and what the screen shows while they are."""
    console = Console(file=io.StringIO(), width=100, highlight=False, **options)
    with ConsoleProgress(console=console) as progress:
        cards = [progress.card(f"card-{number}") for number in (1, 2)]
        for number, (card, measurement_) in enumerate(zip(cards, measured_cells(2), strict=True), start=1):
            card.started(measurement_.cell, number, 2)
        cards[0].stage("check")
        cards[1].stage("timing")
        console.file.truncate(0)
        progress._bar.refresh()
        shown = console.file.getvalue()
        for card, measurement_ in zip(cards, measured_cells(2), strict=True):
            card.ended(measurement_)
    return shown, console.file.getvalue()


def test_a_terminal_shows_a_line_a_card_of_a_fleet(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    shown, _ = fleet_progress(force_terminal=True)
    lines = shown.splitlines()
    [first] = [line for line in lines if "[1/2] card-1 double (right) core fwd 1x4x4x8 fp32: check" in line]
    [second] = [line for line in lines if "[2/2] card-2 double (right) core fwd 1x4x4x8 fp32: timing" in line]
    assert "━" not in first + second  # the bar and the time left are the sweep's
    assert any("0/2" in line and "━" in line for line in lines)


def test_a_pipe_gets_a_line_a_cell_with_its_card():
    _, text = fleet_progress(force_terminal=False)
    lines = [line.partition(" core")[0].lstrip("\0") for line in text.splitlines()]
    assert lines == ["[1/2] card-1 double (right)", "[2/2] card-2 double (right)"]
