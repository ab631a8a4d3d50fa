"""Compares a provider's values, and every gradient, with the fp64 reference before anything is timed."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch

from opbench.case import Case, Direction
from opbench.operator import Operator, Provider, Tensors
from opbench.system import available_memory_bytes

__all__ = ["CheckResult", "check", "crop_to_fit", "make_tensors", "poisoned_allocations", "relative_error"]

CPU_REFERENCE_FLOPS = 2e10
"""Most work of a reference on the CPU: about a second in fp64 on two cores."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What the comparison found.

    Attributes:
        max_rel_error: largest relative error of any element of the output or a gradient; inf where not finite.
        tolerance: the largest one allowed.
        checked_shape: the shape compared, smaller than the case's where the reference does not fit.
        reason: why it failed, empty where it did not.
    """

    max_rel_error: float
    tolerance: float
    checked_shape: str
    reason: str


def make_tensors(operator: Operator, case: Case, device: str, seed: int) -> Tensors:
    """Inputs and parameters of a case in its dtype: the same for every provider, and for every order of cells."""
    generator = torch.Generator(device=device)
    generator.manual_seed(seed)
    dtype = getattr(torch, case.dtype.torch_name)
    return {name: tensor.to(dtype) for name, tensor in operator.make_inputs(case, generator).items()}


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest |got - expected| / (|expected| + root mean square of expected); inf where got is not finite."""
    got = got.to(expected.dtype)
    if got.shape != expected.shape or not bool(got.isfinite().all()):
        return math.inf
    if not expected.numel():
        return 0.0
    scale = expected.abs() + expected.square().mean().sqrt()
    error = (got - expected).abs()
    return float(torch.where(error > 0, error / scale, 0).max())


def crop_to_fit(operator: Operator, case: Case, bytes_available: int, max_flops: float) -> Case:
    """The case itself if its reference fits in memory and work, else one with a smaller batch, then a smaller image.

    Channels stay: they decide which code a provider takes.
    """
    while (
        8 * operator.reference_elements(case) > bytes_available or operator.flop_count(case) > max_flops
    ) and case.shape.pixels > 1:
        shape = case.shape
        side = max(
            ("batch", "height", "width"),
            key=lambda name: (name == "batch" and shape.batch > 1, getattr(shape, name)),
        )
        case = replace(case, shape=replace(shape, **{side: (getattr(shape, side) + 1) // 2}))
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
    """Run a provider and the reference on the same values and compare; gradients too where the case has them."""
    max_flops = CPU_REFERENCE_FLOPS if device == "cpu" else math.inf
    cropped = crop_to_fit(operator, case, _bytes_available(device) // 2, max_flops)
    tensors = make_tensors(operator, cropped, device, seed)
    if cropped.direction is not Direction.FWD:
        tensors = operator.smooth_inputs(cropped, tensors)
    with poisoned_allocations():
        got = _values(cropped, lambda leaves: provider.build(cropped, leaves)(), tensors)
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    expected = _values(cropped, lambda leaves: operator.reference(cropped, leaves), exact)
    errors = {name: relative_error(got[name], expected[name]) for name in expected}
    tolerance = operator.tolerance(cropped)
    return CheckResult(
        max_rel_error=max(errors.values()),
        tolerance=tolerance,
        checked_shape=str(cropped.shape),
        reason=_complaint(errors, got, expected, tolerance),
    )


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


def _complaint(errors: dict[str, float], got: Tensors, expected: Tensors, tolerance: float) -> str:
    worst = max(errors, key=errors.__getitem__)
    if errors[worst] <= tolerance:
        return ""
    if got[worst].shape != expected[worst].shape:
        return f"{worst} has shape {tuple(got[worst].shape)}, expected {tuple(expected[worst].shape)}"
    bad = int((~got[worst].isfinite()).sum())
    if bad:
        return f"{bad} of {got[worst].numel()} values of the {worst} are not finite (unwritten, or overflowed)"
    return f"{worst} is off by {errors[worst]:.3g}, allowed {tolerance:.3g} (relative, against the fp64 reference)"


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
