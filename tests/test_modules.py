"""The DCNv3 and DCNv4 modules: values and gradients by formula, official checkpoints, layouts, torch's machinery."""

import copy
import io
import math
import re

import pytest
import torch
import torch.nn.functional as F
from opbench_kernels import DCNv3, DCNv4
from opbench_kernels.deform import modules, reference
from opbench_kernels.deform.geometry import Geometry
from opbench_kernels.sizes import pair

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODULES = {"dcnv4": DCNv4, "dcnv3": DCNv3}

# Constructor arguments and image size (H, W). Channel counts and group widths are odd on purpose.
CASES_V4 = {
    "plain": ({}, (5, 4)),
    "depthwise": ({"dw_kernel_size": 3}, (4, 6)),
    "depthwise pair": ({"dw_kernel_size": (1, 5), "output_bias": False}, (4, 6)),
    "lightweight": ({"without_pointwise": True, "offset_scale": 0.5}, (5, 4)),
    "centre scale": ({"center_feature_scale": True, "dw_kernel_size": 3}, (4, 5)),
    "no centre": ({"remove_center": True, "dilation": 2, "pad": 2}, (5, 6)),
    "stride": ({"stride": 2}, (7, 6)),
    "everything": (
        {"stride": (2, 1), "pad": (0, 3), "dilation": (1, 2), "kernel_size": (3, 5), "remove_center": True,
         "center_feature_scale": True, "dw_kernel_size": 5, "offset_scale": 1.5},
        (8, 7),
    ),
    "lightweight stride": ({"stride": 2, "without_pointwise": True, "center_feature_scale": True, "pad": 0}, (6, 7)),
    "even kernel": ({"kernel_size": (2, 4), "stride": (3, 2), "pad": (2, 1)}, (5, 6)),
    "wide padding": ({"kernel_size": 1, "pad": 2, "center_feature_scale": True, "stride": 2}, (3, 4)),
}  # fmt: skip
CASES_V3 = {
    "plain": ({}, (5, 4)),
    "batch norm": ({"norm_layer": "BN", "act_layer": "ReLU"}, (4, 6)),
    "centre scale": ({"center_feature_scale": True, "dw_kernel_size": 5, "act_layer": "SiLU"}, (4, 5)),
    "no centre": ({"remove_center": True, "dilation": 2, "pad": 2}, (5, 6)),
    "stride": ({"stride": 2}, (7, 6)),
    "everything": (
        {"stride": (1, 2), "pad": (3, 0), "dilation": (2, 1), "kernel_size": (5, 3), "remove_center": True,
         "center_feature_scale": True, "dw_kernel_size": (3, 1), "offset_scale": 1.5, "norm_layer": "BN"},
        (7, 8),
    ),
    "even kernel": ({"kernel_size": 2, "dw_kernel_size": 3, "pad": 0, "center_feature_scale": True}, (4, 5)),
}  # fmt: skip
CASES = [
    pytest.param(kind, arguments, size, id=f"{kind} {name}")
    for kind, cases in (("dcnv4", CASES_V4), ("dcnv3", CASES_V3))
    for name, (arguments, size) in cases.items()
]


def make(kind, arguments, *, channels=6, group=2, dtype=torch.float64, **options):
    """A module whose every parameter and buffer is random, with offsets of about a pixel."""
    module = MODULES[kind](channels, group=group, **arguments, **options).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
            elif tensor.is_floating_point():
                tensor.copy_(0.4 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return module.to(DEVICE)


def random(*shape, seed=4, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


class ByFormula:
    """The modules' formulas in plain torch, on their state dict; shares nothing with them but the core's reference."""

    def __init__(self, kind, state, arguments, group, training):
        defaults = {"kernel_size": 3, "stride": 1, "pad": 1, "dilation": 1, "offset_scale": 1.0, "remove_center": False}
        self.kind, self.state, self.group, self.training = kind, state, group, training
        self.arguments = defaults | arguments
        names = ("kernel_size", "stride", "pad", "dilation")
        self.kernel, self.stride, self.pad, self.dilation = (pair(self.arguments[name], name, 0) for name in names)

    def __call__(self, image):
        return self.dcnv4(image) if self.kind == "dcnv4" else self.dcnv3(image)

    def dcnv4(self, image):
        features = image
        if "offset_mask_dw.weight" in self.state:
            features = self.depthwise(image, "offset_mask_dw")
        packed = self.linear(self.centres(features), "offset_mask")
        K = self.kernel[0] * self.kernel[1] - self.arguments["remove_center"]
        offset = packed.new_empty((*packed.shape[:3], self.group, K, 2))
        mask = packed.new_empty((*packed.shape[:3], self.group, K))
        for g in range(self.group):
            for k in range(K):
                offset[..., g, k, 0] = packed[..., 3 * K * g + 2 * k]
                offset[..., g, k, 1] = packed[..., 3 * K * g + 2 * k + 1]
                mask[..., g, k] = packed[..., 3 * K * g + 2 * K + k]
        lightweight = self.arguments.get("without_pointwise", False)
        value = image if lightweight else self.linear(image, "value_proj")
        out = self.sample(value, offset, mask)
        out = self.blend(out, value, out)
        return out if lightweight else self.linear(out, "output_proj")

    def dcnv3(self, image):
        value = self.linear(image, "input_proj")
        features = self.activation(self.norm(self.depthwise(image, "dw_conv.0")))
        features = self.centres(features)
        offset, mask = self.linear(features, "offset"), self.linear(features, "mask")
        mask = mask.reshape(*mask.shape[:3], self.group, -1).exp()
        mask = mask / mask.sum(-1, keepdim=True)
        out = self.sample(value, offset.reshape(*mask.shape, 2), mask)
        return self.linear(self.blend(out, value, features), "output_proj")

    def linear(self, x, name):
        out = x @ self.state[f"{name}.weight"].T
        return out + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else out

    def depthwise(self, image, name):
        weight, (_, height, width, _) = self.state[f"{name}.weight"], image.shape
        kh, kw = weight.shape[2:]
        padded = F.pad(image, (0, 0, kw // 2, kw // 2, kh // 2, kh // 2))
        taps = ((j, i) for j in range(kh) for i in range(kw))
        total = sum(padded[:, j : j + height, i : i + width] * weight[:, 0, j, i] for j, i in taps)
        return total + self.state[f"{name}.bias"]

    def norm(self, x):
        name = "dw_conv.1.1" if "dw_conv.1.1.weight" in self.state else "dw_conv.1.0"
        if name == "dw_conv.1.1":
            axes, eps = -1, 1e-6
        else:
            axes, eps = (0, 1, 2), 1e-5
        mean = x.mean(axes, keepdim=True)
        variance = (x - mean).square().mean(axes, keepdim=True)
        if name == "dw_conv.1.0" and not self.training:
            mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        return (x - mean) / (variance + eps).sqrt() * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def activation(self, x):
        act = self.arguments.get("act_layer", "GELU")
        if act == "GELU":
            return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        return x * (x > 0) if act == "ReLU" else x / (1 + torch.exp(-x))

    def centres(self, features):
        lines = []
        for axis, size in enumerate(features.shape[1:3]):
            reach = self.dilation[axis] * (self.kernel[axis] - 1)
            count = (size + 2 * self.pad[axis] - reach - 1) // self.stride[axis] + 1
            points = [o * self.stride[axis] - self.pad[axis] + reach // 2 for o in range(count)]
            lines.append([min(max(point, 0), size - 1) for point in points])
        return torch.stack([torch.stack([features[:, y, x] for x in lines[1]], 1) for y in lines[0]], 1)

    def sample(self, value, offset, mask):
        geometry = Geometry(
            self.kernel, self.stride, self.pad, self.dilation,
            self.arguments["offset_scale"], self.arguments["remove_center"],
        )  # fmt: skip
        split = value.reshape(*value.shape[:3], self.group, -1)
        return reference.deformable_sample(split, offset, mask, geometry).flatten(3)

    def blend(self, out, value, features):
        if not self.arguments.get("center_feature_scale"):
            return out
        weight, bias = (self.state[f"center_feature_scale_proj_{name}"] for name in ("weight", "bias"))
        scale = 1 / (1 + torch.exp(-(features @ weight.T + bias)))
        scale = scale.repeat_interleave(out.shape[-1] // self.group, dim=-1)
        return out * (1 - scale) + self.centres(value) * scale


def compare(module, kind, arguments, image, bound):
    """Output, input gradient and every parameter's gradient within `bound` of the formulas in float64."""
    state = {name: tensor.detach().double() for name, tensor in module.state_dict().items()}
    parameters = dict(module.named_parameters())
    leaves = {name: state[name].requires_grad_() for name in parameters}
    exact = image.detach().double().requires_grad_()
    expected = ByFormula(kind, state, arguments, module.group, module.training)(exact)
    gradient = random(*expected.shape, seed=5, dtype=image.dtype)
    expected_gradients = torch.autograd.grad(expected, [exact, *leaves.values()], gradient.double())

    image = image.detach().requires_grad_()
    got = module(image)
    got_gradients = torch.autograd.grad(got, [image, *parameters.values()], gradient)
    for name, result, wanted in zip(
        ("output", "input", *parameters), (got, *got_gradients), (expected, *expected_gradients), strict=True
    ):
        assert result.shape == wanted.shape, name
        # Gradients here are of size one, but for that of a bias before batch norm: zero.
        error = (result.double() - wanted).abs().max() / wanted.square().mean().sqrt().clamp(min=0.01)
        assert error < bound, (name, error)
        assert name.endswith("bias") or wanted.abs().max() > 1e-4, name  # a comparison of zeros says nothing


@pytest.mark.parametrize(("kind", "arguments", "size"), CASES)
def test_values_and_gradients_by_formula(kind, arguments, size):
    compare(make(kind, arguments, implementation="torch"), kind, arguments, random(2, *size, 6), 1e-9)


def test_batch_norm_in_evaluation_uses_its_running_statistics():
    arguments, size = CASES_V3["batch norm"]
    module = make("dcnv3", arguments, implementation="torch")
    before = module.dw_conv[1][0].running_mean.clone()
    module(random(2, *size, 6))
    assert not torch.equal(module.dw_conv[1][0].running_mean, before)
    compare(module.eval(), "dcnv3", arguments, random(2, *size, 6), 1e-9)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("dcnv4", {"stride": 2, "dw_kernel_size": 3, "center_feature_scale": True}),
        ("dcnv4", {"without_pointwise": True, "remove_center": True}),
        ("dcnv3", {"stride": (2, 1), "norm_layer": "BN", "center_feature_scale": True}),
    ],
)
def test_triton_by_formula(kind, arguments):
    module = make(kind, arguments, dtype=torch.float32, implementation="triton")
    # A coordinate (up to 8) and a dozen products round; gradients sum them over some fifty pixels.
    compare(module, kind, arguments, random(2, 4, 5, 6, dtype=torch.float32), 1024 * 2.0**-24)


@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "dilation"),
    [(3, 1, 1, 1), (3, 2, 1, 1), ((2, 3), (2, 3), (0, 2), (1, 2)), (5, 3, 2, 1), (1, 2, 0, 1)],
)
def test_constant_masks_make_it_a_depthwise_convolution(kernel, stride, pad, dilation):
    # Zero offsets, one weight per tap: torch's own strided convolution, whatever the resolution of the prediction.
    height, width = pair(kernel, "kernel", 1)
    module = DCNv4(4, kernel, stride, pad, dilation, group=1, without_pointwise=True).double().to(DEVICE)
    K = height * width
    taps = random(width, height)  # columns outer, rows inner
    with torch.no_grad():
        module.offset_mask.bias[2 * K : 3 * K] = taps.flatten()
    image = random(2, 9, 8, 4)
    weight = taps.T.expand(4, 1, height, width)
    expected = F.conv2d(image.permute(0, 3, 1, 2), weight, None, stride, pad, dilation, groups=4)
    torch.testing.assert_close(module(image), expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize("kind", MODULES)
def test_offsets_are_predicted_at_output_resolution(kind):
    module = make(kind, {"stride": 2}, implementation="torch")
    seen = []
    linear = module.offset_mask if kind == "dcnv4" else module.offset
    linear.register_forward_hook(lambda _, inputs, output: seen.append((tuple(inputs[0].shape), output.shape[:3])))
    assert module(random(2, 7, 6, 6)).shape == (2, 4, 3, 6)
    assert seen == [((2, 4, 3, 6), (2, 4, 3))]


# Written by hand from the official sources: DCNv4_op/DCNv4/modules/dcnv4.py and ops_dcnv3/modules/dcnv3.py.
CENTRE = {"center_feature_scale_proj_weight": (4, 64), "center_feature_scale_proj_bias": (4,)}
V3_LINEARS = {
    "offset.weight": (72, 64),
    "offset.bias": (72,),
    "mask.weight": (36, 64),
    "mask.bias": (36,),
    "input_proj.weight": (64, 64),
    "input_proj.bias": (64,),
    "output_proj.weight": (64, 64),
    "output_proj.bias": (64,),
}
OFFICIAL = [
    (
        "dcnv4",
        {},
        {
            "offset_mask.weight": (112, 64),
            "offset_mask.bias": (112,),
            "value_proj.weight": (64, 64),
            "value_proj.bias": (64,),
            "output_proj.weight": (64, 64),
            "output_proj.bias": (64,),
        },
    ),
    (
        "dcnv4",
        {"dw_kernel_size": 3, "output_bias": False, "center_feature_scale": True, "remove_center": True},
        {
            "offset_mask_dw.weight": (64, 1, 3, 3),
            "offset_mask_dw.bias": (64,),
            "offset_mask.weight": (96, 64),
            "offset_mask.bias": (96,),
            "value_proj.weight": (64, 64),
            "value_proj.bias": (64,),
            "output_proj.weight": (64, 64),
            **CENTRE,
        },
    ),
    (
        "dcnv4",
        {"without_pointwise": True, "kernel_size": 5},
        {"offset_mask.weight": (304, 64), "offset_mask.bias": (304,)},
    ),
    (
        "dcnv3",
        {},
        {
            "dw_conv.0.weight": (64, 1, 3, 3),
            "dw_conv.0.bias": (64,),
            "dw_conv.1.1.weight": (64,),
            "dw_conv.1.1.bias": (64,),
            **V3_LINEARS,
        },
    ),
    (
        "dcnv3",
        {"norm_layer": "BN", "dw_kernel_size": 5, "center_feature_scale": True},
        {
            "dw_conv.0.weight": (64, 1, 5, 5),
            "dw_conv.0.bias": (64,),
            "dw_conv.1.0.weight": (64,),
            "dw_conv.1.0.bias": (64,),
            "dw_conv.1.0.running_mean": (64,),
            "dw_conv.1.0.running_var": (64,),
            "dw_conv.1.0.num_batches_tracked": (),
            **V3_LINEARS,
            **CENTRE,
        },
    ),
]


@pytest.mark.parametrize(("kind", "arguments", "shapes"), OFFICIAL)
def test_official_checkpoints_load(kind, arguments, shapes):
    checkpoint = {name: torch.rand(shape) for name, shape in shapes.items()}
    module = MODULES[kind](**arguments)
    module.load_state_dict(checkpoint, strict=True)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, checkpoint[name].to(tensor.dtype)), name

    first = next(iter(checkpoint))
    renamed = {"old_" + name if name == first else name: tensor for name, tensor in checkpoint.items()}
    with pytest.raises(RuntimeError, match=rf"Missing key\(s\) in state_dict: \"{first}\""):
        module.load_state_dict(renamed, strict=True)
    with pytest.raises(RuntimeError, match=f"size mismatch for {first}"):
        module.load_state_dict(checkpoint | {first: torch.rand(3, 3)}, strict=True)


@pytest.mark.parametrize("kind", MODULES)
def test_initial_values_are_the_official_ones(kind):
    module = MODULES[kind](64, center_feature_scale=True)
    for _ in range(2):
        state = module.state_dict()
        zeros = ("offset", "mask") if kind == "dcnv3" else ("offset_mask",)
        value = "input_proj" if kind == "dcnv3" else "value_proj"
        for name in (
            *(f"{z}.{part}" for z in zeros for part in ("weight", "bias")),
            f"{value}.bias",
            "output_proj.bias",
        ):
            assert not state[name].any(), name
        limit = math.sqrt(6 / (64 + 64))
        for name in (f"{value}.weight", "output_proj.weight"):
            assert 0.95 * limit < state[name].abs().max() <= limit
            assert state[name].std() == pytest.approx(limit / math.sqrt(3), rel=0.05)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if not name.startswith("center"):
                    parameter.fill_(7.0)
        module._reset_parameters()  # as the official backbones do after an initialisation of their own
    assert not module.center_feature_scale_proj_weight.any()
    assert not module.center_feature_scale_proj_bias.any()
    # Zero offset_mask: DCNv4 samples with weight zero, DCNv3 takes the mean of the window.
    lone = MODULES[kind](64)(torch.rand(1, 5, 5, 64))
    assert bool(lone.any()) == (kind == "dcnv3")


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("stride", [1, 2])
def test_sequences_are_images(kind, stride):
    module = make(kind, {"stride": stride}, implementation="torch")
    image = random(2, 4, 6, 6)
    expected = module(image)
    got = module(image.flatten(1, 2), shape=(4, 6))
    assert got.dim() == 3
    # Products of other shapes, and of memory at another address, may take another path through BLAS.
    torch.testing.assert_close(got, expected.flatten(1, 2))
    torch.testing.assert_close(module(image, (4, 6)), expected)
    square = random(2, 5, 5, 6)
    torch.testing.assert_close(module(square.flatten(1, 2)), module(square).flatten(1, 2))


@pytest.mark.parametrize("kind", MODULES)
def test_non_contiguous_and_empty_inputs(kind):
    module = make(kind, {"stride": 2, "center_feature_scale": True}, implementation="torch")
    image = random(2, 6, 4, 5).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(image), module(image.contiguous()))
    assert module(image[:0]).shape == (0, 2, 3, 6)


def test_nchw_takes_two_permutes():
    module = make("dcnv4", {"without_pointwise": True}, implementation="torch")
    image = random(2, 6, 4, 5)  # (N, C, H, W)
    expected = module(image.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
    # BLAS adds up in another order where the image is transposed in memory.
    torch.testing.assert_close(module(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("dcnv4", {"dw_kernel_size": 3, "center_feature_scale": True}),
        ("dcnv4", {"without_pointwise": True, "center_feature_scale": True}),
        ("dcnv3", {"center_feature_scale": True, "stride": 2}),
        ("dcnv3", {"norm_layer": "BN"}),
    ],
)
def test_autocast_trains_in_bfloat16(kind, arguments):
    module = make(kind, arguments, channels=16, dtype=torch.float32, implementation="torch")
    image = random(2, 6, 5, 16, dtype=torch.float32)
    expected = module(image)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = module(image)
    assert got.dtype == torch.bfloat16
    # bfloat16 offsets of a few pixels are off by a hundredth, and so are the samples.
    assert (got.float() - expected).square().mean().sqrt() < 0.03 * expected.square().mean().sqrt()
    got.float().square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


def test_softmax_in_float32_returns_to_the_dtype_of_value(monkeypatch):
    # CUDA's autocast computes a softmax in float32, the CPU's does not: a hook stands for it.
    module = make("dcnv3", {}, dtype=torch.bfloat16, implementation="torch")
    module.mask.register_forward_hook(lambda _, __, output: output.float())
    seen = []

    def sample(value, offset, mask, **options):
        seen.extend((value.dtype, offset.dtype, mask.dtype))
        return value

    monkeypatch.setattr(modules, "dcnv3", sample)
    module(random(1, 4, 4, 6, dtype=torch.bfloat16))
    assert seen == [torch.bfloat16] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", MODULES)
def test_half_precision_modules(kind, dtype):
    module = make(kind, {"center_feature_scale": True}, channels=16, dtype=dtype, implementation="torch")
    image = random(2, 6, 5, 16, dtype=dtype)
    got = module(image)
    assert got.dtype == dtype
    exact = copy.deepcopy(module).double()(image.double())
    unit = 2.0**-11 if dtype == torch.float16 else 2.0**-8
    assert (got.double() - exact).square().mean().sqrt() < 8 * unit * exact.square().mean().sqrt()


CONFIGURATIONS = [
    ("dcnv4", {"dw_kernel_size": 3, "center_feature_scale": True, "stride": 2}),
    ("dcnv4", {"without_pointwise": True, "pad": 0}),
    ("dcnv3", {"center_feature_scale": True, "stride": (2, 1)}),
]


@pytest.mark.parametrize(
    ("kind", "arguments", "implementation"),
    [*((*configuration, "torch") for configuration in CONFIGURATIONS), (*CONFIGURATIONS[0], "triton")],
)
def test_it_compiles_into_one_graph(kind, arguments, implementation):
    module = make(kind, arguments, dtype=torch.float32, implementation=implementation)
    image = random(2, 5, 4, 6, dtype=torch.float32).requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected, got = module(image), compiled(image)
    torch.testing.assert_close(got, expected)
    wanted = torch.autograd.grad(expected.square().sum(), [image, *module.parameters()])
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), [image, *module.parameters()]), wanted)


@pytest.mark.parametrize("kind", MODULES)
def test_compiled_with_another_offset_scale(kind):
    """After the first, the compiler takes offset_scale as a number that it does not know."""
    torch.compiler.reset()
    image = random(1, 4, 5, 6, dtype=torch.float32)
    for scale in (1.0, 0.5):
        module = make(kind, {"offset_scale": scale}, dtype=torch.float32, implementation="torch")
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(image), module(image))


@pytest.mark.slow  # the compiler takes most of ten seconds
def test_compiled_sequences_of_any_length():
    module = make("dcnv4", {}, dtype=torch.float32, implementation="torch")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for side in (4, 5, 6):
        sequence = random(2, side * side, 6, dtype=torch.float32)
        torch.testing.assert_close(compiled(sequence), module(sequence))
    for shape in ((2, 3), (3, 5), (4, 7)):
        sequence = random(2, math.prod(shape), 6, dtype=torch.float32)
        torch.testing.assert_close(compiled(sequence, shape), module(sequence, shape))


@pytest.mark.parametrize(
    ("kind", "arguments", "implementation"),
    [*((*configuration, "torch") for configuration in CONFIGURATIONS), (*CONFIGURATIONS[0], "triton")],
)
def test_it_exports(kind, arguments, implementation):
    module = make(kind, arguments, dtype=torch.float32, implementation=implementation).eval()
    program = torch.export.export(module, (random(2, 5, 4, 6, dtype=torch.float32),))
    image = random(2, 5, 4, 6, seed=9, dtype=torch.float32)
    torch.testing.assert_close(program.module()(image), module(image))


@pytest.mark.parametrize(("kind", "arguments"), CONFIGURATIONS)
def test_it_exports_with_any_batch_and_image_size(kind, arguments):
    module = make(kind, arguments, dtype=torch.float32, implementation="triton").eval()
    sizes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(module, (random(2, 5, 4, 6, dtype=torch.float32),), dynamic_shapes={"input": sizes})
    image = random(3, 4, 7, 6, seed=9, dtype=torch.float32)
    torch.testing.assert_close(program.module()(image), module(image))


@pytest.mark.parametrize("kind", MODULES)
def test_copies_and_saved_states(kind):
    module = make(kind, {"center_feature_scale": True, "kernel_size": (3, 5)}, implementation="torch")
    image = random(2, 7, 6, 6)
    expected = module(image)
    torch.testing.assert_close(copy.deepcopy(module)(image), expected)
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    saved.seek(0)
    other = MODULES[kind](6, group=2, center_feature_scale=True, kernel_size=(3, 5), dtype=torch.float64).to(DEVICE)
    other.load_state_dict(torch.load(saved, weights_only=True), strict=True)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name]), name  # copied, not computed
    torch.testing.assert_close(other(image), expected)  # parameters at other addresses: BLAS may add in another order


def test_device_and_dtype_reach_every_parameter():
    for kind, options in (("dcnv4", {"dw_kernel_size": 3}), ("dcnv3", {}), ("dcnv3", {"norm_layer": "BN"})):
        module = MODULES[kind](center_feature_scale=True, device="meta", dtype=torch.bfloat16, **options)
        for name, parameter in module.named_parameters():
            assert parameter.is_meta, name
            assert parameter.dtype == torch.bfloat16, name


def test_the_arguments_show():
    text = repr(DCNv4(24, (3, 5), pad=2, group=3, without_pointwise=True))
    assert re.match(r"DCNv4\(\s+channels=24, kernel_size=\(3, 5\), stride=1, pad=2, dilation=1, group=3, ", text)
    assert "output_bias=True, without_pointwise=True" in text
    text = repr(DCNv3(24, act_layer="SiLU", implementation="torch"))
    assert "dw_kernel_size=3" in text
    assert "implementation='torch', act_layer='SiLU', norm_layer='LN'" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels must be a positive integer, got 0"),
        ({"channels": 64.0}, "channels must be a positive integer, got 64.0"),
        ({"group": 5}, "group must divide the 64 channels, got 5"),
        ({"group": True}, "group must be a positive integer, got True"),
        ({"kernel_size": 0}, "kernel_size must be an integer of at least 1 or a pair of them, got 0"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size must be an integer of at least 1 or a pair"),
        ({"stride": 1.5}, "stride must be an integer of at least 1 or a pair of them, got 1.5"),
        ({"pad": -1}, "pad must be an integer of at least 0 or a pair of them, got -1"),
        ({"pad": "same"}, "pad must be an integer of at least 0 or a pair of them, got 'same'"),
        ({"dilation": None}, "dilation must be an integer of at least 1 or a pair of them, got None"),
        ({"offset_scale": float("nan")}, "offset_scale must be a finite number, got nan"),
        ({"offset_scale": "1"}, "offset_scale must be a finite number, got '1'"),
        ({"dw_kernel_size": 4}, "dw_kernel_size must be odd, to keep the image's size, got 4"),
        ({"dw_kernel_size": 0}, "dw_kernel_size must be an integer of at least 1"),
        ({"remove_center": 2}, "remove_center must be True or False, got 2"),
        ({"remove_center": True, "kernel_size": (3, 2), "dw_kernel_size": 3}, "remove_center needs an odd kernel_size"),
        ({"remove_center": True, "kernel_size": 1}, "remove_center needs an odd kernel_size above 1, got 1"),
        ({"implementation": "cuda"}, "implementation must be 'auto', 'triton' or 'torch', got 'cuda'"),
    ],
)
@pytest.mark.parametrize("kind", MODULES)
def test_bad_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MODULES[kind](**arguments)


def test_bad_layers():
    with pytest.raises(ValueError, match="act_layer must be one of GELU, ReLU, SiLU, got 'Tanh'"):
        DCNv3(act_layer="Tanh")
    with pytest.raises(ValueError, match="norm_layer must be one of LN, BN, got 'GN'"):
        DCNv3(norm_layer="GN")
    with pytest.raises(ValueError, match=r"dw_kernel_size must be odd, .* got 2"):
        DCNv3(kernel_size=2)  # which dw_kernel_size follows


@pytest.mark.parametrize(
    ("size", "shape", "message"),
    [
        ((2, 4, 4, 5), None, "input must be (N, H, W, 6) or (N, L, 6), got shape (2, 4, 4, 5)"),
        ((4, 6), None, "input must be (N, H, W, 6) or (N, L, 6), got shape (4, 6)"),
        ((2, 0, 4, 6), None, "input must be (N, H, W, 6) or (N, L, 6), got shape (2, 0, 4, 6)"),
        ((2, 12, 6), None, "shape=(H, W) is needed where L is not a square, got input of shape (2, 12, 6)"),
        ((2, 12, 6), (3, 5), "shape must be (H, W) with H * W = 12, got (3, 5)"),
        ((2, 12, 6), (-3, -4), "shape must be (H, W) with H * W = 12, got (-3, -4)"),
        ((2, 12, 6), (12,), "shape must be (H, W) with H * W = 12, got (12,)"),
        ((2, 3, 4, 6), (4, 3), "shape must be (3, 4) for an input of shape (2, 3, 4, 6), got (4, 3)"),
        ((2, 1, 4, 6), None, "is smaller than the kernel's reach"),
    ],
)
@pytest.mark.parametrize("kind", MODULES)
def test_bad_inputs(kind, size, shape, message):
    module = MODULES[kind](6, group=2, kernel_size=5)
    with pytest.raises(ValueError, match=re.escape(message)):
        module(torch.zeros(size), shape)


def test_the_example_of_the_docstring_runs():
    (example,) = re.findall(r"```python\n(.*?)```", modules.__doc__, flags=re.DOTALL)
    scope = {"__name__": "example"}
    exec(compile(example, "modules.py", "exec"), scope)  # noqa: S102 - our own docstring
    assert scope["out"].shape == (2, 14, 10, 64)
    for name, parameter in scope["model"].named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert scope["model"][0].mlp[0].weight.grad.any()  # the loss reaches the first block
