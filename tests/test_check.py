"""The comparison with the fp64 reference: it passes what is right and catches each kind of wrong."""

import math
from dataclasses import replace

import pytest
import torch
from builders import doubling, make_case

from opbench.errors import OperatorError
from opbench.sweeps import check as check_module
from opbench.sweeps.check import check, crop_to_fit, make_tensors, poisoned_allocations
from opbench.sweeps.deviation import deviation
from opbench.workload.case import OPERATOR_DIRECTIONS, Direction, Dtype
from opbench.workload.operator import Provider
from opbench.workload.tolerance import mean_budget, rounding_budget


def run_check(provider, **case_changes):
    operator = doubling()
    return check(operator, operator.provider(provider), make_case(**case_changes), "cpu", seed=1)


@pytest.mark.parametrize("dtype", [Dtype.FP32, Dtype.FP16, Dtype.BF16])
@pytest.mark.parametrize("direction", list(OPERATOR_DIRECTIONS))
def test_what_is_right_passes(dtype, direction):
    result = run_check("right", dtype=dtype, direction=direction)
    assert result.reason == ""
    assert result.max_rel_error == 0  # doubling is exact
    assert result.checked_shape == "1x4x4x8"


def test_a_wrong_value_is_off_by_what_it_is_off():
    result = run_check("wrong")
    assert "output is off by" in result.reason
    x = make_tensors(doubling(), make_case(), "cpu", 1)["x"].double()
    largest = 2 * x.abs().max().item()
    expected = 0.005 * largest / (largest + 2 * x.square().mean().sqrt().item())
    assert result.max_rel_error == pytest.approx(expected, rel=1e-4)


def test_half_a_percent_is_wrong_in_fp16_but_within_the_rounding_of_bf16():
    assert run_check("wrong", dtype=Dtype.FP16).reason
    assert not run_check("wrong", dtype=Dtype.BF16).reason


def test_a_wrong_gradient_is_caught_where_the_output_is_right():
    def build(case, tensors):
        x = tensors["x"]
        return lambda: 2 * x.detach() + 0 * x

    provider = Provider("no_gradient", build, "")
    result = check(doubling(), provider, make_case(direction=Direction.BWD), "cpu", seed=1)
    assert "gradient of x is off" in result.reason


def test_a_backward_row_shows_the_largest_of_its_errors():
    def build(case, tensors):
        x = tensors["x"]
        return lambda: 2.002 * x - 0.002 * x.detach()  # the output is right, the gradient is 0.1 % too large

    provider = Provider("steep", build, "")
    result = check(doubling(), provider, make_case(direction=Direction.BWD), "cpu", seed=1)
    x = make_tensors(doubling(), make_case(), "cpu", 1)["x"].double()
    gradient = 2 * check_module.output_gradient(x)
    largest = gradient.abs().max()
    expected = 0.001 * largest / (largest + gradient.square().mean().sqrt())
    assert result.max_rel_error == pytest.approx(expected.item(), rel=1e-3)
    assert f"gradient of x is off by {result.max_rel_error:.3g}" in result.reason


def test_a_tolerance_by_hand():
    # Three roundings to the dtype and a float32 growth of 5; six times that, and 24 times for gradients.
    for dtype, roundoff in (
        (Dtype.FP32, 2.0**-24),
        (Dtype.TF32, 2.0**-11),
        (Dtype.FP16, 2.0**-11),
        (Dtype.BF16, 2.0**-8),
    ):
        budgets = [
            rounding_budget(make_case(dtype=dtype, direction=direction), storage_roundings=3, float32_growth=5)
            for direction in OPERATOR_DIRECTIONS
        ]
        forward = 18 * roundoff + 30 * 2.0**-24
        assert budgets == pytest.approx([forward, 4 * forward, 4 * forward], rel=1e-12)


def test_an_unwritten_row_is_caught():
    result = run_check("unwritten")
    assert result.max_rel_error == math.inf
    assert "32 of 128 values of the output are not finite" in result.reason


def test_a_wrong_shape_is_named():
    provider = Provider("flat", lambda case, tensors: lambda: tensors["x"].flatten() * 2, "")
    assert "output has shape (128,), expected (1, 4, 4, 8)" in check(doubling(), provider, make_case(), "cpu", 1).reason


def test_a_wrong_value_says_where_and_what():
    def build(case, tensors):
        def launch():
            out = tensors["x"] * 2
            out[0, 1, 2, 3] += 1
            return out

        return launch

    reason = check(doubling(), Provider("one", build, ""), make_case(), "cpu", 1).reason
    expected = 2 * make_tensors(doubling(), make_case(), "cpu", 1)["x"][0, 1, 2, 3].item()
    assert f"worst at [0, 1, 2, 3]: got {expected + 1:.6g}, expected {expected:.6g}; " in reason
    assert "0.781 % of 128 elements are beyond what is allowed" in reason
    assert "allowed 7.15e-07" in reason


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda case, tensors: lambda: None, "the closure must return the output, a torch.Tensor itself, got None"),
        (
            lambda case, tensors: lambda: [tensors["x"]],
            "the closure must return the output, a torch.Tensor itself, got list",
        ),
        (lambda case, tensors: tensors["x"] * 2, "build must return the closure to time, got Tensor"),
        (lambda case, tensors: None, "build must return the closure to time, got None"),
    ],
)
def test_what_is_no_tensor_is_named(build, reason):
    for direction in OPERATOR_DIRECTIONS:
        result = check(doubling(), Provider("odd", build, ""), make_case(direction=direction), "cpu", 1)
        assert (result.reason, result.max_rel_error) == (reason, math.inf)


def test_another_dtype_is_known():
    provider = Provider("wide", lambda case, tensors: lambda: tensors["x"].float() * 2, "")
    result = check(doubling(), provider, make_case(dtype=Dtype.BF16), "cpu", 1)
    assert (result.reason, result.result_dtype) == ("", "float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"make_inputs": lambda case, generator: None}, "make_inputs must give a dict of tensors by name, got None"),
        (
            {"make_inputs": lambda case, generator: {}},
            "make_inputs must give a dict of tensors by name, got an empty dict",
        ),
        ({"make_inputs": lambda case, generator: [1.0]}, "make_inputs must give a dict of tensors by name, got list"),
        ({"make_inputs": lambda case, generator: {"x": [1.0]}}, "make_inputs must give tensors, got list for 'x'"),
        ({"reference": lambda case, tensors: None}, "reference must give a tensor, got None"),
        ({"tolerance": lambda case: None}, "tolerance must give a number of at least 0, got None"),
        ({"tolerance": lambda case: math.nan}, "tolerance must give a number of at least 0, got nan"),
        ({"tolerance": lambda case: math.inf}, "tolerance must give a number of at least 0, got inf"),
        ({"tolerance": lambda case: -1e-9}, "tolerance must give a number of at least 0, got -1e-09"),
        ({"tolerance": lambda case: True}, "tolerance must give a number of at least 0, got True"),
        (
            {"reference_elements": lambda case: 0.5},
            "operator double: reference_elements of double/core/fwd/tiny/1x4x4x8",
        ),
    ],
)
def test_what_an_operators_function_may_not_give_is_named(changes, message):
    operator = doubling(**changes)
    with pytest.raises(OperatorError, match=message):
        check(operator, operator.provider("right"), make_case(), "cpu", 1)


@pytest.mark.parametrize("dtype", [Dtype.FP32, Dtype.FP16, Dtype.BF16])
def test_one_percent_too_large_is_a_bias(dtype):
    case = make_case(shape=(2, 16, 16, 32), dtype=dtype)
    provider = Provider(
        "large", lambda case, tensors: lambda: (tensors["x"].double() * 2.02).to(tensors["x"].dtype), ""
    )
    result = check(doubling(), provider, case, "cpu", seed=1)
    assert result.mean_rel_error == pytest.approx(0.01, rel=0.05)  # bf16 has 128 significands, whose roundings repeat
    assert result.mean_tolerance < 0.006
    if dtype is Dtype.BF16:
        assert result.max_rel_error < result.tolerance
        assert result.reason.startswith("output is too large on average: mean relative error +0.0")
    else:
        assert "output is off by" in result.reason


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_one_percent_too_small_is_a_bias_too_whatever_the_values_size(size):
    case = make_case(shape=(2, 16, 16, 32), dtype=Dtype.BF16)
    operator = doubling(reference=lambda case, tensors: size * tensors["x"])
    provider = Provider("small", lambda case, t: lambda: (0.99 * size * t["x"].double()).to(t["x"].dtype), "")
    reason = check(operator, provider, case, "cpu", seed=1).reason
    assert reason.startswith("output is too small on average: mean relative error -0.0")


@pytest.mark.parametrize(("in_output", "in_gradient", "larger"), [(0.9, 1.0, "output"), (0.7, 1.0, "gradient")])
def test_the_mean_error_shown_is_the_largest_part_of_what_is_allowed(in_output, in_gradient, larger):
    # A backward's output has the forward's budget: here 0.81 of the gradient's.
    def build(case, tensors):
        def launch():
            steep = 2 * (1 + in_gradient * 1e-4) * tensors["x"].double()
            return steep + (2 * (1 + in_output * 1e-4) * tensors["x"].double() - steep).detach()

        return launch

    case, operator = make_case(direction=Direction.BWD), doubling()
    result = check(operator, Provider("biased", build, ""), case, "cpu", seed=1)
    x = make_tensors(operator, case, "cpu", 1)["x"].double()
    direction, values, mean = {
        "output": (Direction.FWD, 2 * x, in_output * 1e-4),
        "gradient": (Direction.BWD, 2 * check_module.output_gradient(x), in_gradient * 1e-4),
    }[larger]
    spread = deviation(values, values).mean_spread
    allowed = mean_budget(case, operator.tolerance(replace(case, direction=direction)), spread)
    assert result.mean_rel_error == pytest.approx(mean, rel=1e-3)
    assert result.mean_tolerance == pytest.approx(allowed)


def test_an_error_of_just_what_is_allowed_passes():
    exact = doubling(tolerance=lambda case: 0)
    assert check(exact, exact.provider("right"), make_case(), "cpu", 1).reason == ""
    assert check(exact, exact.provider("wrong"), make_case(), "cpu", 1).reason


def test_gradients_are_taken_where_the_operator_is_smooth():
    operator = doubling(
        smooth_inputs=lambda case, tensors: {"x": torch.ones_like(tensors["x"])},
    )
    for direction in OPERATOR_DIRECTIONS:
        seen = []

        def build(case, tensors, seen=seen):
            seen.append(bool(tensors["x"].eq(1).all()))
            return lambda: tensors["x"] * 2

        check(operator, Provider("right", build, ""), make_case(direction=direction), "cpu", 1)
        assert seen == [direction is not Direction.FWD]


def test_the_mean_error_of_roundings_falls_with_the_count():
    found = {}
    for side in (4, 64):
        generator = torch.Generator().manual_seed(3)
        exact = torch.randn(side, side, 64, generator=generator, dtype=torch.float64)
        found[side] = deviation(exact.bfloat16(), exact)
        spread = found[side].mean_spread * (side * side * 64) ** 0.5
        assert spread == pytest.approx(2.7, rel=0.1)  # sqrt(E[x^2 (|x| + 1)^2]) of a normal x
        case = make_case(dtype=Dtype.BF16)
        allowed = mean_budget(case, doubling().tolerance(case), found[side].mean_spread)
        assert abs(found[side].mean_rel_error) < allowed
    assert found[64].mean_spread < found[4].mean_spread / 12


def test_the_mean_budget_by_hand():
    case = make_case(dtype=Dtype.FP16)
    shared = 2**-11 + 16 * 2**-24
    assert mean_budget(case, 0.06, 0.0) == pytest.approx(shared)
    assert mean_budget(case, 0.06, 0.1) == pytest.approx(shared + 3 * 0.01 * 0.1)
    tf32 = make_case(dtype=Dtype.TF32)  # what tensor cores cut off
    assert mean_budget(tf32, 0.006, 0.0) == pytest.approx(0.002 + 16 * 2**-24)


def test_poison_covers_every_python_allocation_and_goes_away():
    like = torch.ones(3)
    with poisoned_allocations():
        for tensor in (
            torch.empty(3),
            torch.empty_like(like),
            torch.empty_strided((3,), (1,)),
            like.new_empty(3),
        ):
            assert tensor.isnan().all()
        assert torch.empty(3, dtype=torch.int32).dtype == torch.int32
    assert torch.empty is not None
    assert torch.empty.__name__ == "empty"
    assert torch.Tensor.new_empty.__name__ == "new_empty"


def test_cropping_takes_the_batch_first_and_keeps_the_channels():
    operator = doubling()
    case = make_case(shape=(8, 10, 30, 16))
    fits = crop_to_fit(operator, case, 8 * 3 * case.shape.elements, math.inf)
    assert fits == case
    half = crop_to_fit(operator, case, 8 * 3 * case.shape.elements // 2, math.inf)
    assert str(half.shape) == "4x10x30x16"
    tiny = crop_to_fit(operator, case, 8 * 3 * 16 * 40, math.inf)
    assert tiny.shape.batch == 1
    assert tiny.shape.channels == 16
    assert tiny.shape.pixels <= 40
    assert str(crop_to_fit(operator, case, 10**9, 16 * 300).shape) == "1x10x30x16"


def test_cropping_rounds_up_and_ends_at_one_pixel():
    operator = doubling()
    full = 8 * 3 * 5 * 3 * 16
    assert str(crop_to_fit(operator, make_case(shape=(1, 5, 3, 16)), full, math.inf).shape) == "1x5x3x16"
    assert str(crop_to_fit(operator, make_case(shape=(1, 5, 3, 16)), full - 1, math.inf).shape) == "1x3x3x16"
    assert str(crop_to_fit(operator, make_case(shape=(2, 1, 1, 16)), 0, math.inf).shape) == "1x1x1x16"


@pytest.mark.parametrize(("flops", "shape"), [(20_000_000_000, "1x4x4x8"), (20_000_000_001, "1x2x4x8")])
def test_a_reference_on_the_cpu_takes_a_second_at_most(flops, shape):
    operator = doubling(flop_count=lambda case: flops if str(case.shape) == "1x4x4x8" else 1)
    assert check(operator, operator.provider("right"), make_case(), "cpu", 1).checked_shape == shape


@pytest.mark.parametrize(
    ("available", "shape"),
    [(None, "1x4x4x8"), (2 * 8 * 3 * 128, "1x4x4x8"), (2 * 8 * 3 * 128 - 1, "1x2x4x8")],
)
def test_a_reference_takes_half_of_the_memory_at_most(monkeypatch, available, shape):
    monkeypatch.setattr(check_module, "available_memory_bytes", lambda: available)
    assert run_check("right").checked_shape == shape


@pytest.mark.parametrize(("share", "available"), [(1.0, 15), (0.3, 10)])
def test_memory_of_a_gpu_is_what_is_free_or_cached_within_the_limit(monkeypatch, share, available):
    figures = {"memory_allocated": 20, "memory_reserved": 25, "get_per_process_memory_fraction": share}
    for name, value in {**figures, "mem_get_info": (10, 100)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert check_module._bytes_available("cuda:0") == available


def test_a_cropped_check_says_its_shape(monkeypatch):
    monkeypatch.setattr(check_module, "_bytes_available", lambda device: 2 * 8 * 3 * 4 * 4 * 8)
    assert run_check("right", shape=(4, 4, 4, 8)).checked_shape == "1x4x4x8"


def test_tensors_depend_on_the_seed_alone():
    operator, case = doubling(), make_case()
    first, again = (make_tensors(operator, case, "cpu", 3)["x"] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, make_tensors(operator, case, "cpu", 4)["x"])
    half = make_tensors(operator, replace(case, dtype=Dtype.FP16), "cpu", 3)["x"]
    assert torch.equal(half, first.half())


def test_the_output_gradient_is_exact_in_half_precision_and_does_not_cancel():
    out = torch.empty(2, 40, 40, 64)
    gradient = check_module.output_gradient(out)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(gradient.to(dtype).float(), gradient)
        assert torch.equal(check_module.output_gradient(out.to(dtype)).float(), gradient)
    # Sums over pixels are as large as those of independent numbers; of a regular pattern they are near zero.
    sums = gradient.sum(dim=(0, 1, 2))
    assert (gradient.min(), gradient.max()) == (-127 / 128, 127 / 128)
    assert 0.7 < sums.square().mean().sqrt() / (2 * 40 * 40 / 3) ** 0.5 < 1.3
