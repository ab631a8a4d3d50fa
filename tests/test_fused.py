"""The fused inference paths against the reference, by value."""

import pytest
import torch
import torch.nn.functional as F
from opbench_kernels import dcnv4
from opbench_kernels.deform import dcnv4_fused, reference
from opbench_kernels.deform.dcnv4_fused import dcnv4_from_input, pack_offset_mask
from opbench_kernels.deform.geometry import Geometry, padded_offset_mask_channels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")


def parameters(channels, groups, points, seed):
    generator = torch.Generator().manual_seed(seed)
    packed = padded_offset_mask_channels(groups, points)
    weight = torch.randn(packed, channels, generator=generator) / channels**0.5
    return weight, torch.randn(packed, generator=generator), generator


def expected_from(x, weight, bias, groups, geometry):
    """dcnv4(x, linear(x)) in float64, by the reference."""
    points = geometry.points
    packed = F.linear(x, weight, bias)[..., : 3 * points * groups].unflatten(-1, (groups, 3 * points))
    offset = packed[..., : 2 * points].unflatten(-1, (points, 2))
    split = x.unflatten(-1, (groups, -1))
    return reference.deformable_sample(split, offset, packed[..., 2 * points :], geometry).flatten(-2)


@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize(
    ("size", "channels", "groups", "geometry"),
    [
        ((2, 5, 7), 64, 2, Geometry()),
        ((1, 4, 5), 144, 9, Geometry()),  # groups that no program divides, channels that are no multiple of 64
        ((1, 4, 4), 24, 1, Geometry(kernel=(3, 5), padding=(1, 2), remove_center=True, offset_scale=0.5)),
        ((1, 1, 6), 32, 1, Geometry(dilation=(2, 2), padding=(2, 2))),
    ],
)
def test_sampling_with_offsets_of_its_own(dtype, size, channels, groups, geometry):
    weight, bias, generator = parameters(channels, groups, geometry.points, seed=1)
    x = torch.randn(*size, channels, generator=generator)
    x, weight, bias = (tensor.to(dtype) for tensor in (x, weight, bias))
    packed = pack_offset_mask(weight.to(DEVICE), bias.to(DEVICE), groups, geometry.points)
    got = dcnv4_from_input(x.to(DEVICE), *packed, groups=groups, geometry=geometry).cpu()
    expected = expected_from(x.double(), weight.double(), bias.double(), groups, geometry)
    assert got.dtype == dtype
    # Inputs are exact; the products are summed in float32, and only the output is rounded to the dtype: twice the
    # roundoff, because the interpreter truncates to bfloat16.
    error = (got.double() - expected).abs().max() / expected.abs().max()
    assert error < 2 * ROUNDOFF[dtype] + 64 * ROUNDOFF[torch.float32]


def test_pixels_that_are_not_finite_stay_where_they_belong():
    weight, bias, generator = parameters(16, 1, 9, seed=2)
    x = torch.randn(1, 6, 6, 16, generator=generator)
    bias[:18] = torch.randn(18, generator=generator)
    weight *= 1e-3  # offsets nearly constant, so a bad pixel is the only way to a bad sum
    x[0, 0, 3] = torch.inf
    expected = expected_from(x.double(), weight.double(), bias.double(), 1, Geometry())
    packed = pack_offset_mask(weight.to(DEVICE), bias.to(DEVICE), 1, 9)
    got = dcnv4_from_input(x.to(DEVICE), *packed, groups=1, geometry=Geometry()).cpu()
    assert expected.isfinite().any()
    assert torch.equal(got.isfinite(), expected.isfinite())


def test_one_product_for_value_and_offset_mask_is_read_in_place():
    # The concatenated projection's halves are strided views; the kernel must take them without a copy.
    from opbench_kernels.deform.launch import sampled_dcnv4

    both = torch.randn(2, 5, 4, 64 + 56, device=DEVICE)
    value, offset_mask = both[..., :64], both[..., 64:]
    got = dcnv4(value, offset_mask, groups=2, implementation="triton")
    expected = dcnv4(value.contiguous(), offset_mask.contiguous(), groups=2, implementation="torch")
    torch.testing.assert_close(got, expected)
    sampled = sampled_dcnv4(value, offset_mask, 2, Geometry())
    assert sampled.value.data_ptr() == both.data_ptr()
    assert sampled.offset.untyped_storage().data_ptr() == both.untyped_storage().data_ptr()


def test_it_refuses_what_it_cannot_do():
    weight, bias, _ = parameters(16, 1, 9, seed=3)
    packed = pack_offset_mask(weight, bias, 1, 9)
    x = torch.zeros(1, 4, 4, 16)
    with pytest.raises(ValueError, match="geometry must keep the image's size"):
        dcnv4_from_input(x, *packed, groups=1, geometry=Geometry(stride=(2, 2)))
    with pytest.raises(ValueError, match="has no gradient"):
        dcnv4_from_input(x.clone().requires_grad_(), *packed, groups=1, geometry=Geometry())
    with pytest.raises(ValueError, match=r"x must be \(N, H, W, C\), C a multiple of 3 groups"):
        dcnv4_from_input(x, *packed, groups=3, geometry=Geometry())
    with pytest.raises(ValueError, match=r"weight must be \(9, 16, 4\) in torch.float32 on cpu.* got .*torch.float16"):
        dcnv4_from_input(x, *(tensor.half() for tensor in packed), groups=1, geometry=Geometry())
    with pytest.raises(ValueError, match=r"bias must be \(9, 4\).* got \(9, 3\)"):
        dcnv4_from_input(x, packed[0], packed[1][:, :3], groups=1, geometry=Geometry())


def test_it_reads_tf32_from_either_way_to_set_it():
    weight, bias, _ = parameters(16, 1, 9, seed=4)
    packed = [tensor.to(DEVICE) for tensor in pack_offset_mask(weight, bias, 1, 9)]
    x = torch.randn(1, 4, 4, 16, device=DEVICE)
    expected = dcnv4_from_input(x, *packed, groups=1, geometry=Geometry())
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # the older way to ask raises from here on
        got = dcnv4_from_input(x, *packed, groups=1, geometry=Geometry())
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)


def test_it_is_an_operator_that_compiles_into_one_graph():
    weight, bias, _ = parameters(16, 1, 9, seed=5)
    packed = [tensor.to(DEVICE) for tensor in pack_offset_mask(weight, bias, 1, 9)]
    x = torch.randn(1, 4, 4, 16, device=DEVICE)

    def model(x):
        return dcnv4_from_input(x.relu(), *packed, groups=1, geometry=Geometry()).sin()

    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
    torch.library.opcheck(dcnv4_fused._from_input, (x, *packed, 1, [3, 3], [1, 1], [1, 1], 1.0, False))
