"""Choices of the kernels beside DCNv4's: every candidate is right, trials add to no gradient, and what a key has."""

import pytest
import torch
from opbench_kernels import dcnv2, ms_deform_attn, partial_conv3x3, tuning
from opbench_kernels.deform import dcnv2_configs, dcnv2_launch
from opbench_kernels.deform.geometry import Geometry
from opbench_kernels.msda import configs as msda_configs
from opbench_kernels.msda.launch import Attended
from opbench_kernels.partial import configs as partial_configs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def attention(implementation):
    levels, starts = torch.tensor([[2, 3]]), torch.tensor([0])
    leaves = [normal(1, 6, 1, 20), normal(1, 3, 1, 1, 1, 2).sigmoid(), normal(1, 3, 1, 1, 1)]

    def function(value, locations, weights):
        return ms_deform_attn(
            value, levels.to(DEVICE), starts.to(DEVICE), locations, weights, implementation=implementation
        )

    return function, leaves


def convolution(implementation):
    # Offsets away from integers, where the gradient jumps.
    leaves = [normal(1, 40, 3, 3), 0.5 + 0.1 * normal(1, 4, 3, 2), normal(1, 2, 3, 2), normal(36, 40, 1, 2)]
    return lambda *tensors: dcnv2(*tensors, implementation=implementation), leaves


def partial_convolution(implementation):
    return lambda *tensors: partial_conv3x3(*tensors, implementation=implementation), [
        normal(1, 24, 3, 5),
        normal(18, 18, 3, 3),
    ]


CASES = {
    attention: {msda_configs.FORWARD, msda_configs.BACKWARD},
    convolution: {dcnv2_configs.FORWARD, dcnv2_configs.BACKWARD, dcnv2_configs.WEIGHT_GRAD},
    partial_convolution: {partial_configs.FORWARD},
}


@pytest.mark.parametrize("case", [attention, partial_convolution, pytest.param(convolution, marks=pytest.mark.slow)])
def test_every_candidate_is_right_and_its_trial_leaves_no_trace(monkeypatch, case):
    def results(implementation):
        function, leaves = case(implementation)
        leaves = [leaf.to(DEVICE).requires_grad_() for leaf in leaves]
        out = function(*leaves)
        along = torch.linspace(-1, 1, out.numel(), device=DEVICE).view(out.shape)
        return [out, *torch.autograd.grad(out, leaves, along)]

    expected = results("torch")
    seen: dict[str, set] = {}

    def choose(key, candidates, launch_of):
        """Tries one that was not taken yet, and takes it."""
        taken = seen.setdefault(key.kernel, set())
        chosen = next((each for each in candidates if each not in taken), candidates[0])
        launch_of(chosen)()
        left[key.kernel] = len({*candidates} - taken - {chosen})
        taken.add(chosen)
        return chosen

    monkeypatch.setattr(tuning, "_state", {"enabled": True})
    monkeypatch.setattr(tuning, "choose", choose)
    left = {"": 1}
    while any(left.values()):
        left.clear()
        for got, right in zip(results("triton"), expected, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)
    assert {*seen} == CASES[case]
    assert all(len(taken) > 1 for taken in seen.values())


def convolved(last=False, start=0, channels=32, size=(4, 4)):
    image = torch.zeros(start + size[0] * size[1] * channels)[start:].view(1, *size, channels)
    points = [torch.zeros(1, *size, numbers).permute(0, 3, 1, 2) for numbers in (18, 9)]
    if not last:
        points = [tensor.contiguous() for tensor in points]
    return dcnv2_launch.Convolved(image, *points, torch.zeros(1, 9, channels, channels), Geometry(), 1)


def attended(dtype=torch.float32, heads=2, queries=5):
    tensors = torch.zeros(1, 8, heads, 16), torch.zeros(2, 2), torch.zeros(2)
    return Attended(
        *tensors, torch.zeros(1, queries, heads, 2, 3, 2, dtype=dtype), torch.zeros(1, queries, heads, 2, 3)
    )


def test_layouts_and_alignment_are_part_of_the_keys():
    changes = ({}, {"last": True}, {"start": 1}, {"channels": 40}, {"size": (1, 16)}, {"size": (5, 5)})
    keys = {dcnv2_configs._key(dcnv2_configs.FORWARD, convolved(**change), torch.zeros(1)) for change in changes}
    assert len(keys) == len(changes)
    out = torch.zeros(9)
    changes = ({}, {"dtype": torch.float16}, {"heads": 3}, {"queries": 50})
    keys = {msda_configs._key(msda_configs.FORWARD, attended(**change), out) for change in changes}
    assert len(keys | {msda_configs._key(msda_configs.FORWARD, attended(), out[1:])}) == len(changes) + 1
    same = [msda_configs._key(msda_configs.FORWARD, attended(queries=queries), out) for queries in (5, 6)]
    assert same[0] == same[1]


def test_without_tuning_a_launch_makes_no_key(monkeypatch):
    """It is taken at every launch of a model."""
    monkeypatch.setattr(tuning, "_state", {"enabled": False})
    for module in (dcnv2_configs, msda_configs):
        monkeypatch.setattr(module, "_key", None)
    assert dcnv2_configs.choose_forward(convolved(), None, torch.zeros(1)) == dcnv2_launch.rule(convolved())
    assert tuning.last_choices()[dcnv2_configs.FORWARD] == (64, 32, 4)
    assert msda_configs.choose_forward(attended(), torch.zeros(1)) == (1, 2)
