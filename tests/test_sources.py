"""Which files are a provider's sources: otherwise `same source` is said of two revisions that ran different kernels."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from builders import doubling

from opbench.registry.places import load
from opbench.registry.registry import find
from opbench.registry.sources import source_files, source_hash

DEFORM = (
    "configs", "functional", "geometry", "instructions", "operators", "sampling_torch", "launch", "sampling_triton",
    "reference",
)  # fmt: skip
BESIDE = (
    "bilinear_grad_triton",
    "bilinear_launch",
    "bilinear_reference",
    "bilinear_torch",
    "bilinear_triton",
    "implementation",
    "launch",
    "sizes",
    "tuning",
    "fixed_point",
)
SHARED = {*(f"deform.{name}" for name in DEFORM), *BESIDE}
"""Of opbench_kernels: `deform.functional` chooses at run time, and `_dcn` holds the reference too."""


def kernels_of(operator, provider):
    """The modules of opbench_kernels among the sources of a provider."""
    files = source_files(find(operator), find(operator).provider(provider))
    return {name.removeprefix("opbench_kernels.") for name in files if name.startswith("opbench_kernels.")}


@pytest.mark.parametrize("operator", ["dcnv3", "dcnv4", "dcnv4_lightweight"])
@pytest.mark.parametrize("provider", ["triton", "torch", "torch_compile"])
def test_the_kernels_that_a_provider_imports_are_its_sources(operator, provider):
    assert kernels_of(operator, provider) == SHARED


def test_what_another_function_of_the_file_imports_is_not():
    assert kernels_of("dcnv4_lightweight", "triton_fused") - SHARED == {
        "deform.dcnv4_fused",
        "deform.dcnv4_fused_triton",
    }
    assert kernels_of("conv3x3", "torch") == set()


def test_the_files_of_an_operator_and_what_it_shares_with_others_count():
    files = source_files(find("dcnv4"), find("dcnv4").provider("torch_compile"))
    assert {"opbench.operators.dcnv4", "opbench.operators._dcn", "opbench.workload.operator"} <= files.keys()
    assert "opbench.operators._attention" in source_files(find("attention"), find("attention").provider("torch"))
    assert all(path.is_file() for path in files.values())


def test_what_makes_the_inputs_counts():
    network = find("internimage_t")
    found = source_files(network, network.provider("torch"))
    assert {"opbench.backbones.parameters", "opbench.operators._random"} <= found.keys()


def test_nothing_is_imported_to_find_them():
    code = (
        "import sys\n"
        "from opbench.registry.registry import registered\n"
        "from opbench.registry.sources import source_hash\n"
        "for operator in registered().values():\n"
        "    for provider in operator.providers: source_hash(operator, provider)\n"
        "assert not {'torch', 'triton', 'opbench_kernels'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def edited(path: Path, operator, provider):
    """Whether a provider's hash follows a change of a file."""
    before = source_hash(operator, provider)
    path.write_text(path.read_text() + "\n# another line\n")
    return source_hash(operator, provider) != before


def test_sources_that_a_provider_names_count_too(tmp_path, monkeypatch):
    (tmp_path / "some_kernel.py").write_text("import deeper_kernel\n")
    (tmp_path / "deeper_kernel.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    operator = doubling()
    provider = replace(operator.provider("right"), sources=("some_kernel",))
    assert source_hash(operator, operator.provider("right")) != source_hash(operator, provider)
    assert edited(tmp_path / "some_kernel.py", operator, provider)
    assert edited(tmp_path / "deeper_kernel.py", operator, provider)


USERS = """
from dataclasses import replace
from typing import TYPE_CHECKING

from opbench.operators.conv3x3 import OPERATOR as conv

if TYPE_CHECKING:
    import only_types


def build(case, tensors):
    import my_kernel
    return helper(tensors)


def helper(tensors):
    from my_package import launch
    return lambda: launch(tensors)


def other(case, tensors):
    import not_mine
    return build(case, tensors)


MINE = replace(conv, name="mine", providers=(replace(conv.providers[0], name="mine", build=build),))
"""


@pytest.fixture
def users(tmp_path, monkeypatch):
    """A user's operator in a file, with its kernels beside it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("my_kernel", "deeper", "only_types", "not_mine"):
        (tmp_path / f"{name}.py").write_text("import deeper\n" if name == "my_kernel" else "x = 1\n")
    (tmp_path / "mine.py").write_text(USERS)
    [operator] = load(str(tmp_path / "mine.py"))
    return tmp_path, operator, operator.providers[0]


def test_what_a_users_file_imports_from_beside_it_counts(users):
    folder, operator, provider = users
    assert edited(folder / "my_kernel.py", operator, provider)
    assert edited(folder / "deeper.py", operator, provider)
    assert edited(folder / "mine.py", operator, provider)
    assert not edited(folder / "only_types.py", operator, provider)
    assert not edited(folder / "not_mine.py", operator, provider)


def test_a_package_hands_on_what_is_named_and_relative_imports_are_followed(tmp_path, monkeypatch):
    package = tmp_path / "handing_on"
    (package / "deep").mkdir(parents=True)
    texts = {
        "__init__.py": "from handing_on.launcher import launch\nfrom handing_on.other import unused\n",
        "launcher.py": "from . import near\nfrom .deep.far import x\n\ndef launch(): ...\n",
        "near.py": "import math\n", "other.py": "unused = 1\n",
        "deep/__init__.py": "", "deep/far.py": "from ..upper import x\n", "upper.py": "x = 1\n",
        "plugin.py": "def build(kind, case, tensors):\n    from handing_on import launch\n    return launch\n",
    }  # fmt: skip
    for name, text in texts.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    def build(case, tensors):
        raise NotImplementedError

    build.__module__, build.__qualname__ = "handing_on.plugin", "build"
    provider = replace(doubling().provider("right"), build=partial(build, "triton"))
    found = {name.removeprefix("handing_on") for name in source_files(doubling(), provider) if "handing_on" in name}
    assert found == {"", ".plugin", ".launcher", ".near", ".deep.far", ".upper"}
