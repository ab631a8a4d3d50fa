"""Depthwise convolution as matrix products: values in the interpreter, what is not finite, and when it is chosen."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opbench_kernels import depthwise_conv2d, tuning
from opbench_kernels.depthwise import configs, reference
from opbench_kernels.depthwise.geometry import Kernel
from opbench_kernels.depthwise.launch import Config
from test_depthwise import DEVICE, channels_last, close, compare_with_the_reference, draw

from opbench.timing.precision import torch_precision
from opbench.workload.case import Dtype

# Triton's interpreter computes with numpy, which warns where a GPU silently makes NaN.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")


def same(height, width):
    return Kernel(height, width, height // 2, width // 2)


def operands(shape, kernels, dtype, seed=0):
    """x (N, H, W, C), the kernels' weights (KH, KW, C), and a bias; what they hold is exact in the dtype."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [shape, *((kernel.height, kernel.width, shape[3]) for kernel in kernels), shape[3:]]
    x, *weights, bias = (torch.randn(size, generator=generator).to(DEVICE, dtype) for size in sizes)
    return x, weights, bias


def compare(shape, kernels, dtype, config, seed=0):
    """Forward and weight gradients of one configuration with the formula in float64."""
    x, weights, bias = operands(shape, kernels, dtype, seed)
    packed = torch.cat([weight.flatten(0, 1) for weight in weights]).float()
    exact = [weight.double().requires_grad_() for weight in weights]
    pairs = list(zip(exact, kernels, strict=True))
    expected = sum(reference.depthwise(x.double(), weight, kernel) for weight, kernel in pairs) + bias.double()
    close(configs._forward(x, packed, bias, kernels, config), expected, dtype, len(packed))
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed + 1)).to(DEVICE, dtype)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    for kernel, taps in zip(kernels, wanted, strict=True):
        got = configs._weight_grad(x, grad, kernel, config._replace(columns=16)).view_as(taps)
        close(got, taps, torch.float32, grad[..., 0].numel())


@st.composite
def cases(draw_from):
    sides = draw_from(st.tuples(st.integers(1, 12), st.integers(1, 20)))
    pads = tuple(draw_from(st.integers(0, side - 1)) for side in sides)
    size = [draw_from(st.integers(max(1, side - 2 * pad), 21)) for side, pad in zip(sides, pads, strict=True)]
    taps, rows, columns = (draw_from(st.sampled_from(each)) for each in ((1, 2, 4, 8), (16, 32), (16, 32)))
    return {
        "shape": (draw_from(st.integers(1, 3)), *size, draw_from(st.integers(1, 2))),
        "kernels": [Kernel(*sides, *pads)],
        "dtype": draw_from(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        "config": Config(1, rows, columns, taps, 4),
        "seed": draw_from(st.integers(0, 2**16)),
    }


DECOMPOSED = {
    "shape": (1, 13, 9, 2), "kernels": [same(19, 5), same(5, 19), same(5, 5)], "dtype": torch.float16,
    "config": Config(1, 16, 16, 4, 4),
}  # fmt: skip


@settings(max_examples=4, deadline=None)
@example(case=DECOMPOSED)
@given(case=cases())
def test_any_kernel_as_products(case):
    compare(**case)


@pytest.mark.slow
@pytest.mark.parametrize("config", configs.GEMM_CONFIGS)
@pytest.mark.parametrize("kernels", [[same(31, 31)], [same(51, 5), same(5, 51), same(5, 5)], [same(27, 27)]])
def test_published_kernels_as_products(config, kernels):
    compare((2, 29, 37, 2), kernels, torch.float16, config)


def test_large_kernels_in_half_precision_are_products():
    tuning.forget_choices()
    compare_with_the_reference("triton", (1, 2, 3, 32), [(21, 21)], torch.bfloat16)
    assert {name: config.gemm for name, config in tuning.last_choices().items()} == {
        configs.FORWARD: 1,
        configs.WEIGHT_GRAD: 1,
    }


def test_a_bad_pixel_stays_where_the_kernel_reaches():
    x, [weight], bias = draw((1, 2, 24, 40), [(11, 13)], torch.float16)
    x = channels_last(x)
    x.data[0, 1, 9, 20] = math.inf  # times a zero it is NaN
    out = depthwise_conv2d(x, weight, bias, implementation="triton")
    assert tuning.last_choices()[configs.FORWARD].gemm
    reached = torch.zeros(24, 40, dtype=torch.bool, device=DEVICE)
    reached[4:15, 14:27] = True
    assert torch.equal(~out[0, 1].isfinite(), reached)
    assert out[0, 0].isfinite().all()
    x.data[0, 1, 9, 20] = 0
    finite = depthwise_conv2d(x, weight, bias, implementation="triton")
    assert torch.allclose(out[0, 1][~reached], finite[0, 1][~reached], rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_every_candidate_gives_the_same(monkeypatch):
    """As the tuner launches them."""
    kernel = same(5, 3)
    x, [weight], bias = operands((1, 9, 12, 8), [kernel], torch.float16)
    results = []

    def try_all(key, candidates, launch_of):
        assert {config.gemm for config in candidates} == {0, 1}
        results.extend(launch_of(config)() for config in candidates)
        return candidates[0]

    monkeypatch.setattr(tuning, "choose", try_all)
    out = configs.convolve(x, weight.flatten(0, 1).float(), bias, (kernel,))
    assert len(results) > len(configs.GEMM_CONFIGS)
    for result in results:
        assert torch.allclose(result, out, rtol=2e-3, atol=4e-3 * out.abs().max().item())
    results.clear()
    taps = configs.weight_grad(x, out, kernel)
    for result in results:
        assert torch.allclose(result, taps, rtol=1e-3, atol=1e-4 * taps.abs().max().item())


def first(shape, dtype, *sizes):
    x = torch.empty(shape, dtype=dtype, device="meta")
    return (
        configs.forward_rule(x, [same(*size) for size in sizes])[0].gemm,
        configs.weight_grad_rule(x, same(*sizes[0]))[0].gemm,
    )


@pytest.mark.parametrize(
    ("size", "sizes", "chosen"),
    [
        ((56, 56, 128), [(31, 31)], (1, 1)),
        ((14, 14, 512), [(27, 27)], (1, 0)),
        ((56, 56, 128), [(51, 5), (5, 51), (5, 5)], (1, 0)),
        ((56, 56, 128), [(13, 13)], (1, 0)),
        ((7, 7, 1024), [(13, 13)], (0, 0)),
        ((56, 56, 96), [(7, 7)], (0, 0)),
    ],
)
def test_the_rule(size, sizes, chosen):
    for dtype in (torch.float16, torch.bfloat16):
        assert first((32, *size), dtype, *sizes) == chosen
    assert first((32, *size), torch.float32, *sizes) == (0, 0)


def test_float32_takes_products_where_convolutions_may_round_to_tf32():
    with torch_precision(Dtype.TF32):
        assert first((32, 56, 56, 128), torch.float32, (31, 31)) == (1, 1)
