"""What the providers of our Triton kernels share: where they run, how they are tuned, and what a row says of that."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from opbench.workload.operator import Forward, Provider, Tensors, not_counted
from opbench.workload.trials import current_trials

if TYPE_CHECKING:
    from opbench_kernels.implementation import Implementation

    from opbench.workload.case import Case

__all__ = ["NEEDS", "configuration", "triton_provider", "tune", "unavailable"]

NEEDS = "a CUDA device, and Triton"


def triton_provider(
    build: Callable[[Implementation, Case, Tensors], Forward],
    warp_instructions: Callable[[Case, str], int | None] = not_counted,
) -> Provider:
    """The provider that runs our Triton kernels.

    Args:
        build: is told which implementation of opbench_kernels to call.
        warp_instructions: as in Provider.
    """
    return Provider(
        "triton",
        partial(build, "triton"),
        "opbench_kernels in Triton",
        unavailable=unavailable,
        needs=NEEDS,
        configuration=configuration,
        warp_instructions=warp_instructions,
    )


def tune() -> None:
    """Let the kernels time their configurations: a benchmark wants the best one, and building is not timed.

    They are timed as the cell is, warm or cold. What an earlier cell had chosen is forgotten, so that no row shows it.
    """
    from opbench_kernels import tuning

    tuning.forget_choices()
    if trials := current_trials():
        tuning.enable(timing=tuning.Timing(trials.measure, trials.cache))
    else:
        tuning.enable()


def configuration() -> str:
    """What the kernels' last launches had chosen: `name=value;name=value`, a backward kernel's as `backward_name`."""
    from opbench_kernels import tuning

    return ";".join(
        f"{'backward_' if kernel.endswith(' backward') else ''}{name}={value}"
        for kernel, chosen in tuning.last_choices().items()
        for name, value in chosen._asdict().items()
    )


def unavailable(device_type: str) -> str | None:
    """Why the Triton kernels cannot run, or None."""
    return None if device_type == "cuda" else f"the Triton kernels need a CUDA device, this is {device_type}"
