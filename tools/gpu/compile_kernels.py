"""Compiles every variant of our Triton kernels that the steps of gpu_steps.py launch, by many processes at once.

usage: python tools/gpu/compile_kernels.py [--processes N] [--dry-run]

A sweep compiles a variant when a cell first launches it, one after another, while the GPU waits. Here the launches are
made first with a hook of Triton's, which sees each variant before it is compiled and ends the launch there; then the
processes compile them into Triton's own cache (TRITON_CACHE_DIR), where the sweeps find them.

--dry-run needs no GPU: it takes a few launches on tensors without memory, and compiles for --arch.

Exit codes: 0 every variant compiled, 1 some launch or variant failed (printed), 2 usage, 77 no CUDA device here.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

NEEDS_GPU = 77
DRY_LAUNCHES = 2


class Variant(NamedTuple):
    """A kernel with the types, constants and options that it is compiled for.

    Attributes:
        module: where the kernel is.
        kernel: its name there.
        specialization: as Triton writes it, and reads it in JITFunction.preload.
    """

    module: str
    kernel: str
    specialization: str


class CompilingDriver:
    """Stands in for Triton's driver where kernels are compiled and none is launched; opens no device."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> object:
        """What is compiled for."""
        return self._target

    def get_current_device(self) -> int:
        """Kernels are kept by device."""
        return 0

    def get_current_stream(self, _device: int) -> int:
        """Nothing is launched on it."""
        return 0


@contextmanager
def seen_variants() -> Iterator[dict[str, Variant]]:
    """Within it no kernel of Triton's is compiled or launched; yields the variants that were to be."""
    from triton import knobs

    variants: dict[str, Variant] = {}

    def see(*, fn: Any, compile: dict[str, Any], **_: object) -> bool:  # noqa: A002 - Triton's name
        specialization = compile["specialization_data"]
        variants.setdefault(specialization, Variant(fn.module, fn.name, specialization))
        return True

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, see
    try:
        yield variants
    finally:
        knobs.runtime.jit_cache_hook = before


def planned_launches(device: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """What launches our kernels for each cell of the steps, whatever its timer, with the cell's key."""
    from gpu_plan import planned_cells, reproducing_steps

    from opbench.registry.registry import find

    cells = {
        cell.key: cell
        for step in reproducing_steps()
        for _, planned in planned_cells(step)
        for cell in planned
        if cell.provider.startswith("triton")
    }
    for key, cell in cells.items():
        operator = find(cell.case.operator)
        yield key, _launching(operator, operator.provider(cell.provider), cell.case, device)


def _launching(operator: Any, provider: Any, case: Any, device: str) -> Callable[[], object]:
    import torch

    from opbench.sweeps.check import make_tensors, output_gradient
    from opbench.timing.precision import torch_precision
    from opbench.workload.case import Direction
    from opbench.workload.trials import Trials, trials_of_cell

    def launch() -> None:
        backward = case.direction is Direction.BWD
        tensors = make_tensors(operator, case, device, 0)
        trials = Trials("cold", _each_once)  # what a kernel may choose among is launched, too
        with torch_precision(case.dtype), torch.set_grad_enabled(backward), trials_of_cell(trials):
            if backward:
                tensors = {key: tensor.requires_grad_() for key, tensor in tensors.items()}
            out = provider.build(case, tensors)()
            if backward:
                torch.autograd.grad(out, list(tensors.values()), output_gradient(out))

    return launch


def _each_once(launches: Sequence[Callable[[], object]]) -> list[list[float]]:
    """In place of timings."""
    for launch in launches:
        launch()
    return [[0.0] for _ in launches]


def dry_launches() -> Iterator[tuple[str, Callable[[], object]]]:
    """A few launches on the meta device."""
    from opbench.inspection.launches import launch, uses
    from opbench.workload.case import Direction, Dtype

    for name, cases in list(uses([Dtype.FP16], [Direction.FWD]).items())[:DRY_LAUNCHES]:
        yield name, launch(cases[0]).__call__  # its method, because mypy takes no NamedTuple for a function


def compile_variants(variants: Sequence[Variant], architecture: int, processes: int) -> int:
    """Compile them into Triton's cache; how many failed, each with a line on standard error."""
    failed = 0
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_start, initargs=(architecture,)
    ) as pool:
        futures = {pool.submit(_compile, variant): variant for variant in variants}
        for future in as_completed(futures):
            if error := future.exception():
                failed += 1
                print(f"{futures[future].kernel}: {error!r:.500}", file=sys.stderr, flush=True)
    return failed


def _start(architecture: int) -> None:
    from triton.runtime import driver

    driver.set_active(CompilingDriver(architecture))


def _compile(variant: Variant) -> None:
    kernel = getattr(importlib.import_module(variant.module), variant.kernel)
    kernel.preload(variant.specialization)


def see(launches: Iterator[tuple[str, Callable[[], object]]]) -> tuple[list[Variant], int]:
    """The variants of launches, and how many of the launches failed, each with a line on standard error."""
    failed = 0
    with (
        seen_variants() as variants,
        TemporaryDirectory() as folder,
        patch.dict(
            os.environ,
            OPBENCH_KERNELS_CACHE=f"{folder}/tuning.json",  # what is chosen here was not timed
        ),
    ):
        for name, launch in launches:
            try:
                launch()
            except Exception as error:
                failed += 1
                print(f"{name}: {error!r:.500}", file=sys.stderr, flush=True)
    return list(variants.values()), failed


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--arch", type=int, default=90, help="of the dry run: compute capability times ten")
    given = parser.parse_args(arguments)
    import torch

    if given.dry_run:
        _start(given.arch)
        architecture, launches = given.arch, dry_launches()
    elif torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        architecture, launches = 10 * major + minor, planned_launches("cuda:0")
    else:
        print("needs a CUDA device, none here: nothing was compiled (--dry-run tries the code)", file=sys.stderr)
        return NEEDS_GPU
    started = time.monotonic()
    variants, failed_launches = see(launches)
    print(f"{len(variants)} variants, found in {time.monotonic() - started:.1f} s", flush=True)
    failed = compile_variants(variants, architecture, given.processes)
    print(
        f"{len(variants) - failed} compiled by {given.processes} processes, {time.monotonic() - started:.1f} s in all"
    )
    return int(bool(failed or failed_launches or not variants))


if __name__ == "__main__":
    sys.exit(main())
