"""Compares a provider's values, and every gradient, with the fp64 reference before anything is timed."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch

from opbench.errors import OperatorError
from opbench.host.system import available_memory_bytes
from opbench.sweeps.deviation import Deviation, deviation, relative_error, where_worst
from opbench.sweeps.plan import cost
from opbench.workload.case import Case, Direction
from opbench.workload.operator import Operator, Provider, Tensors
from opbench.workload.tolerance import cancelled_scale, mean_budget

__all__ = [
    "CheckResult",
    "allowed_error",
    "check",
    "compare",
    "crop_to_fit",
    "make_tensors",
    "output_gradient",
    "poisoned_allocations",
    "provided_values",
    "reference_values",
    "relative_error",
    "synchronized_time",
]

REFERENCE_FLOPS = {"cpu": 2e10, "cuda": 2e13}
"""Most work of a reference by device type: about a second in fp64, on two cores or a GPU of a data centre."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What the comparison found.

    Attributes:
        max_rel_error: largest relative error of any element of the output or a gradient; inf where not finite.
        tolerance: the largest one allowed.
        checked_shape: the shape compared, smaller than the case's where the reference does not fit.
        reason: why it failed, empty where it did not.
        mean_rel_error: the mean relative error, with its sign, of the output or the gradient where it is the largest
            part of what is allowed there; None where nothing could be compared.
        mean_tolerance: what is allowed there.
        result_dtype: torch's name of the output's dtype; empty where nothing could be compared.
        first_call_ms: how long the provider took, from its build to its result, with what was not compiled before.
    """

    max_rel_error: float
    tolerance: float
    checked_shape: str
    reason: str
    mean_rel_error: float | None = None
    mean_tolerance: float | None = None
    result_dtype: str = ""
    first_call_ms: float | None = None


class WrongResultError(Exception):
    """What a provider gave cannot be compared: it is no tensor."""


def make_tensors(operator: Operator, case: Case, device: str, seed: int) -> Tensors:
    """Inputs and parameters of a case in its dtype: the same for every provider, and for every order of cells.

    Raises:
        OperatorError: make_inputs gives something else than tensors by name.
    """
    generator = torch.Generator(device=device)
    generator.manual_seed(seed)
    dtype = getattr(torch, case.dtype.torch_name)
    made: object = operator.make_inputs(case, generator)
    if not isinstance(made, dict) or not made:
        raise OperatorError(f"make_inputs must give a dict of tensors by name, got {_what(made)}")
    for name, tensor in made.items():
        if not isinstance(tensor, torch.Tensor):
            raise OperatorError(f"make_inputs must give tensors, got {_what(tensor)} for {name!r}")
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def crop_to_fit(operator: Operator, case: Case, bytes_available: int, max_flops: float) -> Case:
    """The case itself if its reference fits in memory and work, else one with a smaller batch, then a smaller image.

    Channels stay: they decide which code a provider takes. Height and width stay multiples of what the operator takes.
    """
    while (
        8 * cost(operator, "reference_elements", case) > bytes_available
        or cost(operator, "flop_count", case) > max_flops
    ):
        shape = case.shape
        steps = {"batch": 1, "height": operator.side_multiple, "width": operator.side_multiple}
        larger = [name for name, step in steps.items() if getattr(shape, name) > step]
        if not larger:
            break
        side = max(larger, key=lambda name: (name == "batch", getattr(shape, name)))
        halves = -(-getattr(shape, side) // (2 * steps[side]))
        case = replace(case, shape=replace(shape, **{side: halves * steps[side]}))
    return case


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Fill what `torch.empty` and its relatives give with NaN, so that an output left unwritten cannot look right."""

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def allocate_poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

        return allocate_poisoned

    with ExitStack() as stack:
        for place, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (torch.Tensor, "new_empty"),
        ):
            stack.enter_context(patch.object(place, name, poisoned(getattr(place, name))))
        yield


def check(operator: Operator, provider: Provider, case: Case, device: str, seed: int) -> CheckResult:
    """Run a provider and the reference on the same values and compare; gradients too where the case has them.

    Those of a step of training are compared as of fwd_bwd, in evaluation: in training, a batch normalisation over the
    few pixels of a last stage multiplies what rounding leaves.

    Raises:
        OperatorError: make_inputs, reference or tolerance give what they may not.
        Exception: whatever a function of the operator or the provider raises.
    """
    if case.direction is Direction.TRAIN:
        case = replace(case, direction=Direction.FWD_BWD)
    max_flops = REFERENCE_FLOPS[device.partition(":")[0]]
    cropped = crop_to_fit(operator, case, _bytes_available(device) // 2, max_flops)
    tensors = make_tensors(operator, cropped, device, seed)
    if cropped.direction is not Direction.FWD:
        tensors = operator.smooth_inputs(cropped, tensors)
    started = synchronized_time(device)
    try:
        with poisoned_allocations():
            got = provided_values(provider, cropped, tensors)
    except WrongResultError as error:
        return CheckResult(math.inf, allowed_error(operator, cropped), str(cropped.shape), str(error))
    first_call_ms = 1e3 * (synchronized_time(device) - started)
    result = compare(operator, cropped, tensors, got, reference_values(operator, cropped, tensors))
    return replace(result, first_call_ms=first_call_ms)


def synchronized_time(device: str) -> float:
    """Seconds of the host's clock after all that the device was given to do."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def compare(operator: Operator, case: Case, tensors: Tensors, got: Tensors, expected: Tensors) -> CheckResult:
    """What was computed from `tensors` against what it should be.

    Args:
        operator, case: give what is allowed.
        tensors: inputs and parameters.
        got: of the output and the gradients, those that are compared.
        expected: the output, and the gradients of a backward, in float64.
    """
    tolerance = allowed_error(operator, case)
    scales = _least_scales(tensors, expected, tolerance)
    deviations = {name: deviation(value, expected[name], scales[name]) for name, value in got.items()}
    means = {
        name: mean_budget(case, _tolerance_of(name, operator, case), found.mean_spread)
        for name, found in deviations.items()
    }
    biased = max(means, key=lambda name: abs(deviations[name].mean_rel_error) / means[name])
    mean = deviations[biased].mean_rel_error
    return CheckResult(
        max_rel_error=max(found.max_rel_error for found in deviations.values()),
        tolerance=tolerance,
        checked_shape=str(case.shape),
        reason=_complaint(deviations, got, expected, tolerance, scales) or _bias_complaint(biased, mean, means[biased]),
        mean_rel_error=mean if math.isfinite(mean) else None,
        mean_tolerance=means[biased],
        result_dtype=str(next(iter(got.values())).dtype).removeprefix("torch."),
    )


def allowed_error(operator: Operator, case: Case) -> float:
    """The operator's tolerance for a case.

    Raises:
        OperatorError: it is no number that an error could be compared with.
    """
    tolerance: object = operator.tolerance(case)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise OperatorError(f"tolerance must give a number of at least 0, got {tolerance!r:.60}")
    return float(tolerance)


def reference_values(operator: Operator, case: Case, tensors: Tensors) -> Tensors:
    """What the reference computes in float64 from tensors of any dtype: the output, and the gradients of a backward.

    Raises:
        OperatorError: it gives something else than a tensor.
    """

    def compute(leaves: Tensors) -> torch.Tensor:
        out: object = operator.reference(case, leaves)
        if not isinstance(out, torch.Tensor):
            raise OperatorError(f"reference must give a tensor, got {_what(out)}")
        return out

    return _values(case, compute, {name: tensor.double() for name, tensor in tensors.items()})


def provided_values(provider: Provider, case: Case, tensors: Tensors) -> Tensors:
    """What a provider computes from the tensors: the output, and the gradients of a backward.

    Raises:
        WrongResultError: that is no tensor.
    """
    return _values(case, lambda leaves: _provided(provider, case, leaves), tensors)


def _provided(provider: Provider, case: Case, tensors: Tensors) -> torch.Tensor:
    """What a provider computes, once.

    Raises:
        WrongResultError: that is no tensor.
    """
    launch: object = provider.build(case, tensors)
    if not callable(launch):
        raise WrongResultError(f"build must return the closure to time, got {_what(launch)}")
    out: object = launch()
    if type(out) is not torch.Tensor:  # one of a subclass may compute when it is read
        raise WrongResultError(f"the closure must return the output, a torch.Tensor itself, got {_what(out)}")
    return out


def _what(value: object) -> str:
    """A value's type, or that it is None or empty."""
    return "None" if value is None else f"an empty {type(value).__name__}" if value == {} else type(value).__name__


def _tolerance_of(name: str, operator: Operator, case: Case) -> float:
    """Allowed error of the output or a gradient: a backward case's output passes the forward's roundings alone."""
    return allowed_error(operator, replace(case, direction=Direction.FWD) if name == "output" else case)


def _values(case: Case, compute: Callable[[Tensors], torch.Tensor], tensors: Tensors) -> Tensors:
    """The output, and for a backward case the gradient of every tensor under a fixed output gradient."""
    if case.direction is Direction.FWD:
        with torch.no_grad():
            return {"output": compute(tensors)}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    out = compute(leaves)
    grads = torch.autograd.grad(out, list(leaves.values()), output_gradient(out))
    return {"output": out.detach()} | {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def output_gradient(out: torch.Tensor) -> torch.Tensor:
    """A fixed random gradient in (-1, 1) in steps of 1/128, which every dtype holds exactly.

    Random, because a regular one sums to nothing over the pixels: a bias's gradient would then be all rounding.
    """
    generator = torch.Generator(out.device)
    generator.manual_seed(0)
    steps = torch.randint(-127, 128, out.shape, generator=generator, device=out.device)
    return (steps / 128).to(out.dtype)


def _least_scales(tensors: Tensors, expected: Tensors, tolerance: float) -> dict[str, float]:
    """Of the output and every gradient, the size of what cancels in it where nothing else is left; else 0."""
    out = expected["output"]
    drive = float(output_gradient(out).norm()) * _rms(out)
    scales = {"output": 0.0}
    for name, tensor in tensors.items():
        norm, gradient = float(tensor.double().norm()), f"gradient of {name}"
        if gradient in expected:
            terms = drive / norm if norm else 0.0
            scales[gradient] = cancelled_scale(tolerance, _rms(expected[gradient]), terms)
    return scales


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.square().mean().sqrt())


def _complaint(
    deviations: dict[str, Deviation], got: Tensors, expected: Tensors, tolerance: float, scales: dict[str, float]
) -> str:
    worst = max(deviations, key=lambda name: deviations[name].max_rel_error)
    error = deviations[worst].max_rel_error
    if error <= tolerance:
        return ""
    if got[worst].shape != expected[worst].shape:
        return f"{worst} has shape {tuple(got[worst].shape)}, expected {tuple(expected[worst].shape)}"
    bad = int((~got[worst].isfinite()).sum())
    if bad:
        return f"{bad} of {got[worst].numel()} values of the {worst} are not finite (unwritten, or overflowed)"
    return (
        f"{worst} is off by {error:.3g}, allowed {tolerance:.3g} (relative, against the fp64 reference); "
        f"{where_worst(got[worst], expected[worst], tolerance, scales[worst])}"
    )


def _bias_complaint(name: str, mean: float, allowed: float) -> str:
    if abs(mean) <= allowed:
        return ""
    size = "large" if mean > 0 else "small"
    return (
        f"{name} is too {size} on average: mean relative error {mean:+.3g}, allowed "
        f"{allowed:.3g} by rounding (no single element is beyond its own limit)"
    )


def _bytes_available(device: str) -> int:
    if device == "cpu":
        available = available_memory_bytes()
        return sys.maxsize if available is None else available
    gpu = torch.device(device)
    free, total = torch.cuda.mem_get_info(gpu)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(gpu))
    used = torch.cuda.memory_allocated(gpu)
    cached = torch.cuda.memory_reserved(gpu) - used
    return min(free + cached, allowed - used)
