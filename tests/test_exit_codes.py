"""The table of exit codes in docs/reliability.md, and those codes that test_cli.py does not provoke."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_fuzz import call

from opbench.cli import app as cli
from opbench.cli import shared as _shared
from opbench.compare.verdicts import Verdict

DOCS = Path(__file__).parents[1] / "docs" / "reliability.md"
TINY = "shapes:\n  - {batch: 1, height: 4, width: 4, channels: 32}\n"
SWEEP = ("sweep", "--no-plots", "--shapes", "tiny.yaml", "--ops", "conv3x3", "--dtypes", "fp32", "--device", "cpu",
         "--time-budget", "0.02", "--out", "run", "--quiet")  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "file").write_text("")
    return tmp_path


def opbench(folder, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "opbench", *arguments], cwd=folder, env={**os.environ, **variables}, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip


def documented():
    """Exit codes of the table, with what stands beside them."""
    return {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.*) \|$", DOCS.read_text(), re.MULTILINE)}


def test_the_tables_are_complete():
    codes = {value for name, value in vars(_shared).items() if name.startswith("EXIT_")} | {0}
    assert codes - {_shared.EXIT_VERDICT_STORAGE} == set(documented())
    rows = re.findall(r"^\| ([a-z, ]*) ?\| (\d+) \| .* \|$", DOCS.read_text(), re.MULTILINE)
    verdicts = {verdict: int(code) for names, code in rows for verdict in names.split(", ") if verdict.strip()}
    assert {name.strip(): code for name, code in verdicts.items()} == {str(v): v.exit_code for v in Verdict}
    others = {int(code) for names, code in rows if not names.strip()}
    assert others == {_shared.EXIT_USAGE, _shared.EXIT_VERDICT_STORAGE}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--isolation", "thread"), "opbench: --isolation must be of process, none, got 'thread'"),
        (("--cell-timeout", "0"), "opbench: --cell-timeout must be a positive number, got 0"),
        (("--cell-timeout", "9", "--isolation", "none"), "opbench: --cell-timeout needs --isolation process"),
        (("--retry", "error"), "opbench: --retry needs --resume"),
        (
            ("--retry", "ok", "--resume"),
            "opbench: --retry must be of not_applicable, unavailable, out_of_memory, wrong, ",
        ),
        (("--shapes", "gone.yaml"), "opbench: unknown shape list 'gone.yaml'"),
        (("--resume",), "opbench: run: no run there"),
    ],
)
def test_2_for_what_cannot_be_followed(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    code, _, err = call(*SWEEP, *arguments)
    assert code == 2
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_3_when_results_cannot_be_written(folder, monkeypatch):
    monkeypatch.chdir(folder)
    code, _, err = call(*SWEEP, "--out", "file/run")
    assert code == 3
    assert err == ("opbench: file/run: cannot be written: Not a directory; what was written before stays readable\n")


def test_70_for_a_mistake_of_ours_with_a_traceback_on_request(folder):
    # A module of that name ahead of ours is broken as no installation of opbench is.
    (folder / "broken").mkdir()
    (folder / "broken" / "yaml.py").write_text("raise LookupError('a\\nmistake')\n")
    path = os.pathsep.join((str(folder / "broken"), os.environ.get("PYTHONPATH", "")))
    quiet = opbench(folder, "list", "shapes", PYTHONPATH=path)
    assert quiet.returncode == 70
    assert quiet.stderr == (
        "opbench: internal error: LookupError: a mistake; OPBENCH_TRACEBACK=1 shows where, for a bug report\n"
    )
    loud = opbench(folder, "list", "shapes", PYTHONPATH=path, OPBENCH_TRACEBACK="1")
    assert "Traceback" in loud.stderr


def test_130_when_interrupted_before_there_is_a_run(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "opbench", *SWEEP], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text():  # main() runs by then
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "Traceback" not in err


@pytest.mark.parametrize(("command", "code"), [("report published", 0), ("report gone 2>&1", 2)])
def test_a_reader_that_leaves_changes_no_exit_code(folder, command, code):
    pipe = f"{sys.executable} -m opbench {command} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.stdout == f"{code}\n"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("command", ["report published", "list operators", "env", "compare gone gone"])
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_from_the_start_changes_no_exit_code(folder, monkeypatch, command, closed):
    # `>&-` in process: Python then has None in its place. The descriptors are tried with a sweep, below.
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "argv", ["opbench", *command.split()])
    if "2>" in closed:
        monkeypatch.setattr(sys, "stderr", None)
    if "<" in closed:
        monkeypatch.setattr(sys, "stdin", None)
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    assert code == (2 if "gone" in command else 0)


def test_a_sweep_without_any_stream_writes_its_run_and_nothing_into_it(folder):
    sweep = f"{sys.executable} -m opbench {' '.join(SWEEP[:-1])} <&- >&- 2>&-; echo $? >code"
    subprocess.run(["bash", "-c", sweep], cwd=folder, check=True, timeout=240)
    assert (folder / "code").read_text() == "0\n"
    [line] = (folder / "run" / "journal.jsonl").read_text().splitlines()
    assert json.loads(line)["status"] == "ok"
    assert (folder / "run" / "measurements.csv").read_text().count(",ok,") == 1


def test_a_closed_descriptor_is_the_null_device_before_a_file_can_take_its_number():
    script = (
        "from opbench.host.standard_streams import fill_closed_descriptors as fill; fill(); "
        "print(open('/dev/null').fileno())"
    )
    done = subprocess.run(
        ["bash", "-c", f'exec {sys.executable} -c "{script}" <&- 2>&-'], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 2


def test_a_sweep_goes_on_when_nobody_reads_what_it_says(folder):
    said, silence = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "opbench", *SWEEP[:-1]], cwd=folder, stdout=silence, stderr=silence
    )
    os.close(silence)
    assert os.read(said, 1)
    os.close(said)
    assert process.wait(timeout=240) == 0
    assert (folder / "run" / "measurements.csv").read_text().count(",ok,") == 1
    assert list((folder / "run" / "tables").iterdir())


def test_3_when_standard_output_takes_no_more(folder):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "opbench", "report", "published"], cwd=folder, stdout=full, stderr=subprocess.PIPE,
            text=True, timeout=240,
        )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr == "opbench: standard output: cannot be written: No space left on device\n"


def test_a_locale_without_unicode_gets_ascii(folder):
    variables = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = opbench(folder, "report", "published", **variables)
    assert done.stdout.isascii()
    assert "56x56x128" in done.stdout
    assert "\\" not in done.stdout
