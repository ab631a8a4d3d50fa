"""Large-kernel depthwise convolution on the CPU: ours, torch in both layouts, Fourier transforms: `make bench`."""

import pytest
import torch

from opbench.registry import registry
from opbench.sweeps.check import make_tensors
from opbench.workload.case import Case, Direction, Dtype, Level, Shape

CASES = [
    (Shape(1, 56, 56, 128), 31),
    (Shape(1, 56, 56, 128), 51),
    (Shape(1, 28, 28, 256), 29),
    (Shape(1, 14, 14, 512), 27),
    (Shape(1, 56, 56, 96), 7),
]
PROVIDERS = ("opbench_torch", "torch", "torch_nchw", "torch_fft")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("direction", [Direction.FWD, Direction.BWD])
@pytest.mark.parametrize(("shape", "size"), CASES, ids=str)
def test_core(benchmark, shape, size, direction, provider):
    operator = registry.find("depthwise_conv")
    settings = operator.resolve_settings({"kernel_size": str(size)})
    case = Case("depthwise_conv", Level.CORE, direction, "bench", shape, Dtype.FP32, settings)
    found = operator.provider(provider)
    if reason := found.not_applicable(case, "cpu"):
        pytest.skip(reason)
    tensors = make_tensors(operator, case, "cpu", seed=0)
    expected = operator.reference(case, tensors)
    leaves = {name: tensor.requires_grad_(direction is Direction.BWD) for name, tensor in tensors.items()}
    launch = found.build(case, leaves)
    out = launch()
    torch.testing.assert_close(out.detach(), expected, rtol=1e-4, atol=1e-4)
    benchmark.group = f"depthwise {size}x{size} {direction} {shape}"
    if direction is Direction.FWD:
        benchmark(launch)
    else:
        benchmark(torch.autograd.grad, out, list(leaves.values()), torch.ones_like(out), retain_graph=True)
