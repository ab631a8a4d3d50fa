"""Depthwise convolution against its formula in float64 and against torch's conv2d."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opbench_kernels import depthwise_conv2d
from opbench_kernels.depthwise import launch, operators, reference
from opbench_kernels.depthwise.functional import depthwise_conv2d_sum
from opbench_kernels.depthwise.geometry import Kernel

# Triton's interpreter computes with numpy, which warns where a GPU silently makes NaN.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter cuts off where a GPU rounds to bfloat16.
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}
SMALL = [(1, 1), (3, 3), (5, 3), (1, 7), (7, 7), (9, 9)]
DECOMPOSED = [(5, 3), (3, 5), (3, 3)]


def same(weight):
    height, width = weight.shape[2:]
    return Kernel(height, width, height // 2, width // 2)


def expected_output(x, weights, bias, kernels):
    """By the formula in float64, from NCHW tensors."""
    image = x.permute(0, 2, 3, 1)
    taps = [weight[:, 0].permute(1, 2, 0) for weight in weights]
    out = sum(reference.depthwise(image, tap, kernel) for tap, kernel in zip(taps, kernels, strict=True))
    return (out if bias is None else out + bias).permute(0, 3, 1, 2)


def draw(shape, sizes, dtype, with_bias=True, seed=0):
    """x, weights, bias, each a leaf on DEVICE with numbers that the dtype holds."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]

    def leaf(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(DEVICE, dtype).requires_grad_()

    return leaf(*shape), [leaf(channels, 1, *size) for size in sizes], leaf(channels) if with_bias else None


def channels_last(x):
    return x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()


def close(got, expected, dtype, terms):
    """Within six roundings to the dtype, and those of a float32 sum of so many terms (a rounding is of either sign)."""
    size = expected.square().mean().sqrt().clamp_min(1e-300)  # of an empty batch all is zero
    allowed = 6 * (2 * ROUNDOFF[dtype] + terms**0.5 * max(2.0**-53, min(ROUNDOFF[dtype], 2.0**-24)))
    error = ((got.double() - expected).abs() / (expected.abs() + size)).max().item() if got.numel() else 0.0
    assert got.dtype == dtype
    assert error <= allowed


def compare_with_the_reference(implementation, shape, sizes, dtype, *, padding="same", with_bias=True, seed=0):
    """Output and all gradients."""
    x, weights, bias = draw(shape, sizes, dtype, with_bias, seed)
    x = channels_last(x)
    kernels = [same(weight) if padding == "same" else Kernel(*weight.shape[2:], *padding) for weight in weights]
    if len(weights) == 1:
        out = depthwise_conv2d(x, weights[0], bias, padding=padding, implementation=implementation)
    else:
        out = depthwise_conv2d_sum(x, weights, bias, implementation=implementation)
    leaves = [x, *weights, *([] if bias is None else [bias])]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = expected_output(exact[0], exact[1 : 1 + len(weights)], None if bias is None else exact[-1], kernels)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 1)).to(DEVICE, dtype)
    # An image of one pixel lies in both formats, and its output, larger by the padding, may lie in either.
    assert out.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous() or not out.numel()
    close(out, expected, dtype, sum(kernel.taps for kernel in kernels))
    got = torch.autograd.grad(out, leaves, grad)
    for one, other in zip(got, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        close(one, other, dtype, max(sum(kernel.taps for kernel in kernels), out[:, 0].numel()))


@st.composite
def cases(draw_from, largest_kernel=9, largest_image=12):
    kernel = draw_from(st.tuples(st.integers(1, largest_kernel), st.integers(1, 4)))
    padding = tuple(draw_from(st.integers(0, size - 1)) for size in kernel)
    size = [draw_from(st.integers(max(1, k - 2 * p), largest_image)) for k, p in zip(kernel, padding, strict=True)]
    channels = draw_from(st.sampled_from([1, 3, 8, 20, 64, 72]))
    return {
        "shape": (draw_from(st.integers(0, 2)), channels, *size),
        "sizes": [kernel],
        "dtype": draw_from(st.sampled_from(list(ROUNDOFF))),
        "padding": padding,
        "with_bias": draw_from(st.booleans()),
        "seed": draw_from(st.integers(0, 2**16)),
    }


ONE_PIXEL = {"shape": (1, 3, 1, 1), "sizes": [(2, 1)], "dtype": torch.float64, "padding": (1, 0), "with_bias": False}


@settings(max_examples=30, deadline=None)
@example(case=ONE_PIXEL)
@given(case=cases())
def test_any_kernel_in_torch(case):
    compare_with_the_reference("torch", **case)


@settings(max_examples=25 if DEVICE == "cuda" else 6, deadline=None)
@given(case=cases(4, 5).filter(lambda case: case["dtype"] != torch.float64))
def test_any_kernel_in_triton(case):
    compare_with_the_reference("triton", **case)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype(implementation, dtype):
    compare_with_the_reference(implementation, (1, 20, 9, 9), [(5, 3)], dtype)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_kernels_in_one(implementation, dtype):
    compare_with_the_reference(implementation, (1, 9, 4, 3), DECOMPOSED, dtype)


LARGE = [
    ((1, 9, 17, 10), [(31, 31)]),
    ((1, 5, 9, 8), [(51, 5), (5, 51), (5, 5)]),
    ((1, 8, 5, 60), [(5, 51)]),
    ((2, 5, 1, 3), [(13, 13)]),  # a kernel that reaches over the whole image, and then some
    ((1, 4, 60, 4), [(51, 3)]),
]


@pytest.mark.parametrize(("shape", "sizes"), LARGE)
def test_large_kernels_in_torch(shape, sizes):
    compare_with_the_reference("torch", shape, sizes, torch.float32)
    compare_with_the_reference("torch", shape, sizes, torch.float64)


@pytest.mark.slow  # some seconds each in the interpreter
@pytest.mark.parametrize(("shape", "sizes"), LARGE)
def test_large_kernels_in_triton(shape, sizes):
    compare_with_the_reference("triton", shape, sizes, torch.float32)


def test_a_large_kernel_in_triton():
    compare_with_the_reference("triton", (1, 4, 10, 2), [(31, 1)], torch.float32)


@pytest.mark.parametrize("size", [*SMALL, (31, 31), (51, 5)])
def test_torchs_conv2d_agrees_with_the_reference(size):
    x, [weight], bias = draw((2, 6, 9, 12), [size], torch.float64)
    theirs = F.conv2d(x, weight, bias, padding=(size[0] // 2, size[1] // 2), groups=6)
    ours = expected_output(x, [weight], bias, [same(weight)])
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12 * theirs.abs().max().item())


@pytest.mark.parametrize(("implementation", "size"), [("torch", (3, 3)), ("torch", (45, 5)), ("triton", (3, 3))])
def test_the_memory_format_is_the_inputs(implementation, size):
    x, [weight], _ = draw((2, 5, 4, 7), [size], torch.float32)
    out = depthwise_conv2d(x, weight, implementation=implementation)
    assert out.is_contiguous()
    last = depthwise_conv2d(channels_last(x), weight, implementation=implementation)
    assert last.is_contiguous(memory_format=torch.channels_last)
    sliced = depthwise_conv2d(torch.cat([x, x], 3)[..., :7], weight, implementation=implementation)
    for other in (last, sliced):
        assert torch.allclose(out, other, rtol=1e-5, atol=1e-5 * out.abs().max().item())


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_pixel_stays_where_the_kernel_reaches(implementation, bad):
    x, [weight], _ = draw((1, 4, 19, 11), [(5, 3)], torch.float32)
    x = channels_last(x)
    x.data[0, 1, 9, 4] = bad
    out = depthwise_conv2d(x, weight, implementation=implementation)
    reached = torch.zeros(19, 11, dtype=torch.bool, device=DEVICE)
    reached[7:12, 3:6] = True
    assert torch.equal(~out[0, 1].isfinite(), reached)
    assert out[0, [0, 2, 3]].isfinite().all()


def test_indices_of_64_bits(monkeypatch):
    x, [weight], bias = draw((1, 8, 3, 4), [(3, 3)], torch.float32)
    x = channels_last(x)
    results = []
    for limit in (launch.INDEX_LIMIT, 1):
        monkeypatch.setattr(launch, "INDEX_LIMIT", limit)
        image = x.permute(0, 2, 3, 1)
        made = launch.forward_launch(image, weight.flatten(1).t(), bias, image, (same(weight),))
        assert made.constants["WIDE"] == (limit == 1)
        out = depthwise_conv2d(x, weight, bias, implementation="triton")
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, weight))))
    for narrow, wide in zip(*results, strict=True):
        assert torch.equal(narrow, wide)


@pytest.mark.parametrize(("rows", "count"), [(56, 8), (28, 7), (14, 7), (7, 7), (5, 5), (9, 5), (1, 1), (51, 8)])
def test_tiles_have_few_rows_past_the_end(rows, count):
    assert launch.tile(rows, 14, 128, torch.float16).rows == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels", [1, 24, 64, 1024])
@pytest.mark.parametrize("width", [1, 7, 56])
def test_two_warps_have_a_vector_a_lane(width, channels, dtype):
    config = launch.tile(7, width, channels, dtype)
    constants = launch._constants(config, dtype)
    assert constants["BLOCK_W"] * constants["BLOCK_C"] == 64 * launch.vector(dtype)


def test_the_weight_gradient_is_sliced_until_the_gpu_is_full():
    small = torch.empty(64, 7, 7, 64, device="meta")
    assert launch.weight_grad_slices(small, small, Kernel(3, 3, 1, 1)) == 64
    assert launch.weight_grad_slices(small, small, Kernel(31, 31, 15, 15)) == 13  # of 5 images, times 310
    large = torch.empty(64, 7, 7, 8192, device="meta")
    assert launch.weight_grad_slices(large, large, Kernel(31, 31, 15, 15)) == 1


def operator_arguments(requires_grad):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 2, 3, 8, generator=generator).to(DEVICE).requires_grad_(requires_grad)
    weight = torch.randn(9, 8, generator=generator).to(DEVICE).requires_grad_(requires_grad)
    bias = torch.randn(8, generator=generator).to(DEVICE).requires_grad_(requires_grad)
    return x, weight, bias, [3, 3, 1, 1]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck looks at its copies
@pytest.mark.parametrize(
    ("requires_grad", "checks"),
    [(True, ("test_schema", "test_autograd_registration", "test_aot_dispatch_dynamic")), (False, ("test_faketensor",))],
)
def test_the_operator_keeps_torchs_contract(requires_grad, checks):
    torch.library.opcheck(operators._depthwise, operator_arguments(requires_grad), test_utils=checks)


def test_a_second_derivative_is_refused():
    x, weight, bias, kernels = operator_arguments(True)
    out = operators._depthwise(x, weight, bias, kernels)
    [first] = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(first.sum(), x)


def test_second_derivatives_in_torch():
    x, [weight], bias = draw((1, 3, 5, 4), [(3, 3)], torch.float64)
    inputs = [tensor.cpu().detach().requires_grad_() for tensor in (x, weight, bias)]
    assert torch.autograd.gradgradcheck(lambda *leaves: depthwise_conv2d(*leaves, implementation="torch"), inputs)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_it_exports_with_any_batch_and_size(implementation):
    class Model(torch.nn.Module):
        def forward(self, x, weight):
            return depthwise_conv2d(x, weight, implementation=implementation)

    x, [weight], _ = draw((2, 8, 6, 5), [(3, 3)], torch.float32)
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    exported = torch.export.export(Model(), (x, weight), dynamic_shapes=(sizes, None))
    for shape in [(2, 8, 6, 5), (3, 8, 4, 9)]:
        other = torch.randn(shape, device=DEVICE)
        expected = F.conv2d(other, weight, padding=1, groups=8)
        assert torch.allclose(exported.module()(other, weight), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_autocast_convolves_in_the_lower_precision(implementation):
    x, [weight], bias = draw((1, 8, 6, 5), [(3, 3)], torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = depthwise_conv2d(x, weight, bias, implementation=implementation)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert {leaf.grad.dtype for leaf in (x, weight, bias)} == {torch.float32}


X, WEIGHT = torch.zeros(1, 4, 8, 8), torch.zeros(4, 1, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(4, 8, 8)}, r"x must be \(N, C, H, W\)"),
        ({"x": X.long()}, "x must be one of float32, float16, bfloat16, float64, got int64"),
        ({"weight": torch.zeros(4, 3, 3)}, r"weight must be \(C, 1, kernel height, kernel width\), got \(4, 3, 3\)"),
        ({"weight": torch.zeros(6, 1, 3, 3)}, r"weight must be a floating tensor of shape \(4, 1, 3, 3\), got \(6,"),
        ({"weight": torch.zeros(4, 1, 4, 3)}, "padding 'same' needs odd kernels, got weight of 4x3"),
        ({"weight": WEIGHT.to("meta")}, "weight must be on cpu as x is, got meta"),
        ({"bias": torch.zeros(3)}, r"bias must be a floating tensor of shape \(4,\), got \(3,\)"),
        ({"padding": 3}, "padding must be smaller than the kernel of 3x3, got 3"),
        ({"padding": (1, -1)}, "padding must be an integer of at least 0 or a pair"),
        ({"padding": "valid"}, "padding must be an integer of at least 0 or a pair"),
        ({"weight": torch.zeros(4, 1, 9, 9), "padding": 0}, "weight of 9x9 is larger than x"),
        ({"implementation": "cudnn"}, "implementation must be 'auto', 'triton' or 'torch'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv2d(**({"x": X, "weight": WEIGHT} | arguments))


@pytest.mark.parametrize("weights", [[], WEIGHT, None])
def test_a_sum_needs_kernels(weights):
    with pytest.raises(ValueError, match="weights must be a sequence of at least one tensor"):
        depthwise_conv2d_sum(X, weights)
