"""tools/gpu/wrong_pixels.py: what it counts, with stand-ins for the official operator."""

import json

import pytest
import torch
import wrong_pixels
from official_launch import DefaultLaunch
from stand_in import StandIn, misplaced


class Right(StandIn):
    """An operator without wrong pixels."""

    def dcnv4_forward(self, value, offset_mask, *rest):
        *numbers, channels, _threads, softmax = rest
        return super().dcnv4_forward(value, offset_mask, *numbers, channels, value.shape[3] // channels, softmax)


def test_wrong_pixels_are_counted():
    shape = (8, 7, 7, 64)
    found = wrong_pixels.compare(StandIn(), DefaultLaunch({}), shape, 16, "cpu")
    # 8 channels a thread, so 8 threads a pixel; of the divisors of 392 the largest up to 64 is 56, and 56 > 49.
    assert (found.block_pixels, found.pixels) == (56, 392)
    assert found.wrong == found.expected == int(misplaced(shape, 56).sum()) > 0


def test_an_operator_that_is_right_withdraws_the_finding():
    found = wrong_pixels.compare(Right(), DefaultLaunch({}), (8, 7, 7, 64), 16, "cpu")
    assert found.wrong == 0 < found.expected
    assert "not confirmed: the counts differ" in wrong_pixels.table([found])


def test_shapes_that_every_block_divides_confirm_nothing():
    found = wrong_pixels.compare(StandIn(), DefaultLaunch({}), (1, 8, 8, 64), 16, "cpu")
    assert found.wrong == found.expected == 0
    assert "not confirmed: the counts agree" in wrong_pixels.table([found])


def test_it_runs_dry_and_writes_both_files(tmp_path, capsys):
    assert wrong_pixels.main(["--out", str(tmp_path / "out"), "--dry-run"]) == 0
    written = json.loads((tmp_path / "out" / "wrong_pixels.json").read_text())
    assert [tuple(each["shape"]) for each in written] == list(wrong_pixels.DRY)
    assert capsys.readouterr().out.strip() == (tmp_path / "out" / "wrong_pixels.md").read_text().strip()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert wrong_pixels.main(["--out", str(tmp_path)]) == 77
    assert "nothing was compared" in capsys.readouterr().err
