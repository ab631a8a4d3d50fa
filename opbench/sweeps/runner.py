"""Runs one cell in this process: build, check, time. Whatever goes wrong becomes a row with a reason."""

import gc
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial

import torch

from opbench.device.interference import interference
from opbench.device.snapshots import busy_counters, conditions
from opbench.host.system import available_memory_bytes, says_out_of_memory
from opbench.registry.raised import place_of, traceback_text
from opbench.registry.registry import operator_module
from opbench.registry.sources import source_hash
from opbench.results.measurement import Measurement, Status
from opbench.sweeps.check import check, make_tensors, synchronized_time
from opbench.sweeps.energy import with_energy
from opbench.sweeps.global_state import restored_state, seeded
from opbench.sweeps.kernel_count import counted_kernels
from opbench.sweeps.plan import applicability
from opbench.sweeps.progress import OnStage
from opbench.sweeps.recheck import recheck, snapshot
from opbench.sweeps.request import RunOptions
from opbench.sweeps.timed import timed_closure
from opbench.text import one_line
from opbench.timing import (
    TIMERS,
    Launch,
    SpoiledProcessError,
    StoppingRule,
    Timer,
    collect_samples,
    make_timer,
)
from opbench.timing.precision import torch_precision
from opbench.timing.trials import trials_for
from opbench.workload.case import Case, Cell, Direction
from opbench.workload.cell_warning import CellWarning, WarningKind
from opbench.workload.operator import Operator, Provider
from opbench.workload.trials import trials_of_cell

__all__ = ["CellRunner"]

WARM_UP_FRACTION = 0.2
"""Warm-up time, as a fraction of the time budget."""
TRIED_FIRST = 0.5
"""Share of the memory that is left beyond which a cell is launched once before it is checked."""


class CellRunner:
    """Runs cells one after another.

    Args:
        options: how to measure.
        find_operator: the operator of a name.
        timer: replaces the one that the options name; for tests.
        around_timer: what takes the samples with that timer.
    """

    def __init__(
        self,
        options: RunOptions,
        find_operator: Callable[[str], Operator],
        timer: Timer | None = None,
        around_timer: Callable[[Timer], Timer] = lambda timer: timer,
    ) -> None:
        self.options = options
        self.device_broken = False
        """Only a new process helps: an illegal access poisoned the context, or the capture of a graph never ended."""
        self.must_restart = False
        """This process may run no other cell: its device is broken, or the last cell changed global state."""
        self.estimate_limit_bytes: int | None = None
        """Cells that are estimated to need more are not run; for systems that hold no process to a limit."""
        self._find_operator = find_operator
        self._timer = timer
        self._around_timer = around_timer

    def run(self, cell: Cell, on_stage: OnStage = lambda stage: None) -> Measurement:
        """Measure one cell. Never raises but for KeyboardInterrupt."""
        started = time.perf_counter()
        stage = "set-up"

        def enter(name: str) -> None:
            nonlocal stage
            stage = name
            on_stage(name)

        with restored_state() as changes:
            try:
                with seeded(self._seed(cell), self.options.device):
                    measurement = self._run(cell, enter)
            except (Exception, SystemExit) as error:
                self.device_broken |= isinstance(error, SpoiledProcessError)
                # The traceback's frames hold the cell's tensors, so only texts are kept.
                status, reason = _failure(error, stage, cell.memory_bytes)
                if place := place_of(error, self._modules(cell)):
                    reason = f"{reason}, at {place}"
                measurement = Measurement(cell, status, reason, traceback=traceback_text(error))
        self._clean_up()
        self.must_restart = self.device_broken or bool(changes.names)
        if changes.names:
            left = CellWarning(WarningKind.GLOBAL_STATE, f"the cell changed {', '.join(changes.names)}")
            measurement = replace(measurement, warnings=(*measurement.warnings, left))
        return replace(measurement, seconds=time.perf_counter() - started)

    def _seed(self, cell: Cell) -> int:
        """One seed per case, whatever the order of the cells or where a run resumed."""
        return self.options.seed + zlib.crc32(cell.case.key.encode())

    def _modules(self, cell: Cell) -> tuple[str, ...]:
        """Names of the modules that define the cell's operator and provider."""
        with suppress(Exception):
            operator = self._find_operator(cell.case.operator)
            return operator_module(operator), operator.provider(cell.provider).build_module
        return ()

    def _run(self, cell: Cell, enter: OnStage) -> Measurement:
        enter("set-up")
        operator = self._find_operator(cell.case.operator)
        provider = operator.provider(cell.provider)
        refusal = applicability(operator, provider, cell.case, self.options.device_type)
        if refusal:
            return Measurement(cell, *refusal, kernel_source_hash=source_hash(operator, provider))
        if self.estimate_limit_bytes is not None and cell.memory_bytes > self.estimate_limit_bytes:
            needed, limit = (f"{size / 2**30:.3g} GiB" for size in (cell.memory_bytes, self.estimate_limit_bytes))
            return Measurement(cell, Status.OUT_OF_MEMORY, f"not run: needs {needed} by estimate, {limit} are left")
        timer = self._timer or make_timer(self.options.timer, self.options.cache, self.options.device)
        timer = self._around_timer(timer)
        trials = trials_of_cell(trials_for(self.options.device, timer.cache))
        with (
            self._current_device(),
            torch_precision(cell.case.dtype),
            _kept_buffers(cell.case),
            trials,
            provider.around(),
            counted_kernels(self.options.device_type) as kernels,
        ):
            return self._check_and_time(cell, operator, provider, timer, enter, kernels)

    def _current_device(self) -> AbstractContextManager[object]:
        """Makes the device the current one: events are recorded, and kernels of others launched, on that.

        For graphs also a stream: the default one cannot be captured, and autograd runs a backward pass, which is what
        is captured, on the stream of its forward pass, which is not.
        """
        if self.options.device_type != "cuda":
            return nullcontext()
        stack = ExitStack()
        stack.enter_context(torch.cuda.device(self.options.device))
        timer = TIMERS.get(self.options.timer)
        if timer and timer.captures:
            stack.enter_context(torch.cuda.stream(torch.cuda.Stream(self.options.device)))
        return stack

    def _check_and_time(
        self,
        cell: Cell,
        operator: Operator,
        provider: Provider,
        timer: Timer,
        enter: OnStage,
        kernels: Callable[[], int],
    ) -> Measurement:
        case, device = cell.case, self.options.device
        seed = self._seed(cell)
        if self._may_not_fit(cell):
            enter("build")
            self._try_memory(cell, operator, provider, seed)
        enter("check")
        result = check(operator, provider, case, device, seed)
        common = Measurement(
            cell,
            Status.WRONG,
            result.reason or "not timed",
            timer=timer.name,
            cache=timer.cache,
            max_rel_error=result.max_rel_error,
            tolerance=result.tolerance,
            mean_rel_error=result.mean_rel_error,
            mean_tolerance=result.mean_tolerance,
            result_dtype=result.result_dtype,
            checked_shape=result.checked_shape,
            kernel_source_hash=source_hash(operator, provider),
            first_call_ms=result.first_call_ms,
        )
        if result.reason:
            return common
        if self.options.device_type == "cuda":
            _release_memory()  # in fragments of the check's tensors the timed ones may find no room
        enter("build")
        whole = result.checked_shape == str(case.shape)
        tensors = make_tensors(operator, case, device, seed)
        with torch.set_grad_enabled(case.direction is not Direction.FWD):
            started = synchronized_time(device)
            timed = timed_closure(case, provider, tensors)
            values = timed.values()
            called_ms = 1e3 * (synchronized_time(device) - started)
            common = replace(common, cached_call_ms=called_ms, kernels_compiled=kernels())
            before = snapshot(values)
            del values  # they would count as the cell's memory
            if not whole and not all(bool(value.isfinite().all()) for value in before.values()):
                return replace(
                    common, reason=f"values are not finite at {case.shape} (right at {result.checked_shape})"
                )
            measured = self._time(common, provider, timed.launch, timer, enter)
            no_energy = ""
            if self.options.energy:
                enter("energy")
                measured, no_energy = with_energy(measured, timer, timed.launch, device)
            enter("check again")
            again = partial(recheck, operator, provider, case, timed, before, partial(self._run_once, timer))
            fits = whole and case.direction is not Direction.TRAIN  # whose reference is in evaluation
            wrong, left_out = self._reason_after(cell, partial(again, reference_fits=fits, seed=seed + 1))
        if wrong:
            return replace(common, reason=wrong)
        cropped = f"checked at {result.checked_shape}: the fp64 reference of the full shape is too large"
        notes = (common.other_dtype, "" if whole else cropped, left_out, no_energy)
        return replace(measured, status=Status.OK, reason="; ".join(filter(None, notes)))

    def _time(
        self, common: Measurement, provider: Provider, launch: Launch, timer: Timer, enter: OnStage
    ) -> Measurement:
        """`common` with the samples, and what was around them."""
        device, entry = self.options.device, TIMERS.get(self.options.timer)  # None for a timer that was handed over
        peak = self._peak_memory_bytes(launch)
        enter("timing")
        rule = entry.rule(self.options.time_budget_s) if entry else StoppingRule(self.options.time_budget_s)
        busy = busy_counters()  # before the warm-up: the samples alone are often too short to judge the load by
        timer.prepare(launch, WARM_UP_FRACTION * rule.time_budget_s)
        before = {**conditions(device), **busy}
        samples = collect_samples(timer, launch, rule)
        after = conditions(device)
        return replace(
            common,
            latencies_ms=samples.latencies_ms,
            launches_per_sample=timer.launches_per_sample,
            resolution_ms=timer.resolution_ms,
            stop_reason=samples.stop_reason,
            peak_memory_bytes=peak,
            configuration=provider.configuration(),
            warp_instructions=self._warp_instructions(provider, common.cell.case),
            conditions={"before": before, "after": after},
            warnings=(*interference(before, after), *timer.warnings),
        )

    def _run_once(self, timer: Timer, launch: Launch) -> None:
        """A launch as it is timed; a timer that was handed over may count its launches, so it is left out."""
        if self._timer:
            launch()
            return
        if TIMERS[self.options.timer].captures:
            timer.prepare(launch, 0.0)
        timer.sample(launch, 1)

    def _reason_after(self, cell: Cell, again: Callable[[], str]) -> tuple[str, str]:
        """What the check after the timing found, and why there was none: it needs more memory than the launch."""
        try:
            return again(), ""
        except Exception as error:
            if _failure(error, "check", cell.memory_bytes)[0] is not Status.OUT_OF_MEMORY:
                raise
        return "", "not checked again after the timing: out of memory"

    def _warp_instructions(self, provider: Provider, case: Case) -> int | None:
        """Of the launch that was timed, where somebody counted them for this GPU."""
        if self.options.device_type != "cuda":
            return None
        major, minor = torch.cuda.get_device_capability(self.options.device)
        return provider.warp_instructions(case, f"sm_{major}{minor}")

    def _may_not_fit(self, cell: Cell) -> bool:
        """Whether to try the memory of a CPU, where the check of a large shape takes long."""
        left = available_memory_bytes() if self.options.device_type == "cpu" else None  # this process's limit counts
        return left is not None and cell.memory_bytes > TRIED_FIRST * left

    def _try_memory(self, cell: Cell, operator: Operator, provider: Provider, seed: int) -> None:
        """Launch once at the full shape, so that a cell that does not fit ends before its check.

        Whatever else goes wrong is for the check to find.
        """
        try:
            tensors = make_tensors(operator, cell.case, self.options.device, seed)
            with torch.set_grad_enabled(cell.case.direction is not Direction.FWD):
                timed_closure(cell.case, provider, tensors).launch()
        except Exception as error:
            if _failure(error, "build", cell.memory_bytes)[0] is Status.OUT_OF_MEMORY:
                raise

    def _peak_memory_bytes(self, launch: Launch) -> int | None:
        """Most memory allocated during one launch, inputs included; None where the device does not tell."""
        if self.options.device_type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.options.device)
        launch()
        torch.cuda.synchronize(self.options.device)
        return torch.cuda.max_memory_allocated(self.options.device)

    def _clean_up(self) -> None:
        gc.collect()
        if self.options.device_type == "cuda":
            try:
                torch.cuda.synchronize(self.options.device)
                _release_memory()
            except RuntimeError:
                self.device_broken = True


def _release_memory() -> None:
    """Give back what torch keeps of the GPU's memory; a cell's peak then does not depend on what ran before it."""
    if hasattr(torch._C, "_cuda_clearCublasWorkspaces"):  # not in a torch without CUDA
        torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def _kept_buffers(case: Case) -> AbstractContextManager[object]:
    """Compiled, a backward pass would write over what its forward pass left; the timed one runs again and again."""
    if case.direction is not Direction.BWD:
        return nullcontext()
    from torch._functorch import config

    kept: AbstractContextManager[object] = config.patch(donated_buffer=False)
    return kept


def _failure(error: BaseException, stage: str, needed_bytes: int) -> tuple[Status, str]:
    """Status and reason of a cell that raised, while the error still holds its tensors."""
    try:
        message = str(error)
    except Exception:  # its own __str__ is broken
        message = ""
    no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or says_out_of_memory(message, needed_bytes)
    status = Status.OUT_OF_MEMORY if no_memory else Status.ERROR
    return status, f"{type(error).__name__} in {stage}: {one_line(message) or 'no message'}"
