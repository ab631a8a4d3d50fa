"""Backbones: the authors' parameter names and values, published counts, the operators inside, and wrong input."""

import re

import model_table
import pytest
import torch
from model_builders import AUTHORS, SIZE, SMALL, digest, filled, image, small, values, wave
from opbench_kernels import DAttention, DCNv3, DCNv4
from timm.models.swin_transformer import WindowAttention as TimmWindowAttention
from torch import nn

import opbench.models
from opbench.models import create, load_checkpoint, mac_count, names, parameter_count
from opbench.models.core_operators import CORE_OPERATORS, Conv3x3, CoreSettings, WindowAttention, core_operator
from opbench.models.layers import drop_path_rates

INTERN_IMAGES = [f"internimage_{size}" for size in ("t", "s", "b", "l", "xl", "h")]
FLASH_INTERN_IMAGES = [f"flash_internimage_{size}" for size in ("t", "s", "b", "l")]
REPLKNETS = [f"replknet_{size}" for size in ("31b", "31l", "xl")]
SLAKS = [f"slak_{size}" for size in ("tiny", "small", "base")]
PARCNETS = [f"parcnetv2_{size}" for size in ("xt", "tiny", "small", "base")]
DATS = [f"dat_{size}" for size in ("tiny", "small", "base")]


def on_meta(name, **changes):
    with torch.device("meta"):
        return create(name, **changes)


def relative_error(value, wanted):
    return ((value - wanted).abs().max() / wanted.abs().max()).item()


def test_the_names():
    assert names() == [*INTERN_IMAGES, *FLASH_INTERN_IMAGES, *REPLKNETS, *SLAKS, *PARCNETS, *DATS]


@pytest.mark.parametrize("name", names())
def test_a_checkpoint_has_the_authors_names_and_shapes(name):
    model, authors = on_meta(name), AUTHORS["state"][name]
    assert digest(model) == {key: authors[key] for key in ("tensors", "sha256")}
    assert parameter_count(model) == authors["parameters"]


@pytest.mark.parametrize("case", SMALL)
def test_values_and_gradients_are_the_authors(case):
    """Recorded from their modules with the same weights, in float64."""
    _, arguments = SMALL[case]
    ours, authors = values(small(case), arguments.get("img_size", SIZE)), AUTHORS["values"][case]
    wanted = torch.tensor(authors["logits"], dtype=torch.float64)
    assert relative_error(torch.tensor(ours["logits"], dtype=torch.float64), wanted) < 1e-12
    assert ours["gradient_scale"] == pytest.approx(authors["gradient_scale"], rel=1e-12)
    assert abs(ours["gradient"] - authors["gradient"]) < 1e-14 * authors["gradient_scale"]


@pytest.mark.parametrize("case", SMALL)
def test_every_parameter_of_a_small_model_has_a_gradient(case):
    model = small(case)
    _, arguments = SMALL[case]
    (model(image(arguments.get("img_size", SIZE))) * wave("weights", (1, 10))).sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.count_nonzero()] == []


def rows_of(*models):
    return [pytest.param(row, id=f"{row['model']}-{row['height']}") for row in model_table.published()
            if not models or row["model"] in models]  # fmt: skip


def is_in_the_documents(row):
    page = (model_table.PUBLISHED.parents[2] / "docs" / "models.md").read_text()
    return model_table.line(row) in page.splitlines()


@pytest.mark.parametrize("row", rows_of("internimage_t", "parcnetv2_xt", "slak_tiny", "dat_tiny"))
def test_the_documents_table_is_counted(row):
    assert is_in_the_documents(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", rows_of())
def test_the_whole_table_of_the_documents_is_counted(row):
    assert is_in_the_documents(row)


def test_a_difference_from_the_published_needs_a_reason(monkeypatch):
    monkeypatch.setattr(model_table, "counts", lambda _: (30.1e6, 5.2e9))
    row = model_table.published()[0]
    assert " 30.10 | 30M | 5.20 | 5G " in model_table.line(row)
    assert model_table.agrees("30M", 29.6e6)
    assert not model_table.agrees("30M", 29.4e6)
    assert not model_table.agrees("1.08B", 1.0896e9)
    with pytest.raises(ValueError, match="internimage_t at 224"):
        model_table.line({**row, "parameters": "31M"})
    with pytest.raises(ValueError, match="internimage_t at 224"):
        model_table.line({**row, "deviation": "none"})


@pytest.mark.parametrize(("kind", "points"), [(DCNv3, 9), (DCNv4, 9)])
def test_macs_of_a_deformable_convolution(kind, points):
    """Counted by hand: Linears, the depthwise convolution, and five per sample and channel."""
    channels, groups, pixels = 32, 2, 6 * 5
    model = nn.Sequential(nn.Conv2d(3, channels, 1), _Last(), kind(channels, group=groups, dw_kernel_size=3))
    packed = {DCNv3: 3 * points * groups, DCNv4: -(-3 * points * groups // 8) * 8}[kind]
    linears = 2 * channels * channels + packed * channels
    wanted = pixels * (3 * channels + linears + 9 * channels + 5 * points * channels)
    assert mac_count(model, height=6, width=5) == wanted
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert model.training


class _Last(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize(("operator", "kind"), [("dcnv3", DCNv3), ("dcnv4", DCNv4), ("conv3x3", Conv3x3),
                                                ("window_attention", WindowAttention)])  # fmt: skip
@pytest.mark.parametrize("family", ["internimage_t", "flash_internimage_t"])
def test_the_operator_of_a_backbone_is_replaced(family, operator, kind):
    _, arguments = SMALL[family]
    model = filled(create(family, operator=operator, **arguments)).eval()
    blocks = [block for stage in model.stage_modules() for block in stage.residual_blocks()]
    assert {type(block.dcn) for block in blocks} == {kind}
    assert model(image(40).float()).shape == (1, 10)  # 10, 5, 3 and 2 pixels: no multiples of the window


@pytest.mark.parametrize("name", CORE_OPERATORS)
def test_every_core_operator_keeps_the_shape(name):
    operator = core_operator(name, CoreSettings(channels=24, groups=3))
    assert operator(torch.randn(2, 9, 5, 24)).shape == (2, 9, 5, 24)


def test_window_attention_is_swins():
    ours, timms = WindowAttention(24, 3, 7).double(), TimmWindowAttention(24, 3, window_size=7).double()
    state = {name: wave(name, tensor.shape) for name, tensor in ours.state_dict().items()}
    ours.load_state_dict(state)
    timms.load_state_dict(state, strict=False)
    x = wave("x", (2, 14, 21, 24))
    windows = x.view(2, 2, 7, 3, 7, 24).transpose(2, 3).reshape(12, 49, 24)
    wanted = timms(windows).view(2, 2, 3, 7, 7, 24).transpose(2, 3).reshape(2, 14, 21, 24)
    assert relative_error(ours(x), wanted) < 1e-14
    rest = ours(x[:, :10, :9])
    padded = torch.zeros(2, 14, 14, 24, dtype=torch.float64)
    padded[:, :10, :9] = x[:, :10, :9]
    assert torch.equal(rest, ours(padded)[:, :10, :9])


def test_a_convolution_in_the_operators_place_is_torchs():
    conv = Conv3x3(5).double()
    x = wave("x", (2, 4, 6, 5))
    assert torch.equal(conv(x).permute(0, 3, 1, 2), conv.conv(x.permute(0, 3, 1, 2)))


@pytest.mark.parametrize("case", SMALL)
def test_a_block_of_a_stage_maps_its_shape_to_itself(case):
    model = small(case)
    size = SMALL[case][1].get("img_size", SIZE)
    for stage in range(4):
        shape = model.stage_shape(stage, batch=2, height=size, width=size)
        out = model.block(stage)(wave("x", shape))
        assert out.shape == shape
        assert out.count_nonzero() > out.numel() // 2
        seen = []
        first = next(model.block(stage).children())
        hook = first.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].shape))
        model(image(size, batch=2))
        hook.remove()
        assert seen == [shape]


def test_stochastic_depth():
    assert drop_path_rates(0.4, (1, 2, 2)) == [[0.0], [0.1, 0.2], [pytest.approx(0.3), 0.4]]
    assert drop_path_rates(0.4, (1, 1), "uniform") == [[0.4], [0.4]]
    assert drop_path_rates(0.4, (1,)) == [[0.0]]
    with pytest.raises(ValueError, match="drop_path_type must be 'linear' or 'uniform', got 'square'"):
        drop_path_rates(0.4, (1,), "square")
    with pytest.raises(ValueError, match=r"drop_path_rate must be in \[0, 1\), got 1"):
        drop_path_rates(1, (1,))


def test_checkpointed_gradients_are_the_same():
    plain, kept = small("internimage_t"), small("internimage_t", with_cp=True)
    calls = []
    kept.block(0).register_forward_pre_hook(lambda *_: calls.append(1))
    assert values(plain) == values(kept)
    assert len(calls) == 2  # once in the forward pass, once for the backward pass


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("internimage_x", "did you mean internimage_"),
        ("intern_image_b", "internimage_b"),
        ("xyz", "there are internimage_t, "),
    ],
)
def test_an_unknown_name_lists_near_ones(name, hint):
    with pytest.raises(ValueError, match=rf"no model '{name}'; .*{hint}"):
        create(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operator": "conv"}, "operator must be one of dcnv3, dcnv4, window_attention, conv3x3, none, got 'conv'"),
        ({"core_op": "DCN"}, "core_op must be one of DCNv3, DCNv4, WindowAttention, Conv3x3, Identity, got 'DCN'"),
        ({"groups": (3, 6, 12, 24)}, "group must divide the 64 channels, got 3"),
        ({"groups": (4, 8)}, "depths and groups must have one entry a stage"),
        ({"act_layer": "Tanh"}, "act_layer must be one of GELU, ReLU, SiLU, got 'Tanh'"),
        ({"norm_layer": "GN"}, "norm_layer must be 'LN' or 'BN', got 'GN'"),
        ({"operator": "window_attention", "groups": (3, 6, 12, 24)}, "num_heads must divide the 64 channels, got 3"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        on_meta("internimage_t", **arguments)


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'deepness'"):
        on_meta("internimage_t", deepness=3)


def test_internimage_h_says_which_sizes_it_takes():
    model = small("internimage_h")
    with pytest.raises(ValueError, match="width must give stage 3 an even size, as a multiple of 32 does, got 40"):
        model(torch.zeros(1, 3, 64, 40, dtype=torch.float64))
    assert model(image(96)).shape == (1, 10)


@pytest.mark.parametrize("case", ["replknet_31b", "replknet_xl", "slak_tiny", "slak without strips"])
def test_merged_kernels_give_the_same_values(case):
    model, x = small(case), image()
    wanted = model(x)
    before = parameter_count(model)
    model.structural_reparam()
    assert relative_error(model(x), wanted) < 1e-13
    assert parameter_count(model) < before


def test_a_network_built_with_merged_kernels_takes_merged_weights():
    merged = small("replknet_31b")
    merged.structural_reparam()
    built = small("replknet_31b", small_kernel_merged=True)
    built.load_state_dict(merged.state_dict())
    assert torch.equal(built(image()), merged(image()))


def test_replknet_for_feature_maps():
    _, arguments = SMALL["replknet_31b"]
    arguments = {**arguments, "num_classes": None, "out_indices": (0, 2), "norm_intermediate_features": True}
    model = filled(create("replknet_31b", **arguments).double()).eval()
    first, third = model(image())
    assert (first.shape, third.shape) == ((1, 6, 16, 16), (1, 14, 4, 4))
    plain = filled(create("replknet_31b", **{**arguments, "norm_intermediate_features": False}).double()).eval()
    assert torch.equal(first, model.stages[0].norm(plain(image())[0]))
    assert [name for name in model.state_dict() if name.startswith(("norm.", "head."))] == []


def test_synchronised_normalisation_has_the_same_names():
    assert digest(small("replknet_31b", use_sync_bn=True)) == digest(small("replknet_31b"))
    kinds = {type(module) for module in small("replknet_31b", use_sync_bn=True).modules()}
    assert nn.SyncBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("replknet_31b", {"layers": (2, 2)}, "large_kernel_sizes, layers and channels must have one entry a stage"),
        ("replknet_31b", {"out_indices": (1,)}, "give one of num_classes and out_indices, got 1000 and (1,)"),
        ("replknet_31b", {"norm_intermediate_features": True}, "norm_intermediate_features needs out_indices"),
        ("replknet_31b", {"small_kernel": 14}, "small_kernel must be a positive odd integer, got 14"),
        (
            "slak_tiny",
            {"kernel_size": (51, 49)},
            "one entry a stage, and kernel_size one more",
        ),
        ("parcnetv2_xt", {"dims": (48, 96)}, "dims must have one entry for each of the 4 stages of depths, got 2"),
        ("parcnetv2_xt", {"global_kernel_sizes": 10}, "kernel_size must be a positive odd integer, got 10"),
        (
            "slak_tiny",
            {"operator": "dcnv4"},
            "slak_tiny has no operator to replace; InternImage and",
        ),
    ],
)
def test_wrong_arguments_of_the_others(name, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        on_meta(name, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 230}, "img_size must be a multiple of 4, got 230x230"),
        ({"img_size": (224, 256)}, "window_sizes must divide the 56x64 pixels of stage 0, got 7"),
        ({"window_sizes": (7, 8, 7, 7)}, "window_sizes must divide the 28x28 pixels of stage 1, got 8"),
        ({"heads": (3, 6, 12, 23)}, "heads must divide the 768 channels of stage 3, got 23"),
        ({"groups": (-1, -1, 5, 6)}, "n_groups must divide n_heads 12, got 5"),
        ({"strides": (1, 1, 1, -1)}, "stride must be a positive integer, got -1"),
        ({"dims": (96, 192, 384, 512)}, "dims must double from stage to stage, got (96, 192, 384, 512)"),
        ({"depths": (2, 2, 2, 2)}, "stage_spec must have the blocks of depths (2, 2, 2, 2)"),
        ({"stage_spec": (("L", "X"), ("L", "S"), ("L", "D") * 3, ("L", "D"))}, "stage_spec has L, S, D, got X"),
    ],
)
def test_wrong_arguments_of_dat(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        on_meta("dat_tiny", **arguments)


def test_dat_takes_images_of_its_size_alone():
    with pytest.raises(ValueError, match="images must be 96x96, the img_size of this DAT, got 96x64"):
        small("dat_tiny")(torch.zeros(1, 3, 96, 64, dtype=torch.float64))
    wide = small("dat_tiny", img_size=(96, 192))
    assert wide(wave("wide", (1, 3, 96, 192))).shape == (1, 10)


def deformable_attention(**changes):
    """4 heads of 2 channels in 2 groups, on 5x6 pixels, float64."""
    arguments = {
        "q_size": (5, 6), "kv_size": (5, 6), "n_heads": 4, "n_head_channels": 2, "n_groups": 2, "attn_drop": 0.0,
        "proj_drop": 0.0, "stride": 1, "offset_range_factor": 2, "use_pe": True, "dwc_pe": False,
        "no_off": False, "fixed_pe": False, "stage_idx": 2,
    }  # fmt: skip
    return filled(DAttention(**{**arguments, **changes}).double())


def test_macs_of_deformable_attention():
    """Counted by hand: 1x1 convolutions, the offset network, attention, and four per bilinear sample."""
    pixels, channels, heads, points = 30, 8, 4, 9  # 5x6 pixels, a point every second one
    network = points * (25 * channels + 2 * channels)
    convolutions = (2 * pixels + 2 * points) * channels**2
    attention = 2 * pixels * points * channels
    samples = 4 * points * (channels + heads * pixels)
    stem = nn.Conv2d(3, channels, 1)
    model = nn.Sequential(stem, deformable_attention(stride=2).float())
    wanted = 3 * channels * pixels + network + convolutions + attention + samples
    assert mac_count(model, height=5, width=6) == wanted
    without = nn.Sequential(stem, deformable_attention(stride=2, use_pe=False).float())
    assert mac_count(without, height=5, width=6) == wanted - 4 * points * heads * pixels


def test_slak_scales_its_classifier():
    torch.manual_seed(0)
    one = create("slak_tiny", **SMALL["slak_tiny"][1])
    torch.manual_seed(0)
    half = create("slak_tiny", **SMALL["slak_tiny"][1], head_init_scale=0.5)
    assert torch.equal(half.head.weight, one.head.weight / 2)


def test_stages_and_blocks_that_are_not_there():
    model = on_meta("internimage_t")
    with pytest.raises(ValueError, match="stage must be 0 to 3, got 4"):
        model.block(4)
    with pytest.raises(ValueError, match="index must be 0 to 17 in stage 2, got 18"):
        model.block(2, 18)
    with pytest.raises(ValueError, match="width must be a multiple of 16 for stage 2, got 40"):
        model.stage_shape(2, batch=1, height=64, width=40)


class TestCheckpoints:
    @pytest.fixture
    def model(self):
        return small("internimage_t")

    @pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s},
                                      lambda s: {"module": {f"module.{k}": v for k, v in s.items()}}])  # fmt: skip
    def test_weights_in_what_a_training_script_stores(self, model, wrap):
        state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
        load_checkpoint(model, wrap(state))
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())

    def test_a_file(self, model, tmp_path):
        torch.save({"model": filled(small("internimage_t")).state_dict()}, tmp_path / "weights.pth")
        other = create("internimage_t", **SMALL["internimage_t"][1]).double().eval()
        load_checkpoint(other, tmp_path / "weights.pth")
        assert torch.equal(other(image()), model(image()))

    def test_another_size_is_told_with_both_shapes(self, model):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        larger = on_meta("internimage_t").state_dict()
        mixed = {**larger, **{name: tensor + 1 for name, tensor in before.items() if "head" in name}}
        shapes = "patch_embed.conv1.weight is (32, 3, 3, 3), the model's (8, 3, 3, 3)"
        with pytest.raises(ValueError, match=re.escape(f"does not fit InternImage: of another size: {shapes}")):
            load_checkpoint(model, mixed)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_missing_and_unknown_names_are_told(self, model):
        state = model.state_dict()
        moved = {re.sub("^head", "fc", name): tensor for name, tensor in state.items()}
        with pytest.raises(ValueError, match=r"missing: head.bias, head.weight; unknown: fc.bias, fc.weight$"):
            load_checkpoint(model, moved)
        with pytest.raises(ValueError, match=r"missing: .* and \d+ more$"):
            load_checkpoint(model, {"head.bias": state["head.bias"]})


def test_the_public_names_are_there():
    for name in opbench.models.__all__:
        assert getattr(opbench.models, name) is not None
