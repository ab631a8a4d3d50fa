"""Exported programs and AOTInductor packages of the modules, in the process that made them and in fresh ones."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor
from export_cases import CASES, LAST, dynamic_shapes, first, inputs_of, randomize
from opbench_kernels import BGU, DCNv4
from opbench_kernels.export import ExportError, to_package

FAST = {"MSDeformAttn", "DAttention", "SLaKConv", "ParCV2", "BGU"}
"""The other modules' own tests export them too."""


def program_of(name):
    make, layout = CASES[name]
    module = randomize(make())
    return module, torch.export.export(module, inputs_of(layout, False), dynamic_shapes=dynamic_shapes(layout))


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES])
def test_an_exported_program_takes_any_batch_and_image_size(name):
    module, program = program_of(name)
    inputs = inputs_of(CASES[name][1], True)
    torch.testing.assert_close(first(program.module()(*inputs)), first(module(*inputs)))


@pytest.mark.slow
def test_exported_programs_load_in_a_fresh_process(tmp_path):
    for number, name in enumerate(CASES):
        module, program = program_of(name)
        torch.export.save(program, tmp_path / f"{number}.pt2")
        inputs = inputs_of(CASES[name][1], True)
        torch.save((inputs, first(module(*inputs)).detach()), tmp_path / f"{number}.pt")
    check = f"""if True:
        import torch
        for number in range({len(CASES)}):
            inputs, expected = torch.load(f"{{number}}.pt")
            got = torch.export.load(f"{{number}}.pt2").module()(*inputs)
            torch.testing.assert_close(got[0] if isinstance(got, tuple) else got, expected)
        """
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_package_needs_a_compiler_and_a_name(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^path must end in \.pt2, got 'm\.so'$"):
        to_package(BGU(8), inputs_of("NHWC", False), "m.so")
    monkeypatch.setenv("PATH", str(tmp_path))
    none = torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")})
    with (
        none,
        pytest.raises(ExportError, match=r"^to_package needs a C\+\+ compiler, and found none: install g\+\+, or name"),
    ):
        to_package(BGU(8), inputs_of("NHWC", False), tmp_path / "m.pt2")


LOAD = """
import sys, torch
{first}
inputs, expected = torch.load("io.pt")
got = torch._inductor.aoti_load_package("m.pt2")(*inputs)
torch.testing.assert_close(got[0] if isinstance(got, (tuple, list)) else got, expected, rtol=1e-4, atol=1e-4)
{last}
"""


def load_in_a_fresh_process(folder, module, inputs, beginning="", end=""):
    torch.save((inputs, first(module(*inputs)).detach()), folder / "io.pt")
    code = LOAD.format(first=beginning, last=end)
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_package_computes_in_a_fresh_process_what_the_module_does(name, tmp_path):
    make, layout = CASES[name]
    module = randomize(make())
    to_package(module, inputs_of(layout, False), tmp_path / "m.pt2", dynamic_shapes=dynamic_shapes(layout))
    alone = "assert 'opbench_kernels' not in sys.modules"
    done = load_in_a_fresh_process(tmp_path, module, inputs_of(layout, True), end=alone)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_package_with_a_triton_operator_needs_it_registered(tmp_path):
    module = randomize(DCNv4(8, group=2, implementation="triton"))
    to_package(module, inputs_of("NHWC", False), tmp_path / "m.pt2", dynamic_shapes=(LAST,))
    done = load_in_a_fresh_process(tmp_path, module, inputs_of("NHWC", True), beginning="import opbench_kernels")
    assert done.returncode == 0, done.stderr
    without = load_in_a_fresh_process(tmp_path, module, inputs_of("NHWC", True))
    assert without.returncode != 0
    assert "opbench_kernels::dcnv4" in without.stderr


def test_the_documented_table_has_the_modules_that_are_tested():
    text = (Path(__file__).parents[1] / "kernels/README.md").read_text()
    rows = re.findall(r"^\| `(\w+)`(, [^|]*)? \|", text.partition("### Export")[2], re.MULTILINE)
    assert {name + rest for name, rest in rows} == {*CASES}
