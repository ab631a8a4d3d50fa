"""Large depthwise convolutions by Fourier transforms on the CPU: values, what is not finite, when they are taken."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from opbench_kernels import depthwise_conv2d
from opbench_kernels.depthwise import conv_torch, fourier_torch
from opbench_kernels.depthwise.geometry import Kernel


@st.composite
def cases(draw):
    sides = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    pads = tuple(draw(st.integers(0, side - 1)) for side in sides)
    size = [draw(st.integers(max(1, side - 2 * pad), 14)) for side, pad in zip(sides, pads, strict=True)]
    return Kernel(*sides, *pads), (draw(st.integers(1, 3)), draw(st.integers(1, 3)), *size), draw(st.booleans())


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_transforms_give_the_convolution_and_its_weight_gradient(case):
    kernel, shape, channels_last = case
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    weight = torch.randn(shape[1], 1, kernel.height, kernel.width, generator=generator, dtype=torch.float64)
    weight.requires_grad_()
    expected = F.conv2d(x, weight, padding=(kernel.pad_h, kernel.pad_w), groups=shape[1])
    spectrum = fourier_torch.weight_spectrum(x, weight.detach(), kernel)
    out = fourier_torch.convolve(x, spectrum, kernel)
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)
    assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    expected_grad = torch.autograd.grad(expected, weight, grad)[0]
    assert torch.allclose(fourier_torch.weight_grad(x, grad, kernel), expected_grad, rtol=0, atol=1e-12)
    expected_x = F.conv_transpose2d(grad, weight.detach(), padding=(kernel.pad_h, kernel.pad_w), groups=shape[1])
    for got, wanted in zip(
        fourier_torch.gradients(x, spectrum, grad, kernel), (expected_x, expected_grad), strict=True
    ):
        assert torch.allclose(got, wanted, rtol=0, atol=1e-12)


def test_a_training_step_transforms_the_weight_once(by_transforms, monkeypatch):
    made, real = [], fourier_torch.weight_spectrum
    monkeypatch.setattr(fourier_torch, "weight_spectrum", lambda *args: made.append(1) or real(*args))
    x, weight = torch.randn(2, 3, 20, 20, requires_grad=True), torch.randn(3, 1, 15, 15, requires_grad=True)
    depthwise_conv2d(x, weight, implementation="torch").sum().backward()
    assert (len(made), len(by_transforms)) == (1, 2)


@pytest.fixture
def by_transforms(monkeypatch):
    """All that may be computed by transforms is; gives a list with an entry for each time."""
    taken = []
    monkeypatch.setattr(fourier_torch, "is_faster", lambda *_: not taken.append(1))
    return taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_output_and_gradients_in_every_dtype(by_transforms, dtype):
    x = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight, bias = torch.randn(3, 1, 15, 17).to(dtype), torch.randn(3).to(dtype)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
    out = depthwise_conv2d(*leaves, implementation="torch")
    expected = F.conv2d(*exact, padding=(7, 8), groups=3)
    grad = torch.randn(out.shape).to(dtype)
    got = torch.autograd.grad(out, leaves, grad)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    assert len(by_transforms) == 2  # output, and both gradients together
    [alone] = torch.autograd.grad(depthwise_conv2d(*leaves, implementation="torch"), x, grad)
    assert len(by_transforms) == 4
    assert torch.allclose(alone.double(), wanted[0], rtol=0, atol=4 * torch.finfo(dtype).eps * wanted[0].abs().max())
    allowed = 4 * torch.finfo(dtype).eps
    for one, other in zip((out, *got), (expected, *wanted), strict=True):
        assert one.dtype == dtype
        assert (one - other).abs().max() <= allowed * other.abs().max()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_where_it_belongs(by_transforms, bad):
    x = torch.randn(2, 2, 40, 20)
    x[0, 1, 30, 9] = bad
    weight = torch.randn(2, 1, 15, 15, requires_grad=True)
    out = depthwise_conv2d(x, weight, implementation="torch")
    reached = torch.zeros(2, 2, 40, 20, dtype=torch.bool)
    reached[0, 1, 23:38, 2:17] = True
    assert torch.equal(~out.isfinite(), reached)
    [grad] = torch.autograd.grad(out[:, :, :10].sum(), weight)  # the bad pixel meets zeros alone
    assert grad[0].isfinite().all()
    assert len(by_transforms) == 2


def test_a_sum_that_overflows_only_costs_time(by_transforms):
    x = torch.full((1, 2, 32, 32), 1e37)
    out = depthwise_conv2d(x, torch.full((2, 1, 15, 15), 1 / 225), implementation="torch")
    assert by_transforms
    assert out[:, :, 16, 16] == pytest.approx(1e37, rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "size", "capabilities"),
    [
        ((1, 8, 56, 56), (31, 31), {"AVX512", "AVX2"}),
        ((1, 8, 56, 56), (51, 51), {"AVX512", "AVX2"}),
        ((1, 8, 28, 28), (29, 29), {"AVX2"}),
        ((1, 8, 14, 14), (27, 27), set()),
        ((1, 8, 7, 7), (13, 13), set()),
        ((1, 8, 56, 56), (51, 5), set()),
    ],
)
def test_the_measured_sizes_take_what_was_faster(monkeypatch, shape, size, capabilities):
    taken = set()
    x, kernel = torch.empty(shape), Kernel(*size, size[0] // 2, size[1] // 2)
    for capability in ("AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        if fourier_torch.is_faster(conv_torch.multiply_adds(x, kernel), x, kernel):
            taken.add(capability)
    assert taken == capabilities


@pytest.mark.parametrize(("height", "pad"), [(9, 5), (4, 3), (4, 0)])
def test_rows_of_the_kernel_in_the_padding_are_no_work(height, pad):
    x, kernel = torch.empty(1, 1, 6, 5), Kernel(height, 3, pad, 1)
    rows = sum(0 <= y + j - pad < 6 for y in range(6 + 2 * pad - height + 1) for j in range(height))
    assert conv_torch.multiply_adds(x, kernel) == rows * 3 * 5


def test_a_traced_graph_is_direct():
    x, weight = torch.randn(1, 2, 56, 56), torch.randn(2, 1, 31, 31)

    class Model(torch.nn.Module):
        def forward(self, x):
            return depthwise_conv2d(x, weight, implementation="torch")

    exported = torch.export.export(Model(), (x,)).module()
    assert torch.allclose(exported(x), Model()(x), rtol=0, atol=1e-3)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert Model()(mode.from_tensor(x)).shape == x.shape
