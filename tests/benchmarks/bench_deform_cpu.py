"""The torch providers of the DCNv4 core beside torchvision's operator on the CPU: `make bench` prints them together.

Same samples: torchvision's deform_conv2d with a depthwise weight of ones is the same sum, with points in rows-outer
order and offsets as (y, x).
"""

import pytest
import torch
from torchvision.ops import deform_conv2d

from opbench.registry import registry
from opbench.sweeps.check import make_tensors
from opbench.workload.case import Case, Direction, Dtype, Level
from opbench.workload.shapes import load_shape_list

SHAPES = load_shape_list("smoke").shapes


def torchvision_core(tensors, groups):
    packed = tensors["offset_mask"][..., : 27 * groups].unflatten(-1, (groups, 27))
    rows_outer = torch.tensor([i * 3 + j for j in range(3) for i in range(3)])
    offset = packed[..., :18].unflatten(-1, (9, 2))[..., rows_outer, :].flip(-1)
    offset, mask = (t.flatten(3).permute(0, 3, 1, 2).contiguous() for t in (offset, packed[..., 18:][..., rows_outer]))
    value = tensors["value"].permute(0, 3, 1, 2).contiguous()
    weight = torch.ones(value.shape[1], 1, 3, 3)
    return lambda: deform_conv2d(value, offset, weight, padding=1, mask=mask).permute(0, 2, 3, 1)


@pytest.mark.parametrize("implementation", ["torchvision", "torch", "torch_compile"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_dcnv4_core(benchmark, shape, implementation):
    operator = registry.find("dcnv4")
    case = Case("dcnv4", Level.CORE, Direction.FWD, "smoke", shape, Dtype.FP32, operator.resolve_settings({}))
    tensors = make_tensors(operator, case, "cpu", seed=0)
    expected = torchvision_core(tensors, shape.channels // 32)
    ours = implementation != "torchvision"
    launch = operator.provider(implementation).build(case, tensors) if ours else expected
    torch.testing.assert_close(launch(), expected(), rtol=1e-4, atol=1e-5)
    benchmark.group = f"dcnv4 core {shape}"
    benchmark(launch)
