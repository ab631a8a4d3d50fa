"""Deformable sampling against its formulas, against torchvision and against finite differences."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opbench_kernels import dcnv3, dcnv4, reference
from opbench_kernels.geometry import Geometry, padded_offset_mask_channels, pair
from torchvision.ops import deform_conv2d

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


@st.composite
def cases(draw):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
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
    height, width = (draw(st.integers(max(1, r - 2 * p), 7)) for r, p in zip(reach, arguments["padding"], strict=True))
    return {
        "arguments": arguments,
        "size": (draw(st.integers(0, 2)), height, width),
        "groups": draw(st.integers(1, 3)),
        "group_channels": draw(st.sampled_from([1, 3, 4, 8])),
        "offset_std": draw(st.sampled_from([0.0, 0.7, 30.0])),
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


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_any_geometry_forward_and_backward(implementation, case):
    geometry, groups = geometry_of(case["arguments"]), case["groups"]
    value, offset_mask = draw_tensors(case, geometry)
    value, offset_mask = value.float(), smooth_offsets(offset_mask.float(), groups, geometry.points)
    exact = [tensor.double().requires_grad_() for tensor in (value, offset_mask)]
    expected = reference_dcnv4(*exact, groups, geometry)
    gradient = torch.linspace(-1, 1, max(expected.numel(), 1), dtype=torch.float64)[: expected.numel()]
    gradient = gradient.view(expected.shape)
    expected_grads = torch.autograd.grad(expected, exact, gradient)

    given_ = [tensor.to(DEVICE).requires_grad_() for tensor in (value, offset_mask)]
    got = dcnv4(*given_, groups=groups, implementation=implementation, **case["arguments"])
    got_grads = torch.autograd.grad(got, given_, gradient.float().to(DEVICE))

    # A coordinate is as large as image and offset together; its rounding moves the sample by that much.
    reach = 10 + 4 * case["offset_std"]
    for result, wanted in zip((got, *got_grads), (expected, *expected_grads), strict=True):
        assert result.shape == wanted.shape
        scale = wanted.abs().max().clamp(min=1e-3) if wanted.numel() else 1
        error = (result.double().cpu() - wanted).abs() / scale
        assert error.numel() == 0 or error.max() < 32 * reach * 2.0**-24


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "groups"), [(64, 2), (128, 1), (15, 3), (40, 2)])
def test_every_dtype_and_group_width(implementation, dtype, channels, groups):
    geometry = Geometry()
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(2, 6, 5, channels, generator=generator).to(dtype)
    packed = torch.randn(2, 6, 5, padded_offset_mask_channels(groups, 9), generator=generator).to(dtype)
    expected = reference_dcnv4(value.double(), packed.double(), groups, geometry)
    got = dcnv4(value.to(DEVICE), packed.to(DEVICE), groups=groups, implementation=implementation)
    assert got.dtype == dtype
    error = (got.double().cpu() - expected).abs().max() / expected.abs().max()
    # In float32 the coordinates, up to 8 here, round as much as the sums.
    assert error < 4 * DTYPES[dtype] + 8 * 2 * 2.0**-24


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
    value = torch.randn(1, 4, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(1, 4, 3, padded_offset_mask_channels(1, 6), generator=generator, dtype=torch.float64)
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
        assert got.item() == expected


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_inputs_that_are_not_contiguous(implementation):
    value = torch.randn(2, 5, 8, 4, device=DEVICE).transpose(1, 2)
    wide = torch.randn(2, 8, 5, 80, device=DEVICE)
    packed = wide[..., 8:64]
    got = dcnv4(value, packed, groups=2, implementation=implementation)
    expected = dcnv4(value.contiguous(), packed.contiguous(), groups=2, implementation="torch")
    assert torch.allclose(got, expected, atol=1e-5)


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
        ({"implementation": "cuda"}, "implementation must be"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dcnv4(torch.randn(1, 4, 4, 6), torch.randn(1, 4, 4, 56), **{"groups": 2, **change})


def test_pair_refuses_what_is_not_one_or_two_integers():
    for bad in (1.5, (1, 2, 3), (True, 1), "33"):
        with pytest.raises((ValueError, TypeError)):
            pair(bad, "kernel_size", 1)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(64, 56, 56, 128), (64, 7, 7, 1024), (1, 200, 320, 128)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_published_shapes_on_a_gpu(shape, dtype):
    groups = shape[-1] // 32
    value = torch.randn(shape, device="cuda").to(dtype)
    packed = torch.randn(*shape[:3], padded_offset_mask_channels(groups, 9), device="cuda").to(dtype)
    expected = reference_dcnv4(value.double(), packed.double(), groups, Geometry())
    got = dcnv4(value, packed, groups=groups)
    tolerance = 4 * DTYPES[dtype] + 8 * max(shape[1:3]) * 2.0**-24
    assert (got.double() - expected).abs().max() / expected.abs().max() < tolerance


def test_kernels_compile_for_gpus_that_are_not_here():
    # The interpreter accepts what the compiler refuses, and says nothing of registers.
    variants = [
        *(f"fwd:fp16:{architecture}:8x8" for architecture in (80, 90, 100)),
        *(f"{kernel}:8x8" for kernel in ("fwd:fp32:90", "fwd:bf16:90", "bwd:fp16:90", "bwd:fp32:80")),
        *(f"{direction}:fp16:90:1x1" for direction in ("fwd", "bwd")),
    ]
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run(
        [sys.executable, script, *variants], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["variant"] for result in results] == variants
    for result in results:
        assert result["stack_bytes"] == 0, result
        assert result["local_accesses"] == 0, result
        # Every corner of every point is one load of 16 bytes a thread.
        assert result["loads_128_bit"] >= 36, result


def sample_arguments(requires_grad):
    generator = torch.Generator().manual_seed(4)
    value = torch.randn(2, 5, 4, 2, 8, generator=generator).to(DEVICE)
    packed = torch.randn(2, 5, 4, 2, 27, generator=generator).to(DEVICE)
    tensors = (value, packed[..., :18].unflatten(-1, (9, 2)), packed[..., 18:])
    geometry = ([3, 3], [1, 1], [1, 1], [1, 1], 1.0, False)
    return (*(tensor.detach().requires_grad_(requires_grad) for tensor in tensors), *geometry)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck looks at its copies
@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_operator_keeps_torchs_contract(requires_grad):
    from opbench_kernels import deform_triton

    torch.library.opcheck(deform_triton._forward, sample_arguments(requires_grad))


def test_a_second_derivative_is_refused():
    value, offset, mask, *_ = sample_arguments(True)
    out = dcnv3(value.flatten(-2), offset.flatten(3), mask.flatten(3), groups=2, implementation="triton")
    [grad] = torch.autograd.grad(out.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        grad.sum().backward()


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
