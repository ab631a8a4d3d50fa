"""RepLKNet's and SLaK's modules: the authors' names, the merged forms, gradients, float64."""

import pytest
import torch
import torch.nn.functional as F
from opbench_kernels import RepLKBlock, RepLKConv, SLaKConv
from torch import nn

NORM = {"weight": (6,), "bias": (6,), "running_mean": (6,), "running_var": (6,), "num_batches_tracked": ()}


def branch(name, height, width, norm=True):
    """Names and shapes of a convolution of 6 channels with its normalisation, as the authors nest them."""
    names = {f"{name}.conv.weight": (6, 1, height, width)}
    return names | ({f"{name}.bn.{key}": shape for key, shape in NORM.items()} if norm else {})


def conv(cls=RepLKConv, kernel_size=9, small_kernel=3, **given):
    return cls(in_channels=6, out_channels=6, kernel_size=kernel_size, stride=1, groups=6, small_kernel=small_kernel,
               **given)  # fmt: skip


MERGED = {"lkb_reparam.weight": (6, 1, 9, 9), "lkb_reparam.bias": (6,)}
LARGE, SMALL = branch("lkb_origin", 9, 9), branch("small_conv", 3, 3)
CASES = {
    "RepLKNet": (conv, LARGE | SMALL),
    "RepLKNet, no small kernel": (lambda **given: conv(small_kernel=None, **given), LARGE),
    "RepLKNet, small as large": (lambda **given: conv(small_kernel=9, **given), LARGE | branch("small_conv", 9, 9)),
    "SLaK": (lambda **given: conv(SLaKConv, **given), LARGE | SMALL),
    "SLaK, small as large": (lambda **given: conv(SLaKConv, small_kernel=9, **given), LARGE),
    "SLaK, decomposed": (
        lambda **given: conv(SLaKConv, Decom=True, **given),
        branch("LoRA1", 9, 3) | branch("LoRA2", 3, 9) | SMALL,
    ),
    "SLaK, decomposed, no norm": (
        lambda **given: conv(SLaKConv, Decom=True, bn=False, **given),
        branch("LoRA1", 9, 3, False) | branch("LoRA2", 3, 9, False) | branch("small_conv", 3, 3, False),
    ),
}


def trained(module, seed=0):
    """With parameters and running statistics as after training, none of them 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return module


def image(dtype=torch.float64, channels=6, seed=1):
    return torch.randn(2, channels, 7, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("make", "names"), CASES.values(), ids=CASES)
def test_a_checkpoint_of_the_authors_loads(make, names):
    module = make()
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == names
    module.load_state_dict({name: torch.zeros(shape) for name, shape in names.items()}, strict=True)


@pytest.mark.parametrize("cls", [RepLKConv, SLaKConv])
def test_a_merged_checkpoint_loads(cls):
    module = conv(cls, small_kernel_merged=True)
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == MERGED


def by_plain_torch(module, x):
    """The sum of the branches, from the state alone."""
    out = 0
    for name, sequence in module.named_children():
        weight = sequence.state_dict()["conv.weight"]
        height, width = weight.shape[2:]
        part = F.conv2d(x, weight, padding=(height // 2, width // 2), groups=6)
        if (norm := getattr(getattr(module, name), "bn", None)) is not None:
            part = F.batch_norm(part, norm.running_mean, norm.running_var, norm.weight, norm.bias, module.training)
        out = out + part
    return out


@pytest.mark.parametrize(("make", "names"), CASES.values(), ids=CASES)
def test_it_computes_the_sum_of_its_branches_and_merged_the_same(make, names):
    module, x = trained(make().double()), image()
    training = module(x)
    assert torch.allclose(training, by_plain_torch(module, x), rtol=1e-10, atol=1e-10)
    module.eval()
    expected = by_plain_torch(module, x)
    assert torch.allclose(module(x), expected, rtol=1e-10, atol=1e-10)
    module.merge_kernel()
    assert {name.partition(".")[0] for name in module.state_dict()} == {"lkb_reparam"}
    assert all(parameter.dtype == torch.float64 for parameter in module.parameters())
    assert torch.allclose(module(x), expected, rtol=1e-10, atol=1e-10)
    module.merge_kernel()  # nothing is left to merge
    assert torch.allclose(module(x), expected, rtol=1e-10, atol=1e-10)


def test_merged_parameters_of_the_authors_are_the_sum_in_the_centre():
    module = trained(conv().double()).eval()
    weights, biases = [], []
    for part in (module.lkb_origin, module.small_conv):
        scale = part.bn.weight / (part.bn.running_var + 1e-5) ** 0.5
        weights.append(part.conv.weight * scale[:, None, None, None])
        biases.append(part.bn.bias - part.bn.running_mean * scale)
    expected = weights[0].clone()
    expected[:, :, 3:6, 3:6] += weights[1]
    module.merge_kernel()
    assert torch.allclose(module.lkb_reparam.weight, expected)
    assert torch.allclose(module.lkb_reparam.bias, biases[0] + biases[1])


@pytest.mark.parametrize("make", [CASES["RepLKNet"][0], CASES["SLaK, decomposed"][0]])
@pytest.mark.parametrize("merged", [False, True])
def test_gradients(make, merged):
    module, x = trained(make().double()).eval(), image()[:1, :, :5, :4].requires_grad_()
    if merged:
        module.merge_kernel()
    names, parameters = zip(*module.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("make", [CASES["RepLKNet"][0], CASES["SLaK, decomposed"][0]])
def test_triton_agrees_with_torch(make):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = image(torch.float32).to(device)
    modules = [trained(make(implementation=name)).to(device).eval() for name in ("torch", "triton")]
    expected = modules[0](x)
    for module in modules:
        module.merge_kernel()
        assert torch.allclose(module(x), expected, rtol=1e-4, atol=1e-4)


def block(**given):
    return RepLKBlock(in_channels=4, dw_channels=6, block_lk_size=9, small_kernel=3, drop_path=0.0, **given)


def test_the_block_has_the_authors_names():
    def norm(name, channels):
        return {f"{name}.{key}": (channels,) if shape else () for key, shape in NORM.items()}

    expected = {"pw1.conv.weight": (6, 4, 1, 1), "pw2.conv.weight": (4, 6, 1, 1)}
    expected |= norm("pw1.bn", 6) | norm("pw2.bn", 4) | norm("prelkb_bn", 4)
    expected |= {f"large_kernel.{name}": shape for name, shape in (LARGE | SMALL).items()}
    assert {name: tuple(tensor.shape) for name, tensor in block().state_dict().items()} == expected
    merged = {name for name in block(small_kernel_merged=True).state_dict() if name.startswith("large_kernel")}
    assert merged == {f"large_kernel.{name}" for name in MERGED}


def test_the_block_is_its_stages_and_its_input():
    module, x = trained(block().double()).eval(), image(channels=4)
    state = module.state_dict()

    def norm(x, name):
        parts = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    hidden = F.conv2d(norm(x, "prelkb_bn"), state["pw1.conv.weight"])
    hidden = by_plain_torch(module.large_kernel, norm(hidden, "pw1.bn").relu()).relu()
    expected = x + norm(F.conv2d(hidden, state["pw2.conv.weight"]), "pw2.bn")
    assert torch.allclose(module(x), expected, rtol=1e-10, atol=1e-10)
    for part in module.modules():  # as the authors' structural_reparam does
        if hasattr(part, "merge_kernel"):
            part.merge_kernel()
    assert torch.allclose(module(x), expected, rtol=1e-10, atol=1e-10)


def test_a_dropped_branch_leaves_the_input_and_others_are_scaled():
    module = RepLKBlock(4, 4, 3, None, drop_path=0.5)
    x = torch.randn(64, 4, 3, 3)
    kept = RepLKBlock(4, 4, 3, None, drop_path=0.0)
    kept.load_state_dict(module.state_dict())
    torch.manual_seed(0)
    branch = module(x) - x
    scaled = 2 * (kept(x) - x)
    dropped = branch.flatten(1).abs().amax(1) == 0
    assert 10 < dropped.sum() < 54
    assert torch.allclose(branch[~dropped], scaled[~dropped], rtol=1e-4, atol=1e-4)
    module.eval()
    kept.eval()
    assert torch.equal(module(x), kept(x))


def test_norms_can_be_synchronised_as_the_authors_are():
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(conv())
    assert converted.state_dict().keys() == conv().state_dict().keys()
    assert isinstance(converted.small_conv.bn, nn.SyncBatchNorm)


@pytest.mark.parametrize("cls", [RepLKConv, SLaKConv])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kernel_size": 8}, "kernel_size must be a positive odd integer, got 8"),
        ({"small_kernel": 4}, "small_kernel must be a positive odd integer, got 4"),
        ({"small_kernel": 11}, "small_kernel must be at most kernel_size 9, got 11"),
        ({"groups": 3}, "in_channels, out_channels and groups must be the same"),
        ({"stride": 2}, "stride must be 1, got 2"),
        ({"implementation": "cuda"}, "implementation must be"),
    ],
)
def test_bad_arguments_are_named(cls, given, message):
    arguments = {"in_channels": 6, "out_channels": 6, "kernel_size": 9, "stride": 1, "groups": 6, "small_kernel": 3}
    with pytest.raises(ValueError, match=message):
        cls(**(arguments | given))


def test_what_only_one_has_is_named_too():
    with pytest.raises(ValueError, match="small_kernel must be given with Decom"):
        conv(SLaKConv, small_kernel=None, Decom=True)
    with pytest.raises(ValueError, match=r"drop_path must be in \[0, 1\), got 1"):
        RepLKBlock(4, 4, 9, 3, drop_path=1)
