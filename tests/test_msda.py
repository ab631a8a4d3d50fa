"""Multi-scale deformable attention, function and module: the formula, grid_sample, the authors' parameters."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from opbench_kernels import MSDeformAttn, ms_deform_attn
from opbench_kernels.msda import sampling_torch
from opbench_kernels.msda.reference import attend

# Triton's interpreter computes with numpy, which warns where a GPU silently makes NaN.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
IMPLEMENTATIONS = ["torch", "triton"]


def level_tensors(shapes, device=DEVICE):
    sizes = torch.tensor(shapes, device=device)
    return sizes, sizes.prod(-1).cumsum(0) - sizes.prod(-1)


def draw_tensors(shapes, *, batch=2, queries=7, heads=2, head_dim=4, points=2, spread=1.0, seed=1):
    """value, locations and weights, float64; locations from -0.2 to 1.2, away from the pixels, or wider."""
    generator = torch.Generator().manual_seed(seed)
    length, levels = sum(height * width for height, width in shapes), len(shapes)
    value = torch.randn(batch, length, heads, head_dim, generator=generator, dtype=torch.float64)
    places = torch.rand(batch, queries, heads, levels, points, 2, generator=generator, dtype=torch.float64)
    sizes = torch.tensor(shapes).flip(-1).view(levels, 1, 2)
    places = (0.5 + (places - 0.5) * 1.4 * spread) * sizes - 0.5
    places = places.floor() + 0.125 + 0.75 * (places - places.floor())  # its gradient jumps at integers
    weights = torch.randn(batch, queries, heads, levels, points, generator=generator, dtype=torch.float64)
    return value, (places + 0.5) / sizes, weights


def by_formula(value, shapes, locations, weights):
    return attend(value, shapes, locations, weights).flatten(2)


def by_grid_sample(value, shapes, locations, weights):
    """As the authors' form in torch: level by level, a location from 0 to 1 as grid_sample's from -1 to 1."""
    out = 0
    for level, part in enumerate(value.split([height * width for height, width in shapes], dim=1)):
        for head in range(value.shape[2]):
            image = part[:, :, head].transpose(1, 2).unflatten(-1, shapes[level])
            sampled = F.grid_sample(image, 2 * locations[:, :, head, level] - 1, align_corners=False)  # (N, D, Lq, P)
            share = (sampled * weights[:, None, :, head, level]).sum(-1).transpose(1, 2)
            where = F.one_hot(torch.tensor(head), value.shape[2]).to(share)
            out = out + share.unsqueeze(2) * where.view(-1, 1)
    return out.flatten(2)


def with_gradients(function, tensors):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    along = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, along)]


def ours(shapes, implementation="torch"):
    sizes, starts = level_tensors(shapes)

    def function(value, locations, weights):
        return ms_deform_attn(value, sizes, starts, locations, weights, implementation=implementation)

    return function


PYRAMIDS = [[(5, 4), (3, 2)], [(6, 7)], [(4, 5), (2, 3), (1, 2), (1, 1)], [(1, 6), (3, 1)]]


def test_the_formula_is_grid_samples():
    for shapes in PYRAMIDS:
        value, locations, weights = draw_tensors(shapes, spread=2.0)
        expected = by_grid_sample(value, shapes, locations, weights)
        torch.testing.assert_close(by_formula(value, shapes, locations, weights), expected)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    st.integers(1, 3), st.sampled_from([1, 3, 8, 20]), st.integers(1, 3), st.sampled_from([0.5, 1.0, 30.0]),
    st.integers(0, 99),
)  # fmt: skip
def test_torch_is_the_formula(shapes, heads, head_dim, points, spread, seed):
    tensors = draw_tensors(shapes, heads=heads, head_dim=head_dim, points=points, spread=spread, seed=seed)
    expected = with_gradients(lambda value, *rest: by_formula(value, shapes, *rest), tensors)
    got = with_gradients(ours(shapes), [tensor.to(DEVICE) for tensor in tensors])
    for mine, right in zip(got, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), right, rtol=1e-10, atol=1e-10)
    with torch.no_grad():  # which on the CPU takes another way
        torch.testing.assert_close(ours(shapes)(*(tensor.to(DEVICE) for tensor in tensors)).cpu(), expected[0])


@pytest.mark.parametrize(
    ("dtype", "deterministic"), [*((dtype, False) for dtype in ROUNDOFF), (torch.float16, True)], ids=str
)
@pytest.mark.parametrize("shapes", PYRAMIDS, ids=str)
def test_triton_is_the_formula(shapes, dtype, deterministic):
    """Heads, points and queries that no tile divides."""
    exact = draw_tensors(shapes, heads=3, head_dim=20, points=3, queries=5)
    # Locations in float32: the formula has a coordinate of its own rounding otherwise.
    tensors = [exact[0].to(DEVICE, dtype), exact[1].to(DEVICE, torch.float32), exact[2].to(DEVICE, dtype)]
    expected = with_gradients(lambda value, *rest: by_formula(value, shapes, *rest), [t.double() for t in tensors])
    torch.use_deterministic_algorithms(deterministic)
    try:
        got = with_gradients(ours(shapes, "triton"), tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    for mine, right in zip(got, expected, strict=True):
        error = (mine.double() - right).abs().max() / right.abs().max()
        assert error < 2 * ROUNDOFF[dtype] + 64 * ROUNDOFF[torch.float32]
    assert [tensor.dtype for tensor in got] == [dtype, dtype, torch.float32, dtype]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_point_that_is_nowhere_counts_nothing_and_a_pixel_reaches_its_points_alone(bad, implementation):
    shapes = [(5, 4), (3, 2)]
    value, locations, weights = (tensor.to(DEVICE, torch.float32) for tensor in draw_tensors(shapes, queries=40))
    function = ours(shapes, implementation)
    moved, masked = locations.clone(), weights.clone()
    moved[0, 3, 1, 1, 0, 1] = bad
    masked[0, 3, 1, 1, 0] = 0
    expected = function(value, locations, masked)
    torch.testing.assert_close(function(value, moved, weights), expected)
    leaves = [tensor.clone().requires_grad_() for tensor in (value, moved, weights)]
    gradients = torch.autograd.grad(function(*leaves).sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[2][0, 3, 1, 1, 0] == 0

    spoiled = value.clone()
    spoiled[0, 0, 0] = bad  # the first pixel of the first level, head 0
    x, y = (locations[0, :, 0, 0, :, axis] * size - 0.5 for axis, size in ((0, 4), (1, 5)))
    touches = ((x > -1) & (x < 1) & (y > -1) & (y < 1)).any(-1)
    kept = function(value, locations, weights)
    changed = ~torch.isclose(function(spoiled, locations, weights), kept, rtol=1e-4, atol=1e-5)  # added otherwise
    assert touches.any()
    assert not changed[0, ~touches].any()
    assert not changed[:, :, 4:].any()
    assert not changed[1].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_tensors_that_are_not_contiguous_and_levels_in_another_order(implementation):
    """starts says where a level lies, whatever the order of the levels."""
    value, locations, weights = (tensor.to(DEVICE, torch.float32) for tensor in draw_tensors([(5, 4), (3, 2)]))
    sizes, starts = level_tensors([(5, 4), (3, 2)])
    expected = ms_deform_attn(value, sizes, starts, locations, weights, implementation="torch")
    strided = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (value, locations, weights)]
    assert not strided[0].is_contiguous()
    got = ms_deform_attn(strided[0], sizes, starts, *strided[1:], implementation=implementation)
    torch.testing.assert_close(got, expected)
    swapped = torch.cat([value[:, 20:], value[:, :20]], 1)
    starts = torch.tensor([6, 0], device=DEVICE, dtype=torch.int32)
    got = ms_deform_attn(swapped, sizes.int(), starts, locations, weights, implementation=implementation)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_pixel_that_all_queries_touch_sums_its_gradient_in_float32(implementation):
    value = torch.ones(1, 1, 1, 2, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    places, weights = torch.full((1, 400, 1, 1, 1, 2), 0.5, device=DEVICE), torch.ones(1, 400, 1, 1, 1, device=DEVICE)
    out = ours([(1, 1)], implementation)(value, places, weights)
    [gradient] = torch.autograd.grad(out.sum(), value)
    assert gradient.eq(400).all()  # by ones in bfloat16 no sum passes 256


def test_a_level_of_one_row_takes_the_way_that_compares(monkeypatch):
    monkeypatch.setattr(sampling_torch, "_unchecked_sum", None)
    value, locations, weights = (tensor.float() for tensor in draw_tensors([(1, 6), (3, 2)]))
    sizes, starts = level_tensors([(1, 6), (3, 2)], "cpu")
    ms_deform_attn(value, sizes, starts, locations, weights)
    sizes, starts = level_tensors([(2, 3), (3, 2)], "cpu")
    with pytest.raises(TypeError, match="NoneType"):
        ms_deform_attn(value, sizes, starts, locations, weights)


def operator_arguments(requires_grad):
    tensors = [tensor.to(DEVICE, torch.float32) for tensor in draw_tensors([(3, 2), (1, 2)], batch=1, queries=3)]
    value, locations, weights = (tensor.requires_grad_(requires_grad) for tensor in tensors)
    return (value, *level_tensors([(3, 2), (1, 2)]), locations, weights)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck looks at its copies
@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_operator_keeps_torchs_contract(requires_grad):
    from opbench_kernels.msda import operators

    torch.library.opcheck(operators._attend, operator_arguments(requires_grad))


def test_a_second_derivative_is_refused():
    arguments = operator_arguments(True)
    out = ms_deform_attn(*arguments, implementation="triton")
    [grad] = torch.autograd.grad(out.square().sum(), arguments[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="opbench_kernels::ms_deform_attn has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_compiles_into_one_graph_and_autocast_takes_the_lower_precision(implementation):
    arguments = operator_arguments(True)

    def function(*tensors):
        return ms_deform_attn(*tensors, implementation=implementation)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), function(*arguments))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = function(*arguments)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, function(arguments[0].bfloat16(), *arguments[1:]))  # the same call


def changed_arguments(**changes):
    value, locations, weights = (tensor.float() for tensor in draw_tensors([(5, 4), (3, 2)], batch=1))
    sizes, starts = level_tensors([(5, 4), (3, 2)], "cpu")
    names = ("value", "spatial_shapes", "level_start_index", "sampling_locations", "attention_weights")
    return dict(zip(names, (value, sizes, starts, locations, weights), strict=True)) | changes


BAD = [
    ({"value": [1.0]}, "value must be (N, S, M, D) with S, M and D of at least 1, got list"),
    ({"value": torch.zeros(1, 26, 8)}, "value must be (N, S, M, D) with S, M and D of at least 1, got (1, 26, 8)"),
    ({"value": torch.zeros(1, 26, 2, 4, dtype=torch.int64)}, "value must be one of float32"),
    ({"value": torch.zeros(1, 25, 2, 4)}, "spatial_shapes must be positive and have the 25 pixels of value"),
    ({"spatial_shapes": torch.tensor([[26, 1], [0, 5]])}, "spatial_shapes must be positive"),
    ({"spatial_shapes": torch.tensor([5, 4])}, "spatial_shapes must be (L, 2) with at least one level, got (2,)"),
    (
        {"spatial_shapes": torch.ones(2, 2)},
        "spatial_shapes must be a tensor of int64 or int32, (L, 2), got torch",
    ),
    ({"spatial_shapes": [(5, 4), (3, 2)]}, "spatial_shapes must be a tensor of int64 or int32, (L, 2), got list"),
    ({"level_start_index": torch.tensor([0])}, "level_start_index must be (2,), got (1,)"),
    ({"level_start_index": torch.tensor([0, 21])}, "level_start_index must leave each level in value, got [0, 21]"),
    ({"level_start_index": torch.tensor([-1, 20])}, "level_start_index must leave each level in value"),
    ({"sampling_locations": torch.zeros(1, 7, 2, 3, 2, 2)}, "sampling_locations must be (1, Lq, 2, 2, P, 2), got"),
    ({"sampling_locations": torch.zeros(1, 7, 2, 2, 2, 2, device="meta")}, "sampling_locations must be on cpu"),
    ({"attention_weights": torch.zeros(1, 7, 2, 4)}, "attention_weights must be (1, 7, 2, 2, 2), got (1, 7, 2, 4)"),
    ({"attention_weights": None}, "attention_weights must be a floating tensor, got NoneType"),
    ({"implementation": "cuda"}, "implementation must be"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ms_deform_attn(**changed_arguments(**changes))


# ---- the module


def random_module(**arguments):
    module = MSDeformAttn(**{"d_model": 12, "n_levels": 2, "n_heads": 3, "n_points": 2} | arguments).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module.to(DEVICE)


def module_arguments(box=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)
    reference = torch.rand(2, 5, 2, 4 if box else 2, generator=generator, dtype=torch.float64)
    flat = torch.randn(2, 26, 12, generator=generator, dtype=torch.float64)
    tensors = [tensor.to(DEVICE, dtype) for tensor in (query, reference, flat)]
    return [*tensors, *level_tensors([(5, 4), (3, 2)])]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("box", [False, True])
def test_the_module_by_its_formula(box, masked):
    module = random_module()
    query, reference, flat, sizes, starts = module_arguments(box)
    mask = (torch.arange(26, device=DEVICE) % 5 == 0).expand(2, -1) if masked else None
    value = module.value_proj(flat)
    if masked:
        value = torch.where(mask.unsqueeze(-1), 0.0, value)
    offsets = module.sampling_offsets(query).view(2, 5, 3, 2, 2, 2)
    weights = module.attention_weights(query).view(2, 5, 3, 4).softmax(-1).view(2, 5, 3, 2, 2)
    locations = torch.empty_like(offsets)
    for level, (height, width) in enumerate([(5, 4), (3, 2)]):
        for axis, side in enumerate((width, height)):
            for point in range(2):
                moved = offsets[:, :, :, level, point, axis]
                unit = reference[:, :, level, 2 + axis].unsqueeze(-1) / 2 / 2 if box else 1 / side
                locations[:, :, :, level, point, axis] = reference[:, :, level, axis].unsqueeze(-1) + moved * unit
    out = by_formula(value.view(2, 26, 3, 4), [(5, 4), (3, 2)], locations, weights)
    expected = module.output_proj(out)
    got = module(query, reference, flat, sizes, starts, mask)
    torch.testing.assert_close(got, expected)
    got.sum().backward()
    assert all(parameter.grad.ne(0).any() for parameter in module.parameters())


def test_parameters_have_the_authors_names_shapes_and_initial_values():
    module = MSDeformAttn(16, 3, 4, 2)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == {
        "sampling_offsets.weight": (48, 16), "sampling_offsets.bias": (48,),
        "attention_weights.weight": (24, 16), "attention_weights.bias": (24,),
        "value_proj.weight": (16, 16), "value_proj.bias": (16,),
        "output_proj.weight": (16, 16), "output_proj.bias": (16,),
    }  # fmt: skip
    random = {name for name, tensor in module.state_dict().items() if tensor.ne(0).all()}
    assert random == {"value_proj.weight", "output_proj.weight"}
    offsets = module.sampling_offsets.bias.view(4, 3, 2, 2)
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(2):
        for level in range(3):
            torch.testing.assert_close(offsets[:, level, point], directions * (point + 1), atol=1e-6, rtol=0)
    diagonal = MSDeformAttn(16, 1, 8, 1).sampling_offsets.bias.view(8, 2)[1]
    torch.testing.assert_close(diagonal, torch.ones(2))  # onto the square, not the circle


def test_a_checkpoint_loads_strictly_and_the_triton_module_agrees():
    module = random_module()
    other = MSDeformAttn(12, 2, 3, 2, implementation="triton").to(DEVICE)
    other.load_state_dict(module.state_dict(), strict=True)
    arguments, exact = module_arguments(dtype=torch.float32), module_arguments()
    torch.testing.assert_close(other(*arguments).double(), module(*exact), rtol=1e-4, atol=1e-4)


BAD_ARGUMENTS = [
    ({"d_model": 0}, "d_model must be a positive integer, got 0"),
    ({"n_heads": 5}, "n_heads must divide d_model 12, got 5"),
    ({"n_points": True}, "n_points must be a positive integer, got True"),
    ({"implementation": "cuda"}, "implementation must be"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments_of_the_module_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MSDeformAttn(**{"d_model": 12, "n_levels": 2, "n_heads": 3, "n_points": 2} | arguments)


BAD_INPUTS = [
    (0, torch.zeros(2, 5, 11), "query must be (N, length, 12), got (2, 5, 11)"),
    (0, torch.zeros(3, 5, 12), "query must have the batch of input_flatten: 3, 2"),
    (1, torch.zeros(2, 5, 2, 3), "reference_points must be (2, 5, 2, '2 or 4'), got (2, 5, 2, 3)"),
    (2, torch.zeros(2, 12), "input_flatten must be (N, length, 12), got (2, 12)"),
    (3, torch.ones(3, 2, dtype=torch.int64), "input_spatial_shapes must be (2, 2), got (3, 2)"),
    (5, torch.zeros(2, 26), "input_padding_mask must be bool, (2, 26), got torch.float32, (2, 26)"),
]


@pytest.mark.parametrize(("place", "tensor", "message"), BAD_INPUTS, ids=[message for *_, message in BAD_INPUTS])
def test_bad_inputs_of_the_module_are_named(place, tensor, message):
    arguments = [*module_arguments(dtype=torch.float32), None]
    arguments[place] = tensor.to(DEVICE)
    with pytest.raises(ValueError, match=re.escape(message)):
        MSDeformAttn(12, 2, 3, 2).to(DEVICE)(*arguments)


def test_the_modules_arguments_show():
    text = "MSDeformAttn(\n  d_model=12, n_levels=2, n_heads=3, n_points=2, implementation='auto'"
    assert repr(MSDeformAttn(12, 2, 3, 2)).startswith(text)
