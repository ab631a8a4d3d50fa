"""DCNv2, function and module: torchvision's operator, a plain loop, mmcv's checkpoints, torch's machinery."""

import copy
import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opbench_kernels import DCNv2, dcnv2
from torchvision.ops import deform_conv2d

# Triton's interpreter computes with numpy, which warns where a GPU silently makes NaN.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
IMPLEMENTATIONS = ["torch", "triton"]


@st.composite
def cases(draw):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    arguments = {
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
    }
    reach = [d * (k - 1) + 1 for d, k in zip(arguments["dilation"], kernel, strict=True)]
    size = tuple(draw(st.integers(max(1, r - 2 * p), 7)) for r, p in zip(reach, arguments["padding"], strict=True))
    groups, deform_groups = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 3), (3, 2), (6, 6)]))
    return {
        "kernel": kernel,
        "arguments": arguments,
        "size": (draw(st.integers(1, 2)), *size),
        "channels": (draw(st.sampled_from([6, 12, 30])), draw(st.sampled_from([6, 18]))),
        "groups": groups,
        "deform_groups": deform_groups,
        "bias": draw(st.booleans()),
        "offset_std": draw(st.sampled_from([0.0, 0.7, 30.0])),
        "channels_last": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


def out_size(size, kernel, stride, padding, dilation):
    axes = zip(size, kernel, stride, padding, dilation, strict=True)
    return tuple((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in axes)


def draw_tensors(case):
    """input, offset, mask, weight and bias, float64."""
    generator = torch.Generator().manual_seed(case["seed"])
    inputs, outputs = case["channels"]
    batch, *size = case["size"]
    points = math.prod(case["kernel"])
    result = out_size(size, case["kernel"], **case["arguments"])

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # Away from integers, where the gradient jumps.
    offset = normal(batch, 2 * points * case["deform_groups"], *result) * case["offset_std"]
    offset = offset.floor() + 0.125 + 0.75 * (offset - offset.floor())
    mask = normal(batch, points * case["deform_groups"], *result)
    weight = normal(outputs, inputs // case["groups"], *case["kernel"]) / (points * inputs) ** 0.5
    image = normal(batch, inputs, *size)
    if case["channels_last"]:
        image, offset, mask, weight = (
            tensor.contiguous(memory_format=torch.channels_last) for tensor in (image, offset, mask, weight)
        )
    return [image, offset, mask, weight] + ([normal(outputs)] if case["bias"] else [])


def torchvisions(image, offset, mask, weight, bias=None, **arguments):
    """deform_conv2d, which takes both numbers of groups from the shapes."""
    arguments = {name: arguments[name] for name in ("stride", "padding", "dilation")}
    return deform_conv2d(image, offset, weight, bias, mask=mask, **arguments)


def keyword(case):
    return case["arguments"] | {"groups": case["groups"], "deform_groups": case["deform_groups"]}


def with_gradients(function, tensors, arguments):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = function(*leaves, **arguments)
    along = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, along)]


@settings(deadline=None, max_examples=60)
@given(cases())
def test_the_output_and_every_gradient_are_torchvisions(case):
    tensors, arguments = draw_tensors(case), keyword(case)
    expected = with_gradients(torchvisions, tensors, arguments)
    got = with_gradients(dcnv2, tensors, arguments)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.slow  # ten seconds an example in the interpreter where groups are many
@settings(deadline=None, max_examples=12)
@given(cases())
def test_triton_is_torchvisions_whatever_the_geometry(case):
    assert_triton_is_right(draw_tensors(case), keyword(case), torch.float32)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [
        ((2, 3), (2, 1), (0, 2), (1, 2), (1, 1)),
        ((3, 1), (1, 3), (2, 0), (2, 1), (2, 3)),
        ((1, 1), (1, 1), (1, 1), (1, 1), (3, 2)),
    ],
)
def test_triton_is_torchvisions(kernel, stride, padding, dilation, groups):
    """Strides, paddings and dilations that differ from axis to axis, and offsets that leave the image."""
    case = {"kernel": kernel, "size": (2, 5, 6), "channels": (6, 6), "bias": True, "offset_std": 3.0, "seed": 7}
    case |= {"arguments": {"stride": stride, "padding": padding, "dilation": dilation}, "channels_last": False}
    case |= dict(zip(("groups", "deform_groups"), groups, strict=True))
    assert_triton_is_right(draw_tensors(case), keyword(case), torch.float32)


@pytest.mark.parametrize("dtype", list(ROUNDOFF))
@pytest.mark.parametrize(
    ("channels", "groups", "deform_groups"), [((40, 20), 1, 1), ((80, 48), 2, 1), ((48, 144), 1, 3), ((96, 36), 2, 3)]
)
def test_triton_in_each_dtype_where_no_tile_divides_the_channels(channels, groups, deform_groups, dtype):
    """Several blocks of channels, of outputs and of pixels, and segments of both kinds of groups."""
    case = {"kernel": (2, 1), "size": (2, 6, 7), "channels": channels, "groups": groups, "deform_groups": deform_groups}
    case |= {"arguments": {"stride": (1, 1), "padding": (1, 0), "dilation": (1, 1)}, "bias": True, "offset_std": 0.7}
    assert_triton_is_right(draw_tensors(case | {"channels_last": True, "seed": 3}), keyword(case), dtype)


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (1, 1)])
def test_triton_on_an_image_of_one_row_or_column(size):
    case = {"kernel": (3, 3), "size": (1, *size), "channels": (6, 6), "groups": 1, "deform_groups": 1, "bias": False}
    case |= {"arguments": {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}, "offset_std": 0.7}
    tensors = draw_tensors(case | {"channels_last": False, "seed": 4})
    assert_triton_is_right(tensors, keyword(case), torch.float32)


def test_the_weights_gradient_is_summed_in_slices(monkeypatch):
    from opbench_kernels.deform import dcnv2_launch

    monkeypatch.setattr(dcnv2_launch, "SLICED_PIXELS", 64)
    case = {"kernel": (1, 2), "size": (3, 8, 9), "channels": (6, 6), "groups": 1, "deform_groups": 1, "bias": False}
    case |= {"arguments": {"stride": (1, 1), "padding": (0, 1), "dilation": (1, 1)}, "offset_std": 0.7}
    tensors = draw_tensors(case | {"channels_last": True, "seed": 5})
    assert_triton_is_right(tensors, keyword(case), torch.float32)


def test_a_deterministic_backward_pass_is_right():
    case = {"kernel": (3, 3), "size": (1, 5, 6), "channels": (6, 6), "groups": 1, "deform_groups": 2, "bias": False}
    case |= {"arguments": {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}, "offset_std": 0.7}
    torch.use_deterministic_algorithms(True)
    try:
        assert_triton_is_right(draw_tensors(case | {"channels_last": True, "seed": 6}), keyword(case), torch.float16)
    finally:
        torch.use_deterministic_algorithms(False)


def assert_triton_is_right(exact, arguments, dtype):
    """In a dtype, on tensors rounded to it."""
    tensors = [tensor.to(DEVICE, dtype) for tensor in exact]
    # Offsets in float32: their rounding would move points, in the formula too, across pixels.
    tensors[1] = exact[1].to(DEVICE, torch.float32)
    expected = with_gradients(torchvisions, [tensor.double().cpu() for tensor in tensors], arguments)
    got = with_gradients(lambda *leaves, **given: dcnv2(*leaves, **given, implementation="triton"), tensors, arguments)
    for mine, right in zip(got, expected, strict=True):
        error = (mine.double().cpu() - right).abs().max() / right.abs().max().clamp(min=1e-30)
        # The samples are rounded before the product, and every result once.
        assert error < 4 * ROUNDOFF[dtype] + 128 * ROUNDOFF[torch.float32]
    assert got[0].is_contiguous(memory_format=torch.channels_last) or got[0].is_contiguous()


def by_loop(image, offset, mask, weight):
    """One output after the other, stride 1, padding 1, of one image: numbers instead of tensors."""
    _, channels, height, width = image.shape
    out = torch.zeros(weight.shape[0], height, width, dtype=torch.float64)
    for y, x, k in ((y, x, k) for y in range(height) for x in range(width) for k in range(9)):
        place_y = y - 1 + k // 3 + offset[0, 2 * k, y, x].item()
        place_x = x - 1 + k % 3 + offset[0, 2 * k + 1, y, x].item()
        sample = torch.zeros(channels, dtype=torch.float64)
        for row in range(height):
            for column in range(width):
                share = max(0, 1 - abs(place_y - row)) * max(0, 1 - abs(place_x - column))
                sample += share * image[0, :, row, column]
        out[:, y, x] += weight[:, :, k // 3, k % 3] @ sample * mask[0, k, y, x]
    return out.unsqueeze(0)


def some_tensors(dtype=torch.float64, size=(4, 5), channels=6, batch=1, outputs=4):
    generator = torch.Generator().manual_seed(2)
    shapes = [(batch, channels, *size), (batch, 18, *size), (batch, 9, *size), (outputs, channels, 3, 3)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for shape in shapes]


def test_the_output_is_a_plain_loops():
    tensors = [tensor.cpu() for tensor in some_tensors()]
    torch.testing.assert_close(dcnv2(*tensors, padding=1), by_loop(*tensors))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_point_that_is_nowhere_counts_nothing_and_a_pixel_reaches_its_points_alone(bad, implementation):
    image, offset, mask, weight = some_tensors(torch.float32)
    function = partial(dcnv2, padding=1, implementation=implementation)
    expected = function(image, offset, mask, weight)
    moved, masked = offset.clone(), mask.clone()
    moved[0, 4, 1, 2] = bad  # the row of point 2
    masked[0, 2, 1, 2] = 0
    torch.testing.assert_close(
        function(image, moved, mask, weight),
        function(image, offset, masked, weight),
    )
    spoiled = image.clone()
    spoiled[0, :, 0, 0] = bad
    changed = ~torch.isclose(function(spoiled, offset, mask, weight), expected, rtol=1e-4, atol=1e-5).all(1)[0]
    reach = torch.zeros(4, 5, dtype=torch.bool, device=DEVICE)
    for point in range(9):
        y = torch.arange(4, device=DEVICE).view(-1, 1) - 1 + point // 3 + offset[0, 2 * point]
        x = torch.arange(5, device=DEVICE) - 1 + point % 3 + offset[0, 2 * point + 1]
        reach |= (y > -1) & (y < 1) & (x > -1) & (x < 1)
    assert reach.any()
    assert not (changed & ~reach).any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_keeps_the_memory_format_as_a_convolution_does(implementation):
    image, *rest = some_tensors(torch.float32, channels=8)
    function = partial(dcnv2, padding=1, implementation=implementation)
    assert function(image, *rest).is_contiguous()
    last = image.contiguous(memory_format=torch.channels_last)
    assert function(last, *rest).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(function(last, *rest), function(image, *rest))


def test_offsets_and_masks_may_be_parts_of_one_tensor():
    image, offset, mask, weight = some_tensors(torch.float32)
    both = torch.cat([offset, mask], 1).contiguous(memory_format=torch.channels_last)
    parts = both[:, :18], both[:, 18:]
    assert not parts[0].is_contiguous(memory_format=torch.channels_last)
    got = dcnv2(image, *parts, weight, padding=1, implementation="triton")
    torch.testing.assert_close(got, dcnv2(image, offset, mask, weight, padding=1, implementation="torch"))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_empty_batch_is_an_empty_result(implementation):
    tensors = [tensor.requires_grad_() for tensor in some_tensors(torch.float32, batch=0)]
    out = dcnv2(*tensors, padding=1, implementation=implementation)
    assert out.shape == (0, 4, 4, 5)
    assert torch.autograd.grad(out.sum(), tensors)[3].eq(0).all()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck looks at its copies
@pytest.mark.parametrize("requires_grad", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_operator_keeps_torchs_contract(requires_grad):
    from opbench_kernels.deform import dcnv2_operators

    image, offset, mask, weight = some_tensors(torch.float32, size=(2, 3))
    tensors = [tensor.requires_grad_(requires_grad) for tensor in (image, offset, mask, weight, weight[:, 0, 0, 0])]
    tensors[4] = tensors[4].detach().clone().requires_grad_(requires_grad)
    torch.library.opcheck(dcnv2_operators._dcnv2, (*tensors, [1, 1], [1, 1], [1, 1], 1, 1))


def test_a_second_derivative_is_refused():
    tensors = [tensor.requires_grad_() for tensor in some_tensors(torch.float32)]
    out = dcnv2(*tensors, padding=1, implementation="triton")
    [grad] = torch.autograd.grad(out.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="opbench_kernels::dcnv2 has no second derivative"):
        grad.sum().backward()


def test_autocast_computes_in_the_lower_precision():
    tensors = some_tensors(torch.float32)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = dcnv2(*tensors, padding=1)
    image, offset, mask, weight = tensors
    assert got.dtype == torch.bfloat16
    assert torch.equal(
        got, dcnv2(image.bfloat16(), offset, mask, weight, padding=1)
    )  # the same call on the same values


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_compiles_into_one_graph(implementation):
    tensors = [tensor.requires_grad_() for tensor in some_tensors(torch.float32)]
    function = partial(dcnv2, padding=1, implementation=implementation)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), function(*tensors))


BAD = [
    ({"groups": 4}, "groups must divide the 6 channels of input, got 4"),
    ({"deform_groups": 0}, "deform_groups must divide the 6 channels of input, got 0"),
    ({"groups": 3}, "groups must divide the 4 output channels of weight, got 3"),
    ({"groups": 2}, "weight must have 3 input channels"),
    ({"stride": 0}, "stride must be an integer of at least 1"),
    ({"padding": -1}, "padding must be an integer of at least 0"),
    ({"dilation": 9}, "smaller than the kernel's reach"),
    ({"stride": 2}, "offset must have shape (1, 18, 2, 3), got (1, 18, 4, 5)"),
    ({"deform_groups": 2}, "offset must have shape (1, 36, 4, 5), got (1, 18, 4, 5)"),
    ({"mask": torch.zeros(1, 18, 4, 5)}, "mask must have shape (1, 9, 4, 5), got (1, 18, 4, 5)"),
    ({"mask": torch.zeros(1, 9, 4, 5, dtype=torch.int32)}, "mask must be a floating tensor, got torch.int32"),
    ({"offset": None}, "offset must be a floating tensor, got NoneType"),
    ({"offset": torch.zeros(1, 18, 4, 5, device="meta")}, "offset must be on cpu as input is, got meta"),
    ({"input": torch.zeros(6, 4, 5)}, "input must be a tensor of four axes"),
    ({"input": torch.zeros(1, 6, 0, 5)}, "input must be a tensor of four axes, none but the batch empty"),
    ({"input": torch.zeros(1, 6, 4, 5, dtype=torch.int64)}, "input must be one of float32"),
    ({"weight": [1.0]}, "weight must be a tensor of four axes, none but the batch empty, got list"),
    ({"weight": torch.zeros(4, 6, 3, 3, device="meta")}, "weight must be on cpu as input is, got meta"),
    ({"bias": torch.zeros(5)}, "bias must have shape (4,), got (5,)"),
    ({"implementation": "cuda"}, "implementation must be"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments_are_named(change, message):
    tensors = [tensor.float().cpu() for tensor in some_tensors()]
    given_ = dict(zip(("input", "offset", "mask", "weight"), tensors, strict=True)) | {"padding": 1}
    with pytest.raises(ValueError, match=re.escape(message)):
        dcnv2(**given_ | change)


# ---- the module

MMCV_NAMES = {"weight", "bias", "conv_offset.weight", "conv_offset.bias"}


def random_module(dtype=torch.float64, **arguments):
    arguments = {"in_channels": 6, "out_channels": 4, "kernel_size": 3, "padding": 1} | arguments
    module = DCNv2(**arguments).to(DEVICE, dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def image_of(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(DEVICE, dtype)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bias": False, "stride": 2},
        {"kernel_size": (3, 5), "padding": (0, 2), "dilation": (1, 2), "stride": (2, 1)},
        {"groups": 2, "deform_groups": 3},
        {"kernel_size": 2, "deform_groups": 2, "bias": "auto"},
    ],
)
def test_the_module_is_mmcvs(arguments):
    """Its convolution's numbers: offsets of all groups, then masks, with mmcv's interleaved (dy, dx)."""
    module, x = random_module(**arguments), image_of(2, 6, 7, 8)
    first, second, mask = module.conv_offset(x).chunk(3, dim=1)
    offset = torch.cat((first, second), dim=1)
    options = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    expected = deform_conv2d(x, offset, module.weight, module.bias, mask=mask.sigmoid(), **options)
    torch.testing.assert_close(module(x), expected)


def test_the_modules_gradients_are_right():
    module = random_module()
    x = image_of(1, 6, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(module, x, nondet_tol=1e-12)
    module(x).sum().backward()
    assert all(parameter.grad.ne(0).any() for parameter in module.parameters())


def test_parameters_have_mmcvs_names_shapes_and_initial_values():
    torch.manual_seed(0)
    module = DCNv2(6, 4, (3, 2), groups=2, deform_groups=3)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == {
        "weight": (4, 3, 3, 2), "bias": (4,), "conv_offset.weight": (54, 6, 3, 2), "conv_offset.bias": (54,),
    }  # fmt: skip
    assert set(shapes) == MMCV_NAMES
    assert set(DCNv2(6, 4, 3, bias=False).state_dict()) == MMCV_NAMES - {"bias"}
    for name, tensor in module.state_dict().items():
        assert tensor.eq(0).all() == (name != "weight"), name
    bound = 36**-0.5
    assert 0.9 * bound < module.weight.abs().max() <= bound


@pytest.mark.parametrize("version", [None, 1])
def test_a_checkpoint_of_mmcvs_first_version_loads_as_mmengine_loads_it(version):
    """Its loader hands the whole dictionary to every module, torch's own only what stands under the module's name."""
    module, other = random_module(), DCNv2(6, 4, 3, padding=1, dtype=torch.float64).to(DEVICE)
    old = {f"conv2.{name}".replace("conv2.conv_offset", "conv2_offset"): t for name, t in module.state_dict().items()}
    assert set(old) == {"conv2.weight", "conv2.bias", "conv2_offset.weight", "conv2_offset.bias"}
    missing, unexpected, errors = [], [], []
    other._load_from_state_dict(old, "conv2.", {"version": version}, True, missing, unexpected, errors)
    other.conv_offset._load_from_state_dict(old, "conv2.conv_offset.", {}, True, missing, unexpected, errors)
    assert [missing, unexpected, errors] == [[], [], []]
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name]), name


def test_a_checkpoint_loads_strictly():
    module, other = random_module(deform_groups=3), DCNv2(6, 4, 3, padding=1, deform_groups=3, dtype=torch.float64)
    other.to(DEVICE).load_state_dict(module.state_dict(), strict=True)
    x = image_of(1, 6, 4, 5)
    torch.testing.assert_close(other(x), module(x))


def test_a_new_module_is_half_a_convolution():
    module, x = DCNv2(6, 4, 3, padding=1, dtype=torch.float64).to(DEVICE), image_of(1, 6, 5, 4)
    expected = 0.5 * torch.nn.functional.conv2d(x, module.weight, padding=1)
    torch.testing.assert_close(module(x), expected)


def test_the_module_under_autocast_and_in_half_precision():
    module, x = random_module(torch.float32), image_of(1, 6, 5, 4, dtype=torch.float32)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
    expected = module(x)
    got = copy.deepcopy(module).bfloat16()(x.bfloat16()).float()
    assert (got - expected).abs().max() < 0.1 * expected.abs().max()


def test_the_module_exports_with_any_size():
    module, x = random_module(torch.float32).eval(), image_of(2, 6, 5, 4, dtype=torch.float32)
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(module, (x,), dynamic_shapes={"x": sizes})
    other = image_of(3, 6, 7, 5, dtype=torch.float32)
    torch.testing.assert_close(program.module()(other), module(other))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be a positive integer, got 0"),
        ({"groups": 4}, "groups must divide 6 in_channels and 4 out_channels: 4"),
        ({"deform_groups": 4}, "deform_groups must divide the 6 in_channels, got 4"),
        ({"kernel_size": 0}, "kernel_size must be an integer of at least 1"),
        ({"stride": 1.5}, "stride must be an integer of at least 1"),
        ({"implementation": "cuda"}, "implementation must be"),
        ({"padding": "same"}, "padding must be an integer of at least 0"),
    ],
)
def test_bad_arguments_of_the_module_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DCNv2(**{"in_channels": 6, "out_channels": 4, "kernel_size": 3} | arguments)


def test_an_input_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=re.escape("x must be (N, 6, H, W), got shape (1, 5, 4, 4)")):
        DCNv2(6, 4, 3)(torch.zeros(1, 5, 4, 4))
    with pytest.raises(ValueError, match="smaller than the kernel's reach"):
        DCNv2(6, 4, 5)(torch.zeros(1, 6, 4, 4))


def test_the_modules_arguments_show():
    assert repr(DCNv2(6, 4, 3, bias=False)).startswith("DCNv2(\n  in_channels=6, out_channels=4, kernel_size=(3, 3)")
    assert "deform_groups=1, bias=False" in repr(DCNv2(6, 4, 3, bias=False))
