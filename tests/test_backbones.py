"""Networks in a sweep: names, costs counted in two ways, values against their fp64 selves, and what cannot be."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from fake_timer import FakeTimer
from opbench_kernels import DAttention
from test_fuzz import call

from opbench import models
from opbench.backbones.operators import OPERATORS
from opbench.backbones.work import work_of
from opbench.errors import UnknownNameError
from opbench.registry.families import chosen_operators, default_names
from opbench.registry.registry import find, registered
from opbench.results.measurement import Measurement, Status
from opbench.results.rows import row_of
from opbench.sweeps.check import check, crop_to_fit
from opbench.sweeps.plan import applicability
from opbench.sweeps.request import RunOptions, make_request
from opbench.sweeps.runner import CellRunner
from opbench.sweeps.start import plan
from opbench.workload.case import NETWORK_LEVELS, Case, Cell, Direction, Dtype, Level, Shape

NAMES = [operator.name for operator in OPERATORS]
ONE_EACH = (
    "internimage_t", "internimage_h", "flash_internimage_b", "replknet_31b", "slak_tiny", "parcnetv2_xt", "dat_tiny",
    "convnext_tiny", "fasternet_t0", "swin_tiny_patch4_window7_224", "vit_base_patch16_224",
)  # fmt: skip
"""Of each architecture, and of each that counts otherwise."""


def case_of(name, level=Level.MODEL, direction=Direction.FWD, dtype=Dtype.FP32, shape=None, **given):
    operator = find(name)
    settings = operator.resolve_settings({key: str(value) for key, value in given.items()})
    side = operator.side_multiple
    shape = Shape(*(shape or (1, side, side, 3)))
    return Case(name, level, direction, "test", shape, dtype, operator.settings_at(level, settings))


OPTIONS = RunOptions(device="cpu", timer="wall-clock", cache="warm", time_budget_s=0.01)


def plan_one(name, **options):
    given = {"device": "cpu", "dtypes": ["fp32"], "ops": [name], **options}
    return plan(make_request(given, registered()), registered())[0]


def torch_provider(name):
    return find(name).provider("torch")


def agrees(case, provider="torch"):
    operator = find(case.operator)
    result = check(operator, operator.provider(provider), case, "cpu", seed=3)
    assert result.reason == ""
    return result


def test_the_catalogue_is_there_and_networks_of_timm():
    assert [name for name in NAMES if name in models.names()] == models.names()
    assert all(timm.is_model(name) for name in NAMES)
    assert [name for name, operator in registered().items() if operator.is_network] == NAMES
    assert {operator.levels for operator in OPERATORS} == {NETWORK_LEVELS}


def test_a_network_is_swept_where_it_or_its_family_is_named():
    known = registered()
    assert not {*NAMES} & {*default_names(known), *chosen_operators(["all"], known)}
    assert list(chosen_operators(["backbone"], known)) == NAMES
    with pytest.raises(UnknownNameError, match="did you mean 'internimage_t'"):
        chosen_operators(["internimage_tt"], known)


def test_a_sweep_of_networks_alone_has_their_level_and_shapes():
    request = make_request({"device": "cpu", "dtypes": ["fp32"], "ops": ["internimage_t"]}, registered())
    assert (request.levels, request.shapes) == ((Level.MODEL,), ("backbone_smoke",))
    given = {"device": "cpu", "dtypes": ["fp32"], "ops": ["internimage_t"], "level": ["block"], "shapes": ["backbone"]}
    request = make_request(given, registered())
    assert (request.levels, request.shapes) == ((Level.BLOCK,), ("backbone",))
    mixed = make_request({"device": "cpu", "dtypes": ["fp32"], "ops": ["internimage_t", "dcnv3"]}, registered())
    assert (mixed.levels, mixed.shapes) == ((Level.MODULE,), ("standard_batch1",))


def counts_agree(name):
    case = case_of(name)
    config = timm.get_pretrained_cfg(name)
    size = {"img_size": (case.shape.height, case.shape.width)} if config.fixed_input_size else {}
    with torch.device("meta"):
        model = timm.create_model(name, **size)
    work = work_of(case)
    assert work.macs == models.mac_count(model, height=case.shape.height, width=case.shape.width)
    assert work.parameters == models.parameter_count(model)
    return work


def test_a_walk_counts_what_torch_counts():
    work = counts_agree("fasternet_t0")
    assert (work.forward_flops, work.backward_flops) == (2 * work.macs, 4 * work.macs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_EACH)
def test_a_walk_counts_what_torch_counts_in_every_architecture(name):
    counts_agree(name)


@pytest.mark.parametrize("direction", [Direction.FWD, Direction.BWD])
def test_a_block_agrees_with_its_float64_self(direction):
    for name in ("internimage_t", "flash_internimage_t"):
        agrees(case_of(name, Level.BLOCK, direction, stage=1))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ONE_EACH if name != "internimage_h"])  # it has a billion parameters
def test_a_network_agrees_with_its_float64_self(name):
    agrees(case_of(name, direction=Direction.BWD))
    agrees(case_of(name, dtype=Dtype.BF16))


def test_a_step_of_training_is_timed_and_its_gradients_are_those_of_fwd_bwd():
    cell = plan_one("fasternet_t0", level=["block"], direction=["train"])
    assert cell.parameter_count == 2 * 160 * 320 + 9 * 40**2 + 2 * 320
    measurement = CellRunner(OPTIONS, find, FakeTimer([1.0] * 20)).run(cell)
    assert (measurement.status, measurement.reason) == ("ok", "")
    both = plan_one("fasternet_t0", level=["block"], direction=["fwd_bwd"])
    assert cell.flop_count - both.flop_count == 2 * cell.parameter_count


def test_an_operator_is_not_trained():
    case = Case("dcnv3", Level.MODULE, Direction.TRAIN, "test", Shape(1, 8, 8, 32), Dtype.FP32)
    status, reason = applicability(find("dcnv3"), torch_provider("dcnv3"), case, "cpu")
    assert (str(status), reason) == ("not_applicable", "a step of training is measured of networks")


def test_a_model_has_images_per_second_parameters_and_macs():
    cell = plan_one("fasternet_t0", shapes=["backbone"])
    measurement = Measurement(cell, Status.OK, latencies_ms=(2.0,))
    command = {"timer": "wall-clock", "cache": "warm"}
    row = row_of(measurement, run_id="run", environment={"device_name": "cpu"}, command=command, ceilings=None)
    assert row.images_per_second == 500
    printed = f"{row.parameter_count / 1e6:.1f} M, {row.mac_count / 1e9:.2f} G"
    assert printed == "3.9 M, 0.34 G"  # FasterNet's Table 8
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell
    block = replace(cell, case=replace(cell.case, level=Level.BLOCK))
    measurement = Measurement(block, Status.OK, latencies_ms=(2.0,))
    row = row_of(measurement, run_id="run", environment={"device_name": "cpu"}, command=command, ceilings=None)
    assert row.images_per_second is None


def test_the_bias_by_distance_counts_where_plain_tensors_stand_for_parameters():
    module = DAttention((4, 4), (4, 4), 2, 4, 1, 0.0, 0.0, 1, 2, True, False, False, False, 2)
    changed = {name: torch.randn(tensor.shape) for name, tensor in module.named_parameters()}
    x = torch.randn(1, 8, 4, 4)
    out = torch.func.functional_call(module, changed, (x,))[0]
    module.load_state_dict(changed, strict=False)
    torch.testing.assert_close(out, module(x)[0])


def test_a_wrong_operator_inside_a_block_is_found(monkeypatch):
    from opbench_kernels.deform import sampling_torch

    right = sampling_torch.deformable_sample
    monkeypatch.setattr(
        sampling_torch, "deformable_sample", lambda value, offset, *rest: right(value, offset + 0.01, *rest)
    )
    case = case_of("flash_internimage_t", Level.BLOCK, stage=1)
    operator = find(case.operator)
    assert "is off by" in check(operator, torch_provider(case.operator), case, "cpu", seed=3).reason


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (case_of("slak_tiny", shape=(1, 64, 80, 3)), "width must be a multiple of 32 for slak_tiny, got 80"),
        (case_of("dat_tiny", shape=(1, 384, 384, 3)), "height must be a multiple of 224 for dat_tiny, got 384"),
        (case_of("slak_tiny", shape=(1, 64, 64, 64)), "a network takes images of 3 channels, got 64"),
        (case_of("fasternet_t0", Level.BLOCK, stage=4), "stage must be 0 to 3, got 4"),
        (case_of("fasternet_t0", Level.BLOCK, block=9), "block must be 0 to 7 in stage 2, got 9"),
        (case_of("fasternet_t0", Level.MODULE), "has no such level: it is timed as model or block"),
    ],
)
def test_what_a_network_cannot_compute_has_a_reason(case, message):
    status, reason = applicability(find(case.operator), torch_provider(case.operator), case, "cpu")
    assert str(status) == "not_applicable"
    assert message in reason


def test_a_smaller_image_for_the_check_is_one_that_the_network_takes():
    operator = replace(find("slak_tiny"), flop_count=lambda case: case.shape.pixels, reference_elements=lambda case: 0)
    case = case_of("slak_tiny", shape=(4, 224, 384, 3))
    assert str(crop_to_fit(operator, case, 1, 224 * 384).shape) == "1x224x384x3"
    assert str(crop_to_fit(operator, case, 1, 224 * 192).shape) == "1x224x192x3"
    assert str(crop_to_fit(operator, case, 1, 100 * 100).shape) == "1x64x96x3"
    assert str(crop_to_fit(operator, case, 1, 0).shape) == "1x32x32x3"


def test_train_is_a_flag_of_its_own():
    network = ("sweep", "--ops", "fasternet_t0", "--dtypes", "fp32", "--device", "cpu", "--dry-run")
    code, out, err = call(*network, "--train")
    assert (code, err) == (0, "")
    assert "fasternet_t0/model/train/backbone_smoke/1x64x96x3/fp32@torch" in out
    code, _, err = call(*network, "--train", "--direction", "fwd")
    assert code == 2
    assert "--train is --direction train" in err
