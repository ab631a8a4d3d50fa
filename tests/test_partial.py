"""Partial convolution by value: the function in torch and Triton, the module, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from opbench_kernels import PartialConv3, partial_conv3x3
from opbench_kernels.partial import operators
from timm.models.fasternet import Partial_conv3

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

SHAPES = [  # N, C, H, W, convolved channels
    (2, 40, 5, 7, 10),
    (1, 12, 1, 3, 3),
    (1, 144, 3, 70, 36),
    (2, 20, 4, 1, 20),
    (1, 7, 3, 3, 1),
    (1, 130, 5, 6, 65),
]


def tensors(shape, dtype, *, channels_last=True):
    batch, channels, height, width, convolved = shape
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(convolved, convolved, 3, 3, generator=generator) / (9 * convolved) ** 0.5
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return [tensor.to(DEVICE, dtype).requires_grad_() for tensor in (x, weight)]


def expected(x, weight):
    """Every output channel by one sum over taps and input channels, in float64."""
    x, weight = x.double(), weight.double()
    _, _, height, width = x.shape
    count = len(weight)
    padded = F.pad(x[:, :count], (1, 1, 1, 1))
    taps = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    convolved = torch.einsum("knihw,oik->nohw", torch.stack(taps), weight.flatten(2))
    return torch.cat((convolved, x[:, count:]), dim=1)


@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, implementation, dtype):
    x, weight = tensors(shape, dtype)
    got = partial_conv3x3(x, weight, implementation=implementation)
    grad = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    grads = torch.autograd.grad(got, (x, weight), grad)
    leaves = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    reference = expected(*leaves)
    references = torch.autograd.grad(reference, leaves, grad.double())
    assert torch.equal(got[:, len(weight) :], x[:, len(weight) :])
    for ours, theirs in zip((got, *grads), (reference, *references), strict=True):
        assert ours.dtype == dtype
        error = (ours.double() - theirs).abs().max() / theirs.abs().max()
        # Sums are in float32; one rounding to the dtype, two because the interpreter truncates to bfloat16.
        assert error < 2 * ROUNDOFF[dtype] + 64 * ROUNDOFF[torch.float32]


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_nchw_memory_gives_the_same(implementation):
    x, weight = tensors(SHAPES[0], torch.float32, channels_last=False)
    got = partial_conv3x3(x, weight, implementation=implementation)
    assert (got - expected(x, weight)).abs().max() < 1e-5


def test_values_that_are_not_finite_are_handed_on():
    x, weight = (tensor.detach() for tensor in tensors(SHAPES[0], torch.float32))
    x[0, 20, 2, 3], x[1, 39, 0, 0] = torch.nan, torch.inf
    got = partial_conv3x3(x, weight, implementation="triton")
    assert torch.equal(got[:, 10:].isfinite(), x[:, 10:].isfinite())
    assert got[:, :10].isfinite().all()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck looks at its copies
def test_the_operator_keeps_torchs_contract():
    torch.library.opcheck(operators._partial_conv3x3, tuple(tensors((1, 6, 3, 4, 2), torch.float32)))


@pytest.mark.parametrize("form", ["slicing", "split_cat"])
def test_the_module_is_timms(form):
    # Theirs has no gradient where it slices, ours has.
    theirs = Partial_conv3(24, n_div=4, forward="split_cat").double()
    ours = PartialConv3(24, n_div=4, forward=form, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 24, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    kept = x.detach().clone()
    got, wanted = ours(x), theirs(x)
    assert (got - wanted).abs().max() < 1e-14
    gradients = [torch.autograd.grad(out.square().sum(), (x, module.partial_conv3.weight))
                 for out, module in ((got, ours), (wanted, theirs))]  # fmt: skip
    for our, their in zip(*gradients, strict=True):
        assert (our - their).abs().max() < 1e-12 * their.abs().max()
    assert torch.equal(x, kept)


def test_both_forms_run_in_triton():
    x, _ = tensors((1, 8, 3, 5, 2), torch.float32)
    modules = [PartialConv3(8, 4, form, implementation="triton", device=DEVICE) for form in ("slicing", "split_cat")]
    modules[1].load_state_dict(modules[0].state_dict())
    assert torch.equal(modules[0](x), modules[1](x))


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_autocast_takes_the_lower_precision(implementation):
    module = PartialConv3(8, implementation=implementation, device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert module(torch.ones(1, 8, 3, 3, device=DEVICE)).dtype == torch.bfloat16


def test_it_exports_with_any_batch_and_size():
    batch, height = torch.export.Dim("batch"), torch.export.Dim("height", min=2)
    x = torch.randn(2, 8, 4, 5)
    program = torch.export.export(PartialConv3(8), (x,), dynamic_shapes={"x": {0: batch, 2: height}})
    other = torch.randn(3, 8, 7, 5)
    module = program.module()
    weight = module.state_dict()["partial_conv3.weight"]
    assert (module(other) - expected(other, weight)).abs().max() < 1e-5


X = torch.ones(1, 4, 3, 3)
WEIGHT = torch.ones(2, 2, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], WEIGHT), r"x must be \(N, C, H, W\)"),
        ((X[..., :0], WEIGHT), "C, H and W of at least 1"),
        ((3, WEIGHT), "got int"),
        ((X, torch.ones(5, 5, 3, 3)), r"weight must be \(D, D, 3, 3\) with D from 1 to the 4 channels of x"),
        ((X, torch.ones(2, 1, 3, 3)), "weight must be"),
        ((X, torch.ones(2, 2, 5, 5)), "weight must be"),
        ((X, torch.ones(0, 0, 3, 3)), "weight must be"),
        ((X, WEIGHT.double()), "weight must be in torch.float32 as x is, got torch.float64"),
        ((X.int(), WEIGHT.int()), "x must be one of float32"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        partial_conv3x3(*arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dim": 0}, "dim must be a positive integer, got 0"),
        ({"dim": 4, "n_div": 5}, "n_div must be at most the 4 channels, got 5"),
        ({"dim": 4, "forward": "cat"}, "forward must be 'slicing' or 'split_cat', got 'cat'"),
        ({"dim": 4, "implementation": "cuda"}, "implementation must be 'auto', 'triton' or 'torch', got 'cuda'"),
    ],
)
def test_bad_settings_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        PartialConv3(**given)


def test_an_image_of_other_channels_is_refused():
    with pytest.raises(ValueError, match=r"x must be \(N, 8, H, W\), got shape \(1, 4, 3, 3\)"):
        PartialConv3(8)(X)
