"""The compile pool: which launches it makes, and that a launch finds in Triton's cache what it compiled."""

import os
import subprocess
import sys
from pathlib import Path

import gpu_plan
import pytest
import torch
from compile_kernels import main, planned_launches
from fake_cuda import DEVICE, fake_cuda
from opbench_kernels.bilinear_launch import FORWARD_CONFIGS

from opbench.workload.shapes import load_shape_lists

ROOT = Path(__file__).parents[1]


def test_the_kernels_of_every_cell_are_launched_with_every_choice(monkeypatch):
    """At small shapes, where the rule chooses as everywhere among six."""
    shapes = load_shape_lists(["smoke"])
    monkeypatch.setattr("opbench.sweeps.request.resolve_device", lambda name: name)
    monkeypatch.setattr(gpu_plan, "load_shape_lists", lambda names: shapes)
    seen, forwards = set(), set()
    with fake_cuda() as launches:
        for key, launch in planned_launches(str(DEVICE)):
            launches.clear()
            launch()
            operator, level, direction, *_ = key.split("/")
            seen.add((operator, level, direction))
            assert any("grad_value_ptr" in tensors for tensors in launches) == (direction == "bwd"), key
            forwards.add(sum("grad_value_ptr" not in tensors for tensors in launches))
    operators, levels = ("dcnv3", "dcnv4", "dcnv4_lightweight"), ("module", "core")
    assert {one for one in seen if one[2] == "bwd"} == {(name, level, "bwd") for name in operators for level in levels}
    assert {name for name, _, direction in seen if direction == "fwd"} == set(operators)
    assert max(forwards) > len(FORWARD_CONFIGS)  # each candidate alone, and the one that is chosen


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a CUDA device")
def test_without_a_gpu_nothing_is_compiled(capsys):
    assert main([]) == 77
    assert "nothing was compiled" in capsys.readouterr().err


LAUNCHES = """
import sys
sys.path.insert(0, sys.argv[1])
import compile_kernels
from opbench_kernels.launch import Launch
from triton import knobs

hits = []
knobs.compilation.listener = lambda cache_hit, **_: hits.append(cache_hit)
compile_kernels._start(90)
Launch.__call__ = lambda launch: launch.kernel.warmup(
    *launch.arguments, grid=launch.grid, **launch.constants, **launch.options
)
for _, launch in compile_kernels.dry_launches():
    launch()
print(hits)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "hits"), [("90", "[True, True]"), ("80", "[False, False]")])
def test_a_launch_finds_in_tritons_cache_what_the_pool_compiled(tmp_path, architecture, hits):
    """The launches are for sm_90."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables["TRITON_CACHE_DIR"] = str(tmp_path)
    tools = str(ROOT / "tools" / "gpu")
    for command, said in (
        ([f"{tools}/compile_kernels.py", "--dry-run", "--arch", architecture], "2 variants, found in"),
        (["-c", LAUNCHES, tools], hits),
    ):
        done = subprocess.run([sys.executable, *command], env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
