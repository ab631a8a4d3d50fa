"""The contract of an operator beside its providers: inputs, reference, gradients, costs and tolerance."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from opbench.errors import OpbenchError
from opbench.registry.raised import place_of, traceback_text
from opbench.results.measurement import Status
from opbench.sweeps.check import allowed_error, make_tensors, output_gradient, reference_values
from opbench.sweeps.deviation import relative_error
from opbench.sweeps.plan import applicability, cost
from opbench.text import one_line
from opbench.workload.case import Case, Direction, Dtype
from opbench.workload.operator import Operator, Provider

__all__ = ["Finding", "check_contract"]

SEED = 0
COSTS = ("flop_count", "bytes_moved", "memory_bytes", "gathered_bytes", "reference_elements")
MAY_BE_ZERO = ("flop_count", "gathered_bytes")
ROUNDED = 1.01
"""Counts may be rounded to whole blocks, so that doubling a batch gives a little more than twice as much."""
STEP = 1e-6
"""Of a difference quotient in float64."""
QUOTIENT_ERROR = 1e-4
REPEATED_ERROR = 1e-9
"""Between two runs of the reference: on a GPU the order of additions may differ."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one part of the contract came to.

    Attributes:
        operator: its name.
        part: description, inputs, reference, gradients, costs or tolerance.
        reason: what is wrong, and in which case; empty where nothing is.
        traceback: of what the operator's code raised.
    """

    operator: str
    part: str
    reason: str = ""
    traceback: str = ""


def check_contract(operator: Operator, cases: Sequence[Case], device: str) -> list[Finding]:
    """One finding for each part: its first fault, or none.

    Args:
        operator: whose contract.
        cases: in which shapes, dtypes, levels and directions; those that do not apply are left out.
        device: torch device.
    """
    found = _judge(operator, "description", lambda: _description(operator))
    if found.reason:
        return [found]
    device_type = device.partition(":")[0]
    applying: list[Case] = []
    chosen = _judge(operator, "costs", lambda: _choose(operator, cases, device_type, applying))
    if chosen.reason:
        return [found, chosen]
    forward = list({replace(case, direction=Direction.FWD): None for case in applying})
    backward = [case for case in applying if case.direction is Direction.BWD]
    parts: dict[str, tuple[Callable[[Case], Iterator[str]], list[Case]]] = {
        "inputs": (lambda case: _inputs(operator, case, device), forward),
        "reference": (lambda case: _reference(operator, case, device), forward),
        "gradients": (lambda case: _gradients(operator, case, device), backward),
        "costs": (lambda case: _costs(operator, case), applying),
        "tolerance": (lambda case: _tolerance(operator, case), applying),
    }
    return [found, *(_judge(operator, part, _each(*what)) for part, what in parts.items() if what[1])]


def _judge(operator: Operator, part: str, complaints: Callable[[], Iterator[str]]) -> Finding:
    try:
        return Finding(operator.name, part, next(complaints(), ""))
    except OpbenchError as error:
        return Finding(operator.name, part, str(error))
    except Exception as error:
        place = place_of(error, (operator.make_inputs.__module__,))
        reason = one_line(f"{type(error).__name__}: {error}") + (f", at {place}" if place else "")
        return Finding(operator.name, part, reason, traceback_text(error))


def _each(complain: Callable[[Case], Iterator[str]], cases: Sequence[Case]) -> Callable[[], Iterator[str]]:
    return lambda: (f"{complaint} ({case.key})" for case in cases for complaint in complain(case))


def _description(operator: Operator) -> Iterator[str]:
    for name in ("name", "summary", "timed"):
        text = getattr(operator, name)
        if not (isinstance(text, str) and text and text.isprintable()):
            yield f"{name} must be a line of text, got {text!r:.60}"
    names = [provider.name for provider in operator.providers if isinstance(provider, Provider)]
    if not names or len(names) != len(operator.providers):
        yield "providers must be opbench.Provider objects, at least one"
    for name in names:
        if names.count(name) > 1:
            yield f"two providers are called {name}"


def _choose(operator: Operator, cases: Sequence[Case], device_type: str, applying: list[Case]) -> Iterator[str]:
    """Keep the cases that some provider could compute, here or elsewhere."""
    reasons = []
    for case in cases:
        refusals = [applicability(operator, provider, case, device_type) for provider in operator.providers]
        if all(refusal and refusal[0] is Status.NOT_APPLICABLE for refusal in refusals):
            reasons += [refusal[1] for refusal in refusals if refusal]
        else:
            applying.append(case)
    if not applying:
        yield f"no case applies: {reasons[0]}" if reasons else "there is no case"


def _inputs(operator: Operator, case: Case, device: str) -> Iterator[str]:
    rounded = make_tensors(operator, case, device, SEED)
    made, again = (operator.make_inputs(case, torch.Generator(device).manual_seed(SEED)) for _ in range(2))
    for name, tensor in made.items():
        if not (isinstance(name, str) and name.isprintable()):
            yield f"names must be printable texts, got {name!r:.60}"
        elif tensor.dtype is not torch.float32:
            yield f"{name} is {_name(tensor.dtype)}, must be float32; opbench rounds it to the case's dtype"
        elif tensor.device.type != torch.device(device).type:
            yield f"{name} is on {tensor.device}, must be on the generator's device, {device}"
        elif not bool(rounded[name].isfinite().all()):
            yield f"{name} has values that are not finite in {_name(rounded[name].dtype)}"
        elif not torch.equal(tensor, again[name]):
            yield f"{name} differs from call to call; draw it from the generator that is given"


def _reference(operator: Operator, case: Case, device: str) -> Iterator[str]:
    tensors = make_tensors(operator, case, device, SEED)
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    kept = {name: tensor.clone() for name, tensor in exact.items()}
    out = reference_values(operator, case, exact)["output"]
    if out.dtype is not torch.float64:
        yield f"reference gives {_name(out.dtype)} from float64 tensors: it loses digits somewhere"
    if not bool(out.isfinite().all()):
        yield "reference gives values that are not finite"
    for name, tensor in exact.items():
        if not torch.equal(tensor, kept[name]):
            yield f"reference changes its input {name}"
    if not relative_error(reference_values(operator, case, kept)["output"], out) <= REPEATED_ERROR:
        yield "reference differs from call to call"


def _gradients(operator: Operator, case: Case, device: str) -> Iterator[str]:
    """Each input must have a gradient, and all of them agree with a difference quotient in a random direction."""
    smooth = operator.smooth_inputs(case, make_tensors(operator, case, device, SEED))
    leaves = {name: tensor.detach().double().requires_grad_() for name, tensor in smooth.items()}
    out = operator.reference(case, leaves)
    if not out.requires_grad:
        yield "the reference's output has no gradient: it is cut off from the inputs"
        return
    along = output_gradient(out)
    grads = torch.autograd.grad(out, list(leaves.values()), along, allow_unused=True)
    for name, grad in zip(leaves, grads, strict=True):
        if grad is None:
            yield f"the reference's output does not depend on {name}"
        elif not bool(grad.isfinite().all()):
            yield f"the gradient of {name} is not finite"
    generator = torch.Generator(device).manual_seed(SEED)
    steps = {name: _noise(leaf, generator) for name, leaf in leaves.items()}
    with torch.no_grad():
        ahead, behind = (
            operator.reference(case, {name: leaf + sign * STEP * steps[name] for name, leaf in leaves.items()})
            for sign in (1, -1)
        )
    quotient = float(((ahead - behind) * along).sum()) / (2 * STEP)
    used = [(grad, step) for grad, step in zip(grads, steps.values(), strict=True) if grad is not None]
    slope = sum(float((grad * step).sum()) for grad, step in used)
    size = sum(float(grad.square().sum()) for grad, _ in used) ** 0.5
    if not abs(quotient - slope) <= QUOTIENT_ERROR * size:
        yield (
            f"the reference's gradients give a slope of {slope:.6g}, its values one of {quotient:.6g}: part of it is "
            "cut off from autograd, or smooth_inputs leaves it at a point without a gradient"
        )


def _noise(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _costs(operator: Operator, case: Case) -> Iterator[str]:
    """Signs and types (plan.cost raises), and how they follow batch, dtype and direction."""
    twice = replace(case, shape=replace(case.shape, batch=2 * case.shape.batch))
    for name in COSTS:
        one, two = cost(operator, name, case), cost(operator, name, twice)
        if (one or two or name not in MAY_BE_ZERO) and not one < two <= 2 * ROUNDED * one:
            yield f"{name} goes from {one} to {two} with twice the batch: must grow, to at most twice as much"
    half, full = (replace(case, dtype=dtype) for dtype in (Dtype.FP16, Dtype.FP32))
    if cost(operator, "flop_count", half) != cost(operator, "flop_count", full):
        yield "flop_count depends on the dtype"
    if not cost(operator, "bytes_moved", half) < cost(operator, "bytes_moved", full):
        yield "bytes_moved of fp16 is not below that of fp32: count elements times case.dtype.element_bytes"
    for name in ("flop_count", "bytes_moved"):
        forward, both = (cost(operator, name, replace(case, direction=d)) for d in (Direction.FWD, Direction.FWD_BWD))
        if case.direction is not Direction.FWD and (forward or both) and not forward < both:
            yield f"{name} of fwd_bwd is {both}, that of fwd alone {forward}: opbench.by_direction gives each its own"


def _tolerance(operator: Operator, case: Case) -> Iterator[str]:
    tolerance = allowed_error(operator, case)
    if not 0 < tolerance < 1:
        yield f"tolerance is {tolerance:.3g}: must be above 0 and below 1, where every element could be wrong"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
