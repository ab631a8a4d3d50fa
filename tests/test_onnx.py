"""ONNX files under onnxruntime against the modules in float64, and against the formula at the border of the image."""

import importlib.util
import math

import onnx
import onnxruntime
import pytest
import torch
from export_cases import CASES, DYNAMIC, dynamic_shapes, inputs_of, randomize
from model_builders import SMALL
from opbench_kernels import BGU, DCNv4, dcnv2, dcnv3, dcnv4, onnx_translation
from opbench_kernels import export as exporting
from opbench_kernels.deform.dcnv4_fused import dcnv4_from_input
from opbench_kernels.deform.geometry import Geometry, padded_offset_mask_channels
from opbench_kernels.deform.reference import deformable_sample
from opbench_kernels.export import ExportError, to_onnx
from opbench_kernels.sizes import pair

from opbench.models import create

FAST = {"DCNv4", "PartialConv3"}
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11}


def onnx_outputs(path, tensors):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return [
        torch.from_numpy(out)
        for out in session.run(None, dict(zip(names, map(torch.Tensor.numpy, tensors), strict=True)))
    ]


def nodes_of(path):
    model = onnx.load(path)
    return {node.op_type for node in model.graph.node}, {each.domain: each.version for each in model.opset_import}[""]


def close(got, wanted, roundoffs):
    """Within so many roundoffs of the output's dtype, of the largest number."""
    error = (got.double() - wanted).abs().max().item()
    assert wanted.abs().max() > 0.1
    assert error <= roundoffs * ROUNDOFF[got.dtype] * wanted.abs().max().item(), error


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES])
@pytest.mark.parametrize(
    "opset", [pytest.param(18, marks=pytest.mark.slow), pytest.param(19, marks=pytest.mark.slow), 20]
)
def test_onnxruntime_computes_what_the_module_does(name, opset, tmp_path):
    make, layout = CASES[name]
    module = randomize(make())
    to_onnx(module, inputs_of(layout, False), tmp_path / "m.onnx", opset=opset, dynamic_shapes=dynamic_shapes(layout))
    types, written = nodes_of(tmp_path / "m.onnx")
    assert written == opset
    assert ("DeformConv" in types) == (name.startswith("DCN") and opset > 18)
    inputs = inputs_of(layout, True)
    doubled = (each.double() if each.is_floating_point() else each for each in inputs)
    outputs = onnx_outputs(tmp_path / "m.onnx", inputs)
    expected = module.double()(*doubled)
    for got, wanted in zip(outputs, expected if isinstance(expected, tuple) else [expected], strict=True):
        close(got, wanted.detach(), 300)
    if name == "DAttention":
        assert outputs[1].abs().max() > 1.2, "no sample lies beyond the border"


GEOMETRIES = {
    "plain": {},
    "everything": {
        "kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 3), "dilation": (1, 2), "offset_scale": 1.5,
        "remove_center": True,
    },
    "even kernel": {"kernel_size": (2, 4), "stride": (3, 2), "padding": (2, 1), "offset_scale": 0.25},
    "one point": {"kernel_size": 1, "padding": 2, "stride": 2},
    "no centre": {"remove_center": True, "dilation": 2, "padding": 2},
}  # fmt: skip
SIZE = (5, 7)


class Function(torch.nn.Module):
    """One of the functions, offsets and masks as inputs."""

    def __init__(self, kind, geometry):
        super().__init__()
        self.kind, self.geometry = kind, geometry

    def forward(self, value, offset, mask):
        if self.kind == "dcnv3":
            return dcnv3(value, offset, mask, groups=3, **self.geometry)
        if self.kind == "dcnv4":
            by_group = [each.unflatten(-1, (3, -1)) for each in (offset, mask)]
            packed = torch.cat(by_group, -1).flatten(-2)
            room = padded_offset_mask_channels(3, mask.shape[-1] // 3) - packed.shape[-1]
            return dcnv4(value, torch.nn.functional.pad(packed, (0, room), value=math.nan), groups=3, **self.geometry)
        image, offset, mask = (each.permute(0, 3, 1, 2) for each in (value, offset, mask))
        weight = torch.linspace(-1, 1, 4 * 3 * 9, dtype=value.dtype).view(4, 3, 3, 3)
        bias = torch.linspace(-1, 1, 4, dtype=value.dtype)
        return dcnv2(image, offset, mask, weight, bias, (2, 1), (0, 2), (1, 2), groups=2, deform_groups=3)


def operands(kind, geometry, offsets, dtype):
    """value of 6 channels, offsets and masks for 3 groups; every number is exact in half precision."""
    generator = torch.Generator().manual_seed(5)
    at = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1, "offset_scale": 1.0, "remove_center": False}
    at |= {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)} if kind == "dcnv2" else geometry
    pairs = (pair(at[name], name, 0) for name in ("kernel_size", "stride", "padding", "dilation"))
    grid = Geometry(*pairs, at["offset_scale"], at["remove_center"])
    pixels = (2, *grid.output_size(*SIZE), 3 * grid.points)
    drawn = torch.randn(*pixels, 2, generator=generator)
    drawn = drawn * 4 if offsets == "far" else drawn
    drawn = (drawn * 4).round() / 4 if offsets != "integers" else (drawn * 3).round()
    if offsets == "not finite":
        rare = torch.rand(drawn.shape, generator=generator)
        drawn[rare < 0.1], drawn[rare < 0.05], drawn[rare < 0.02] = math.nan, math.inf, 6e4
    value, mask = ((torch.randn(shape, generator=generator) * 8).round() / 8 for shape in ((2, *SIZE, 6), pixels))
    return grid, value.to(dtype), drawn.flatten(-2).to(dtype), mask.to(dtype)


def by_formula(kind, grid, value, offset, mask):
    if kind == "dcnv2":
        return Function(kind, {})(value, offset, mask)
    pixels = (*mask.shape[:3], 3, grid.points)
    value = value.unflatten(-1, (3, 2))
    return deformable_sample(value, offset.view(*pixels, 2), mask.view(pixels), grid).flatten(-2)


def function_cases():
    fast = {("dcnv2", "plain", 19), ("dcnv3", "everything", 19), ("dcnv4", "everything", 20)}
    cases = [("dcnv2", "plain"), *((kind, name) for kind in ("dcnv3", "dcnv4") for name in GEOMETRIES)]
    for case in {(*case, opset) for case in cases for opset in (18, 20)} | fast:
        marks = () if case in fast else pytest.mark.slow
        yield pytest.param(*case, marks=marks, id=" ".join(map(str, case)))


@pytest.mark.parametrize(("kind", "name", "opset"), sorted(function_cases(), key=lambda case: case.id))
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float16, marks=pytest.mark.slow),
        pytest.param(torch.float32, marks=pytest.mark.slow),
        torch.float64,
    ],
    ids=str,
)
def test_points_on_and_beyond_the_border_count_as_by_the_formula(kind, name, opset, dtype, tmp_path):
    geometry = GEOMETRIES[name]
    _, *example = operands(kind, geometry, "near", dtype)
    to_onnx(Function(kind, geometry), example, tmp_path / "m.onnx", opset=opset)
    for offsets in ("near", "integers", "far", "not finite"):
        grid, *tensors = operands(kind, geometry, offsets, dtype)
        (got,) = onnx_outputs(tmp_path / "m.onnx", tensors)
        assert got.dtype == dtype
        # K points, and in DCNv2 channels, are summed; in half precision in float32, or as rows and weights in half.
        roundoffs = 12 if dtype == torch.float16 else 8 * grid.points
        close(got, by_formula(kind, grid, *(each.double() for each in tensors)), roundoffs)


def test_the_integers_reach_the_border_and_the_pixel_beyond_it():
    grid, _, offset, _ = operands("dcnv3", {}, "integers", torch.float64)
    offset = offset.view(2, *SIZE, 3, grid.points, 2)
    x, y = offset.unbind(-1)
    taps = torch.tensor([*grid.taps()])
    x = x + torch.arange(SIZE[1]).view(-1, 1, 1) + taps[:, 1] - 1
    y = y + torch.arange(SIZE[0]).view(-1, 1, 1, 1) + taps[:, 0] - 1
    for places, size in ((y, SIZE[0]), (x, SIZE[1])):
        assert all((places == place).sum() > 5 for place in (-2, -1, 0, size - 1, size, size + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["internimage_t", "flash_internimage_t", "replknet_31b", "slak_tiny", "parcnetv2_tiny"]
)
def test_a_network_of_theirs_is_one_file(name, tmp_path):
    architecture, arguments = SMALL[name]
    model = randomize(create(architecture, **arguments))
    to_onnx(model, (torch.randn(2, 3, 64, 64),), tmp_path / "m.onnx", dynamic_shapes=({0: DYNAMIC},))
    images = torch.randn(3, 3, 64, 64)
    (got,) = onnx_outputs(tmp_path / "m.onnx", [images])
    close(got, model.double()(images.double()).detach(), 3000)


class Largest(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.unit = randomize(BGU(8))

    def forward(self, x):
        return {"channel": self.unit(x).argmax(-1), "scores": self.unit(x)}


def test_a_model_may_have_outputs_that_are_integers(tmp_path):
    (image,) = inputs_of("NHWC", False)
    model = Largest()
    to_onnx(model, (image,), tmp_path / "m.onnx")
    channel, scores = onnx_outputs(tmp_path / "m.onnx", [image])
    assert torch.equal(channel, model(image)["channel"])
    assert torch.equal(channel, scores.argmax(-1))


class Fused(torch.nn.Module):
    def forward(self, x, weight, bias):
        return dcnv4_from_input(x, weight, bias, groups=2, geometry=Geometry())


def test_an_operator_without_a_translation_is_named(tmp_path):
    packed = torch.zeros(9, 8, 8), torch.zeros(9, 8)
    with pytest.raises(ExportError, match=r"^PyTorch [^ ]+ does not translate it: [^\n]*dcnv4_from_input[^\n]*$"):
        to_onnx(Fused(), (*inputs_of("NHWC", False), *packed), tmp_path / "m.onnx")


@pytest.mark.slow
def test_a_view_that_the_exporter_cannot_keep_is_one_line(tmp_path):
    architecture, arguments = SMALL["dat_tiny"]
    with pytest.raises(ExportError, match=r"^PyTorch [^ ]+ does not translate it: Cannot view a tensor[^\n]*$"):
        to_onnx(create(architecture, **arguments), (torch.randn(2, 3, 96, 96),), tmp_path / "m.onnx")


def test_a_module_in_training_on_triton_stays_as_it_was(tmp_path):
    module = randomize(DCNv4(8, group=2, implementation="triton")).train()
    to_onnx(module, inputs_of("NHWC", False), tmp_path / "m.onnx")
    assert module.training
    assert module.implementation == "triton"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_what_onnxruntime_cannot_run_is_an_error_of_one_line_and_no_file(tmp_path):
    module, (image,) = randomize(BGU(8)).bfloat16(), inputs_of("NHWC", False)
    (tmp_path / "m.onnx").write_text("an older file")
    with pytest.raises(
        ExportError, match=r"^onnxruntime [\d.]+ does not run it: [^\n]*Could not find an implementation for [^\n]*$"
    ):
        to_onnx(module, (image.bfloat16(),), tmp_path / "m.onnx")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an older file"]
    to_onnx(module, (image.bfloat16(),), tmp_path / "m.onnx", check=False)
    assert "Gelu" in nodes_of(tmp_path / "m.onnx")[0]


def test_a_runtime_without_deform_conv_is_told_of_opset_18(tmp_path, monkeypatch):
    def refuse(*_, **__):  # what onnxruntime 1.24.4 says
        raise RuntimeError("Could not find an implementation for DeformConv(19) node with name 'node_DeformConv_23'")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(ExportError, match=r"implementation for DeformConv\(19\) node .*; opset=18 does without$"):
        to_onnx(randomize(BGU(8)), inputs_of("NHWC", False), tmp_path / "m.onnx")


def test_a_file_with_other_values_is_an_error(tmp_path, monkeypatch):
    right = onnx_translation._channels_first
    monkeypatch.setattr(onnx_translation, "_channels_first", lambda tensor, channels: right(tensor, sorted(channels)))
    with pytest.raises(ExportError, match=r"^output 0 of onnxruntime differs by [\d.e-]+, more than [\d.e-]+$"):
        to_onnx(randomize(DCNv4(8, group=2)), inputs_of("NHWC", False), tmp_path / "m.onnx")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("opset", [17, 21, "20", None])
def test_an_unknown_opset_is_named(opset, tmp_path):
    with pytest.raises(ValueError, match=rf"^opset must be one of 18, 19, 20, got {opset!r}$"):
        to_onnx(BGU(8), inputs_of("NHWC", False), tmp_path / "m.onnx", opset=opset)


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name.startswith("onnxs") else found(name))
    with pytest.raises(ExportError, match=r"^to_onnx needs onnxscript: pip install 'opbench\[onnx\]'$"):
        to_onnx(BGU(8), inputs_of("NHWC", False), tmp_path / "m.onnx")
