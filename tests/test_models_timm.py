"""Backbones as users of timm expect them: creation, features, classifiers, training helpers, export and compilation."""

import copy

import pytest
import timm
import torch
from model_builders import SMALL, filled, image, small, wave
from timm.layers import DropPath
from timm.models import group_parameters

import opbench.models
from opbench.models.catalogue import CATALOGUE

SHALLOW = {"depths": (1, 1, 1, 1)}
"""Tracing takes a second a block."""
CASES = [
    "internimage_t",
    "internimage_h",
    "flash_internimage_b",
    "replknet_31b",
    "slak_tiny",
    "parcnetv2_tiny",
    "dat_tiny",
]


def timm_model(case, **changes):
    """As SMALL, made by timm; float32."""
    name, arguments = SMALL[case]
    return timm.create_model(f"{name}.opbench", **{**arguments, **changes})


def size_of(case):
    return SMALL[case][1].get("img_size", 64)


def test_timm_lists_every_model():
    assert set(opbench.models.names()) <= set(timm.list_models())
    for name, entry in CATALOGUE.items():
        config = timm.get_pretrained_cfg(f"{name}.opbench")
        assert config.input_size == (3, entry.image_size, entry.image_size)
        assert (config.tag, config.num_classes, config.classifier) == ("opbench", 1000, entry.model.classifier_name)


@pytest.mark.parametrize("case", CASES)
def test_timm_makes_the_same_model(case):
    model = filled(timm_model(case).double()).eval()
    x = image(size_of(case))
    assert torch.equal(model(x), small(case)(x))
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).weight.shape[1] == 3
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()


@pytest.mark.parametrize("case", CASES)
def test_the_usual_arguments(case):
    assert timm_model(case, in_chans=1).get_submodule(CATALOGUE[SMALL[case][0]].model.first_conv).weight.shape[1] == 1
    assert timm_model(case, device="meta").get_classifier().weight.is_meta
    assert timm_model(case, dtype=torch.bfloat16).get_classifier().weight.dtype == torch.bfloat16
    assert timm_model(case).get_classifier().out_features == 10


@pytest.mark.parametrize("case", CASES)
def test_features_only(case):
    x = image(size_of(case))
    whole = small(case)
    features = timm_model(case, features_only=True)
    assert features.feature_info.reduction() == [4, 8, 16, 32]
    names, shapes = features.feature_info.channels(), [f.shape for f in features.eval()(x.float())]
    assert shapes == [(1, channels, x.shape[2] // r, x.shape[3] // r)
                      for channels, r in zip(names, (4, 8, 16, 32), strict=True)]  # fmt: skip
    some = timm_model(case, features_only=True, out_indices=(-3, 2)).double().eval()
    some.model.load_state_dict({name: whole.state_dict()[name] for name in some.model.state_dict()})
    wanted = whole.forward_intermediates(x, [1, 2], intermediates_only=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(some(x), wanted, strict=True))
    assert len(some.model.stage_modules()) == 3
    assert all(p.grad is not None for p in _trained(some, x))


def _trained(model, x):
    """Parameters after a backward pass through all outputs: what is not needed would have no gradient."""
    sum(feature.square().mean() for feature in model(x)).backward()
    return model.parameters()


@pytest.mark.parametrize("case", CASES)
def test_intermediates_lead_to_the_logits(case):
    model, x = small(case), image(size_of(case))
    last, features = model.forward_intermediates(x)
    assert len(features) == 4
    assert torch.equal(model.forward_head(last), model(x))
    assert len(model.forward_intermediates(x, 2, stop_early=True, intermediates_only=True)) == 2
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")
    with pytest.raises(ValueError, match=r"indices must be of the 4 stages, got \[4\]"):
        model.forward_intermediates(x, [4])


@pytest.mark.parametrize("case", CASES)
def test_without_a_classifier(case):
    model, x = small(case), image(size_of(case))
    before = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(0)
    assert torch.equal(model(x), before)
    assert before.shape == (1, model.head_hidden_size)
    model.reset_classifier(7)
    assert model(x).shape == (1, 7)
    model.reset_classifier(0, "")
    assert model(x).dim() == 4
    assert timm_model(case, num_classes=0, global_pool="").eval()(x.float()).dim() == 4
    with pytest.raises(ValueError, match="global_pool '' needs num_classes 0, got 5"):
        model.reset_classifier(5)
    with pytest.raises(ValueError, match="global_pool must be 'avg' or '', got 'max'"):
        model.reset_classifier(0, "max")


@pytest.mark.parametrize("case", CASES)
def test_drop_path_drops_whole_branches_in_training(case):
    assert [m.drop_prob for m in timm_model(case).modules() if isinstance(m, DropPath)] == []
    model = timm_model(case, drop_path_rate=0.5)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    steps = sum(map(len, _blocks(model))) // (2 if case.startswith("replknet") else 1) - 1  # its blocks come in pairs
    assert (rates[-1], min(rates)) == (0.5, pytest.approx(0.5 / steps))


def _blocks(model):
    return [stage.residual_blocks() for stage in model.stage_modules()]


@pytest.mark.parametrize("case", CASES)
def test_a_weights_file_of_the_authors_loads_through_timm(case, tmp_path):
    name, arguments = SMALL[case]
    torch.save({"model": small(case).float().state_dict()}, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 10}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments).eval()
    x = image(size_of(case)).float()
    assert torch.equal(model(x), small(case).float()(x))
    fewer = {**arguments, "num_classes": 3}
    other = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **fewer).eval()
    assert other(x).shape == (1, 3)
    assert torch.equal(other.forward_features(x), model.forward_features(x))


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_has_a_group_for_its_learning_rate(case):
    model = timm_model(case)
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse))
        named = [name for group in groups.values() for name in group]
        assert sorted(named) == sorted(name for name, _ in model.named_parameters())
        assert groups[0][0] == next(iter(dict(model.named_parameters())))
        blocks = len(_blocks(model)) if coarse else sum(map(len, _blocks(model)))
        assert len(groups) in (blocks + 2, blocks + 3)  # stem and head, and a norm after the last stage
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_checkpointing_by_timms_switch(case):
    model, x = small(case), image(size_of(case))
    calls = []
    next(model.block(1).children()).register_forward_pre_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing()
    model(x).sum().backward()
    assert len(calls) == 2
    model.set_grad_checkpointing(False)
    model(x).sum().backward()
    assert len(calls) == 3


@pytest.mark.parametrize("case", CASES)
def test_dropout_before_or_inside(case):
    model = filled(timm_model(case, drop_rate=0.5))
    x = image(size_of(case)).float()
    torch.manual_seed(0)
    one, other = model.train()(x.expand(2, -1, -1, -1)), model.eval()(x)
    assert not torch.allclose(one[:1], one[1:])
    assert torch.equal(other, model(x))


@pytest.mark.slow  # seconds for each model
@pytest.mark.parametrize("case", CASES)
def test_export_and_compile(case):
    model, x = small(case, **(SHALLOW if "internimage" in case else {})), image(size_of(case), batch=2).detach()
    wanted = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x), wanted, rtol=1e-12, atol=1e-12)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    assert torch.allclose(program.module()(x[:1]), wanted[:1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_autocast_and_bfloat16(case):
    model, x = small(case).float(), image(size_of(case)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = model(x)
    assert lower.dtype == torch.bfloat16
    assert torch.isfinite(lower).all()
    assert torch.isfinite(model.bfloat16()(x.bfloat16())).all()


@pytest.mark.parametrize("case", CASES)
def test_a_copy_has_parameters_of_its_own(case):
    """As an average of weights makes one; blocks of the copy are the copy's."""
    model, x = small(case), image(size_of(case))
    other = copy.deepcopy(model)
    before = model(x)
    with torch.no_grad():
        for parameter in other.block(2).parameters():
            parameter.mul_(2)
    assert torch.equal(model(x), before)
    assert not torch.equal(other(x), before)


def test_the_places_of_parameters():
    """One of each kind, among them those whose number is not the block's."""
    model = small("dat with convolutions")
    place = model.group_matcher()
    assert place("patch_proj.0.weight") == (0,)
    assert place("stages.0.proj.weight") == place("stages.0.layer_norms.1.norm.bias") == (1, 0, 0)
    assert place("stages.0.layer_norms.2.norm.bias") == place("stages.0.mlps.1.linear1.bias") == (1, 0, 1)
    assert place("down_projs.1.0.weight") == place("stages.2.attns.0.proj_out.bias") == (1, 2, 0)
    assert place("cls_norm.norm.weight") == (2,)
    assert model.group_matcher(coarse=True)("stages.3.layer_norms.3.norm.bias") == (1, 3)
    assert model.group_matcher(coarse=True)("stages.0.proj.weight") == (1, 0)
    downsampling = {
        "internimage_t": "levels.0.downsample.conv.weight",
        "replknet_31b": "transitions.0.0.conv.weight",
        "slak_tiny": "downsample_layers.1.1.weight",
        "parcnetv2_tiny": "downsample_layers.1.conv.weight",
    }
    for case, name in downsampling.items():
        model = small(case)
        assert name in model.state_dict()
        assert model.group_matcher()(name) == (1, 1, 0)


def test_a_dat_of_another_size_takes_interpolated_biases(tmp_path):
    """As timm's own models with img_size: what rises along one axis still does, and is constant along the other."""
    _, arguments = SMALL["dat_tiny"]
    model = small("dat_tiny").float()
    with torch.no_grad():
        attention, deformable = model.stages[2].attns
        deformable.rpe_table.copy_(torch.arange(11.0).expand(4, 11, 11))
        attention.relative_position_bias_table.copy_(torch.arange(5.0).repeat(5).view(25, 1).expand(25, 4))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    sizes = {"img_size": 192, "window_sizes": (6, 6, 6, 6)}
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 10}
    loaded = timm.create_model("dat_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **{**arguments, **sizes})
    attention, deformable = loaded.eval().stages[2].attns
    of_windows = attention.relative_position_bias_table.T.unflatten(1, (11, 11))
    for table, side in ((deformable.rpe_table, 23), (of_windows, 11)):
        assert table.shape == (4, side, side)
        assert (table.diff(dim=2) > 0).all()
        assert table.diff(dim=1).abs().max() < 1e-5
        assert table.mean().item() == pytest.approx(5 if side == 23 else 2, rel=1e-4)
    assert torch.equal(loaded.cls_head.weight, model.cls_head.weight)
    fresh = dict(timm_model("dat_tiny", **sizes).named_buffers())
    assert all(torch.equal(buffer, fresh[name]) for name, buffer in loaded.named_buffers())
    assert loaded(image(192).float()).shape == (1, 10)


def test_wave_differs_by_name():
    assert not torch.equal(wave("a", (3,)), wave("b", (3,)))
