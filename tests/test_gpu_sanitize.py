"""How compute-sanitizer is used: its summaries, and that what it cannot tell is not a pass."""

import os
import sys

import pytest
import sanitize
import torch

MEMCHECK = "========= ERROR SUMMARY: {} errors\n"
RACECHECK = "========= RACECHECK SUMMARY: {} hazards displayed ({} errors, 0 warnings)\n"


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A compute-sanitizer that runs the command and then prints what it is told to."""

    def pretend(output, exit_code=None):
        script = tmp_path / "bin" / "compute-sanitizer"
        script.parent.mkdir(exist_ok=True)
        options = 'while [ "${1#--}" != "$1" ]; do shift 2; done'
        ending = f'printf "%s" "{output}"\nexit {exit_code or "$code"}'
        script.write_text(f'#!/bin/sh\n{options}\n"$@"\ncode=$?\n{ending}\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)

    return pretend


@pytest.mark.parametrize(
    ("name", "output", "command", "expected"),
    [
        ("memcheck", MEMCHECK.format(0), "exit 0", 0),
        ("memcheck", MEMCHECK.format(12), "exit 0", 12),
        ("memcheck", MEMCHECK.format(0), "exit 1", None),  # the cases failed: nothing found is no answer
        ("memcheck", "Error: Device not supported", "exit 0", None),
        ("racecheck", RACECHECK.format(0, 0), "exit 0", 0),
        ("racecheck", RACECHECK.format(2, 2), "exit 1", 2),
    ],
)
def test_what_the_tool_found(tool, tmp_path, name, output, command, expected):
    tool(output)
    assert sanitize.watch(name, ["sh", "-c", command], tmp_path / "log") == expected


def test_each_tensor_is_an_allocation_of_its_own(tool, tmp_path):
    tool(MEMCHECK.format(0))
    sanitize.watch("memcheck", ["sh", "-c", "echo caching off: $PYTORCH_NO_CUDA_MEMORY_CACHING"], tmp_path / "log")
    assert "caching off: 1" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("planted", "kernels", "expected"), [(1, 0, 0), (1, 3, 1), (1, None, 1), (0, 0, 77), (None, 0, 77)]
)
def test_silence_counts_only_after_the_planted_fault(monkeypatch, tmp_path, planted, kernels, expected):
    monkeypatch.setattr(sanitize, "missing", lambda: None)
    compiler = tmp_path / "nvcc"
    compiler.write_text('#!/bin/sh\ntouch "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sanitize, "watch", lambda tool, command, log: kernels if sys.executable in command else planted)
    assert sanitize.main(["--out", str(tmp_path / "out")]) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a CUDA device")
def test_without_a_gpu_nothing_is_checked(tmp_path, capsys):
    assert sanitize.main(["--out", str(tmp_path)]) == 77
    assert "needs a CUDA device, none here: nothing was checked" in capsys.readouterr().err


@pytest.mark.slow
def test_the_watched_cases_run(recwarn):
    done = list(sanitize.cases(shapes=((1, 1, 2, 16, 1),), reaches=(1e4, float("nan"))))
    assert len(done) == 4  # two dtypes


def test_an_output_that_is_not_finite_fails_the_cases():
    value = torch.zeros(2, requires_grad=True)
    with pytest.raises(AssertionError, match="reached the output"):
        sanitize._forward_and_backward(lambda: value + float("nan"), value)
