"""The comparison of timers: what is subtracted, what the table says, and that a missing figure is seen."""

from types import SimpleNamespace

import pytest
import timing_check
import torch
from timing_check import LAUNCHES, METHODS, complete, main, markdown, without_flush

L2 = 50 * 2**20


def row(**times):
    figures = {**dict.fromkeys(METHODS, 1.0), **{name.replace("_", " "): value for name, value in times.items()}}
    figures["do_bench"] = times.get("do_bench", 1.0)
    return {
        "case": "dcnv4/core",
        "provider": "triton",
        "bytes": L2 // 2,
        "ms": {name: figures[name] for name in METHODS},
    }


@pytest.mark.parametrize(
    ("both", "flush", "launch", "expected"),
    [
        ({"fill": 100.0, "kernel": 7.0}, {"fill": 98.0}, {"kernel": 6.0}, 7.0),  # the flush's own time does not matter
        ({"fill": 105.0, "kernel": 7.0}, {"fill": 100.0}, {"kernel": 6.0, "fill": 4.0}, 12.0),  # the launch fills too
        ({"fill": 100.0, "a": 1.0, "b": 2.0}, {"fill": 100.0}, {"a": 1.0, "b": 2.0}, 3.0),
    ],
)
def test_the_flush_is_not_counted(both, flush, launch, expected):
    assert without_flush(both, flush, launch) == pytest.approx(expected)


def test_kernel_times_are_those_of_the_gpu(monkeypatch):
    """A profile with work of the host in it, and one with none of the GPU."""
    span = SimpleNamespace(elapsed_us=lambda: 3.0)
    gpu = SimpleNamespace(device_type=torch.autograd.DeviceType.CUDA, name="kernel", time_range=span)
    host = SimpleNamespace(device_type=torch.autograd.DeviceType.CPU, name="launch", time_range=span)
    launched = []

    def profile(events):
        class Recording:
            def __init__(self, activities):
                assert activities == [torch.profiler.ProfilerActivity.CUDA]

            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

            def events(self):
                return events

        return Recording

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.profiler, "profile", profile([gpu, host, gpu]))
    assert timing_check.gpu_times(lambda: launched.append(1), None) == {"kernel": 6.0}
    assert len(launched) == LAUNCHES + 1
    monkeypatch.setattr(torch.profiler, "profile", profile([host]))
    with pytest.raises(RuntimeError, match="recorded nothing on the GPU"):
        timing_check.gpu_times(lambda: None, None)


def test_differences_are_from_the_profiler_in_the_same_cache_state():
    text = markdown([row(event_cold=1.2, profiler_cold=1.0, event_warm=0.6, profiler_warm=0.5)], "GPU", L2)
    [line] = [line for line in text.splitlines() if line.startswith("| dcnv4")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    shown = dict(zip(("cell", "fits", *METHODS, "cold / warm"), cells, strict=True))
    assert shown["fits"] == "0.50"
    assert shown["event cold"] == "1.2 (+20.0%)"
    assert shown["event warm"] == "0.6 (+20.0%)"
    assert shown["profiler cold"] == "1"
    assert shown["cold / warm"] == "2.00"


def test_a_missing_figure_is_seen_and_said():
    assert complete([row()])
    broken = row(do_bench="RuntimeError('a | b')")
    assert not complete([row(), broken])
    assert "RuntimeError('a / b')" in markdown([broken], "GPU", L2)
    unbuilt = {"case": "conv3x3/module", "bytes": L2, "reason": "wrong: off by 1"}
    assert not complete([unbuilt])
    [line] = [line for line in markdown([unbuilt], "GPU", L2).splitlines() if "off by 1" in line]
    assert line.count("|") == len(METHODS) + 4


def test_it_runs_dry(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing_check, "BUDGET_S", 0.01)
    assert main(["--dry-run", "--out", str(tmp_path)]) == 0
    assert "nothing here is a GPU's time" in capsys.readouterr().out
    text = (tmp_path / "timing_check-dry-run.md").read_text()
    assert text.count("needs a GPU") == 4 * (len(METHODS) - 1)
    assert not (tmp_path / "timing_check.md").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a CUDA device")
def test_without_a_gpu_nothing_is_measured(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out")]) == 77
    assert "needs a CUDA device, none here: nothing was measured" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
