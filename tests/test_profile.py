"""`opbench profile`: which cell words name, what torch.profiler sees of it, and what is read of NVIDIA's tools."""

import json
import stat
import sys
from dataclasses import replace

import pytest
from builders import doubling, make_case, make_cell
from test_fuzz import call

from opbench.errors import UsageError
from opbench.profiling import external
from opbench.profiling.choose import choose, parts_of_key, usual_cell
from opbench.profiling.one_launch import OneLaunch
from opbench.profiling.profile import KernelTime, profile_cell
from opbench.profiling.tables import SHOWN, kernel_table
from opbench.results.measurement import Status
from opbench.sweeps.request import RunOptions
from opbench.workload.case import Direction, Dtype, Level

OPTIONS = RunOptions("cpu", "wall-clock", "warm", 0.01, None, 0)
CELLS = [
    make_cell(make_case(level=level, dtype=dtype, direction=direction, shape=shape), provider)
    for level in Level
    for direction in (Direction.FWD, Direction.BWD)
    for shape in ((1, 4, 4, 8), (2, 4, 4, 8))
    for dtype in (Dtype.FP16, Dtype.FP32)
    for provider in ("right", "wrong")
]


def test_a_key_names_its_cell_and_words_those_that_have_them():
    assert choose([CELLS[5].key], CELLS) == [CELLS[5]]
    left = choose(["wrong", "core", "fp16", "2x4x4x8", "double"], CELLS)
    assert {cell.case.direction for cell in left} == {"fwd", "bwd"}
    assert {(cell.provider, cell.case.level, cell.case.dtype) for cell in left} == {("wrong", "core", "fp16")}


def test_a_word_that_no_cell_has_names_near_ones():
    with pytest.raises(UsageError, match=r"no cell has the part 'rigth'; near it: right"):
        choose(["double", "rigth"], CELLS)


def test_what_words_leave_open_is_as_in_a_sweep():
    operators = {"double": doubling()}
    cell = usual_cell(choose(["2x4x4x8"], CELLS), operators, "cpu")
    assert cell.key == "double/module/fwd/tiny/2x4x4x8/fp32@right"
    refusing = [replace(each, unavailable=lambda device: "no") for each in doubling().providers if each.name == "right"]
    operators = {"double": doubling(providers=(*refusing, doubling().provider("wrong")))}
    assert usual_cell(choose(["2x4x4x8"], CELLS), operators, "cpu").provider == "wrong"
    with pytest.raises(UsageError, match=r"4 cells have these parts; name one.*\n  double/module/fwd/tiny/1x4x4x8"):
        usual_cell(choose(["fp32"], CELLS), operators, "cpu")


def test_a_key_gives_what_is_planned():
    key = "dcnv4/core/fwd/standard/64x56x56x128/fp16/kernel_size=3;offset_distribution=file:/a/b.npy@torch"
    settings = ["dcnv4.kernel_size=3", "dcnv4.offset_distribution=file:/a/b.npy"]
    assert parts_of_key(key) == ("dcnv4", "standard", settings)
    assert parts_of_key("conv3x3/core/fwd/smoke/1x2x3x4/fp16@torch") == ("conv3x3", "smoke", [])
    assert parts_of_key("conv3x3") == ("conv3x3", "", [])


def test_a_profile_counts_each_operation_of_a_launch(tmp_path):
    trace = tmp_path / "trace.json"
    found = profile_cell(make_cell(make_case()), lambda name: doubling(), OPTIONS, 5, trace)
    assert found.measurement.status is Status.OK
    (product,) = [kernel for kernel in found.kernels if kernel.name == "aten::mul"]
    assert (product.calls, product.time_us > 0) == (1, True)
    assert found.launch_us > 0
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "aten::mul"]
    assert len(events) == 5


def test_what_is_wrong_is_not_profiled():
    found = profile_cell(make_cell(make_case(), "wrong"), lambda name: doubling(), OPTIONS, 5, None)
    assert (found.measurement.status, found.kernels) == (Status.WRONG, ())


def test_many_kernels_are_summed_up():
    kernels = [KernelTime(f"kernel {number}", 1, 2.0) for number in range(SHOWN + 3)]
    rows = kernel_table(CELLS[0], kernels, "kernel").rows
    assert rows[-2:] == (("3 others", "3", "6.0", "13.0 %"), ("all", "23", "46.0", "100.0 %"))


FOUR = "shapes:\n  - {batch: 1, height: 4, width: 4, channels: 8}\n"


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "four.yaml").write_text(FOUR)
    arguments = ["profile", "conv3x3", "core", "--shapes", "four.yaml", "--device", "cpu", "--launches", "3"]
    code, out, err = call(*arguments, "--trace", "trace.json")
    assert code == 0, err
    assert "conv3x3/core/fwd/four/1x4x4x8/fp32@torch: one launch" in out
    assert "convolution" in out
    assert (tmp_path / "trace.json").exists()
    code, _, err = call(*arguments, "--tool", "ncu")
    assert (code, err) == (2, "opbench: --tool ncu needs a CUDA device, this is cpu\n")
    code, _, err = call(*arguments, "bwd", "fp17")
    assert code == 2
    assert "no cell has the part 'fp17'; near it: " in err


TOOL = """#!{python}
import json, sys
from pathlib import Path
from builders import make_case, make_cell
from opbench.results.measurement import Measurement, Status
sys.path[:0] = {path!r}
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    print(json.dumps([Path(sys.argv[0]).name, *arguments]), file=log)
if "stats" not in arguments:
    Path(arguments[-1]).write_text(Measurement(make_cell(), Status.OK, latencies_ms=(1.0,)).to_json_line())
print({output!r})
"""
NCU = """==PROF== Connected to process 1
"ID","Kernel Name","gpu__time_duration.sum","smsp__inst_executed.sum","l1tex__t_sector_hit_rate.pct"
"","","ns","inst","%"
"0","forward_kernel","12,500","1,000,000","71.5"
"""
NSYS = """Processing [report.sqlite]
Time (%),Total Time (ns),Instances,Avg (ns),Name
75.0,3000,2,1500.0,"forward_kernel(float*, int)"
25.0,1000,1,1000.0,other
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts a tool on PATH that prints what it is told, and gives the calls of it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    log = tmp_path / "log"

    def install(name, output):
        tool = tmp_path / name
        tool.write_text(TOOL.format(python=sys.executable, path=sys.path, log=str(log), output=output))
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        return lambda: [json.loads(line) for line in log.read_text().splitlines()]

    return install


def test_counters_are_read_by_their_names(installed):
    calls = installed("ncu", NCU)
    found = external.ncu(make_cell(), OPTIONS)
    (row,) = found.counters
    assert (row["kernel"], row["time (us)"], row["warp instructions"]) == ("forward_kernel", "12.5", "1e+06")
    assert (row["L1 hits (%)"], row["occupancy (%)"]) == ("71.5", "n/a")
    assert found.measurement.status is Status.OK
    (call,) = calls()
    at = call.index("--profile-from-start")
    assert call[at + 1] == "off"
    assert call[call.index("--metrics") + 1].count(",") == len(external.COUNTERS) - 1
    program = call[call.index(sys.executable) :]
    assert program[1:3] == ["-m", "opbench.profiling.one_launch"]
    assert json.loads(program[3]) == make_cell().to_json()


def test_kernels_of_a_captured_range_are_read(installed):
    calls = installed("nsys", NSYS)
    found = external.nsys(make_cell(), OPTIONS)
    assert found.kernels == (KernelTime("forward_kernel(float*, int)", 2, 3.0), KernelTime("other", 1, 1.0))
    assert calls()[0][:3] == ["nsys", "profile", "--capture-range=cudaProfilerApi"]
    assert calls()[1][1:4] == ["stats", "--report", "cuda_gpu_kern_sum"]


def test_a_tool_that_is_missing_or_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="needs ncu on PATH"):
        external.ncu(make_cell(), OPTIONS)
    (tmp_path / "ncu").write_text("#!/bin/sh\necho '==ERROR== ERR_NVGPUCTRPERM'\nexit 9\n")
    (tmp_path / "ncu").chmod(0o755)
    with pytest.raises(UsageError, match=r"^ncu failed \(9\): ==ERROR== ERR_NVGPUCTRPERM$"):
        external.ncu(make_cell(), OPTIONS)


def test_one_launch_is_in_the_range(monkeypatch):
    order = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: order.append("wait"))
    monkeypatch.setattr("torch.cuda.profiler.start", lambda: order.append("start"))
    monkeypatch.setattr("torch.cuda.profiler.stop", lambda: order.append("stop"))
    timer = OneLaunch("cuda:0")
    timer.prepare(lambda: order.append("warm-up"), 0.0)
    order.clear()
    timer.sample(lambda: order.append("launch"), 6)
    assert timer.sample(lambda: order.append("launch"), 3) == [1.0] * 3
    assert order == ["start", "launch", "wait", "stop"]
