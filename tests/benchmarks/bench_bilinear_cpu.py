"""Our torch providers of bilinear sampling on the CPU beside others' forms of the same operator: `make bench`."""

import pytest
import torch

from opbench.registry import registry
from opbench.sweeps.check import make_tensors
from opbench.workload.case import Case, Direction, Dtype, Level
from opbench.workload.shapes import load_shape_list

SHAPES = load_shape_list("smoke").shapes


@pytest.mark.parametrize(
    ("operator", "provider"),
    [("dcnv2", "torchvision"), ("dcnv2", "torch"), ("ms_deform_attn", "grid_sample"), ("ms_deform_attn", "torch")],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_core(benchmark, operator, shape, provider):
    found = registry.find(operator)
    case = Case(operator, Level.CORE, Direction.FWD, "smoke", shape, Dtype.FP32, found.resolve_settings({}))
    tensors = make_tensors(found, case, "cpu", seed=0)
    launch = found.provider(provider).build(case, tensors)
    torch.testing.assert_close(launch(), found.reference(case, tensors), rtol=1e-4, atol=1e-4)
    benchmark.group = f"{operator} core {shape}"
    benchmark(launch)
