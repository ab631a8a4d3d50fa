"""ParCNetV2's modules by value, by name, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F
from opbench_kernels import BGU, ParCV2
from opbench_kernels.parc.modules import OversizeConv2d
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def image(*sizes, seed=1, dtype=torch.float64):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_hand(module, x):
    """ParC_V2 of NHWC x as the paper has it: every output row and column a sum over all of the map."""
    names = dict(module.named_parameters())
    weight, bias = names["pwconv1.weight"][..., 0, 0], names["pwconv1.bias"]
    carried, gate = (x @ weight.T + bias).chunk(2, dim=-1)
    gate = F.gelu(gate)
    height, width, reach = x.shape[1], x.shape[2], module.dwconv1.conv_h.weight.shape[2] // 2
    column, row = names["dwconv1.conv_h.weight"][:, 0, :, 0], names["dwconv1.conv_w.weight"][:, 0, 0]

    def banded(taps, length):
        """(C, out, in): the tap by which an output place meets an input place, zero where none does."""
        distance = torch.arange(length)[None] - torch.arange(length)[:, None] + reach
        inside = (distance >= 0) & (distance <= 2 * reach)
        return torch.where(inside, taps[:, distance.clamp(0, 2 * reach)], 0.0)

    mixed = torch.einsum("cyi,nixc->nyxc", banded(column, height), gate)
    mixed = torch.einsum("cxj,nyjc->nyxc", banded(row, width), mixed)
    local = F.conv2d(gate.permute(0, 3, 1, 2), names["dwconv2.weight"], padding=3, groups=gate.shape[-1])
    return (carried * (mixed + local.permute(0, 2, 3, 1))) @ names["pwconv2.weight"][..., 0, 0].T


@pytest.mark.parametrize("global_kernel_size", [1, 5, 9, 13])
def test_parc_v2_and_its_gradients_by_hand(global_kernel_size):
    module = ParCV2(6, global_kernel_size=global_kernel_size).double()
    x = image(2, 5, 7, 6).requires_grad_()
    outputs = module(x), by_hand(module, x)
    assert (outputs[0] - outputs[1]).abs().max() < 1e-12
    tensors = [x, *module.parameters()]
    ours, theirs = (torch.autograd.grad(out.sin().sum(), tensors) for out in outputs)
    for our, their in zip(ours, theirs, strict=True):
        assert (our - their).abs().max() < 1e-12 * max(1, their.abs().max())


def test_triton_gives_the_same():
    module = ParCV2(6, global_kernel_size=9, implementation="triton").to(DEVICE)
    x = image(1, 5, 4, 6, dtype=torch.float32).to(DEVICE)
    reference = by_hand(module.double().cpu(), x.double().cpu())
    assert (module.float().to(DEVICE)(x).cpu() - reference).abs().max() < 1e-5


def test_checkpoints_of_the_official_classes_load():
    """Names and shapes as the constructors of the official code make them."""
    names = {name: tuple(tensor.shape) for name, tensor in ParCV2(4, global_kernel_size=11).state_dict().items()}
    assert names == {
        "pwconv1.weight": (8, 4, 1, 1), "pwconv1.bias": (8,), "dwconv1.conv_h.weight": (4, 1, 11, 1),
        "dwconv1.conv_w.weight": (4, 1, 1, 11), "dwconv2.weight": (4, 1, 7, 7), "pwconv2.weight": (4, 4, 1, 1),
    }  # fmt: skip
    with_bias = ParCV2(4, bias=True).state_dict().keys() - names.keys()
    assert with_bias == {"dwconv1.conv_h.bias", "dwconv1.conv_w.bias", "dwconv2.bias", "pwconv2.bias"}
    names = {name: tuple(tensor.shape) for name, tensor in BGU(4, mlp_ratio=5).state_dict().items()}
    assert names == {"fc1.weight": (20, 4), "fc1.bias": (20,), "fc2.weight": (4, 10)}


def test_the_order_of_rows_and_columns_does_not_matter():
    module = OversizeConv2d(3, 9).double()
    x = image(1, 3, 5, 6)
    assert (module(x) - module.conv_h(module.conv_w(x))).abs().max() < 1e-12


def test_a_gated_unit_by_hand():
    module = BGU(3, mlp_ratio=2, out_features=5, act_layer=nn.SiLU, bias=True, drop=(0.5, 0.25)).double().eval()
    x = image(2, 4, 3)
    hidden = x @ module.fc1.weight.T + module.fc1.bias
    expected = (hidden[..., :3] * F.silu(hidden[..., 3:])) @ module.fc2.weight.T + module.fc2.bias
    assert (module(x) - expected).abs().max() < 1e-12
    assert (module.drop1.p, module.drop2.p) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BGU(3, mlp_ratio=3), r"mlp_ratio \* dim must be an even number of channels, got 3 \* 3 = 9"),
        (lambda: BGU(1, mlp_ratio=0.5), "got 0.5"),
        (lambda: ParCV2(3, expansion_ratio=1), r"expansion_ratio \* dim must be an even number"),
        (lambda: ParCV2(4, kernel_size=6), "kernel_size must be a positive odd integer, got 6"),
        (lambda: ParCV2(4, global_kernel_size=12), "kernel_size must be a positive odd integer, got 12"),
        (lambda: ParCV2(4, padding=2), "padding must be 3 for kernel_size 7, got 2"),
        (lambda: ParCV2(4, implementation="cuda"), "implementation must be"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
