"""Kernels that are compiled while a cell is checked and built: Triton's, and torch.compile's."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import triton

from opbench.sweeps.kernel_count import counted_kernels


@pytest.fixture
def metrics(monkeypatch):
    """torch.compile's own count, of what was generated in this process before."""
    counts = SimpleNamespace(generated_kernel_count=7)
    monkeypatch.setitem(sys.modules, "torch._inductor.metrics", counts)
    return counts


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_what_torch_compile_generates_counts_from_the_beginning(metrics, device_type):
    with counted_kernels(device_type) as count:
        assert count() == 0
        metrics.generated_kernel_count += 2
        assert count() == 2


def test_what_triton_compiles_counts_unless_its_cache_has_it(metrics):
    told = []
    before = triton.knobs.compilation.listener
    with counted_kernels("cuda") as count:
        for cache_hit in (False, True, False):
            triton.knobs.compilation.listener(
                src="a kernel", metadata={}, metadata_group={}, times=None, cache_hit=cache_hit
            )
            told.append(count())
        assert told == [1, 1, 2]
        metrics.generated_kernel_count += 2  # torch.compile had Triton compile what it generated
        assert count() == 2
        metrics.generated_kernel_count += 1  # and one of them elsewhere
        assert count() == 3
    assert triton.knobs.compilation.listener is before


def test_without_triton_there_is_nothing_to_listen_to(metrics, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    before = triton.knobs.compilation.listener
    with counted_kernels("cuda") as count:
        assert triton.knobs.compilation.listener is before
        assert count() == 0


REAL = """
import torch
from opbench.inspection.compile import compile_launch
from opbench.inspection.launches import launch, uses
from opbench.sweeps.kernel_count import counted_kernels
from opbench.workload.case import Direction, Dtype
case = next(iter(uses([Dtype.FP16], [Direction.FWD]).values()))[0]
for _ in range(2):
    with counted_kernels("cuda") as count:
        compile_launch(launch(case), 90)
    print(count())
"""


@pytest.mark.slow  # compiles for a GPU
def test_the_real_compiler_counts_once(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", REAL],
        capture_output=True,
        text=True,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.stdout.split() == ["1", "0"], done.stderr
