"""`opbench check`, and operators that are named by the file or the module they are in."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from builders import doubling, make_case
from test_fuzz import call

from opbench.contract.contract import check_contract
from opbench.errors import RegistryError, UsageError
from opbench.registry.places import load, ops_option, resolve_ops
from opbench.registry.registry import BACKBONES, find, registered
from opbench.results.run import Run
from opbench.workload.case import OPERATOR_DIRECTIONS, Dtype
from opbench.workload.operator import by_direction

README = Path(__file__).parents[1] / "README.md"
TINY = "shapes:\n  - {batch: 2, height: 4, width: 4, channels: 8}\n"
FINE = """\
from dataclasses import replace
from builders import build_right, doubling
from opbench import Provider, by_direction

RIGHT = Provider("right", build_right, "")
operator = doubling(
    name="mine",
    bytes_moved=lambda case: case.dtype.element_bytes * by_direction(case, fwd=2, bwd=3) * case.shape.elements,
    providers=(RIGHT,),
)
"""
WRONG = (
    FINE
    + """
def build_nothing(case, tensors):
    return lambda: None

def build_wide(case, tensors):
    return lambda: tensors["x"].double() * 2

def build_large(case, tensors):
    return lambda: (tensors["x"].double() * 2.02).to(tensors["x"].dtype)

wrong = replace(operator, name="wrong", providers=(
    Provider("nothing", build_nothing, ""), Provider("wide", build_wide, ""), Provider("large", build_large, "")))
costly = replace(operator, name="costly", flop_count=lambda case: 1 / 0)
"""
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(*arguments):
    return call("check", *arguments, "--shapes", "tiny.yaml", "--device", "cpu", "--isolation", "none")


def test_what_is_fine_is_0(folder):
    (folder / "mine.py").write_text(FINE)
    code, out, err = check("mine.py")
    assert (code, out.splitlines()[-1]) == (0, "all fine"), err
    for part in ("description", "inputs", "reference", "gradients", "costs", "tolerance"):
        assert re.search(rf"^{part} +ok$", out, re.MULTILINE)
    assert len(re.findall(r"^right +(?:module|core) +\w+ +(?:fp32|fp16|bf16) +ok ", out, re.MULTILINE)) == 18
    assert {path.name for path in folder.iterdir() if path.suffix not in (".yaml", ".py")} <= {"__pycache__"}


def test_what_is_wrong_is_1_and_named(folder):
    (folder / "mine.py").write_text(WRONG)
    code, out, err = check("mine.py", "--level", "core", "--direction", "fwd", "--dtypes", "fp32")
    assert (code, out.splitlines()[-1]) == (1, "4 faults")
    assert (
        "wrong: wrong: the closure must return the output, a torch.Tensor itself, got None (wrong/core/fwd/tiny/2x4x4x8"
        in err
    )
    assert "wrong: the output is float64, not float32 (wrong/core" in err
    assert re.search(
        r"wrong: wrong: output is off by 0\.00\d+, allowed 7.15e-07 .*; worst at \[\d, \d, \d, \d\]: got", err
    )
    assert "costly: costs: operator costly: flop_count of costly/core/fwd/tiny/2x4x4x8/fp32/factor=2 raises Zero" in err
    assert ", at mine.py:2" in err
    assert re.search(r"^nothing +core +fwd +fp32 +wrong", out, re.MULTILINE)
    assert re.search(r"^wide +core +fwd +fp32 +other dtype", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "mine.py: no such file"),
        ("x = (", "mine.py does not load: SyntaxError: '(' was never closed, at mine.py:1"),
        ("\n1 / 0", "mine.py does not load: ZeroDivisionError: division by zero, at mine.py:2"),
        ("import sys\nsys.exit(3)", "mine.py does not load: SystemExit: 3, at mine.py:2"),
        ("operator = 1", "mine.py: no opbench.Operator at the top level of the file"),
        ("from opbench.operators.conv3x3 import OPERATOR", "mine.py: no opbench.Operator at the top level of the file"),
        (FINE.replace('"mine"', '"conv3x3"'), "operator conv3x3 is defined twice: opbench.operators.conv3x3 and "),
    ],
)
def test_what_cannot_be_loaded_is_2(folder, text, message):
    if text is not None:
        (folder / "mine.py").write_text(text)
    for command in (("check", "mine.py"), ("sweep", "--ops", "mine.py", "--isolation", "none")):
        code, _, err = call(*command)
        assert code == 2
        assert message in err.splitlines()[-1]
    assert not (folder / "results").exists()


def test_a_module_may_be_named_and_a_registered_operator_too():
    [operator] = load("opbench.operators.conv3x3:OPERATOR")
    assert resolve_ops({"ops": ["opbench.operators.conv3x3:OPERATOR"]})[0]["ops"] == ["conv3x3"]
    assert operator.name == "conv3x3"
    for place, message in (
        ("opbench.workload.case:Case", "opbench.workload.case:Case must give an opbench.Operator, got"),
        (
            "opbench.workload.case:none",
            "opbench.workload.case:none must give an opbench.Operator, got nothing of that name",
        ),
        ("no_such:operator", "no_such:operator does not load: ModuleNotFoundError: No module named 'no_such'"),
    ):
        with pytest.raises(RegistryError, match=re.escape(message)):
            load(place)
    with pytest.raises(UsageError, match=re.escape("operators must be named FILE.py or MODULE:OPERATOR, got ':x'")):
        load(":x")


def test_a_file_imports_what_lies_beside_it_and_hides_no_package(folder):
    (folder / "beside.py").write_text(FINE)
    (folder / "torch.py").write_text("raise ImportError")
    (folder / "mine.py").write_text("import torch\nfrom beside import operator\ntorch.ones(1)\n")
    [operator] = load(os.path.abspath("mine.py"))
    assert operator.name == "mine"


def test_workers_load_the_file_and_a_resumed_sweep_wants_it_named_again(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))))
    (folder / "mine.py").write_text(FINE)
    sweep = ("sweep", "--shapes", "tiny.yaml", "--dtypes", "fp32", "--device", "cpu", "--time-budget", "0.02",
             "--no-plots")  # fmt: skip
    code, out, err = call(*sweep, "--ops", "mine.py", "--out", "run", "--quiet")
    assert (code, out) == (0, "1 cells: 1 ok\nresults: run\n"), err
    [row] = Run.open(folder / "run").rows()
    assert (row.operator, row.status, row.tolerance) == ("mine", "ok", pytest.approx(12 * 2**-24))
    command = json.loads((folder / "run" / "run.json").read_text())["command"]
    assert (command["ops"], command["sources"]) == (["mine"], [str(folder / "mine.py")])
    assert command["isolation"] == "process"
    # A results folder must not make code run that nobody named.
    code, _, err = call("sweep", "--resume", "--out", "run")
    assert (code, err.splitlines()[-1]) == (
        2, f"opbench: run: its operators are not registered; name them again: --ops {folder / 'mine.py'}"
    )  # fmt: skip
    assert ops_option(command) == f" --ops {folder / 'mine.py'}"
    assert call("sweep", "--resume", "--out", "run", "--ops", "mine.py", "--no-plots", "--quiet")[0] == 0


def contract(cases=None, **changes):
    fine = {
        "bytes_moved": lambda case: case.dtype.element_bytes * by_direction(case, fwd=2, bwd=3) * case.shape.elements
    }
    cases = cases or [make_case(direction=d, dtype=t) for d in OPERATOR_DIRECTIONS for t in (Dtype.FP32, Dtype.FP16)]
    return {found.part: found.reason for found in check_contract(doubling(**{**fine, **changes}), cases, "cpu")}


def drawn(case, scale=1.0, **options):
    shape = case.shape
    return scale * torch.randn(shape.batch, shape.height, shape.width, shape.channels, **options)


def changed_in_place(case, tensors):
    tensors["x"].mul_(2)
    return tensors["x"].clone()


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("description", {"summary": ""}, "summary must be a line of text, got ''"),
        ("description", {"providers": ()}, "providers must be opbench.Provider objects, at least one"),
        ("description", {"providers": doubling().providers[:1] * 2}, "two providers are called right"),
        ("inputs", {"make_inputs": lambda case, generator: {"x": drawn(case)}}, "x differs from call to call"),
        (
            "inputs",
            {"make_inputs": lambda case, generator: {"x": drawn(case, generator=generator).double()}},
            "x is float64, must be float32",
        ),
        (
            "inputs",
            {"make_inputs": lambda case, generator: {"x": drawn(case, 1e6, generator=generator)}},
            "x has values that are not finite in float16",
        ),
        ("reference", {"reference": lambda case, tensors: tensors["x"].float() * 2}, "reference gives float32 from"),
        ("reference", {"reference": lambda case, tensors: tensors["x"] / 0}, "reference gives values that are not fin"),
        ("reference", {"reference": changed_in_place}, "reference changes its input x"),
        ("reference", {"reference": lambda case, tensors: drawn(case).double()}, "reference differs from call to call"),
        (
            "reference",
            {"reference": lambda case, tensors: 1 / 0},
            "ZeroDivisionError: division by zero, at test_check_",
        ),
        (
            "gradients",
            {"reference": lambda case, tensors: tensors["x"].detach() * 2},
            "the reference's output has no gr",
        ),
        (
            "gradients",
            {"reference": lambda case, tensors: tensors["x"] + tensors["x"].detach()},
            "the reference's gradients give a slope of",
        ),
        ("costs", {"flop_count": lambda case: 7}, "flop_count goes from 7 to 7 with twice the batch: must grow"),
        ("costs", {"memory_bytes": lambda case: case.shape.batch**2}, "memory_bytes goes from 1 to 4 with twice"),
        ("costs", {"bytes_moved": lambda case: case.shape.elements}, "bytes_moved of fp16 is not below that of fp32"),
        (
            "costs",
            {"flop_count": lambda case: case.shape.elements},
            "flop_count of fwd_bwd is 128, that of fwd alone 128: opbench.by_direction",
        ),
        ("tolerance", {"tolerance": lambda case: 2}, "tolerance is 2: must be above 0 and below 1"),
    ],
)
def test_each_part_of_the_contract(part, changes, reason):
    found = contract(**changes)
    assert found[part].startswith(reason)
    assert {name for name, text in found.items() if text} <= {part, "gradients", "reference"}


def test_the_contract_of_what_is_fine_and_of_what_never_applies():
    assert set(contract().values()) == {""}
    assert contract(not_applicable=lambda case: "never")["costs"] == "no case applies: never"


def test_the_readmes_operator_is_fine(folder):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    [example] = [block for block in blocks if "opbench.Operator(" in block]
    (folder / "depthwise.py").write_text(example)
    code, out, err = check("depthwise.py", "--dtypes", "fp32,bf16", "--level", "module")
    assert (code, out.splitlines()[-1]) == (0, "all fine"), err
    assert not (folder / "results").exists()  # loading it sweeps nothing


@pytest.mark.slow  # some seconds each
@pytest.mark.parametrize("name", sorted({*registered()} - {backbone.name for backbone in BACKBONES}))
def test_every_built_in_operator_is_fine(folder, name):
    """With every provider that a CPU has, but for torch_compile, which takes minutes."""
    (folder / "small.yaml").write_text("shapes:\n  - {batch: 1, height: 8, width: 9, channels: 128}\n")
    here = [provider.name for provider in find(name).providers if not provider.unavailable("cpu")]
    providers = [provider for provider in here if provider != "torch_compile"]
    arguments = [f"{name}={provider}" for provider in providers]
    arguments = (name, "--providers", ",".join(arguments), "--shapes", "small.yaml", "--dtypes", "fp32")
    code, out, err = call("check", *arguments, "--device", "cpu", "--isolation", "none")
    assert (code, out.splitlines()[-1]) == (0, "all fine"), err
    for provider in providers:
        assert re.search(rf"^{provider} .* fp32 +(ok|not_applicable)\b", out, re.MULTILINE)


@pytest.mark.slow
def test_a_network_is_checked_at_its_own_levels_and_shapes(folder):
    arguments = ("fasternet_t0", "--providers", "fasternet_t0=torch", "--dtypes", "fp32", "--isolation", "none")
    code, out, err = call("check", *arguments, "--device", "cpu")
    assert (code, out.splitlines()[-1]) == (0, "all fine"), err
    assert re.findall(r"^torch +(\w+) +(\w+) +fp32 +ok ", out, re.MULTILINE) == [
        (level, direction) for level in ("model", "block") for direction in ("fwd", "bwd", "fwd_bwd")
    ]
