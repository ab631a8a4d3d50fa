"""Checks the closure that was timed once more, after the timing and on other values.

The check before the timing says that a provider computes right. It does not say that the launches which were timed
computed at all: a closure may keep its result, hand its work to another stream or thread and return at once, or do less
from some launch on. So the closure is launched once more as it was timed, and
- before that, its last result is overwritten, where that has memory of its own;
- its inputs get other values, in place and unseen by autograd's version counters;
- its result is copied at once, on the stream that was timed, so that what is written later comes too late.

A backward pass is linear in the gradient of the output, which is all that it reads anew: that one is negated.
"""

import math
from collections.abc import Callable
from contextlib import suppress

import torch

from opbench.sweeps.check import compare, make_tensors, provided_values, reference_values
from opbench.sweeps.timed import Timed
from opbench.timing import Launch
from opbench.workload.case import Case, Direction
from opbench.workload.operator import Operator, Provider, Tensors

__all__ = ["recheck", "snapshot"]

WHEN = "after the timing, on other values"
KEPT = (
    "the closure gives what it gave before they changed: it keeps a result, "
    "or `build` copied its inputs and Provider.copied does not name them"
)


def snapshot(values: Tensors) -> Tensors:
    """What one launch gave, copied to the host's memory: on the device it would count as the cell's."""
    return {name: value.detach().to("cpu", copy=True) for name, value in values.items()}


def recheck(
    operator: Operator,
    provider: Provider,
    case: Case,
    timed: Timed,
    before: Tensors,
    run_once: Callable[[Launch], object],
    *,
    reference_fits: bool,
    seed: int,
) -> str:
    """Why the timed closure is wrong, or an empty text.

    Args:
        operator, provider, case: what was timed.
        timed: the closure. What it reads has other values afterwards.
        before: its snapshot from before the timing.
        run_once: runs a closure once, in the way that was timed.
        reference_fits: whether the fp64 reference of the case is computed. Else the expected values are those of the
            provider built anew, which was right at a smaller shape, or in evaluation.
        seed: of the other values.
    """
    _overwrite_result(timed)
    if case.direction is Direction.BWD:
        _negate_gradient(timed)
    else:
        _change_inputs(operator, provider, case, timed.tensors, seed)
    got: Tensors = {}

    def launch_and_copy() -> None:
        got.update({name: value.detach().clone() for name, value in timed.values().items()})

    run_once(launch_and_copy)  # before the provider is built anew, which may reset what the closure keeps
    tensors = {name: tensor.detach() for name, tensor in timed.tensors.items()}
    if case.direction is Direction.BWD:
        expected = _negated(timed, before)
    else:
        expected = reference_values(operator, case, tensors) if reference_fits else _anew(provider, case, tensors)
    result = compare(operator, case, tensors, got, expected)
    if not result.reason:
        return ""
    unchanged = all(torch.equal(got[name].cpu(), before[name]) for name in before)
    return f"{WHEN}: {KEPT if unchanged else result.reason}"


def _overwrite_result(timed: Timed) -> None:
    """Fill what a launch gives with NaN, so that a closure which gives it again, or writes none of it, is found."""
    read = (*timed.tensors.values(), timed.gradient, timed.output)
    kept = {tensor.untyped_storage().data_ptr() for tensor in read if tensor is not None}
    for value in timed.values().values():
        if value.is_floating_point() and value.untyped_storage().data_ptr() not in kept:
            with suppress(RuntimeError):  # an expanded tensor cannot be written
                value.detach().data.fill_(math.nan)


def _change_inputs(operator: Operator, provider: Provider, case: Case, tensors: Tensors, seed: int) -> None:
    """Other values in the same memory, but for tensors that `build` copied."""
    made = make_tensors(operator, case, str(next(iter(tensors.values())).device), seed)
    if case.direction is not Direction.FWD:
        made = operator.smooth_inputs(case, made)
    for name, tensor in tensors.items():
        if name not in provider.copied:
            tensor.data.copy_(made[name])


def _negate_gradient(timed: Timed) -> None:
    assert timed.gradient is not None  # noqa: S101
    timed.gradient.data.neg_()


def _negated(timed: Timed, before: Tensors) -> Tensors:
    """What a backward pass gives for the negated gradient."""
    assert timed.output is not None  # noqa: S101
    out = timed.output.detach()
    return {"output": out.double(), **{name: -value.to(out.device, torch.float64) for name, value in before.items()}}


def _anew(provider: Provider, case: Case, tensors: Tensors) -> Tensors:
    return {name: value.double() for name, value in provided_values(provider, case, tensors).items()}
