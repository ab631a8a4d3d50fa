"""How far a tensor is off: whole tensors, the worst element, and gradients in which everything cancels."""

import math

import pytest
import torch
from builders import doubling, make_case

from opbench.registry import registry
from opbench.sweeps.check import check, output_gradient
from opbench.sweeps.deviation import Deviation, deviation, relative_error, where_worst
from opbench.workload.case import Direction, Dtype
from opbench.workload.operator import Provider
from opbench.workload.tolerance import cancelled_scale

ZEROS = torch.zeros(4, dtype=torch.float64)


def test_relative_error_is_measured_against_the_typical_size():
    expected = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    rms = (2 / 3) ** 0.5
    got = expected + torch.tensor([0.0, 0.0, 0.1], dtype=torch.float64)
    assert relative_error(got, expected) == pytest.approx(0.1 / rms)
    assert relative_error(expected.float(), expected) == 0
    assert relative_error(torch.tensor([1.0, math.nan, 0.0]), expected) == math.inf
    assert relative_error(torch.zeros(3), torch.zeros(3, dtype=torch.float64)) == 0


def test_what_cannot_be_compared_has_no_error_that_a_limit_could_allow():
    for got in (torch.ones(3), torch.tensor([1.0, math.nan, 1.0, 1.0]), torch.tensor([math.inf, 1.0, 1.0, 1.0])):
        assert deviation(got, ZEROS + 1) == Deviation(math.inf, math.inf, 0.0)
    assert deviation(torch.ones(0), torch.ones(0).double()) == Deviation(0.0, 0.0, 0.0)


def test_errors_of_what_is_all_zero():
    assert deviation(ZEROS, ZEROS) == Deviation(0.0, 0.0, 0.0)
    assert deviation(ZEROS + 1e-9, ZEROS) == Deviation(math.inf, 0.0, 0.0)
    assert deviation(ZEROS + 1e-9, ZEROS, least_scale=0.5) == Deviation(2e-9, 0.0, 0.0)


def test_a_least_scale_replaces_what_is_smaller():
    rounding = torch.tensor([1e-17, -1e-17], dtype=torch.float64)
    found = deviation(rounding + 0.003, rounding, least_scale=0.1)
    assert (found.max_rel_error, found.mean_rel_error) == (pytest.approx(0.03), 0.0)
    expected = torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert deviation(expected * 1.01, expected, least_scale=0.1) == deviation(expected * 1.01, expected)
    for size, mean in ((0.15, 0.01), (0.05, 0.0)):  # of rounding alone there is no mean error
        assert deviation(1.01 * size * expected, size * expected, least_scale=0.1).mean_rel_error == pytest.approx(mean)


def test_an_error_of_just_what_is_allowed_is_not_beyond_it():
    assert "; 0 % of 4 elements are beyond" in where_worst(ZEROS + 1, ZEROS + 1, 0.0, 0.0)
    one_off = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert where_worst(one_off, ZEROS, 1.0, 2.0).startswith("worst at [0]: got 1, expected 0; 0 % of 4 elements")
    assert "; 25 % of 4 elements" in where_worst(one_off, ZEROS, 0.49, 2.0)


def test_when_a_gradient_is_nothing_but_rounding():
    # fp64 rounds 2^29 times as finely as fp32, which the tolerance counts.
    assert cancelled_scale(1e-5, 0.0, 3.0) == 3.0
    assert cancelled_scale(2**-10, 2**-39, 1.0) == 1.0
    assert cancelled_scale(1e-5, 0.99 * 3e-5 * 2**-29, 3.0) == 3.0
    assert cancelled_scale(1e-5, 1.01 * 3e-5 * 2**-29, 3.0) == 0.0


@pytest.mark.parametrize("name", ["attention", "flash_attention_2", "window_attention"])
def test_attention_over_one_key_has_no_gradient_but_rounding(name):
    operator = registry.find(name)
    for dtype in (Dtype.FP32, Dtype.BF16):
        settings = operator.resolve_settings({})
        case = make_case(name, (3, 1, 1, 64), direction=Direction.BWD, dtype=dtype, settings=settings)
        for provider in operator.providers:
            if provider.name in ("torch", "sdpa_flash"):
                result = check(operator, provider, case, "cpu", seed=7)
                assert (result.reason, result.max_rel_error <= result.tolerance) == ("", True)


def softmax_of_one(values):
    """The values times a softmax over themselves alone: the gradient of what goes into it cancels."""
    return values["x"] * values["scores"].unsqueeze(-1).softmax(-1).squeeze(-1)


@pytest.mark.parametrize("share", [0.98, 1.02])
def test_a_gradient_that_cancels_is_allowed_the_rounding_of_its_terms(share):
    def tensors(case, generator):
        return {name: torch.randn(2, 3, 4, 5, generator=generator) for name in ("x", "scores")}

    operator = doubling(make_inputs=tensors, reference=lambda case, tensors: softmax_of_one(tensors))
    case = make_case(direction=Direction.BWD)

    def build(case, tensors):
        x, scores = tensors["x"], tensors["scores"]
        gradient = output_gradient(x)
        terms = gradient.norm() * x.square().mean().sqrt() / scores.norm()
        # A gradient of the same size in each element, although there is none.
        wrong = torch.where(gradient == 0, 0, share * operator.tolerance(case) * terms / gradient)
        return lambda: softmax_of_one(tensors) + (scores - scores.detach()) * wrong.detach()

    result = check(operator, Provider("leaky", build, ""), case, "cpu", seed=1)
    assert result.max_rel_error == pytest.approx(share * result.tolerance, rel=0.01)
    assert result.reason.startswith("gradient of scores is off by") == (share > 1)


def test_the_gradient_of_a_tensor_of_zeros_is_compared_as_it_is():
    def tensors(case, generator):
        return {"x": torch.randn(2, 3, 4, 5, generator=generator), "bias": torch.zeros(5)}

    operator = doubling(make_inputs=tensors, reference=lambda case, tensors: tensors["x"] + tensors["bias"])
    case = make_case(direction=Direction.BWD)
    steep = Provider("steep", lambda case, t: lambda: t["x"] + 1.001 * t["bias"], "")
    assert "gradient of bias is off by" in check(operator, steep, case, "cpu", seed=1).reason
    unused = doubling(make_inputs=tensors, reference=lambda case, tensors: tensors["x"] + 0 * tensors["bias"])
    leaky = Provider("leaky", lambda case, t: lambda: t["x"] + 1e-9 * t["bias"], "")
    assert "gradient of bias is off by inf" in check(unused, leaky, case, "cpu", seed=1).reason
