"""Deformable sampling against its formulas, against torchvision and against finite differences."""

import math
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opbench_kernels import dcnv3, dcnv4
from opbench_kernels.bilinear_launch import Config
from opbench_kernels.deform import functional, reference, sampling_torch
from opbench_kernels.deform import launch as deform_launch
from opbench_kernels.deform.geometry import Geometry, padded_offset_mask_channels
from opbench_kernels.sizes import pair
from torch._subclasses import FakeTensor, FakeTensorMode
from torchvision.ops import deform_conv2d
from triton import next_power_of_2

from opbench.sweeps.check import poisoned_allocations
from opbench.workload.shapes import load_shape_list

# Triton's interpreter computes with numpy, which warns where a GPU silently makes NaN.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def unpack(offset_mask, groups, points):
    """offset (N, Ho, Wo, G, K, 2) and mask (N, Ho, Wo, G, K) of a packed tensor, by index and not by view."""
    offset = offset_mask.new_empty((*offset_mask.shape[:3], groups, points, 2))
    mask = offset_mask.new_empty((*offset_mask.shape[:3], groups, points))
    for g in range(groups):
        for k in range(points):
            for xy in range(2):
                offset[..., g, k, xy] = offset_mask[..., 3 * points * g + 2 * k + xy]
            mask[..., g, k] = offset_mask[..., 3 * points * g + 2 * points + k]
    return offset, mask


def reference_dcnv4(value, offset_mask, groups, geometry):
    offset, mask = unpack(offset_mask, groups, geometry.points)
    return reference.deformable_sample(value.unflatten(-1, (groups, -1)), offset, mask, geometry).flatten(-2)


def smooth_offsets(packed, groups, points):
    """Away from integers by 1/8, where the gradient jumps."""
    used = packed[..., : 3 * points * groups].unflatten(-1, (groups, 3 * points))[..., : 2 * points]
    used.copy_(used.floor() + 0.125 + 0.75 * (used - used.floor()))
    return packed


SMALL_KERNELS = st.tuples(st.integers(1, 4), st.integers(1, 4))
LARGE_KERNELS = st.sampled_from([(5, 5), (7, 7), (1, 7)])


@st.composite
def cases(draw, kernels):
    kernel = draw(kernels)
    odd = all(size % 2 for size in kernel) and kernel != (1, 1)
    arguments = {
        "kernel_size": kernel,
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "offset_scale": draw(st.sampled_from([0.5, 1.0, 2.0])),
        "remove_center": draw(st.booleans()) if odd else False,
    }
    reach = [d * (k - 1) + 1 for d, k in zip(arguments["dilation"], kernel, strict=True)]
    height, width = (
        draw(st.integers(max(1, r - 2 * p), max(7, r))) for r, p in zip(reach, arguments["padding"], strict=True)
    )
    return {
        "arguments": arguments,
        "size": (draw(st.integers(0, 2)), height, width),
        "groups": draw(st.integers(1, 3)),
        "group_channels": draw(st.sampled_from([1, 3, 4, 8, 20, 64, 128])),
        "offset_std": draw(st.sampled_from([0.0, 0.7, 30.0])),
        "offsets": draw(st.sampled_from(["smooth", "integer", "around integers", math.nan, math.inf, -math.inf, 1e30])),
        "seed": draw(st.integers(0, 2**16)),
    }


def geometry_of(arguments):
    return Geometry(
        kernel=arguments["kernel_size"],
        stride=arguments["stride"],
        padding=arguments["padding"],
        dilation=arguments["dilation"],
        offset_scale=arguments["offset_scale"],
        remove_center=arguments["remove_center"],
    )


def draw_tensors(case, geometry):
    generator = torch.Generator().manual_seed(case["seed"])
    batch, height, width = case["size"]
    channels = case["groups"] * case["group_channels"]
    packed = padded_offset_mask_channels(case["groups"], geometry.points)
    value = torch.randn(batch, height, width, channels, generator=generator, dtype=torch.float64)
    out_size = geometry.output_size(height, width)
    offset_mask = torch.randn(batch, *out_size, packed, generator=generator, dtype=torch.float64)
    return value, offset_mask * max(case["offset_std"], 0.01)


def place_offsets(packed, kind, groups, points, generator):
    """Offsets away from integers, on them, a rounding away from them, or some of them pointing nowhere."""
    smooth_offsets(packed, groups, points)
    if kind == "smooth":
        return packed
    offsets = packed[..., : 3 * points * groups].unflatten(-1, (groups, 3 * points))[..., : 2 * points]
    if kind == "integer":
        offsets.round_()
    elif kind == "around integers":
        offsets.round_().add_(2.0**-20 * torch.randint(-1, 2, offsets.shape, generator=generator))
    else:
        offsets[torch.rand(offsets.shape, generator=generator) < 0.2] = kind
    return packed


@settings(max_examples=40, deadline=None)
@given(case=cases(SMALL_KERNELS | LARGE_KERNELS))
def test_any_geometry_in_torch(case):
    compare_with_the_reference("torch", case)


@contextmanager
def few_programs():
    """Interpreted, a program takes some 30 ms a point whatever its rows: two of them, the second rarely full."""
    whole = deform_launch.Sampled.constants

    def constants(sampled, *arguments):
        found = whole(sampled, *arguments)
        return found | {"BLOCK_ROWS": max(found["BLOCK_ROWS"], next_power_of_2(-(-sampled.rows // 2)))}

    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setattr(deform_launch.Sampled, "constants", constants)
        yield


# Compiled, an example takes seconds whatever its kernel. Interpreted it takes as long as the kernel has points, and
# test_large_kernels_and_wide_groups has the large ones.
@settings(max_examples=25 if DEVICE == "cuda" else 12, deadline=None)
@given(case=cases(SMALL_KERNELS | LARGE_KERNELS if DEVICE == "cuda" else SMALL_KERNELS))
def test_any_geometry_in_triton(case):
    with few_programs():
        compare_with_the_reference("triton", case)


@pytest.mark.parametrize("case", [
    {"kernel_size": (7, 7), "padding": (3, 3), "offsets": "smooth", "group_channels": 8},
    {"kernel_size": (7, 7), "padding": (3, 3), "remove_center": True, "offsets": math.nan, "group_channels": 1},
    {"kernel_size": (5, 5), "padding": (2, 2), "remove_center": True, "offsets": "smooth", "group_channels": 20},
    {"kernel_size": (1, 7), "padding": (0, 3), "dilation": (2, 1), "offsets": math.inf, "group_channels": 3},
    {"offsets": "integer", "group_channels": 128},
    {"offsets": "around integers", "group_channels": 24, "stride": (2, 1)},
])  # fmt: skip
def test_large_kernels_and_wide_groups(case):
    arguments = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "offset_scale": 1.0,
                 "remove_center": False}  # fmt: skip
    arguments |= {name: value for name, value in case.items() if name in arguments}
    rest = {name: case[name] for name in ("offsets", "group_channels")}
    whole = {"arguments": arguments, "size": (1, 5, 4), "groups": 2, "offset_std": 1.0, "seed": 11, **rest}
    with few_programs():
        compare_with_the_reference("triton", whole)


def compare_with_the_reference(implementation, case):
    geometry, groups = geometry_of(case["arguments"]), case["groups"]
    value, offset_mask = draw_tensors(case, geometry)
    generator = torch.Generator().manual_seed(case["seed"])
    value, offset_mask = value.float(), offset_mask.float()
    place_offsets(offset_mask, case["offsets"], groups, geometry.points, generator)
    exact = [tensor.double().requires_grad_() for tensor in (value, offset_mask)]
    expected = reference_dcnv4(*exact, groups, geometry)
    gradient = torch.linspace(-1, 1, max(expected.numel(), 1), dtype=torch.float64)[: expected.numel()]
    gradient = gradient.view(expected.shape)
    expected_grads = torch.autograd.grad(expected, exact, gradient)

    given_ = [tensor.to(DEVICE).requires_grad_() for tensor in (value, offset_mask)]
    with poisoned_allocations():
        got = dcnv4(*given_, groups=groups, implementation=implementation, **case["arguments"])
        got_grads = torch.autograd.grad(got, given_, gradient.float().to(DEVICE))

    pairs = [(got, expected), (got_grads[0], expected_grads[0])]
    if case["offsets"] not in ("integer", "around integers"):  # where the offsets' gradient jumps
        pairs.append((got_grads[1], expected_grads[1]))
    # The rounding of an offset moves the sample; torch also rounds the coordinate, which is as large as the image.
    reach = 10 + 4 * case["offset_std"]
    for result, wanted in pairs:
        assert result.shape == wanted.shape
        scale = wanted.abs().max().clamp(min=1e-3) if wanted.numel() else 1
        error = (result.double().cpu() - wanted).abs() / scale
        assert error.numel() == 0 or error.max() < 32 * reach * DTYPES[torch.float32]


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_pixel_stays_where_it_belongs(implementation, bad):
    # Only a sample that touches the pixel takes its NaN: not one whose corner there lies outside, nor one far away.
    value = torch.ones(1, 5, 6, 8)
    value[0, 0, 3] = bad
    generator = torch.Generator().manual_seed(5)
    offset = 4 * torch.rand(1, 5, 6, 9, 2, generator=generator) - 2
    mask = torch.rand(1, 5, 6, 9, generator=generator)
    offset[0, 4, 5], mask[0, 4, 5] = -50.0, math.inf  # outside, where even an infinite mask counts nothing
    arguments = [t.to(DEVICE) for t in (value, offset.flatten(3), mask)]
    got = dcnv3(*arguments, groups=1, implementation=implementation).cpu()
    expected = reference.deformable_sample(
        value.unflatten(-1, (1, 8)), offset.unsqueeze(3), mask.unsqueeze(3), Geometry()
    ).flatten(-2)
    assert expected.isfinite().any()
    assert not expected.isfinite().all()
    finite = expected.isfinite()
    assert torch.equal(got.isfinite(), finite)
    assert torch.allclose(got[finite], expected[finite], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["value", "offset", "mask", "gradient"])
def test_a_bad_number_stays_in_the_gradients_where_it_belongs(where, bad):
    # The reference tells which elements it reaches: those of the points that touch it, also with a weight of zero.
    generator = torch.Generator().manual_seed(14)
    value = torch.randn(1, 5, 6, 8, generator=generator)
    offset = 4 * torch.rand(1, 5, 6, 1, 9, 2, generator=generator) - 2
    offset[0, 1, 1] = offset[0, 1, 1].round()  # at pixels, where the next ones weigh nothing
    mask = torch.rand(1, 5, 6, 1, 9, generator=generator)
    gradient = torch.randn(1, 5, 6, 8, generator=generator)
    offset[0, 4, 5] = -50.0
    tensors = {"value": value[0, 0, 3], "offset": offset[0, 2, 2], "mask": mask[0, 4], "gradient": gradient[0, 1, 1]}
    tensors[where][..., 0] = bad
    exact = [tensor.double().requires_grad_() for tensor in (value, offset, mask)]
    out = reference.deformable_sample(exact[0].unflatten(-1, (1, 8)), *exact[1:], Geometry()).flatten(-2)
    expected = torch.autograd.grad(out, exact, gradient.double())
    leaves = [tensor.to(DEVICE).requires_grad_() for tensor in (value, offset.flatten(3), mask.flatten(3))]
    got = torch.autograd.grad(dcnv3(*leaves, groups=1, implementation="triton"), leaves, gradient.to(DEVICE))
    assert where == "offset" or not all(right.isfinite().all() for right in expected)
    assert any(right.isfinite().any() for right in expected)
    for result, right in zip(got, expected, strict=True):
        finite, found = right.isfinite(), result.cpu().view(right.shape)
        assert torch.equal(found.isfinite(), finite)
        torch.testing.assert_close(found[finite], right[finite].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group_channels", [20, 32])
@pytest.mark.parametrize("config", [Config(1, 2), Config(4, 1), Config(4, 4)])
def test_every_backward_configuration(monkeypatch, config, group_channels):
    def gradients():
        generator = torch.Generator().manual_seed(16)
        value, packed = (torch.randn(1, 6, 5, size, generator=generator) for size in (2 * group_channels, 56))
        leaves = [tensor.half().to(DEVICE).requires_grad_() for tensor in (value, packed)]
        with few_programs():
            out = dcnv4(*leaves, groups=2, implementation="triton")
            return torch.autograd.grad(out, leaves, torch.randn(out.shape, generator=generator).to(out))

    expected = gradients()
    monkeypatch.setattr(deform_launch, "backward_config", lambda _: config)
    for got, right in zip(gradients(), expected, strict=True):
        # Sums of float32 in another order, then one rounding.
        assert (got - right).abs().max() <= 2 * DTYPES[torch.float16] * right.abs().max()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_gradients_of_thin_images(size):
    generator = torch.Generator().manual_seed(15)
    value = torch.randn(2, *size, 8, generator=generator)
    packed = smooth_offsets(torch.randn(2, *size, 56, generator=generator), 2, 9)
    exact = [tensor.double().requires_grad_() for tensor in (value, packed)]
    out = reference_dcnv4(*exact, 2, Geometry())
    expected = torch.autograd.grad(out.square().sum(), exact)
    leaves = [tensor.to(DEVICE).requires_grad_() for tensor in (value, packed)]
    got = torch.autograd.grad(dcnv4(*leaves, groups=2, implementation="triton").square().sum(), leaves)
    for result, right in zip(got, expected, strict=True):
        torch.testing.assert_close(result.cpu(), right.float(), rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_point_next_to_a_pixel_or_a_border():
    # 1e-9 pixels before the pixel at 1 its distance from the one at 0 rounds to 1, and still it touches those two. At
    # -1 and at the width a point counts nothing; between them and the image it has a gradient of one pixel alone.
    offsets = [0.0, -1e-9, 1e-9, -2.0, -2 + 2.0**-20, -1.5, -1.0, 1.0, 2.0, 2 - 2.0**-20, 1.5]
    value = torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 3, 1).expand(len(offsets), -1, -1, -1)
    packed = torch.zeros(len(offsets), 1, 3, 8)
    packed[:, 0, 1, 0] = torch.tensor(offsets)
    packed[..., 2] = 1.0
    geometry = Geometry(kernel=(1, 1), padding=(0, 0))
    exact, leaf = packed.double().requires_grad_(), packed.to(DEVICE).requires_grad_()
    [expected] = torch.autograd.grad(reference_dcnv4(value.double(), exact, 1, geometry).sum(), exact)
    out = dcnv4(value.to(DEVICE), leaf, groups=1, kernel_size=1, padding=0, implementation="triton")
    [got] = torch.autograd.grad(out.sum(), leaf)
    torch.testing.assert_close(got.cpu(), expected.float())
    assert expected[:, 0, 1, 0].tolist() == [90, 9, 90, 0, 1, 1, 9, -100, 0, -100, -100]


@pytest.mark.parametrize("implementation", ["torch", "torch with gradients", "triton"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_first_pixel_does_not_reach_points_outside(implementation, bad):
    # A point that does not count has a weight of zero and must still read something: not an image's first pixels.
    value = torch.ones(2, 4, 5, 8)
    value[:, :2, :2] = bad
    offset = torch.full((2, 4, 5, 9, 2), -50.0)
    offset[:, 3:, 3:] = 0.25  # these do count, far from the bad pixels
    mask = torch.ones(2, 4, 5, 9)
    arguments = [tensor.to(DEVICE) for tensor in (value, offset.flatten(3), mask)]
    arguments[0].requires_grad_(implementation == "torch with gradients")
    got = dcnv3(*arguments, groups=1, implementation=implementation.partition(" ")[0]).cpu()
    assert got.isfinite().all()
    assert (got[:, :3] == 0).all()
    assert (got[:, 3:, 3:] > 0).all()


def test_float32_does_not_lose_precision_with_the_coordinate():
    # A coordinate of 3000 in float32 has 2^-13 between neighbours; the fraction of a small offset has not.
    geometry = Geometry(stride=(1, 60))
    value = torch.randn(1, 2, 3000, 4, generator=torch.Generator().manual_seed(6))
    packed = torch.randn(1, 2, 50, 32, generator=torch.Generator().manual_seed(7))
    expected = reference_dcnv4(value.double(), packed.double(), 1, geometry)
    got = dcnv4(value.to(DEVICE), packed.to(DEVICE), groups=1, stride=(1, 60), implementation="triton").cpu()
    assert (got - expected).abs().max() / expected.abs().max() < 16 * DTYPES[torch.float32]


def test_indices_of_64_bits(monkeypatch):
    from opbench_kernels.deform import launch as deform_launch

    generator = torch.Generator().manual_seed(8)
    value, packed = (torch.randn(2, 5, 4, size, generator=generator) for size in (8, 32))

    def results():
        leaves = [tensor.to(DEVICE).requires_grad_() for tensor in (value, packed)]
        out = dcnv4(*leaves, groups=1, implementation="triton")
        return out, *torch.autograd.grad(out.square().sum(), leaves)

    expected = results()
    monkeypatch.setattr(deform_launch, "INDEX_LIMIT", 1)
    for got, wanted in zip(results(), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_indices_reach_from_the_padding_and_into_the_gradient():
    from opbench_kernels.deform.launch import is_wide, sampled_dcnv4

    side, channels = 8191, 32
    assert side**2 * channels < 2**31
    assert not is_wide((side, side), Geometry(padding=(0, 0)), channels, 1)
    assert is_wide((side, side), Geometry(kernel=(7, 7), padding=(3, 3)), channels, 1)
    # One pixel seen everywhere: its image is small, the gradient of that image is not.
    value = torch.empty(1, 1, 1, 64, device="meta").expand(1, 8192, 8192, 64)
    sampled = sampled_dcnv4(value, torch.empty(1, 8192, 8192, 32, device="meta"), 1, Geometry())
    assert sampled.value.stride(0) == 0
    assert sampled.constants(Config(vectors=1, num_warps=2), 4)["WIDE"]


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements():
    value = torch.ones(1, 16384, 17000, 8, device="cuda", dtype=torch.float16)
    value[0, -1] = 2.0
    packed = torch.zeros(1, 2, 2125, 8, device="cuda", dtype=torch.float16)
    packed[..., 2] = 1.0
    out = dcnv4(value, packed, groups=1, kernel_size=1, padding=0, stride=(16383, 8))
    assert out[0, 0].eq(1).all()
    assert out[0, 1].eq(2).all()


def flipped(value, offset, mask):
    """The same samples in the opposite order of output pixels, for an image of the same values mirrored."""
    order = torch.tensor([(2 - i) * 3 + (2 - j) for i in range(3) for j in range(3)])
    return value.flip(1, 2), -offset.flip(1, 2)[..., order, :], mask.flip(1, 2)[..., order]


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def value_gradients(triton_inputs, grad):
    value, offset, mask = triton_inputs
    value = value.to(DEVICE).requires_grad_()
    arguments = (value, offset.flatten(3).to(DEVICE), mask.flatten(3).to(DEVICE))
    out = dcnv3(*arguments, groups=1, implementation="triton")
    return torch.autograd.grad(out, value, grad.to(DEVICE))[0].cpu()


def crowded_inputs():
    """Many samples add to each pixel; coordinates are multiples of 1/8, exact from either side."""
    generator = torch.Generator().manual_seed(9)
    value = torch.randn(1, 6, 7, 4, generator=generator)
    offset = torch.randint(-24, 25, (1, 6, 7, 1, 9, 2), generator=generator) / 8
    mask = torch.randn(1, 6, 7, 1, 9, generator=generator)
    return (value, offset, mask), torch.randn(1, 6, 7, 4, generator=generator)


def test_deterministic_gradients_do_not_depend_on_the_order(deterministic):
    inputs, grad = crowded_inputs()
    forwards = value_gradients(inputs, grad)
    backwards = value_gradients(flipped(*inputs), grad.flip(1, 2)).flip(1, 2)
    assert torch.equal(forwards, backwards)  # the property: sums of integers, the same in any order
    torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(value_gradients(inputs, grad), forwards)
    # The test can fail: sums in float32 do depend on the order.
    assert not torch.equal(value_gradients(inputs, grad), value_gradients(flipped(*inputs), grad.flip(1, 2)).flip(1, 2))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
def test_deterministic_gradients_of_any_magnitude(deterministic, scale):
    inputs, grad = crowded_inputs()
    got = value_gradients(inputs, grad * scale)
    exact = [tensor.double() for tensor in inputs]
    exact[0].requires_grad_()
    out = reference.deformable_sample(exact[0].unflatten(-1, (1, 4)), *exact[1:], Geometry()).flatten(-2)
    [expected] = torch.autograd.grad(out, exact[0], grad.double() * scale)
    assert (got - expected).abs().max() <= 4 * DTYPES[torch.float32] * expected.abs().max()


def test_deterministic_gradients_tell_of_what_is_not_finite(deterministic):
    inputs, grad = crowded_inputs()
    grad[0, 2, 3, 1] = math.inf
    assert value_gradients(inputs, grad).isnan().all()


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "groups"), [(64, 2), (128, 1), (15, 3), (40, 2)])
def test_every_dtype_and_group_width(implementation, dtype, channels, groups):
    geometry = Geometry()
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(1, 4, 5, channels, generator=generator).to(dtype)
    packed = torch.randn(1, 4, 5, padded_offset_mask_channels(groups, 9), generator=generator).to(dtype)
    expected = reference_dcnv4(value.double(), packed.double(), groups, geometry)
    got = dcnv4(value.to(DEVICE), packed.to(DEVICE), groups=groups, implementation=implementation)
    assert got.dtype == dtype
    error = (got.double().cpu() - expected).abs().max() / expected.abs().max()
    # In float32 the coordinates, up to 8 here, round as much as the sums.
    assert error < 4 * DTYPES[dtype] + 8 * 2 * 2.0**-24


@pytest.mark.parametrize("scale", [1e-4, 1.0, 65504.0])
@pytest.mark.parametrize("strength", [1e-5, 1.0, 1e3])
def test_halves_and_masks_of_any_size(scale, strength):
    # Samples are interpolated in half precision; a mask, which may be small, is not rounded to it on the way.
    generator = torch.Generator().manual_seed(17)
    value = (torch.rand(1, 6, 5, 8, generator=generator) / 4 + 0.75).mul(scale).half()
    value[0, 2:5] = scale  # whose interpolation may be rounded up to inf
    offset = torch.rand(1, 6, 5, 18, generator=generator) - 0.5
    mask = torch.full((1, 6, 5, 9), strength / max(1.0, 9 * scale * strength / 60000))
    expected = reference.deformable_sample(
        value.double().unflatten(-1, (1, 8)),
        offset.double().view(1, 6, 5, 1, 9, 2),
        mask.double().unsqueeze(3),
        Geometry(),
    ).flatten(-2)
    got = dcnv3(value.to(DEVICE), offset.to(DEVICE), mask.to(DEVICE), groups=1, implementation="triton").cpu()
    assert (got.double() - expected).abs().max() <= 4 * DTYPES[torch.float16] * expected.abs().max() + 2.0**-25


@pytest.mark.parametrize("implementation", ["reference", "torch", "triton"])
def test_torchvision_agrees(implementation):
    # DCNv2's operator with identity weights is the same sum; its points run rows outer and its offsets are (y, x).
    groups, channels, height, width = 2, 6, 7, 5
    generator = torch.Generator().manual_seed(2)
    value = torch.randn(2, height, width, channels, generator=generator)
    offset = 2 * torch.randn(2, height, width, groups, 9, 2, generator=generator)
    mask = torch.randn(2, height, width, groups, 9, generator=generator)

    rows_outer = torch.tensor([i * 3 + j for j in range(3) for i in range(3)])
    tv_offset = offset[..., rows_outer, :].flip(-1).flatten(3).permute(0, 3, 1, 2)
    tv_mask = mask[..., rows_outer].flatten(3).permute(0, 3, 1, 2)
    # Channel c of the output takes all taps of channel c: a depthwise weight of ones.
    expected = deform_conv2d(
        value.permute(0, 3, 1, 2), tv_offset, torch.ones(channels, 1, 3, 3), padding=1, mask=tv_mask
    ).permute(0, 2, 3, 1)

    if implementation == "reference":
        got = reference.deformable_sample(value.unflatten(-1, (groups, -1)), offset, mask, Geometry()).flatten(-2)
    else:
        got = dcnv3(
            value.to(DEVICE),
            offset.flatten(3).to(DEVICE),
            mask.flatten(3).to(DEVICE),
            groups=groups,
            implementation=implementation,
        ).cpu()
    assert torch.allclose(got, expected, rtol=1e-5, atol=2e-5)


def test_gradients_of_the_reference_by_finite_differences():
    geometry = Geometry(kernel=(3, 2), padding=(1, 0), remove_center=False, offset_scale=0.5)
    generator = torch.Generator().manual_seed(3)
    value = torch.randn(1, 3, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(1, 3, 3, padded_offset_mask_channels(1, 6), generator=generator, dtype=torch.float64)
    # Half the offset moves the coordinate, so integers are at even offsets.
    packed = (packed.floor() * 2 + 0.25 + 1.5 * (packed - packed.floor())).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, p: reference_dcnv4(v, p, 1, geometry), (value, packed))


@pytest.mark.parametrize("implementation", ["reference", "torch", "triton"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_an_offset_that_points_nowhere_counts_nothing(implementation, bad):
    value = torch.randn(1, 4, 4, 3)
    packed = torch.full((1, 4, 4, 32), 0.25)
    packed[0, 1, 2, :18] = bad
    if implementation == "reference":
        got = reference_dcnv4(value, packed, 1, Geometry())
    else:
        got = dcnv4(value.to(DEVICE), packed.to(DEVICE), groups=1, implementation=implementation).cpu()
    assert got[0, 1, 2].eq(0).all()
    assert got.isfinite().all()
    assert got[0, 2, 2].ne(0).all()


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_the_border_is_strict(implementation):
    # A point at exactly -1 or at the size counts nothing; just inside, its neighbour pixel counts.
    value = torch.ones(1, 1, 1, 1)
    for offset, expected in ((-1.0, 0.0), (-0.75, 0.25), (0.0, 1.0), (0.75, 0.25), (1.0, 0.0)):
        packed = torch.zeros(1, 1, 1, 8)
        packed[..., 0], packed[..., 2] = offset, 1.0
        got = dcnv4(
            value.to(DEVICE),
            packed.to(DEVICE),
            groups=1,
            kernel_size=1,
            padding=0,
            implementation=implementation,
        )
        assert got.item() == expected  # products of powers of two: exact everywhere


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_inputs_that_are_not_contiguous(implementation):
    value = torch.randn(2, 5, 8, 4, device=DEVICE).transpose(1, 2)
    wide = torch.randn(2, 8, 5, 80, device=DEVICE)
    packed = wide[..., 8:64]
    got = dcnv4(value, packed, groups=2, implementation=implementation)
    expected = dcnv4(value.contiguous(), packed.contiguous(), groups=2, implementation="torch")
    assert torch.allclose(got, expected, atol=1e-5)


def channels_first(packed):
    """As a convolution gives it: with one image, flattening its pixels leaves the last axis strided."""
    return packed.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


def every_second(packed):
    return packed.repeat_interleave(2, -1)[..., ::2]


def expanded(packed):
    return packed[..., :1].expand(packed.shape)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("arrange", [channels_first, every_second, expanded])
def test_offsets_and_masks_may_have_any_strides(arrange, batch):
    generator = torch.Generator().manual_seed(12)
    value = torch.randn(batch, 5, 8, 4, generator=generator)
    packed = arrange(torch.randn(batch, 5, 8, 56, generator=generator))
    assert packed.stride(-1) != 1
    expected = [value.clone().requires_grad_(), packed.contiguous().requires_grad_()]
    out = dcnv4(*expected, groups=2, implementation="torch")
    wanted = torch.autograd.grad(out.square().sum(), expected)
    leaves = [value.to(DEVICE).requires_grad_(), packed.to(DEVICE).detach().requires_grad_()]
    assert leaves[1].stride() == packed.stride()
    got = dcnv4(*leaves, groups=2, implementation="triton")
    torch.testing.assert_close(got.cpu(), out, rtol=1e-4, atol=1e-4)
    for gradient, right in zip(torch.autograd.grad(got.square().sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(gradient.cpu(), right, rtol=1e-3, atol=1e-3)


def test_the_packed_tail_gets_no_gradient():
    packed = torch.randn(1, 4, 4, 32, requires_grad=True)
    dcnv4(torch.randn(1, 4, 4, 3), packed, groups=1).sum().backward()
    assert packed.grad[..., 27:].eq(0).all()
    assert packed.grad[..., :27].ne(0).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 5}, "groups must divide the 6 channels of value, got 5"),
        ({"kernel_size": 0}, "kernel_size must be an integer of at least 1"),
        ({"stride": (1, 0)}, "stride must be an integer of at least 1"),
        ({"padding": -1}, "padding must be an integer of at least 0"),
        ({"kernel_size": 5}, "offset_mask must have shape"),
        ({"kernel_size": 2, "remove_center": True}, "remove_center needs an odd kernel_size"),
        ({"kernel_size": 9, "padding": 0}, "smaller than the kernel's reach"),
        ({"implementation": "cuda", "kernel_size": 5}, "implementation must be"),
        ({"groups": True}, "groups must divide"),
        ({"offset_scale": None}, "offset_scale must be a finite number, got None"),
        ({"offset_scale": math.nan}, "offset_scale must be a finite number"),
        ({"remove_center": 2}, "remove_center must be True or False, got 2"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dcnv4(torch.randn(1, 4, 4, 6), torch.randn(1, 4, 4, 56), **{"groups": 2, **change})


@pytest.mark.parametrize(
    ("value", "packed", "message"),
    [
        (torch.zeros(1, 4, 4, 6, dtype=torch.int64), torch.zeros(1, 4, 4, 56), "value must be one of .*, got int64"),
        (torch.zeros(1, 4, 4, 6), torch.zeros(1, 4, 4, 56, dtype=torch.int32), "offset_mask must be a floating tensor"),
        (torch.zeros(1, 4, 4, 6), [0.0], "offset_mask must be a floating tensor, got list"),
        ([0.0], torch.zeros(1, 4, 4, 56), "value must be a tensor, got list"),
        (torch.zeros(1, 4, 4, 6), torch.zeros(1, 4, 4, 56, device="meta"), "offset_mask must be on cpu"),
        (torch.zeros(1, 4, 4, 0), torch.zeros(1, 4, 4, 56), "value must be .* of at least 1"),
        (torch.zeros(4, 4, 6), torch.zeros(1, 4, 4, 56), "value must be \\(N, H, W, C\\)"),
        (torch.zeros(1, 4, 4, 6), torch.zeros(1, 4, 5, 56), "offset_mask must have shape \\(1, 4, 4, 56\\)"),
    ],
)
def test_bad_tensors_are_named(value, packed, message):
    with pytest.raises(ValueError, match=message):
        dcnv4(value, packed, groups=2, implementation="torch")


def test_pair_refuses_what_is_not_one_or_two_integers():
    for bad in (1.5, (1, 2, 3), (True, 1), "33"):
        with pytest.raises((ValueError, TypeError)):
            pair(bad, "kernel_size", 1)


PUBLISHED = [shape for name in ("standard", "high_resolution") for shape in load_shape_list(name).shapes]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", PUBLISHED, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_published_shapes_forward_and_backward(shape, dtype):
    size, groups = (shape.batch, shape.height, shape.width), shape.channels // 32
    generator = torch.Generator("cuda").manual_seed(10)
    value = torch.randn(*size, shape.channels, device="cuda", generator=generator).to(dtype)
    packed = torch.randn(*size, padded_offset_mask_channels(groups, 9), device="cuda", generator=generator)
    packed = smooth_offsets(packed.to(dtype), groups, 9)
    grad = torch.randn(*size, shape.channels, device="cuda", generator=generator).to(dtype)

    exact = [tensor.double().requires_grad_() for tensor in (value, packed)]
    expected = reference_dcnv4(*exact, groups, Geometry())
    wanted = [expected.detach(), *torch.autograd.grad(expected, exact, grad.double())]
    leaves = [tensor.requires_grad_() for tensor in (value, packed)]
    out = dcnv4(*leaves, groups=groups)
    got = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    # The output and each gradient are rounded once; inside, float32 sums of 36 to some hundred terms.
    for result, right in zip(got, wanted, strict=True):
        error = (result.double() - right).abs().max() / right.abs().max()
        assert error < 2 * DTYPES[dtype] + 64 * DTYPES[torch.float32]


def operator_arguments(name, requires_grad):
    generator = torch.Generator().manual_seed(4)
    value = torch.randn(1, 4, 3, 16, generator=generator).to(DEVICE)  # opcheck calls it dozens of times
    packed = torch.randn(1, 4, 3, 56, generator=generator).to(DEVICE)
    tensors = (value, packed) if name == "dcnv4" else (value, packed[..., :36].contiguous(), packed[..., 36:54])
    settings = (2, [3, 3], [1, 1], [1, 1], [1, 1], 1.0, False)
    return (*(tensor.detach().requires_grad_(requires_grad) for tensor in tensors), *settings)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck looks at its copies
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", ["dcnv3", "dcnv4"])
def test_the_operator_keeps_torchs_contract(name, requires_grad):
    from opbench_kernels.deform import operators

    torch.library.opcheck(getattr(operators, f"_{name}"), operator_arguments(name, requires_grad))


def test_a_second_derivative_is_refused():
    value, packed, *_ = operator_arguments("dcnv4", True)
    out = dcnv4(value, packed, groups=2, implementation="triton")
    [grad] = torch.autograd.grad(out.square().sum(), value, create_graph=True)
    with pytest.raises(NotImplementedError, match="opbench_kernels::dcnv4 has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_it_exports_with_any_batch_and_size(implementation):
    class Model(torch.nn.Module):
        def forward(self, value, packed):
            return dcnv4(value, packed, groups=1, implementation=implementation)

    def inputs(*size):
        return torch.randn(*size, 8, device=DEVICE), torch.randn(*size, 32, device=DEVICE)

    dynamic = dict.fromkeys((0, 1, 2), torch.export.Dim.DYNAMIC)
    program = torch.export.export(Model(), inputs(2, 5, 4), dynamic_shapes=(dynamic, dynamic))
    other = inputs(3, 6, 7)
    torch.testing.assert_close(program.module()(*other), Model()(*other))


def test_a_saved_program_names_operators_that_importing_the_package_makes(tmp_path):
    class Model(torch.nn.Module):
        def forward(self, value, packed):
            return dcnv4(value, packed, groups=1, implementation="triton")

    inputs = torch.randn(1, 5, 4, 8, device=DEVICE), torch.randn(1, 5, 4, 32, device=DEVICE)
    torch.export.save(torch.export.export(Model(), inputs), tmp_path / "model.pt2")
    torch.save((inputs, Model()(*inputs)), tmp_path / "expected.pt")
    code = (
        "import opbench_kernels, torch\n"
        "inputs, expected = torch.load('expected.pt')\n"
        "torch.testing.assert_close(torch.export.load('model.pt2').module()(*inputs), expected)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=240)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_autocast_samples_in_the_lower_precision(implementation):
    value, packed = torch.randn(1, 5, 4, 8, device=DEVICE), torch.randn(1, 5, 4, 32, device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = dcnv4(value, packed, groups=1, implementation=implementation)
    assert got.dtype == torch.bfloat16
    expected = dcnv4(value.bfloat16(), packed, groups=1, implementation=implementation)
    # Equal, since within bfloat16's tolerance float32 would pass too; it is the same call on the same values.
    assert torch.equal(got, expected)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_it_compiles_into_one_graph(implementation):
    value, packed = torch.randn(1, 5, 4, 8, device=DEVICE), torch.randn(1, 5, 4, 32, device=DEVICE)

    def module(value, packed):
        return dcnv4(value.relu(), packed, groups=1, implementation=implementation).sin()

    # aot_eager traces as every backend does, and generates no code.
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    given_ = [tensor.clone().requires_grad_() for tensor in (value, packed)]
    expected = [tensor.clone().requires_grad_() for tensor in (value, packed)]
    torch.testing.assert_close(compiled(*given_), module(*expected))
    compiled(*given_).sum().backward()
    module(*expected).sum().backward()
    for got, wanted in zip(given_, expected, strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


def test_shapes_are_inferred_on_the_meta_device():
    value, packed = torch.empty(2, 5, 4, 8, device="meta"), torch.empty(2, 5, 4, 32, device="meta")
    assert dcnv4(value, packed, groups=1).shape == value.shape


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
def test_torchs_function_transforms():
    def sampled(value, offsets):
        return dcnv4(value, offsets, groups=1, implementation="torch")

    values, packed = torch.randn(3, 1, 5, 4, 8), torch.randn(3, 1, 5, 4, 32)
    expected = torch.stack([sampled(*each) for each in zip(values, packed, strict=True)])
    torch.testing.assert_close(torch.vmap(sampled)(values, packed), expected)
    leaf = values[0].clone().requires_grad_()
    [gradient] = torch.autograd.grad(sampled(leaf, packed[0]).square().sum(), leaf)
    got = torch.func.grad(lambda value: sampled(value, packed[0]).square().sum())(values[0])
    torch.testing.assert_close(got, gradient)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_offsets_in_half_precision_are_scaled_in_float32(requires_grad):
    generator = torch.Generator().manual_seed(13)
    value = torch.randn(1, 8, 9, 8, generator=generator, requires_grad=requires_grad)
    packed = (4 * torch.randn(1, 8, 9, 32, generator=generator)).half()
    got = dcnv4(value, packed, groups=1, offset_scale=0.7, implementation="torch")
    expected = reference_dcnv4(value.double(), packed.double(), 1, Geometry(offset_scale=0.7))
    assert (got - expected).abs().max() / expected.abs().max() < 64 * DTYPES[torch.float32]


def test_auto_goes_without_triton(monkeypatch):
    # The device does not matter here: what is asked is who computes.
    monkeypatch.setattr("opbench_kernels.implementation.HAS_TRITON", False)
    cuda = SimpleNamespace(type="cuda")
    value = SimpleNamespace(shape=(1, 4, 4, 8), device=cuda, dtype=torch.float16, dim=lambda: 4)
    monkeypatch.setattr(functional.torch, "Tensor", SimpleNamespace)
    _, triton = functional._checked_value(value, 1, Geometry(), "auto")
    assert not triton
    monkeypatch.setattr("opbench_kernels.implementation.HAS_TRITON", True)
    assert functional._checked_value(value, 1, Geometry(), "auto")[1]


def test_plans_of_large_images_are_not_kept(monkeypatch):
    value, packed = torch.randn(1, 5, 6, 8), torch.randn(1, 5, 6, 32)
    expected = dcnv4(value, packed, groups=1, implementation="torch")
    sampling_torch._plan.cache_clear()
    monkeypatch.setattr(sampling_torch, "MOST_KEPT_BAGS", 30)
    torch.testing.assert_close(dcnv4(value, packed, groups=1, implementation="torch"), expected)
    assert sampling_torch._plan.cache_info().currsize == 0
    monkeypatch.setattr(sampling_torch, "MOST_KEPT_BAGS", 31)
    dcnv4(value, packed, groups=1, implementation="torch")
    assert sampling_torch._plan.cache_info().currsize == 1


def test_training_copies_nothing_to_the_device_in_later_calls(monkeypatch):
    # Such a copy waits for the device, and cannot be part of a CUDA graph.
    value, packed = torch.randn(1, 6, 5, 8, requires_grad=True), torch.randn(1, 6, 5, 32)
    first = dcnv4(value, packed, groups=1, implementation="torch")
    monkeypatch.setattr(sampling_torch.torch, "tensor", None)
    torch.testing.assert_close(dcnv4(value, packed, groups=1, implementation="torch"), first)


def test_what_is_kept_of_a_shape_serves_later_calls_of_any_kind():
    """The CPU's inference keeps tensors per shape: none from inference mode, a fake mode or another default device."""
    value, offset_mask = torch.randn(1, 5, 7, 32), torch.randn(1, 5, 7, 32)
    with torch.inference_mode():
        first = dcnv4(value, offset_mask, groups=1)
    with torch.device("meta"):
        second = dcnv4(value, offset_mask, groups=1)
        other = dcnv4(torch.zeros(1, 3, 11, 32, device="cpu"), torch.zeros(1, 3, 11, 32, device="cpu"), groups=1)
    with FakeTensorMode() as mode:
        fake = dcnv4(mode.from_tensor(value), mode.from_tensor(offset_mask), groups=1)
    leaf = value.clone().requires_grad_()
    dcnv4(leaf, offset_mask, groups=1).sum().backward()
    torch.testing.assert_close(second, first)
    torch.testing.assert_close(dcnv4(value, offset_mask, groups=1), first)
    assert not isinstance(first, FakeTensor)
    assert fake.shape == first.shape
    assert other.device.type == "cpu"
    assert leaf.grad.isfinite().all()
