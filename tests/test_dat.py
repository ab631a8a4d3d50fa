"""DAT's deformable attention: a plain loop over queries and samples, the authors' parameters, bad arguments."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from opbench_kernels import DAttention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def arguments_of(size=(4, 5), **changes):
    return {
        "q_size": size, "kv_size": size, "n_heads": 4, "n_head_channels": 3, "n_groups": 2, "attn_drop": 0.0,
        "proj_drop": 0.0, "stride": 1, "offset_range_factor": 2, "use_pe": True, "dwc_pe": False, "no_off": False,
        "fixed_pe": False, "stage_idx": 2,
    } | changes  # fmt: skip


def random_module(**arguments):
    module = DAttention(**arguments).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module.to(DEVICE).eval()


def image_of(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(DEVICE, dtype)


def bilinear(image, y, x):
    """(C,) of an image (C, H, W) at a place in pixels; zero outside."""
    found = torch.zeros_like(image[:, 0, 0])
    for row, column in itertools.product(range(image.shape[1]), range(image.shape[2])):
        found = found + max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column)) * image[:, row, column]
    return found


def pixels_of(place, sides):
    """A place from -1 to 1, the centres of the first and last pixel, in pixels."""
    return [(float(at) + 1) / 2 * (side - 1) for at, side in zip(place, sides, strict=True)]


def place_of(row, column, sides):
    """The centre of one of equal parts of the range from -1 to 1."""
    return [2 * (index + 0.5) / side - 1 for index, side in zip((row, column), sides, strict=True)]


def by_loop(module, image, places):
    """The output (C, H, W) for one image (C, H, W), from the places of its samples (n_groups, Hk, Wk, 2)."""
    sides, state = image.shape[1:], module.state_dict()

    def project(name, features):
        return torch.tensordot(state[f"{name}.weight"][:, :, 0, 0], features, 1) + state[f"{name}.bias"].view(
            -1, *[1] * (features.dim() - 1)
        )

    queries, (groups, high, wide, _) = project("proj_q", image), places.shape
    samples = torch.stack(
        [
            torch.cat(
                [
                    bilinear(part, *pixels_of(places[group, row, column], sides))
                    for group, part in enumerate(image.chunk(groups))
                ]
            )
            for row, column in itertools.product(range(high), range(wide))
        ],
        -1,
    )
    keys, values, width = project("proj_k", samples), project("proj_v", samples), module.n_head_channels
    attended = torch.zeros_like(image)
    for head, row, column in itertools.product(range(module.n_heads), *map(range, sides)):
        part, group = slice(head * width, (head + 1) * width), head // (module.n_heads // groups)
        scores = queries[part, row, column] @ keys[part] / width**0.5
        if module.by_distance:
            own, table = place_of(row, column, sides), state["rpe_table"][head : head + 1]
            for sample, place in enumerate(places[group].flatten(0, 1)):
                apart = [(mine - float(other)) / 2 for mine, other in zip(own, place, strict=True)]
                scores[sample] += bilinear(table, *pixels_of(apart, [2 * side - 1 for side in sides]))[0]
        elif module.fixed_pe:
            scores = scores + state["rpe_table"][head, row * sides[1] + column]
        attended[part, row, column] = values[part] @ scores.softmax(0)
    if module.dwc_pe:
        weight, bias = state["rpe_table.weight"], state["rpe_table.bias"]
        attended = attended + F.conv2d(queries.unsqueeze(0), weight, bias, padding=1, groups=len(bias))[0]
    return project("proj_out", attended)


OPTIONS = [
    {}, {"stride": 2, "use_pe": False}, {"stride": 2}, {"dwc_pe": True, "n_groups": 1}, {"fixed_pe": True},
    {"offset_range_factor": -1, "use_pe": False}, {"offset_range_factor": 0, "stage_idx": 3}, {"no_off": True},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_output_is_a_plain_loops(options):
    arguments = arguments_of(**options)
    module, images = random_module(**arguments), image_of(2, 12, 4, 5)
    out, places, grid = module(images)
    for image in range(2):
        expected = by_loop(module, images[image], places[image].detach())
        torch.testing.assert_close(out[image].detach(), expected)
    offsets = module.conv_offset(module.proj_q(images).view(2 * module.n_groups, -1, 4, 5)).permute(0, 2, 3, 1)
    offsets = offsets.reshape(places.shape)
    high, wide = places.shape[2:4]
    for row, column in itertools.product(range(high), range(wide)):
        start = torch.tensor(place_of(row, column, (high, wide)), dtype=torch.float64, device=DEVICE)
        torch.testing.assert_close(grid[:, :, row, column], start.expand(2, module.n_groups, 2))
        moved, factor = offsets[:, :, row, column], module.offset_range_factor
        if factor > 0:
            moved = moved.tanh() * factor / torch.tensor([high, wide], device=DEVICE)
        expected = start + (0 if module.no_off else moved)
        torch.testing.assert_close(places[:, :, row, column], expected.tanh() if factor < 0 else expected + 0 * moved)


def test_gradients_reach_every_parameter_and_are_right():
    module, image = random_module(**arguments_of((3, 4))), image_of(1, 12, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x)[0], image, nondet_tol=1e-9)
    module(image)[0].square().sum().backward()
    unused = {name for name, parameter in module.named_parameters() if not parameter.grad.ne(0).any()}
    assert unused <= {"proj_k.bias"}  # the same for every sample: a softmax does not see it


def test_parameters_have_the_authors_names_and_shapes():
    expected = {
        "conv_offset.0.weight": (6, 1, 5, 5), "conv_offset.0.bias": (6,), "conv_offset.1.norm.weight": (6,),
        "conv_offset.1.norm.bias": (6,), "conv_offset.3.weight": (2, 6, 1, 1),
        **{f"proj_{name}.weight": (12, 12, 1, 1) for name in ("q", "k", "v", "out")},
        **{f"proj_{name}.bias": (12,) for name in ("q", "k", "v", "out")},
    }  # fmt: skip
    terms = [
        ({}, {"rpe_table": (4, 7, 9)}),
        ({"use_pe": False}, {}),
        ({"fixed_pe": True}, {"rpe_table": (4, 20, 20)}),
        ({"dwc_pe": True}, {"rpe_table.weight": (12, 1, 3, 3), "rpe_table.bias": (12,)}),
    ]
    for options, term in terms:
        module = DAttention(**arguments_of(**options))
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        assert shapes == expected | term
        DAttention(**arguments_of(**options)).load_state_dict(module.state_dict(), strict=True)
    assert DAttention(**arguments_of()).rpe_table.std() < 0.02
    sides = [DAttention(**arguments_of(stage_idx=stage)).conv_offset[0].kernel_size[0] for stage in range(4)]
    assert sides == [9, 7, 5, 3]


def test_dropout_acts_in_training_alone():
    module, image = random_module(**arguments_of(attn_drop=0.5, proj_drop=0.5)), image_of(1, 12, 4, 5)
    torch.testing.assert_close(module(image)[0], module(image)[0])
    module.train()
    assert not torch.allclose(module(image)[0], module(image)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_places_stay_float32(dtype):
    module, image = random_module(**arguments_of()), image_of(1, 12, 4, 5)
    expected, places, _ = module(image)
    got, half_places, _ = module.to(dtype)(image.to(dtype))
    assert (got.dtype, half_places.dtype) == (dtype, torch.float32)
    assert (half_places - places).abs().max() < 0.05
    assert (got - expected).abs().max() < 0.1 * expected.abs().max()


BAD = [
    ({"n_heads": 0}, "n_heads must be a positive integer, got 0"),
    ({"n_groups": 3}, "n_groups must divide n_heads 4, got 3"),
    ({"stride": -1}, "stride must be a positive integer, got -1"),
    ({"stage_idx": 4}, "stage_idx must be 0, 1, 2 or 3, got 4"),
    ({"q_size": 0}, "q_size must be an integer of at least 1"),
    ({"kv_size": 3}, "kv_size must be q_size (4, 5) where a table has the bias by distance: 3"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DAttention(**arguments_of(**changes))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 11, 4, 5), "x must be (N, 12, H, W), got shape"), ((1, 12, 5, 4), "x must be 4x5 as q_size is, got 5x4")],
)
def test_an_input_that_does_not_fit_is_named(shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DAttention(**arguments_of())(torch.zeros(shape))
