"""The probe of the backward kernel's additions: it touches what that kernel touches, and as often."""

import json

import additions_probe
import pytest
import torch
from additions_probe import backward, draw, expected_sums, find_corners, main, probe_launch
from opbench_kernels.bilinear_launch import Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("std", [1.0, pytest.param(10.0, marks=pytest.mark.slow)])
def test_the_additions_are_those_of_the_backward_kernel(std):
    config = Config(vectors=2, num_warps=1)
    sampled = draw((2, 6, 5, 64), std, DEVICE)
    corners = find_corners(sampled)
    counts = torch.zeros(sampled.value.shape, device=DEVICE)
    probe_launch(sampled, corners, counts, config)()
    assert torch.equal(counts, expected_sums(corners, sampled).unsqueeze(-1).expand_as(counts))
    assert counts.sum() < 4 * corners.numel() * 32  # some corners lie outside
    # With weights of one the kernel's sums would be counts too; where it adds nothing, the gradient stays zero.
    sums = torch.zeros(sampled.value.shape, device=DEVICE)
    sampled.mask.fill_(1.0)
    backward(sampled, sums, config)()
    assert torch.equal(sums != 0, counts != 0)
    assert (sums <= counts).all()


def test_a_point_is_added_to_its_four_corners_or_those_in_the_image():
    sampled = draw((1, 2, 3, 32), 1.0, DEVICE)
    sampled.offset.fill_(0.5)
    # Points of 3x3 taps half a pixel down and right, x outer: the first of pixel (0, 0) lies between -1 and 0.
    corners = find_corners(sampled).cpu()
    assert corners[0, 0] == 0 * 16 + 0b0001  # the pixel at (0, 0) alone
    assert corners[0, 4] == 0 * 16 + 0b1111
    assert corners[5, 8] == 1 * 16 + 0  # three down and right of the last pixel: outside
    sampled.offset.fill_(float("nan"))
    assert (find_corners(sampled) % 16 == 0).all()


@pytest.mark.slow  # most of ten seconds in Triton's interpreter
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a CUDA device the kernels are compiled in this process")
def test_the_dry_run_checks_the_sums_and_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(additions_probe, "CONFIGS", ((1, 1), (2, 1), (4, 2)))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["--out", str(tmp_path), "--dry-run"]) == 0
    rows = json.loads((tmp_path / "additions_probe.json").read_text())["rows"]
    assert [(row["vectors"], row["num_warps"]) for row in rows] == [(1, 1), (2, 1), (4, 2)] * 2
    assert all(row["right"] and "probe_ms" not in row for row in rows)
    monkeypatch.setattr(additions_probe, "expected_sums", lambda corners, sampled: expected_sums(corners, sampled) + 1)
    assert main(["--out", str(tmp_path), "--dry-run"]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert main(["--out", str(tmp_path)]) == additions_probe.NEEDS_GPU
    assert "nothing was measured" in capsys.readouterr().err
