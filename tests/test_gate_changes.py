"""`--changed-only`: which cells have the same code in both arms, and when the gate cannot tell."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
from builders import doubling, make_case, make_cell

from opbench.gate import arm
from opbench.gate.changes import choose
from opbench.gate.launcher import Launcher
from opbench.gate.process import GateArm
from opbench.gate.serve import serve
from opbench.registry.code import digest, run_files
from opbench.sweeps.launched import UnknownKernelsError, _recorded
from opbench.workload.operator import Provider

KERNEL = """
import triton
import triton.language as tl

BLOCK = 32


@triton.jit
def _add(x_ptr, out_ptr, n, scale, BLOCK: tl.constexpr = 16):
    \"\"\"Adds.\"\"\"
    place = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, mask=place < n)
    tl.store(out_ptr + place, x * scale + 1, mask=place < n)


@triton.autotune(configs=[], key=[])
@triton.jit
def _tuned(x_ptr):
    pass


def add(x, out):
    _add[(1,)](x, out, 7, 1.5, BLOCK=BLOCK, num_warps=1)
    return out
"""


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("import triton\n", "import triton  # the compiler\n", {"code", "host"}),
        ('"""Adds."""', '"""Adds one."""', {"code", "host"}),
        ("[(1,)](x, out, 7, 1.5", "[(1,)](\n        x, out,\n        7, 1.5", {"code", "host"}),
        ("x * scale + 1", "x * scale + 2", {"host"}),
        ("place", "position", {"host"}),
        ("BLOCK: tl.constexpr = 16", "BLOCK: tl.constexpr = 32", set()),
        ("@triton.jit\ndef _add", "@triton.jit(do_not_specialize=[2])\ndef _add", set()),
        ("    pass", "    return", set()),  # what autotune measures is chosen by the host
        ("num_warps=1", "num_warps=2", set()),
        ("BLOCK = 32", "BLOCK = 64", set()),
    ],
)
def test_a_digest_tells_comments_kernels_and_host_apart(tmp_path, before, after, same):
    (tmp_path / "a.py").write_text(KERNEL)
    (tmp_path / "b.py").write_text(KERNEL.replace(before, after))
    first, second = (digest(tmp_path / name) for name in ("a.py", "b.py"))
    assert {name for name in first._fields if getattr(first, name) == getattr(second, name)} == same


def test_what_is_not_python_is_all_code(tmp_path):
    for name, text in (("table.json", "{}"), ("broken.py", "def")):
        (tmp_path / name).write_text(text)
        assert len({*digest(tmp_path / name)}) == 1


def test_inputs_context_packages_around_a_source_and_their_data_count(tmp_path, monkeypatch):
    package = tmp_path / "carrying"
    (package / "deep").mkdir(parents=True)
    for name in ("__init__.py", "deep/__init__.py", "deep/code.py", "table.json", "deep/ext.so", "README.md", "t.pyi",
                 "noise.py", "switch.py"):  # fmt: skip
        (package / name).write_text("")
    (package / "inputs.py").write_text("def make_inputs(case, generator):\n    from carrying import noise\n")
    (package / "unused.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def build(case, tensors):
        raise NotImplementedError

    build.__module__, build.__qualname__ = "carrying.deep.code", "build"

    def make_inputs(case, generator):
        raise NotImplementedError

    def around():
        raise NotImplementedError

    make_inputs.__module__, make_inputs.__qualname__ = "carrying.inputs", "make_inputs"
    around.__module__, around.__qualname__ = "carrying.switch", "around"
    operator = replace(doubling(), make_inputs=make_inputs)
    found = run_files(operator, Provider("mine", build, "mine", around=around))
    assert {name.removeprefix("carrying/") for name in found if name.startswith("carrying")} == {
        "__init__.py", "deep/__init__.py", "deep/code.py", "table.json", "deep/ext.so", "inputs.py", "noise.py",
        "switch.py",
    }  # fmt: skip


# The choice.

CELL = make_cell(make_case())
GROUP = f"{CELL.case.operator} {CELL.provider}"
OWN = {"files": {"a.py": ("t", "c", "h"), "timer.py": ("t", "c", "h")}, "providers": {GROUP: ["a.py"]},
       "harness": ["timer.py"]}  # fmt: skip


def changed(file, *digests):
    return {**OWN, "files": {**OWN["files"], file: digests}}


def choice(base, head, kernels=None):
    def asked(key):
        assert key == CELL.key
        assert kernels is not None, "asked for kernels although the files decide"
        return dict(zip(("base", "head"), kernels, strict=True))

    [found] = choose([CELL], {"base": base, "head": head}, asked).values()
    return found.measured, found.reason


def test_files_decide():
    assert choice(OWN, OWN) == (False, "same source")
    assert choice(OWN, changed("a.py", "T", "c", "h")) == (
        False,
        "only comments, docstrings or layout: a.py differs",
    )
    assert choice(OWN, changed("a.py", "T", "C", "H")) == (True, "a.py differs")
    assert choice(OWN, changed("timer.py", "T", "c", "h")) == (False, "same source")


def test_a_file_that_only_one_arm_has_is_a_difference():
    more = {**changed("b.py", "t", "c", "h"), "providers": {GROUP: ["a.py", "b.py"]}}
    assert choice(OWN, more) == choice(more, OWN) == (True, "b.py differs")


def test_what_cannot_be_told_is_measured():
    assert choice({}, OWN) == (True, "the base does not tell which files a cell runs")
    assert choice(OWN, changed("timer.py", "T", "C", "H")) == (True, "timer.py differs, which times every cell")
    in_kernel = changed("a.py", "T", "C", "h")
    for answer, why in (({}, "its opbench does not say"), ({"unknown": "no compiler"}, "no compiler")):
        assert choice(OWN, in_kernel, ({"kernels": []}, answer)) == (
            True,
            f"a.py differs in a kernel; what it compiles to in the head is not known ({why})",
        )


def test_kernels_decide_where_nothing_else_differs():
    in_kernel = changed("a.py", "T", "C", "h")
    one, other = {"kernels": [["_add", "1"], ["_mul", "2"]]}, {"kernels": [["_add", "1"], ["_mul", "3"]]}
    fewer = {"kernels": [["_mul", "2"]]}
    assert choice(OWN, in_kernel, (one, one)) == (
        False,
        "a.py differs in a kernel, and it launches the same machine code",
    )
    assert choice(OWN, in_kernel, ({"kernels": []},) * 2) == (False, "a.py differs in a kernel, and it launches none")
    assert choice(OWN, in_kernel, (one, other)) == (True, "a.py differs, and so does the machine code of _mul")
    assert choice(OWN, in_kernel, (one, fewer)) == (True, "a.py differs, and so does the machine code of _add")


# What a revision says of itself.


def test_a_revision_tells_the_files_of_its_cells_and_of_what_times_them():
    options = {"ops": ["conv3x3", "dcnv4"], "shapes": ["smoke"], "dtypes": ["fp32"], "device": "cpu"}
    served = serve(1, options, {})
    told = json.loads(json.dumps(served.sources()))
    assert told["providers"].keys() == {"conv3x3 torch", "dcnv4 torch"}
    assert "opbench_kernels/deform/sampling_triton.py" in told["providers"]["dcnv4 torch"]
    assert "opbench_kernels/__init__.py" in told["providers"]["dcnv4 torch"]
    assert "opbench/operators/conv3x3.py" in told["providers"]["conv3x3 torch"]
    assert {"opbench/sweeps/runner.py", "opbench/timing/wall_clock.py", "opbench/sweeps/request.py"} < {
        *told["harness"]
    }
    assert not [name for name in told["harness"] if name.startswith(("opbench/operators", "opbench/report"))]
    assert told["files"].keys() == {*told["harness"], *told["providers"]["dcnv4 torch"],
                                    *told["providers"]["conv3x3 torch"]}  # fmt: skip


PLUGIN = """
import torch
from opbench import Provider
from opbench.operators.conv3x3 import OPERATOR as conv
from dataclasses import replace

def build(case, tensors):
    return lambda: tensors["x"]

OPERATOR = replace(conv, name="plugged", providers=(Provider("mine", build, "mine"),))
"""


def test_two_places_are_planned_and_nothing_is_measured(tmp_path):
    places = {}
    for name, text in (("base", PLUGIN), ("head", PLUGIN.replace("import torch\n", "import torch  # later\n"))):
        places[name] = tmp_path / name
        metadata = places[name] / "plugged-1.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text("[opbench.operators]\nplugged = plugged:OPERATOR\n")
        (places[name] / "plugged.py").write_text(text)
    options = {"ops": ["plugged"], "shapes": ["smoke"], "dtypes": ["fp32"], "device": "cpu"}
    planned = Launcher(options).plan({name: GateArm(name, place) for name, place in places.items()})
    assert planned.measured == []
    assert planned.lines() == ["unchanged, only comments, docstrings or layout: plugged.py differs: plugged mine (3)"]
    assert [process.measurements for process in planned.processes.values()] == [{}, {}]


# Machine code, compiled for a GPU that is not here.

RECORD = """
import json, os
from dataclasses import replace
from builders import doubling, make_case
from opbench.gate.own_code import kernels
from opbench.inspection.compile import compiled_kernel
from opbench_kernels.launch import Launch
from triton.runtime.jit import JITFunction
import first, renamed, other

seen, kept = [], {}

def compile_only(kernel, *arguments, grid, warmup, num_warps, **constants):
    key = (kernel, *constants.values())
    if key not in kept:
        kept[key] = compiled_kernel(Launch(kernel, arguments, constants, {"num_warps": num_warps}, grid), 90)
    return kept[key]

JITFunction.run = compile_only

def told(module):
    def build(case, tensors):
        seen.append(os.environ["OPBENCH_KERNELS_CACHE"])
        x = tensors["x"]
        return lambda: [module.add(x, x) for _ in range(2)][0]

    operator = doubling()
    provider = replace(operator.providers[0], build=build)
    return kernels(operator, provider, make_case(operator.name), "cpu")

print(json.dumps([told(module) for module in (first, renamed, other)]))
assert JITFunction.run is compile_only
assert "none of ours" in os.environ["OPBENCH_KERNELS_CACHE"] and not any("none of ours" in path for path in seen)
"""


def test_renaming_in_a_kernel_leaves_its_machine_code_and_another_sum_does_not(tmp_path, monkeypatch):
    """Choices by timing are made anew, and elsewhere than where the user's are kept."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("OPBENCH_KERNELS_CACHE", "none of ours")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    (tmp_path / "first.py").write_text(KERNEL)
    (tmp_path / "renamed.py").write_text("# a line more\n" + KERNEL.replace("place", "position"))
    (tmp_path / "other.py").write_text(KERNEL.replace("x * scale + 1", "x * scale + x"))
    (tmp_path / "record.py").write_text(RECORD)
    done = subprocess.run([sys.executable, "record.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, renamed, other = json.loads(done.stdout)
    assert [name for name, _ in first["kernels"]] == ["_add"]  # of two launches
    assert first == renamed
    assert not {code for _, code in first["kernels"]} & {code for _, code in other["kernels"]}


REAL = """
from types import SimpleNamespace
from unittest.mock import patch
import torch
from opbench_kernels.launch import Launch
launch = Launch.__call__
from fake_cuda import bound_tensors, fake_cuda
from test_fake_cuda import CELLS, inputs_of
from triton.runtime.jit import JITFunction
from opbench.sweeps.launched import _recorded
from opbench.sweeps.timed import timed_closure
from opbench.workload.case import Direction

JITFunction.run = lambda kernel, *_, grid, warmup, **__: kernel  # as its compiled kernel
count = 0
for case, provider in CELLS:
    if "triton" in provider.name and case.dtype == "bf16":
        with fake_cuda() as launches, _recorded("cuda:0") as found:
            with patch.object(Launch, "__call__", lambda each: launches.append(each.kernel) or launch(each)):
                with torch.set_grad_enabled(case.direction is not Direction.FWD):
                    timed_closure(case, provider, inputs_of(case)).launch()
        assert set(map(id, found)) == set(map(id, launches)) != set(), case.key
        count += 1
print(count)
"""


@pytest.mark.slow
def test_every_launch_of_our_kernels_is_seen(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_what_torch_runs_launches_no_kernel_and_the_interpreter_is_unknown(monkeypatch):
    options = {"ops": ["dcnv4"], "shapes": ["smoke"], "dtypes": ["fp32"], "device": "cpu", "direction": ["bwd"]}
    served = serve(1, options, {})
    key = next(iter(served._cells))
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    assert served.kernels(key) == {"kernels": []}
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    assert served.kernels(key) == {"unknown": "Triton's interpreter is on"}
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr("opbench.sweeps.launched.make_tensors", lambda *_: 1 / 0)
    assert served.kernels(key) == {"unknown": "ZeroDivisionError: division by zero"}


def test_graphs_of_torch_compile_are_counted_anew(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    compiled = torch.compile(lambda x: x + 1, backend="eager")
    compiled(torch.ones(2))
    with pytest.raises(UnknownKernelsError, match=r"torch\.compile"), _recorded("cuda:0"):
        compiled(torch.ones(2))
    with _recorded("cuda:0") as found:
        torch.ones(2) + 1
    assert found == []


def test_an_arm_from_before_answers_nothing(monkeypatch):
    class Old:
        device = "cpu"

    monkeypatch.setattr(arm, "_open", lambda options, inject: Old())
    out = io.StringIO()
    requests = [{"do": "sources", "with": {}}, {"do": "kernels", "with": {"key": "k"}}]
    arm._serve({"options": {}, "inject": {}}, requests, out)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [{"ready": True}, {}, {}]
