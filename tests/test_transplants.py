"""DCNv4 in timm's ConvNeXt and ViT and in a U-Net's block: what was not replaced computes as it did."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from opbench_kernels import DCNv4
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from opbench.models import transplant
from opbench.models.layers import to_nchw, to_nhwc
from opbench.models.transplants import TRANSPLANTS, OverTokens, UNetBlock, replace_operators
from opbench.registry.registry import find
from opbench.sweeps.check import check
from opbench.workload.case import Case, Direction, Dtype, Level, Shape


def convnext():
    return ConvNeXt(depths=(1, 1, 2, 1), dims=(16, 32, 64, 96), num_classes=7).double().eval()


def vit(**changes):
    arguments = {"class_token": False, "global_pool": "avg", **changes}
    return VisionTransformer(32, 8, embed_dim=64, depth=2, num_heads=2, num_classes=7, **arguments).double().eval()


IMAGES = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class AsBefore(nn.Module):
    """What a block had, for NHWC images."""

    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, x):
        if isinstance(self.operator, nn.Conv2d):
            return to_nhwc(self.operator(to_nchw(x)))
        return self.operator(x.flatten(1, 2)).view_as(x)


@pytest.mark.parametrize(("make", "name"), [(convnext, "conv_dw"), (vit, "attn")])
def test_with_its_own_operator_put_back_the_network_gives_timms_logits(make, name):
    model = make()
    expected = model(IMAGES)
    own = iter([getattr(block, name) for block in model.modules() if hasattr(block, name)])
    changed = copy.deepcopy(model)
    replace_operators(changed, lambda channels: AsBefore(next(own)))
    assert next(own, None) is None  # each was put back
    torch.testing.assert_close(changed(IMAGES), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "operator", "name", "lightweight"),
    [(convnext, "dcnv4_lightweight", "conv_dw", True), (vit, "dcnv4", "attn", False)],
)
def test_a_transplant_keeps_all_other_weights(make, operator, name, lightweight):
    model = make()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    changed = transplant(model, operator).double()
    after = changed.state_dict()
    kept = [key for key in before if f".{name}." not in key]
    assert all(torch.equal(after[key], before[key]) for key in kept)
    assert {key for key in after if f".{name}." not in key} == set(kept)
    layers = [layer for layer in changed.modules() if isinstance(layer, DCNv4)]
    assert len(layers) == sum(hasattr(block, name) for block in changed.modules())
    assert {layer.without_pointwise for layer in layers} == {lightweight}
    for layer in layers:  # a new DCNv4 gives zeros
        nn.init.normal_(layer.offset_mask.bias)
    assert changed(IMAGES).shape == (2, 7)
    assert not torch.allclose(changed(IMAGES), make()(IMAGES))


def test_its_own_operator_changes_nothing():
    model = vit()
    assert transplant(model, "attention") is model
    assert not any(isinstance(layer, OverTokens) for layer in model.modules())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="one of depthwise_conv, dcnv4_lightweight, none, got 'dcnv4'"):
        transplant(convnext(), "dcnv4")
    with pytest.raises(ValueError, match=r"no class token: class_token=False, global_pool=\"avg\""):
        transplant(vit(class_token=True, global_pool="token"), "dcnv4")
    with pytest.raises(ValueError, match="timm's ConvNeXt or VisionTransformer, got ResNet"):
        transplant(timm.create_model("resnet18"), "dcnv4")
    tokens = OverTokens(nn.Identity(), (2, 3))
    with pytest.raises(ValueError, match="x must have 6 tokens, a map of 2x3, got 5"):
        tokens(torch.zeros(1, 5, 4))
    with pytest.raises(ValueError, match="a mask is for attention"):
        tokens(torch.zeros(1, 6, 4), is_causal=True)
    with pytest.raises(ValueError, match="operator must be one of conv3x3, dcnv4, got 'dcnv3'"):
        UNetBlock(32, "dcnv3")
    with pytest.raises(ValueError, match="channels must be a multiple of 32, got 48"):
        UNetBlock(48)


def test_a_block_of_a_u_net_is_its_formula_around_either_operator():
    x = torch.randn(2, 32, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    time = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for name in ("conv3x3", "dcnv4"):
        block = UNetBlock(32, name, time_channels=8).double()
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(3))
        normed = F.silu(F.group_norm(x, 32, block.norm1.weight, block.norm1.bias))
        hidden = block.operator1(normed) + F.linear(F.silu(time), block.time.weight, block.time.bias)[..., None, None]
        second = F.silu(F.group_norm(hidden, 32, block.norm2.weight, block.norm2.bias))
        torch.testing.assert_close(block(x, time), x + block.operator2(second), rtol=1e-12, atol=1e-12)
    dcnv4 = block.operator1.inner
    torch.testing.assert_close(block.operator1(x), to_nchw(dcnv4(to_nhwc(x))))


@pytest.mark.parametrize(
    ("name", "operator", "kind"),
    [
        ("convnext_tiny", "dcnv4_lightweight", "convnext"),
        pytest.param("vit_base_patch16_224", "dcnv4", "vit", marks=pytest.mark.slow),
        pytest.param("vit_base_patch16_224", "none", "vit", marks=pytest.mark.slow),
    ],
)
def test_in_a_sweep_a_block_agrees_with_its_float64_self(name, operator, kind):
    network = find(name)
    assert network.settings["operator"].allowed == TRANSPLANTS[kind]
    assert network.settings["operator"].default == TRANSPLANTS[kind][0]
    settings = network.settings_at(Level.BLOCK, network.resolve_settings({"operator": operator}))
    for direction in (Direction.FWD, Direction.BWD):
        case = Case(name, Level.BLOCK, direction, "test", Shape(1, 64, 32, 3), Dtype.FP32, settings)
        assert network.not_applicable(case) is None
        assert check(network, network.provider("torch"), case, "cpu", seed=3).reason == ""


def test_triton_is_no_provider_of_a_network_without_its_kernels():
    network = find("convnext_tiny")
    for operator, applies in (("depthwise_conv", False), ("dcnv4_lightweight", True)):
        settings = network.settings_at(Level.MODEL, network.resolve_settings({"operator": operator}))
        case = Case("convnext_tiny", Level.MODEL, Direction.FWD, "test", Shape(1, 32, 32, 3), Dtype.FP32, settings)
        assert (network.provider("triton").not_applicable(case, "cuda") is None) == applies
