"""The command line as a stranger uses it: exit codes, folders, messages."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version

import pytest
import typer.main
from builders import doubling
from test_fuzz import call

from opbench.cli import listing
from opbench.cli.app import app
from opbench.registry import registry
from opbench.sweeps import console_progress
from opbench.sweeps.request import make_request
from opbench.sweeps.start import plan

TINY = "shapes:\n  - {batch: 1, height: 4, width: 4, channels: 32}\n"


def opbench(*arguments, cwd, **options):
    return subprocess.run(
        [sys.executable, "-m", "opbench", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, timeout=240, **options,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


FAST = ("--shapes", "tiny.yaml", "--device", "cpu", "--time-budget", "0.02", "--no-plots")
TWO_DTYPES = ("--dtypes", "fp32,bf16")  # the default depends on the processor


def test_a_sweep_from_start_to_report(folder, monkeypatch, one_plot):
    monkeypatch.chdir(folder)
    code, out, err = call(
        "sweep", *FAST, "--plots", "--ops", "conv3x3,dcnv4", "--dtypes", "fp32,bf16", "--level", "module,core"
    )
    assert code == 0, err
    assert "[1/8] conv3x3 (torch) module fwd 1x4x4x32 fp32: " in err
    assert "8 cells: 8 ok" in out
    [run] = (folder / "results").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-cpu-1", run.name)
    assert f"results: results/{run.name}" in out
    plots = {f"throughput-tiny-{level}-fwd{suffix}" for level in ("module", "core") for suffix in (".png", ".svg")}
    assert {path.name for path in (run / "plots").iterdir()} == plots
    with (run / "measurements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"ok"}
    least = {"long_launch": 6}  # where a launch takes a fifth of the budget, as on a machine under load; else 30
    assert all(float(row["latency_ms"]) > 0 for row in rows)
    assert all(int(row["samples"]) >= least.get(row["stop_reason"], 30) for row in rows)
    assert json.loads((run / "run.json").read_text())["schema_version"] == 1

    for format_, mark in (
        ("terminal", "Conv (3×3)"),
        ("markdown", "| Conv (3×3)"),
        ("csv", "Conv (3×3),"),
        ("latex", r"\begin{tabular}"),
    ):
        code, out, err = call("report", run, "--format", format_)
        assert code == 0, err
        assert mark in out
    code, out, _ = call("report", run, "--paper")
    assert code == 0
    assert "56×56×128" in out  # which shapes are published, since none of these is
    assert "A100 2023" in out

    (run / "measurements.csv").unlink()
    assert call("report", run, "--write")[0] == 0
    assert (run / "measurements.csv").exists()


def test_a_sweep_with_energy_measures_it_or_says_why_not(folder, monkeypatch):
    """In a worker process, by the counter of this machine, which most have not."""
    monkeypatch.chdir(folder)
    code, out, err = call("sweep", *FAST, "--ops", "conv3x3", "--dtypes", "fp32", "--energy", "--out", "run")
    assert code == 0, err
    assert "Energy of a launch in mJ, fp32: tiny, " in out
    with (folder / "run" / "measurements.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    measured = float(row["energy_mj"] or 0) > 0 and row["energy_source"].startswith("rapl: package-0")
    assert measured != ("no energy: " in row["reason"])
    assert (row["status"], float(row["latency_ms"]) > 0) == ("ok", True)


def test_out_is_refused_twice_and_resume_finds_nothing_left(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert call("sweep", *FAST, *TWO_DTYPES, "--ops", "conv3x3", "--out", "run", "--quiet") == (
        0,
        "2 cells: 2 ok\nresults: run\n",
        "",
    )
    journal = (folder / "run" / "journal.jsonl").read_bytes()
    code, _, err = call("sweep", *FAST, "--ops", "conv3x3", "--out", "run")
    assert code == 2
    assert "run already holds a run; choose another --out, or continue it with --resume" in err
    code, _, err = call("sweep", "--resume", "--out", "run", "--quiet", "--no-plots")
    assert code == 0, err
    assert (folder / "run" / "journal.jsonl").read_bytes() == journal
    assert not (folder / "run" / "plots").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGHUP])  # SIGTERM has the same handler as SIGHUP
def test_a_sweep_that_is_stopped_keeps_its_cells_and_resumes(folder, how):
    # Cells that are long enough for the signal to come before the last, on a busy machine too.
    command = [sys.executable, "-m", "opbench", "sweep", *FAST, *TWO_DTYPES, "--time-budget", "0.2", "--out", "run",
               "--ops", "conv3x3,attention,dcnv4"]  # fmt: skip
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = folder / "run" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 1):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "continue with: opbench sweep --resume --out run" in err
    assert "not_run" in out
    assert (folder / "run" / "measurements.csv").exists()
    kept = journal.read_bytes()
    assert 1 <= kept.count(b"\n") < 6
    if how is not signal.SIGINT:
        return
    resumed = opbench("sweep", "--resume", "--out", "run", "--quiet", "--no-plots", cwd=folder)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.startswith("6 cells: 6 ok")
    assert journal.read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])


def test_a_dry_run_prints_the_plan_and_runs_nothing(folder, monkeypatch):
    monkeypatch.chdir(folder)
    code, out, err = call("sweep", "--shapes", "standard", "--ops", "attention", "--dtypes", "fp16", "--dry-run")
    assert code == 0, err
    assert "5 cells, none run" in out
    assert "attention/module/fwd/standard/64x56x56x128/fp16" in out
    assert re.search(r"largest estimated memory: \d+\.\d\d GiB, attention/module/fwd/standard/64x56x56x128", out)
    assert not (folder / "results").exists()


def test_a_memory_limit_gives_a_row_and_the_next_cell_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "two.yaml").write_text(TINY + "  - {batch: 4, height: 64, width: 64, channels: 32}\n")
    # Scores of the second shape: 4 * 4096^2 floats, 256 MiB, twice.
    code, out, err = call(
        "sweep", "--shapes", "two.yaml", "--ops", "attention", "--level", "core", "--dtypes", "fp32", "--device", "cpu",
        "--time-budget", "0.02", "--memory-limit", "0.3", "--no-plots", "--out", "run",
    )  # fmt: skip
    assert code == 0, err
    assert "1 out_of_memory" in out
    assert "1 ok" in out
    assert "OOM" in out


def test_a_provider_that_is_not_here_is_a_row_and_exit_code_1(folder, monkeypatch):
    monkeypatch.chdir(folder)
    code, _, err = call(
        "sweep", *FAST, "--ops", "dcnv4", "--providers", "dcnv4=triton", "--dtypes", "fp32", "--out", "run"
    )
    assert code == 1
    assert "unavailable: dcnv4 module fwd 1x4x4x32 fp32 (triton): the Triton kernels need a CUDA device" in err


def test_tf32_on_a_cpu_is_not_applicable_and_exit_code_0(folder, monkeypatch):
    monkeypatch.chdir(folder)
    code, out, _ = call("sweep", *FAST, "--ops", "conv3x3", "--dtypes", "tf32", "--out", "run")
    assert code == 0
    assert "2 cells" not in out
    assert "1 cells: 1 not_applicable" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ops", "conv9x9"), "opbench: unknown operator 'conv9x9'; known: conv3x3, attention"),
        (("--ops", "dcn4"), "; did you mean 'dcnv4'?"),
        (("--ops", "dcnv4", "--providers", "dcnv4=tritn"), "torch_compile; did you mean 'triton'?"),
        (("--ops", "dcnv4", "--providers", "dcn4=torch"), "did you mean 'dcnv4'?"),
        (("--ops", "dcnv4", "--set", "dcnv4.offset=2"), "did you mean 'offset_std_px'?"),
        (("--time-budget", "1s"), "opbench: Invalid value for '--time-budget': "),
        (("--time-budget=1s",), ", got '1s' (see opbench sweep --help)"),
        (("--ops", "conv3x3,,"), "--ops must be names separated by commas"),
        (("--shapes", "missing.yaml"), "missing.yaml"),
        (("--shapes", "bad.yaml"), "opbench: bad.yaml:2: height must be a positive integer, got 'x'"),
        (("--device", "cuda:77"), "opbench: device cuda:77"),
        (("--dtypes", "fp8"), "opbench: --dtypes must be of fp32"),
        (("--time-budget", "0"), "opbench: --time-budget must be a positive number, got 0"),
        (("--resume",), "--resume needs --out"),
        (("--resume", "--out", "nothing"), "opbench: nothing: no run there"),
        (("--frobnicate",), "opbench: No such option"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(folder, monkeypatch, arguments, message):
    (folder / "bad.yaml").write_text("shapes:\n  - {batch: 1, height: x, width: 4, channels: 8}\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(console_progress, "FIRST_SILENCE_S", 60)  # a machine under load may be slow to find the mistake
    code, _, err = call("sweep", *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("opbench: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("operators",), ["dcnv4_lightweight", "offset_std_px=1.0", "inside the timing"]),
        (("operators", "--check"), ["dcnv4_lightweight", "here (", "by "]),
        (
            ("providers",),
            ["sdpa_flash", "needs: PyTorch alone", "needs: a CUDA device, and Triton", "the package timm"],
        ),
        (("providers", "--check"), ["sdpa_flash", "here (", "available"]),
        (("shapes",), ["64x56x56x128", "1x200x320x128", "smoke"]),
        (("devices",), ["cpu", "yes"]),
    ],
)
def test_lists(arguments, expected):
    code, out, err = call("list", *arguments)
    assert code == 0, err
    for text in expected:
        assert text in out
    assert ("here (" in out) == ("--check" in arguments)


@pytest.mark.parametrize("what", ["operators", "providers", "shapes"])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_lists_fold_between_words(what, width):
    wide, folded = (list(getattr(listing, what)(columns, check=True)) for columns in (10_000, width))
    assert max(map(len, folded)) <= width
    assert " ".join(folded).split() == " ".join(wide).split()


def test_a_provider_that_has_limits_but_does_not_name_them(monkeypatch):
    operator = doubling()
    limited = replace(operator.providers[0], unavailable=lambda device_type: None)
    monkeypatch.setattr(registry, "registered", lambda: {"double": replace(operator, providers=(limited,))})
    assert "needs: not said, --check asks it" in "\n".join(listing.providers(80))


@pytest.mark.parametrize("options", [(), ("--check",), ("--device", "cpu")])
def test_env_tells_what_a_bug_report_needs(options):
    code, out, err = call("env", *options)
    assert code == 0, err
    for text in ("torch", "triton", "driver", "Python", "git"):
        assert text.lower() in out.lower()
    assert os.path.expanduser("~") not in out
    assert ("fp32 precision" in out) == ("torch threads" in out)
    assert ("fp32 precision, mkldnn.matmul: " in out) == bool(options)


def test_report_says_what_is_wrong_with_a_run(folder):
    done = opbench("report", "nowhere", cwd=folder)
    assert done.returncode == 2
    assert done.stderr == "opbench: nowhere: no run there (run.json is missing)\n"


def test_version():
    assert call("--version") == (0, f"opbench {version('opbench')}\n", "")


def commands():
    """Every command with its name and parameters."""
    found = [("opbench", typer.main.get_command(app))]
    while found:
        name, command = found.pop()
        found += [(f"{name} {part}", one) for part, one in getattr(command, "commands", {}).items()]
        if not hasattr(command, "commands"):
            yield name, command


def test_help_says_each_default_and_eats_no_brackets():
    for name, command in commands():
        code, out, _ = call(*name.split()[1:], "--help")
        assert code == 0
        assert all(part in out for part in re.findall(r"'opbench\[\w+\]'", command.help or ""))
        with command.make_context(name, [], resilient_parsing=True) as context:
            for parameter in command.params:
                record = parameter.get_help_record(context)
                if parameter.param_type_name != "option" or parameter.required or parameter.is_flag or not record:
                    continue
                assert "default: " in record[1], (name, parameter.name)


@pytest.mark.parametrize("name", ["opbench sweep", "opbench gate"])
@pytest.mark.parametrize(
    ("option", "typed", "offered"),
    [
        ("--ops", "dcnv", ["dcnv2", "dcnv3", "dcnv4", "dcnv4_lightweight"]),
        ("--ops", "conv3x3,dcnv4_", ["conv3x3,dcnv4_lightweight"]),
        ("--ops", "dcnv3,dcnv3", []),
        ("--providers", "dcnv3=t", ["dcnv3=triton", "dcnv3=torch", "dcnv3=torch_compile", "dcnv3=triton_autotuned"]),
        ("--dtypes", "fp32,f", ["fp32,fp16"]),
        ("--level", "c", ["core"]),
        ("--direction", "fwd_", ["fwd_bwd"]),
        ("--device", "cp", ["cpu"]),
        ("--cache", "", ["cold", "warm"]),
        ("--shapes", "smo", ["smoke"]),
    ],
)
def test_options_complete(name, option, typed, offered):
    [command] = [one for known, one in commands() if known == name]
    [parameter] = [one for one in command.params if option in one.opts]
    with command.make_context(name, [], resilient_parsing=True) as context:
        assert sorted(item.value for item in parameter.shell_complete(context, typed)) == sorted(offered)


def test_a_row_that_does_not_apply_names_no_provider_that_needs_a_gpu():
    request = make_request({"device": "cpu", "dtypes": ["tf32"], "shapes": ["smoke"]}, registry.registered())
    assert {cell.provider for cell in plan(request, registry.registered())}.isdisjoint({"triton", "triton_fused"})


def test_equal_failures_are_said_once_with_their_count(folder, monkeypatch):
    monkeypatch.chdir(folder)
    lines = "".join(f"  - {{batch: 1, height: {side}, width: 4, channels: 32}}\n" for side in range(4, 13))
    (folder / "nine.yaml").write_text("shapes:\n" + lines)
    code, out, err = call("sweep", *FAST, "--shapes", "nine.yaml", "--ops", "dcnv4", "--providers", "dcnv4=triton",
                          "--dtypes", "fp32", "--isolation", "none", "--out", "run")  # fmt: skip
    reason = "the Triton kernels need a CUDA device"
    assert code == 1
    assert (out + err).count(reason) == 2  # as the first of them ends, and at the end with their number
    assert f"unavailable: 10 cells, first dcnv4 module fwd 1x4x4x32 fp32 (triton): {reason}" in err
    assert "[10/10] dcnv4 (triton) module fwd 1x12x4x32 fp32: unavailable, as [ 1/10]\n" in err
    _, report, _ = call("report", "run")
    assert len(re.findall(f"unavailable: {reason} .*10 cells|unavailable: {reason}", report)) == 2  # one for each table
