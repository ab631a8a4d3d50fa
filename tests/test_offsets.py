"""How the offsets of the operators that gather are distributed, and files of measured ones."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from builders import make_case, make_cell

import opbench
from opbench.cli.commands.gate import from_any_folder
from opbench.errors import UnknownNameError, UsageError
from opbench.operators import ms_deform_attn
from opbench.registry import registry
from opbench.sweeps.check import check, make_tensors
from opbench.workload.case import Case, Cell, Direction, Dtype, Level, Shape
from opbench.workload.file_setting import FileSetting
from opbench.workload.offset_file import load_offsets, take_offsets

GATHERING = ("dcnv2", "dcnv3", "dcnv4", "dcnv4_lightweight", "ms_deform_attn")


def case_of(name, shape=(1, 6, 9, 64), level=Level.CORE, direction=Direction.FWD, **given):
    settings = registry.find(name).resolve_settings(given)
    return Case(name, level, direction, "test", Shape(*shape), Dtype.FP32, settings)


def offsets_of(case):
    """The core's offsets (B, H, W, taps, 2), pairs (x, y), pixels."""
    tensors = make_tensors(registry.find(case.operator), case, "cpu", 5)
    if case.operator == "ms_deform_attn":
        value, layout = tensors["value"], (8, 4, 4, 2)
        places = tensors["locations"].unflatten(-1, layout)
        pixels = (places - ms_deform_attn._centres(case, value)) * ms_deform_attn._sizes(case, value)
        return pixels.flatten(3, -2)
    if case.operator == "dcnv2":
        return tensors["offset"].unflatten(-1, (-1, 2)).flip(-1)
    if case.operator == "dcnv3":
        return tensors["offset"].unflatten(-1, (-1, 2))
    packed = tensors["offset_mask"][..., : 2 * 27].unflatten(-1, (2, 27))
    return packed[..., :18].unflatten(-1, (9, 2)).flatten(3, 4)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("offsets") / "stage 3,5.npy"
    opbench.save_offsets(path, np.random.default_rng(3).normal(size=(2, 4, 20, 7, 2)) * 2.5, order="xy")
    return path.rename(path.with_name("stage 3.npy"))


@pytest.mark.parametrize("name", GATHERING)
def test_each_distribution_has_its_values(name, file):
    normal = offsets_of(case_of(name, offset_std_px="2"))
    spelt = offsets_of(case_of(name, offset_std_px="2", offset_distribution="normal"))
    assert torch.equal(normal, spelt)
    uniform = offsets_of(case_of(name, offset_std_px="2", offset_distribution="uniform"))
    bound = 2 * 3**0.5
    assert uniform.abs().max() < bound * (1 + 1e-5)
    assert uniform.abs().max() > 0.99 * bound
    assert (uniform.std() - 2).abs() < 0.1
    assert ((uniform.abs() < bound / 2).float().mean() - 0.5).abs() < 0.06
    assert torch.equal(uniform.sign(), normal.sign())  # quantiles of the same numbers
    zero = case_of(name, offset_std_px="2", offset_distribution="zero")
    assert zero.float_setting("offset_std_px") == 0
    assert offsets_of(zero).abs().max() < 1e-5
    case = case_of(name, offset_distribution=f"trained:{file}")
    stored = np.load(file)
    assert case.float_setting("offset_std_px") == pytest.approx(stored.std(), rel=1e-3)
    found = offsets_of(case)
    taken = take_offsets(stored, tuple(found.shape[:4]))
    torch.testing.assert_close(found, torch.from_numpy(taken), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["dcnv2", "dcnv3", "dcnv4", "ms_deform_attn"])
@pytest.mark.parametrize("distribution", ["uniform", "zero", "trained"])
def test_values_hold_with_each_distribution(name, distribution, file):
    operator = registry.find(name)
    text = f"trained:{file}" if distribution == "trained" else distribution
    for direction in (Direction.FWD, Direction.BWD):
        case = case_of(name, (1, 6, 7, 32), direction=direction, offset_distribution=text)
        assert check(operator, operator.provider("torch"), case, "cpu", seed=7).reason == ""


@pytest.mark.parametrize("name", GATHERING)
def test_a_module_predicts_normal_offsets_or_none(name, file):
    operator = registry.find(name)
    for text, applies in (("normal", True), ("zero", True), ("uniform", False), (f"trained:{file}", False)):
        case = case_of(name, level=Level.MODULE, offset_distribution=text)
        reason = operator.not_applicable(case)
        assert (reason is None) == applies
        assert applies or f"{text.partition(':')[0]} offsets are of --level core" in reason


def test_a_case_with_the_default_is_the_case_that_was_stored_before():
    assert case_of("dcnv4", offset_distribution="normal").key == case_of("dcnv4").key
    assert case_of("dcnv4").key.endswith("/group_channels=32;kernel_size=3;offset_std_px=1.0;dw_kernel_size=0")
    assert case_of("dcnv4", offset_distribution="uniform").key.endswith(";offset_distribution=uniform")


def test_a_larger_case_goes_on_mirrored_and_a_smaller_one_takes_the_middle():
    array = np.arange(2 * 4 * 3 * 2 * 2, dtype=np.float32).reshape(2, 4, 3, 2, 2)
    small = take_offsets(array, (1, 2, 1, 1))
    assert np.array_equal(small, array[:1, 1:3, 1:2, :1])
    large = take_offsets(array, (3, 9, 7, 5))
    assert np.array_equal(large[:2, :4, :3, :2], array)
    assert np.array_equal(large[2], large[0])
    assert np.array_equal(large[:, 4:8], large[:, 3::-1])
    assert np.array_equal(large[:, 8], large[:, 0])
    assert np.array_equal(large[:, :, 3:6], large[:, :, 2::-1])
    assert np.array_equal(large[..., 2:4, :], large[..., :2, :])
    assert np.array_equal(large[..., 4, :], large[..., 0, :])


def test_what_is_saved_is_read_again(tmp_path):
    first, second = torch.randn(2, 3, 4, 2, 9, 2, requires_grad=True), np.ones((1, 3, 4, 18, 2))
    opbench.save_offsets(tmp_path / "all.npy", [first, second], order="yx")
    array = load_offsets(FileSetting.of("x", "trained", str(tmp_path / "all.npy")))
    assert (array.shape, array.dtype) == ((3, 3, 4, 18, 2), np.float32)
    assert np.array_equal(array[:2], first.detach().flatten(3, 4).flip(-1).numpy())
    opbench.save_offsets(str(tmp_path / "half.npy"), first.detach().half(), order="xy")
    assert np.array_equal(np.load(tmp_path / "half.npy"), first.detach().half().float().flatten(3, 4).numpy())


@pytest.mark.parametrize(
    ("offsets", "order", "message"),
    [
        (np.zeros((2, 3, 4, 2)), "xz", "order must be of xy, yx, got 'xz'"),
        (np.zeros((2, 3, 2)), "xy", "offsets must be (images, height, width, ..., 2), got (2, 3, 2)"),
        (np.zeros((2, 3, 4, 3)), "xy", "got (2, 3, 4, 3)"),
        ([np.zeros((1, 3, 4, 2)), np.zeros((1, 4, 4, 2))], "xy", "must agree in all but the first axis"),
        ([], "xy", "must agree in all but the first axis, got []"),
        (np.full((1, 3, 4, 2), np.nan), "xy", "holds offsets that are not finite"),
        (np.zeros((0, 3, 4, 2)), "xy", "holds no offsets: (0, 3, 4, 1, 2)"),
    ],
)
def test_what_is_no_offsets_is_not_saved(tmp_path, offsets, order, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        opbench.save_offsets(tmp_path / "x.npy", offsets, order=order)
    assert not list(tmp_path.iterdir())


def bad_files(folder):
    (folder / "text.npy").write_text("x")
    (folder / "empty.npy").touch()
    np.save(folder / "flat.npy", np.zeros((5, 2)))
    np.save(folder / "words.npy", np.full((1, 1, 1, 1, 2), "a"))
    np.save(folder / "objects.npy", np.full((1, 1, 1, 1, 2), {}), allow_pickle=True)
    np.savez(folder / "several.npz", a=np.zeros((1, 1, 1, 1, 2)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.npy", "setting dcnv4.offset_distribution: cannot read 'gone.npy': No such file"),
        (".", "setting dcnv4.offset_distribution: cannot read '.': Is a directory"),
        ("text.npy", "text.npy is no .npy file of numbers"),
        ("empty.npy", "empty.npy is no .npy file of numbers"),
        ("objects.npy", "objects.npy is no .npy file of numbers"),
        ("flat.npy", "must hold an array of numbers (images, height, width, taps, 2), got float64 (5, 2)"),
        ("words.npy", "must hold an array of numbers (images, height, width, taps, 2), got <U1"),
        ("several.npz", "must hold an array of numbers (images, height, width, taps, 2), got NpzFile"),
    ],
)
def test_a_file_that_holds_no_offsets_is_said_before_a_sweep(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    bad_files(tmp_path)
    with pytest.raises(UsageError, match=re.escape(message)):
        registry.find("dcnv4").resolve_settings({"offset_distribution": f"trained:{name}"})


@pytest.mark.parametrize("text", ["trained", "trained:", "trained:FILE", "file:x", "triangle"])
def test_words_of_a_distribution(text):
    message = "known: normal, uniform, zero, trained:FILE" if text != "trained:FILE" else "cannot read 'FILE'"
    with pytest.raises(UsageError, match=message) as error:
        registry.find("dcnv4").resolve_settings({"offset_distribution": text})
    assert isinstance(error.value, UnknownNameError) == (text != "trained:FILE")


def test_a_file_is_named_by_its_content(tmp_path):
    def setting(path, number):
        path.parent.mkdir(exist_ok=True)
        opbench.save_offsets(path, np.full((1, 2, 2, 2), number), order="xy")
        return FileSetting.of("x", "trained", str(path))

    one = setting(tmp_path / "a" / "stage 3;x=1.npy", 1.0)
    assert re.fullmatch(r"trained:stage_3_x_1@[0-9a-f]{12}", one)
    assert one.word == "trained"
    cells = [
        make_cell(make_case(settings=(("offset_distribution", value),)))
        for value in (one, setting(tmp_path / "b" / "stage 3;x=1.npy", 1.0), setting(tmp_path / "stage 3;x=1.npy", 2.0))
    ]
    assert cells[0] == cells[1] != cells[2]
    assert cells[0].key == cells[1].key != cells[2].key
    again = Cell.from_json(json.loads(json.dumps(cells[1].to_json())))
    assert again == copy.deepcopy(again) == cells[0]
    assert again.case.setting("offset_distribution").path == str(tmp_path / "b" / "stage 3;x=1.npy")
    with pytest.raises(ValueError, match="must have a text and a path"):
        Cell.from_json(cells[0].to_json() | {"settings": {"offset_distribution": {"path": "x"}}})


def test_a_file_that_changes_during_a_sweep_is_an_error_of_its_cells(tmp_path):
    path = tmp_path / "offsets.npy"
    opbench.save_offsets(path, np.ones((1, 2, 2, 2)), order="xy")
    case = case_of("dcnv4", offset_distribution=f"trained:{path}")
    opbench.save_offsets(path, np.zeros((1, 2, 2, 2)), order="xy")
    with pytest.raises(ValueError, match=r"offsets\.npy has changed since the sweep was planned"):
        offsets_of(case)


def test_a_gate_measures_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        "dcnv4.offset_distribution=trained:a.npy", "x.y=normal,trained:/b.npy,trained:c.npy", "x.y=1.5,2", "standard",
        "mine.yaml",
    ]  # fmt: skip
    assert [from_any_folder(text) for text in options] == [
        f"dcnv4.offset_distribution=trained:{tmp_path}/a.npy", f"x.y=normal,trained:/b.npy,trained:{tmp_path}/c.npy",
        "x.y=1.5,2", "standard", f"{tmp_path}/mine.yaml",
    ]  # fmt: skip
