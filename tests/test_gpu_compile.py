"""The compile pool: which launches it makes, and that a launch finds in Triton's cache what it compiled."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import compile_kernels
import pytest
import torch
from compile_kernels import main, planned_launches
from fake_cuda import DEVICE, fake_cuda

ROOT = Path(__file__).parents[1]


def test_every_deformable_operator_is_launched_in_both_directions_and_with_every_choice(monkeypatch):
    monkeypatch.setattr(compile_kernels, "SHAPE_LISTS", ("smoke",))
    counts = Counter()
    with fake_cuda() as launches:
        for key, launch in planned_launches(str(DEVICE)):
            launches.clear()
            launch()
            operator, level, direction, *_ = key.split("/")
            counts[operator, level, direction] += bool(launches)
            kernels = ["grad_value_ptr" in tensors for tensors in launches]
            assert any(kernels) == (direction == "bwd"), key
            assert len(launches) >= 1 + (direction == "bwd"), key
    assert {operator for operator, *_ in counts} == set(compile_kernels.OPERATORS)
    assert {(level, direction) for _, level, direction in counts} == {
        (level, direction) for level in ("module", "core") for direction in ("fwd", "bwd")
    }
    assert all(counts.values())


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
