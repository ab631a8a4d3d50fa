"""References of the operators against other ways to compute the same, and the spread of the inputs they are given."""

import math
import re
import sys
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from opbench_kernels import BGU, DAttention, DCNv3, DCNv4, MSDeformAttn, ParCV2, RepLKBlock, SLaKConv, tuning
from opbench_kernels.bilinear_launch import Config
from timm.models.fasternet import MLPBlock
from torchvision.ops import deform_conv2d

from opbench.errors import UsageError
from opbench.operators import _attention, _dcn, _dcnv4, _triton, window_attention
from opbench.registry import registry
from opbench.sweeps.check import make_tensors
from opbench.workload.case import OPERATOR_LEVELS, Case, Direction, Dtype, Level, Shape
from opbench.workload.trials import Trials, trials_of_cell


def case_of(name, shape=(2, 5, 6, 24), level=Level.MODULE, direction=Direction.FWD, **given):
    settings = registry.find(name).resolve_settings({key: str(value) for key, value in given.items()})
    return Case(name, level, direction, "test", Shape(*shape), Dtype.FP32, settings)


def random_like(case):
    """Numbers of the inputs' shapes in which no bias is zero and no weight one."""
    generator = torch.Generator().manual_seed(3)
    tensors = make_tensors(registry.find(case.operator), case, "cpu", 5)
    return {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / (tensor[0].numel() or 1) ** 0.5
        if name.endswith("weight") and tensor.ndim > 1
        else torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        for name, tensor in tensors.items()
    }


def reference(case, tensors):
    return registry.find(case.operator).reference(case, tensors)


def assert_same(got, expected):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 1e-11 * expected.abs().max()


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
def test_a_convolution_is_torchs_in_nchw(level):
    case = case_of("conv3x3", level=level)
    t = random_like(case)
    image, weight = t["x"].permute(0, 3, 1, 2), t["weight"].permute(0, 3, 1, 2)
    assert_same(reference(case, t), F.conv2d(image, weight, t.get("bias"), padding=1).permute(0, 2, 3, 1))
    assert ("bias" in t) == (level is Level.MODULE)


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
def test_a_partial_convolution_is_timms_and_the_module_its_block_with_the_normalisation_folded(level):
    case = case_of("pconv", level=level)
    t = random_like(case)
    block = MLPBlock(24, 4, 2.0, 0.0, 0.0, act_layer=torch.nn.GELU, pconv_fw_type="split_cat").double().eval()
    block.spatial_mixing.partial_conv3.weight.data = t["weight"].permute(0, 3, 1, 2)
    if level is Level.MODULE:
        norm = block.mlp[1]
        norm.running_mean.copy_(torch.linspace(-1, 1, 48))
        norm.running_var.copy_(torch.linspace(0.5, 2, 48))
        norm.weight.data = torch.linspace(1, 3, 48).double()
        scale = norm.weight.data / (norm.running_var + norm.eps).sqrt()
        norm.bias.data = t["fc1_bias"] + norm.running_mean * scale
        block.mlp[0].weight.data = (t["fc1_weight"] / scale[:, None])[..., None, None]
        block.mlp[3].weight.data = t["fc2_weight"][..., None, None]
    with torch.no_grad():
        expected = (block if level is Level.MODULE else block.spatial_mixing)(t["x"].permute(0, 3, 1, 2))
    assert_same(reference(case, t), expected.permute(0, 2, 3, 1))


def test_a_gated_unit_is_the_module():
    case = case_of("bgu", mlp_ratio=3)
    t = random_like(case)
    module = BGU(24, mlp_ratio=3, dtype=torch.float64)
    module.load_state_dict({name.replace("_", "."): tensor for name, tensor in t.items() if name != "x"})
    assert_same(reference(case, t), module(t["x"]).detach())


@pytest.mark.parametrize("given", [0, 5])
def test_an_oversized_convolution_is_the_module_and_its_merged_kernel_the_same(given):
    case = case_of("parc_v2", global_kernel_size=given)
    t = random_like(case)
    module = ParCV2(24, global_kernel_size=given or 11).double()
    module.load_state_dict({
        "pwconv1.weight": t["pwconv1_weight"][..., None, None], "pwconv1.bias": t["pwconv1_bias"],
        "dwconv1.conv_h.weight": t["column_weight"], "dwconv1.conv_w.weight": t["row_weight"],
        "dwconv2.weight": t["local_weight"], "pwconv2.weight": t["pwconv2_weight"][..., None, None],
    })  # fmt: skip
    assert_same(reference(case, t), module(t["x"]).detach())
    merged = registry.find("parc_v2").provider("torch_merged")
    if given:
        assert merged.not_applicable(case, "cpu") == "merging is for kernels of 7 to 31, this is 5"
    else:
        assert_same(reference(case, t), merged.build(case, t)())


@pytest.mark.parametrize("groups", [1, 3, 24])
def test_a_grouped_convolution_is_torchs(groups):
    case = case_of("grouped_conv3x3", level=Level.CORE, groups=groups)
    t = random_like(case)
    image, weight = t["x"].permute(0, 3, 1, 2), t["weight"].permute(0, 3, 1, 2)
    assert_same(reference(case, t), F.conv2d(image, weight, padding=1, groups=groups).permute(0, 2, 3, 1))


@pytest.mark.parametrize("size", [1, 3, 7, 31, 51])
def test_a_depthwise_convolution_is_torchs(size):
    case = case_of("depthwise_conv", level=Level.CORE, kernel_size=size)
    t = {name: tensor.requires_grad_() for name, tensor in random_like(case).items()}
    got = reference(case, t)
    expected = F.conv2d(t["x"].permute(0, 3, 1, 2), t["weight"], padding=size // 2, groups=24).permute(0, 2, 3, 1)
    assert_same(got, expected)
    grad = torch.randn(got.shape, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(got, list(t.values()), grad), torch.autograd.grad(expected, list(t.values()), grad),
        strict=True,
    ):  # fmt: skip
        assert_same(ours, theirs)


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
def test_repl_k_is_the_modules_convolution_and_its_block_with_the_normalisations_folded(level):
    case = case_of("replk", level=level, kernel_size=9, small_kernel=3)
    t = random_like(case)
    block = RepLKBlock(24, 24, 9, 3, drop_path=0.0).double().eval()
    for module in block.modules():  # as if there were none: running variance and eps are 1 together
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(1 - module.eps)
    block.large_kernel.lkb_origin.conv.weight.data = t["large_weight"]
    block.large_kernel.small_conv.conv.weight.data = t["small_weight"]
    if level is Level.MODULE:
        for name in ("pw1", "pw2"):
            getattr(block, name).conv.weight.data = t[f"{name}_weight"][..., None, None]
            getattr(block, name).bn.bias.data = t[f"{name}_bias"]
        block.large_kernel.small_conv.bn.bias.data = t["conv_bias"]
    module = block if level is Level.MODULE else block.large_kernel
    assert_same(reference(case, t), module(t["x"].permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach())


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
def test_slak_is_the_modules_convolution_and_its_block(level):
    case = case_of("slak", level=level, kernel_size=9, small_kernel=3)
    t = random_like(case)
    conv = SLaKConv(24, 24, 9, 1, 24, 3, Decom=True, bn=False).double()
    for name, weight in (("LoRA1", "tall"), ("LoRA2", "wide"), ("small_conv", "small")):
        getattr(conv, name).conv.weight.data = t[f"{weight}_weight"]
    expected = conv(t["x"].permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach()
    if level is Level.MODULE:
        hidden = expected + t["conv_bias"]
        spread = (hidden.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        hidden = (hidden - hidden.mean(-1, keepdim=True)) / spread * t["norm_weight"] + t["norm_bias"]
        hidden = hidden @ t["fc1_weight"].T + t["fc1_bias"]
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        expected = t["x"] + hidden @ t["fc2_weight"].T + t["fc2_bias"]
    assert_same(reference(case, t), expected)


def test_what_comes_into_a_relu_stays_away_from_zero_where_gradients_are_compared():
    case = case_of("replk", (1, 12, 12, 32), kernel_size=9, direction=Direction.BWD)
    operator = registry.find("replk")
    t = operator.smooth_inputs(case, make_tensors(operator, case, "cpu", 5))
    first = t["x"] @ t["pw1_weight"].T + t["pw1_bias"]
    second = reference(replace(case, level=Level.CORE), {**t, "x": first.relu()}) + t["conv_bias"]
    for entering in (first, second):
        assert entering.abs().min() > 0.3
        assert 0.4 < (entering > 0).double().mean() < 0.6


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("depthwise_conv", {"kernel_size": 8}, "kernel_size must be odd to keep the image size, got 8"),
        ("replk", {"small_kernel": 4}, "small_kernel must be odd"),
        ("replk", {"kernel_size": 5, "small_kernel": 7}, "small_kernel must be at most kernel_size 5, got 7"),
        ("slak", {"kernel_size": 50}, "kernel_size must be odd"),
        ("slak", {"kernel_size": 5}, "small_kernel must be smaller than kernel_size 5, got 5"),
        ("grouped_conv3x3", {"groups": 5}, "24 channels are not a multiple of 5 groups"),
    ],
)
def test_where_there_is_no_such_convolution(name, given, reason):
    assert reason in registry.find(name).not_applicable(case_of(name, level=Level.CORE, **given))
    assert registry.find(name).not_applicable(case_of(name, (1, 2, 2, 32), level=Level.CORE)) is None


def test_where_channels_have_no_such_part():
    assert "cannot be halved" in registry.find("bgu").not_applicable(case_of("bgu", (1, 3, 3, 5), mlp_ratio=3))
    assert registry.find("bgu").not_applicable(case_of("bgu", mlp_ratio=3)) is None
    assert "no 25th part" in registry.find("pconv").not_applicable(case_of("pconv", n_div=25))
    assert registry.find("pconv").not_applicable(case_of("pconv", n_div=24)) is None
    oversized = registry.find("parc_v2").not_applicable
    assert "must be odd" in oversized(case_of("parc_v2", global_kernel_size=4))
    assert "13 is above 11" in oversized(case_of("parc_v2", global_kernel_size=13))
    assert oversized(case_of("parc_v2", global_kernel_size=11)) is None


def by_hand(q, k, v, head_dim, bias):
    """Attention of (tokens, C): one head and one query after the other."""
    out = torch.empty_like(q)
    for head, start in enumerate(range(0, q.shape[-1], head_dim)):
        part = slice(start, start + head_dim)
        for query in range(len(q)):
            scores = (q[query, part] * k[:, part]).sum(-1) / math.sqrt(head_dim) + bias(head, query)
            weights = scores.exp() / scores.exp().sum()
            out[query, part] = (weights[:, None] * v[:, part]).sum(0)
    return out


def attended(case, tensors, image, bias=lambda head, query: 0.0):
    """The module around by_hand for one (tokens, C), or by_hand on what is there of q, k and v."""
    head_dim, channels = case.int_setting("head_dim"), case.shape.channels
    if case.level is Level.CORE:
        return by_hand(*image, head_dim, bias)
    weight, shift = tensors["qkv_weight"], tensors["qkv_bias"]
    q, k, v = (image @ weight[i : i + channels].T + shift[i : i + channels] for i in range(0, 3 * channels, channels))
    return by_hand(q, k, v, head_dim, bias) @ tensors["proj_weight"].T + tensors["proj_bias"]


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
@pytest.mark.parametrize("name", ["attention", "flash_attention_2"])
def test_attention_by_hand(name, level):
    case = case_of(name, level=level, head_dim=8)
    t = random_like(case)
    images = t["x"].flatten(1, 2) if level is Level.MODULE else zip(*(t[n].flatten(1, 2) for n in "qkv"), strict=True)
    expected = torch.stack([attended(case, t, image) for image in images]).view(2, 5, 6, 24)
    assert_same(reference(case, t), expected)


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
def test_the_package_flash_attn_gets_its_layout(level, monkeypatch):
    def flash_attn_func(q, k, v):
        """As the package documents it: each (batch, tokens, heads, head_dim), scaled by 1 / sqrt(head_dim)."""
        assert q.shape == (2, 30, 3, 8)
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=flash_attn_func))
    case = case_of("flash_attention_2", level=level, head_dim=8)
    t = random_like(case)
    launch = registry.find("flash_attention_2").provider("flash_attn").build(case, t)
    assert_same(launch(), reference(case, t))


def test_blocks_of_queries_are_put_together():
    tokens = _attention.REFERENCE_QUERIES + 3
    q, k, v = (torch.randn(2, tokens, 4, generator=torch.Generator().manual_seed(i)).double() for i in range(3))
    bias = torch.randn(2, tokens, tokens, generator=torch.Generator().manual_seed(3)).double()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    assert_same(_attention.attend_exactly(q, k, v, bias), expected)
    huge = _attention.attend_exactly(300 * q, 300 * k, v)  # exp of which would overflow
    assert_same(huge, F.scaled_dot_product_attention(300 * q, 300 * k, v))


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
def test_window_attention_by_hand(level):
    """Windows of 3 on 5 x 7, padded with zeros to 6 x 9, whose bias depends on where the key lies from the query."""
    case, window = case_of("window_attention", (2, 5, 7, 8), level, window_size=3, head_dim=4), 3
    t = random_like(case)
    names = ["x"] if level is Level.MODULE else ["q", "k", "v"]
    padded = [F.pad(t[name], (0, 0, 0, 2, 0, 1)) for name in names]
    expected = torch.empty_like(padded[0])

    def bias(head, query):
        places = [(query // 3 - key // 3, query % 3 - key % 3) for key in range(9)]
        return torch.stack([t["bias_table"][(down + 2) * 5 + across + 2, head] for down, across in places])

    for image in range(2):
        for top in range(0, 6, window):
            for left in range(0, 9, window):
                place = (image, slice(top, top + window), slice(left, left + window))
                parts = [tensor[place].reshape(9, 8) for tensor in padded]
                out = attended(case, t, parts[0] if level is Level.MODULE else parts, bias)
                expected[place] = out.view(window, window, 8)
    assert_same(reference(case, t), expected[:, :5, :7])
    assert window_attention.padded_sides(case) == (6, 9)


def test_timms_scores_are_materialised_whatever_its_default(monkeypatch):
    pytest.importorskip("timm")
    case = case_of("window_attention", (1, 7, 7, 32))
    launch = registry.find("window_attention").provider("timm").build(case, random_like(case))
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    launch()


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
def test_dcnv2_is_torchvisions(level):
    case = case_of("dcnv2", level=level, kernel_size=5, deform_groups=2)
    t = random_like(case)
    x, weight = t["x"].permute(0, 3, 1, 2), t["weight"].permute(0, 3, 1, 2)
    if level is Level.CORE:
        offset, mask = t["offset"].permute(0, 3, 1, 2), t["mask"].permute(0, 3, 1, 2)
    else:
        conv_offset = t["conv_offset_weight"].permute(0, 3, 1, 2)
        offset, mask = F.conv2d(x, conv_offset, t["conv_offset_bias"], padding=2).split((100, 50), dim=1)
        mask = mask.sigmoid()
    expected = deform_conv2d(x, offset, weight, t.get("bias"), padding=2, mask=mask)
    assert_same(reference(case, t), expected.permute(0, 2, 3, 1))
    assert ("bias" in t) == (level is Level.MODULE)


DAT_NAMES = {"offset_dw": "conv_offset.0", "offset_norm": "conv_offset.1.norm", "offset_proj": "conv_offset.3"}


def test_dat_attention_is_dats():
    case = case_of("dat_attention", (2, 5, 6, 24), head_dim=4, group_channels=12, offset_range_factor=3)
    t = random_like(case)
    module = DAttention((5, 6), (5, 6), 6, 4, 2, 0.0, 0.0, 1, 3, True, False, False, False, 2, dtype=torch.float64)
    state = {"rpe_table": t["rpe_table"]}
    for key in t:
        layer, _, kind = key.rpartition("_")
        if kind in ("weight", "bias"):
            name = f"{DAT_NAMES.get(layer, layer)}.{kind}"
            state[name] = t[key].view(module.state_dict()[name].shape)
    module.load_state_dict(state, strict=True)
    with torch.no_grad():
        expected, *_ = module(t["x"].permute(0, 3, 1, 2))
    assert_same(reference(case, t), expected.permute(0, 2, 3, 1))


def test_the_module_level_of_ms_deform_attn_is_deformable_detrs():
    case = case_of("ms_deform_attn", (2, 5, 7, 24), n_levels=3, n_heads=4, n_points=2)
    t = random_like(case)
    module = MSDeformAttn(24, 3, 4, 2, implementation="torch").double()
    module.load_state_dict({re.sub("_(weight|bias)$", r".\1", key): t[key] for key in t if key not in ("x", "query")})
    sizes = torch.tensor([(5, 7), (3, 4), (2, 2)])
    starts = torch.tensor([0, 35, 47])
    x, y = ((torch.arange(side, dtype=torch.float64) + 0.5) / side for side in (7, 5))
    places = torch.stack([x.repeat(5), y.repeat_interleave(7)], -1).view(1, 35, 1, 2).expand(2, -1, 3, -1)
    with torch.no_grad():
        expected = module(t["query"].flatten(1, 2), places, t["x"], sizes, starts)
    assert_same(reference(case, t), expected.view(2, 5, 7, 24))


def test_the_core_of_ms_deform_attn_is_grid_samples():
    case = case_of("ms_deform_attn", (1, 5, 6, 8), Level.CORE, n_levels=2, n_heads=2, n_points=3)
    t = make_tensors(registry.find("ms_deform_attn"), case, "cpu", 5)
    t = {name: tensor.double() for name, tensor in t.items()}
    launch = registry.find("ms_deform_attn").provider("grid_sample").build(case, t)
    torch.testing.assert_close(launch(), reference(case, t), rtol=1e-5, atol=1e-5)  # it computes in float32


MODULE_NAMES = {"dw_conv": "dw_conv.0", "norm": "dw_conv.1.1"}


@pytest.mark.parametrize(
    ("name", "module", "given"),
    [
        ("dcnv3", DCNv3, {}),
        ("dcnv3", DCNv3, {"kernel_size": 5, "dw_kernel_size": 3}),
        ("dcnv4", DCNv4, {}),
        ("dcnv4", DCNv4, {"kernel_size": 5, "dw_kernel_size": 3}),
        ("dcnv4_lightweight", DCNv4, {"kernel_size": 1}),
    ],
)
def test_the_modules_level_is_the_module_of_the_paper(name, module, given):
    case = case_of(name, group_channels=8, **given)
    t = random_like(case)
    size = case.int_setting("kernel_size")
    arguments = {"kernel_size": size, "pad": size // 2, "group": 3, "implementation": "torch", "dtype": torch.float64}
    if case.int_setting("dw_kernel_size"):
        arguments["dw_kernel_size"] = case.int_setting("dw_kernel_size")
    if name == "dcnv4_lightweight":
        arguments["without_pointwise"] = True
    official = module(24, **arguments)
    state = {}
    for key, tensor in t.items():
        layer, _, kind = key.rpartition("_")
        state[f"{MODULE_NAMES.get(layer, layer)}.{kind}"] = tensor
    x = state.pop(".x")
    official.load_state_dict(state)
    with torch.no_grad():
        assert_same(reference(case, t), official(x))


@pytest.mark.parametrize(
    ("name", "given", "core", "module", "growth"),
    [
        ("conv3x3", {}, 1, 1, (9 * 24) ** 0.5),  # a sum over 3 x 3 x C; of a wide image, one over its pixels
        ("attention", {}, 4, 7, 60**0.5),
        ("flash_attention_2", {}, 2, 5, 60**0.5),
        ("window_attention", {}, 4, 7, 60**0.5),
        ("dcnv3", {}, 1, 6, 2 * 6 + 24**0.5),
        ("dcnv4", {"offset_std_px": 0.5}, 1, 6, 2 * 6 + 24**0.5),
        ("dcnv4_lightweight", {"offset_std_px": 3}, 1, 6, 2 * 18 + 24**0.5),
        ("dat_attention", {}, 9, 9, 60**0.5 + 4 * 6),
        ("ms_deform_attn", {"offset_std_px": 3}, 1, 6, 2 * 18 + 24**0.5),
        ("dcnv2", {"offset_std_px": 3}, 2, 6, 2 * 18 + (9 * 24) ** 0.5),
    ],
)
def test_tolerances_by_hand(name, given, core, module, growth):
    """Six times the roundings to the dtype and what float32 adds."""
    for level, roundings in ((Level.CORE, core), (Level.MODULE, module)):
        case = replace(case_of(name, (2, 5, 6, 24), level, **given), dtype=Dtype.BF16)
        expected = 6 * (roundings * 2**-8 + growth * 2**-24)
        assert registry.find(name).tolerance(case) == pytest.approx(expected, rel=1e-9)


def test_the_tolerance_of_a_convolution_of_a_large_image_is_that_of_its_weights_gradient():
    case = case_of("conv3x3", (2, 20, 10, 8), direction=Direction.BWD)
    assert registry.find("conv3x3").tolerance(case) == pytest.approx(24 * (1 + 20) * 2**-24)


def test_settings_by_default():
    dcn = {"group_channels": 32, "kernel_size": 3, "offset_std_px": 1.0}
    assert {name: dict(registry.find(name).resolve_settings({})) for name in registry.PAPER_ORDER} == {
        "conv3x3": {},
        "attention": {"head_dim": 32},
        "flash_attention_2": {"head_dim": 32},
        "window_attention": {"head_dim": 32, "window_size": 7},
        "dcnv3": dcn | {"dw_kernel_size": 3},
        "dcnv4": dcn | {"dw_kernel_size": 0},
        "dcnv4_lightweight": dcn | {"dw_kernel_size": 0},
    }
    least = {"head_dim": 1, "window_size": 1, "group_channels": 1, "kernel_size": 1, "offset_std_px": 0}
    for name in registry.PAPER_ORDER:
        operator = registry.find(name)
        least["dw_kernel_size"] = 1 if name == "dcnv3" else 0
        for setting in [name for name in operator.settings if name != "offset_distribution"]:
            operator.resolve_settings({setting: str(least[setting])})
            with pytest.raises(UsageError, match=f"of at least {least[setting]}"):
                operator.resolve_settings({setting: str(least[setting] - 1)})


def spreads_of(name):
    """Tensors with their shape, standard deviation and mean: B = 2, H = 20, W = 10, C = 64."""
    image = (2, 20, 10, 64)
    projections = {"weight": ((64, 64), 1 / 8, 0), "bias": ((64,), 0.1, 0)}
    attention = {
        "core": dict.fromkeys("qkv", (image, 1, 0)),
        "module": {
            "x": (image, 1, 0), "qkv_weight": ((192, 64), 1 / 8, 0), "qkv_bias": ((192,), 0.1, 0),
            **{f"proj_{kind}": spread for kind, spread in projections.items()},
        },
    }  # fmt: skip
    table = {"bias_table": ((81, 4), 0.5, 0)}
    gain = 0.4252**-0.5 / 8  # features are a GELU of normal numbers: E[GELU(z)^2] = 0.4252
    return {
        "conv3x3": {
            "core": {"x": (image, 1, 0), "weight": ((64, 3, 3, 64), 1 / 24, 0)},
            "module": {"x": (image, 1, 0), "weight": ((64, 3, 3, 64), 1 / 24, 0), "bias": ((64,), 1, 0)},
        },
        "ms_deform_attn": {
            "core": {
                "value": ((2, 250, 64), 1, 0), "locations": ((2, 20, 10, 48), None, 0.5),
                "weights": ((2, 20, 10, 24), None, 1 / 6),
            },
            "module": {
                "query": (image, 1, 0), "x": ((2, 250, 64), 1, 0), "sampling_offsets_weight": ((48, 64), 3 / 8, 0),
                "sampling_offsets_bias": ((48,), 0, 0), "attention_weights_weight": ((24, 64), 1 / 8, 0),
                "attention_weights_bias": ((24,), 0, 0),
                **{f"{to}_proj_{kind}": spread for to in ("value", "output") for kind, spread in projections.items()},
            },
        },
        "dcnv2": {
            "core": {
                "x": (image, 1, 0), "weight": ((64, 3, 3, 64), 1 / 24, 0), "offset": ((2, 20, 10, 36), 0.5, 0),
                "mask": ((2, 20, 10, 18), None, 0.5),
            },
            "module": {
                "x": (image, 1, 0), "weight": ((64, 3, 3, 64), 1 / 24, 0), "bias": ((64,), 1, 0),
                "conv_offset_weight": ((54, 3, 3, 64), None, 0), "conv_offset_bias": ((54,), 0, 0),
            },
        },
        "attention": attention,
        "window_attention": {level: tensors | table for level, tensors in attention.items()},
        "dcnv3": {
            "core": {
                "value": (image, 1, 0), "offset": ((2, 20, 10, 36), 0.5, 0), "mask": ((2, 20, 10, 18), None, 1 / 9),
            },
            "module": {
                "x": (image, 1, 0), "dw_conv_weight": ((64, 1, 5, 5), 1 / 5, 0), "dw_conv_bias": ((64,), 0.1, 0),
                "norm_weight": ((64,), 0, 1), "norm_bias": ((64,), 0, 0), "offset_weight": ((36, 64), 0.5 * gain, 0),
                "offset_bias": ((36,), 0, 0), "mask_weight": ((18, 64), gain, 0), "mask_bias": ((18,), 0, 0),
                **{f"{side}put_proj_{kind}": spread for side in ("in", "out") for kind, spread in projections.items()},
            },
        },
        "dcnv4": {
            "core": {"value": (image, 1, 0), "offset_mask": ((2, 20, 10, 56), None, None)},
            "module": {
                "x": (image, 1, 0), "offset_mask_weight": ((56, 64), None, 0), "offset_mask_bias": ((56,), None, None),
                "offset_mask_dw_weight": ((64, 1, 5, 5), 1 / 5, 0), "offset_mask_dw_bias": ((64,), 0, 0),
                **{f"{to}_proj_{kind}": spread for to in ("value", "output") for kind, spread in projections.items()},
            },
        },
    }[name]  # fmt: skip


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("conv3x3", {}),
        ("attention", {}),
        ("window_attention", {"window_size": 5, "head_dim": 16}),
        ("dcnv3", {"offset_std_px": 0.5, "dw_kernel_size": 5}),
        ("dcnv4", {"offset_std_px": 3, "dw_kernel_size": 5}),
        ("dcnv2", {"offset_std_px": 0.5, "deform_groups": 2}),
        ("ms_deform_attn", {"n_levels": 2, "n_heads": 4, "n_points": 3, "offset_std_px": 3}),
    ],
)
def test_inputs_have_their_shapes_and_spreads(name, given, level):
    case = case_of(name, (2, 20, 10, 64), level, **given)
    expected = spreads_of(name)[level]
    made = make_tensors(registry.find(name), case, "cpu", 5)
    assert {key: tuple(tensor.shape) for key, tensor in made.items()} == {key: one[0] for key, one in expected.items()}
    for key, (_, std, mean) in expected.items():
        count = made[key].numel()
        if std is not None:
            assert made[key].std() == pytest.approx(std, rel=4 / (2 * count) ** 0.5, abs=1e-12), key
        if mean is not None:
            assert made[key].mean() == pytest.approx(mean, abs=4 * (std or 0.1) / count**0.5 + 1e-7), key


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
def test_packed_channels_are_offsets_then_masks_of_each_group_then_a_tail_of_zeros(level):
    case = case_of("dcnv4", (2, 20, 10, 64), level, offset_std_px=3)
    made = make_tensors(registry.find("dcnv4"), case, "cpu", 5)
    if level is Level.CORE:
        channels = made["offset_mask"].flatten(0, -2).T
        std, mean, count = channels.std(-1), channels.mean(-1), 400
    else:
        std, mean, count = made["offset_mask_weight"].norm(dim=-1), made["offset_mask_bias"], 64
    expected_std = torch.tensor([*([3.0] * 18 + [0.5 / 9] * 9) * 2, 0.0, 0.0])
    expected_mean = torch.tensor([*([0.0] * 18 + [1 / 9] * 9) * 2, 0.0, 0.0])
    assert ((std - expected_std).abs() <= 4 / (2 * count) ** 0.5 * expected_std).all()
    assert ((mean - expected_mean).abs() <= 4 * expected_std / count**0.5 * (level is Level.CORE) + 1e-7).all()


def test_offsets_are_squeezed_between_the_pixels():
    offset = torch.tensor([-1.0, -0.25, 0.0, 0.5, 1.999])
    assert _dcn.away_from_kinks(offset).tolist() == pytest.approx([-0.875, -0.3125, 0.125, 0.5, 1.87425], abs=1e-6)


@pytest.mark.parametrize("name", ["dcnv3", "dcnv4"])
@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
@pytest.mark.parametrize("spread", [0.01, 2.0])
def test_smooth_inputs_change_the_offsets_alone(name, level, spread):
    case = case_of(name, (1, 8, 9, 64), level, Direction.BWD, offset_std_px=spread)
    operator = registry.find(name)
    made = make_tensors(operator, case, "cpu", 5)
    before = {key: tensor.clone() for key, tensor in made.items()}
    smooth = operator.smooth_inputs(case, made)
    assert all(torch.equal(made[key], before[key]) for key in before)  # the timed inputs stay as they are
    packed = name == "dcnv4"
    keys = {"core": ["offset"], "module": ["offset_weight", "offset_bias"]}[level]
    keys = [key.replace("offset", "offset_mask") for key in keys] if packed else keys
    is_offset = torch.arange(56) % 27 < 18 if packed else torch.ones(36, dtype=torch.bool)
    is_offset[54:] = False  # the tail
    for key in made:
        if key not in keys:
            assert torch.equal(smooth[key], made[key])
            continue
        axis = 0 if level is Level.MODULE else -1
        kept, changed = (torch.nonzero(flags)[:, 0] for flags in (~is_offset, is_offset))
        old, new = made[key], smooth[key]
        assert torch.equal(new.index_select(axis, kept), old.index_select(axis, kept))
        old, new = old.index_select(axis, changed), new.index_select(axis, changed)
        if key.endswith("bias"):
            assert (new == 0.5).all()
        elif key.endswith("weight"):
            assert torch.allclose(new, old * (0.05 / max(spread, 0.05)))
        else:
            assert torch.equal(new, _dcn.away_from_kinks(old))


@pytest.mark.parametrize("name", ["dcnv3", "dcnv4"])
def test_only_odd_grids_keep_the_image_size(name):
    reason = registry.find(name).not_applicable
    assert reason(case_of(name, (1, 4, 4, 64))) is None
    for size in (2, 4):
        even = f"kernel_size must be odd to keep the image size, got {size}"
        assert reason(case_of(name, (1, 4, 4, 64), kernel_size=size)) == even
        assert reason(case_of(name, (1, 4, 4, 64), dw_kernel_size=size)) == f"dw_{even}"
    assert reason(case_of(name, (1, 4, 4, 64), kernel_size=1, dw_kernel_size=1)) is None


def test_the_triton_providers_need_a_gpu_and_tell_the_last_choice(monkeypatch):
    provider = registry.find("dcnv4").provider("triton")
    assert provider.unavailable("cuda") is None
    assert provider.unavailable("cpu") == "the Triton kernels need a CUDA device, this is cpu"
    last = {}
    monkeypatch.setattr("opbench_kernels.tuning.last_choices", lambda: last)
    assert provider.configuration() == ""
    last["deform forward"] = Config(vectors=2, num_warps=8)
    assert provider.configuration() == "vectors=2;num_warps=8"
    last["deform backward"] = namedtuple("Backward", "num_warps")(4)
    assert provider.configuration() == "vectors=2;num_warps=8;backward_num_warps=4"


def test_kernels_are_tuned_with_the_clock_and_the_cache_of_their_cell(monkeypatch):
    monkeypatch.setattr(tuning, "_state", {})
    monkeypatch.setattr(tuning, "_last", {"deform forward": Config(1, 1)})
    _triton.tune()
    assert (tuning.is_enabled(), tuning._state["timing"].cache, dict(tuning.last_choices())) == (True, "cold", {})
    trials = Trials("warm", lambda launches: [])
    with trials_of_cell(trials):
        _triton.tune()
    assert tuning._state["timing"] == (trials.measure, "warm")


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
@pytest.mark.parametrize("name", ["dcnv3", "dcnv4", "dcnv4_lightweight"])
def test_what_a_provider_builds_is_the_reference_and_triton_alone_is_tuned(name, level, monkeypatch):
    case = case_of(name, (2, 5, 6, 64), level, kernel_size=5)
    tensors, operator = random_like(case), registry.find(name)
    tuned = []
    monkeypatch.setattr(_triton, "tune", lambda: tuned.append(name))
    assert_same(operator.provider("torch").build(case, tensors)(), reference(case, tensors))
    assert tuned == []
    operator.provider("triton").build(case, tensors)
    assert tuned == [name]


def test_the_fused_product_is_divided_into_value_and_offset_mask(monkeypatch):
    case = case_of("dcnv4", (2, 5, 6, 64))
    tensors, core = random_like(case), _dcnv4.core
    monkeypatch.setattr(_dcnv4, "core", lambda case, _: core(case, "torch"))
    fused = registry.find("dcnv4").provider("triton_fused")
    assert_same(fused.build(case, tensors)(), reference(case, tensors))
    for changes, reason in (
        ({}, None),
        ({"direction": Direction.BWD}, "it is an inference path"),
        ({"level": Level.CORE}, "it fuses the module's projections"),
        ({"settings": case_of("dcnv4", dw_kernel_size=3).settings}, "offsets come from the depthwise"),
    ):
        told = fused.not_applicable(replace(case, **changes), "cuda")
        assert told is None if reason is None else told.startswith(reason)


def test_timm_is_there_where_it_is_installed(tmp_path, monkeypatch):
    told = registry.find("pconv").provider("timm").unavailable
    assert told("cpu") is None
    # Of a version from before FasterNet, and of none.
    (tmp_path / "timm" / "models").mkdir(parents=True)
    (tmp_path / "timm" / "models" / "swin_transformer.py").touch()
    old = SimpleNamespace(submodule_search_locations=[str(tmp_path / "timm")])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: old)
    assert told("cpu") == "the installed timm has no models/fasternet.py (pip install --upgrade timm)"
    assert registry.find("window_attention").provider("timm").unavailable("cpu") is None
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert told("cpu") == "the package timm is not installed (pip install timm)"
