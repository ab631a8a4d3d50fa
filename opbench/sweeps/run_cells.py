"""Runs the cells of a run that have no row yet, and keeps each as it ends."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from opbench.device.ceilings import BUSY_LOAD, Ceilings, emulated_dtypes, missing_notes
from opbench.device.interference import OTHER_LOAD
from opbench.device.snapshots import others_now
from opbench.errors import DeviceLostError
from opbench.report.advice import cells_advice, way_out
from opbench.results.journal import JournalWriter
from opbench.results.measurement import Measurement, Status
from opbench.results.run import CEILINGS, Run
from opbench.results.started import forget_left_cell, left_cell, noted
from opbench.stats import relative_half_width
from opbench.sweeps.ceiling_step import ceilings_for, default_budget_s
from opbench.sweeps.conduct import DEFAULT_CONDUCT, Conduct, Isolation
from opbench.sweeps.heap import short_collections
from opbench.sweeps.isolation.executor import Executor, InProcessExecutor, WorkerExecutor, cell_limit_s
from opbench.sweeps.isolation.worker_process import Workers
from opbench.sweeps.progress import OnStage, Progress
from opbench.sweeps.start import require_processes
from opbench.workload.case import Cell
from opbench.workload.cell_warning import CellWarning, WarningKind
from opbench.workload.operator import Operator

__all__ = ["is_due", "run_cells", "worker_executor"]

PRELOADED = ("timm",)
"""Providers that take seconds to import and touch no device when they are: imported once for all workers."""


def run_cells(
    run: Run,
    operators: Mapping[str, Operator],
    progress: Progress,
    conduct: Conduct = DEFAULT_CONDUCT,
    workers: Workers | None = None,
) -> None:
    """Measure the cells that the run's journal lacks; each is in the journal before the next begins.

    The device's ceilings come first: kept ones, or measured now. Where cells are repeated, all are measured once, then
    all again in new processes, so that what changes slowly hits all alike. A cell that is not ok is not repeated. One
    that ended the process of a sweep without isolation is an error from then on.

    Args:
        run: the run.
        operators: by name; used where cells are not isolated.
        progress: hears about every cell.
        conduct: how cells are carried out, and which finished ones are measured again.
        workers: where isolated cells run; they are closed in the end.

    Raises:
        ResultsError: another sweep writes there, or the journal is damaged.
        StorageError: a row cannot be written; those before stay readable.
        DeviceLostError: cells are not isolated, and one broke the device; those after it stay unmeasured.
    """
    cells, repeat = run.plan(), int(run.command.get("repeat", 1))
    require_processes(repeat, conduct)
    workers = workers or Workers()
    with closing(workers), _executor(run, operators, conduct, workers) as executor, run.append() as journal:
        _write_off_left_cell(run, journal, progress)
        advised = _advise_at_start(run, progress)
        if not (run.path / CEILINGS).exists():
            _write_ceilings(run, conduct, workers, progress)
        status = {(line.cell.key, line.repetition): line.status for line in run.measurements()}
        for repetition in range(1, repeat + 1):
            if repetition > 1:
                executor.renew()
            for number, cell in enumerate(cells, start=1 + (repetition - 1) * len(cells)):
                if not is_due(status, cell.key, repetition, conduct.retry):
                    continue
                progress.started(cell, number, repeat * len(cells))
                measurement = replace(executor.run(cell, progress.stage), repetition=repetition)
                if run.differences:
                    notes = (CellWarning(WarningKind.RESUMED_ELSEWHERE, text) for text in run.differences)
                    measurement = replace(measurement, warnings=(*measurement.warnings, *notes))
                journal.write(measurement)
                status[cell.key, repetition] = measurement.status
                progress.ended(measurement)
                advised = advised or _advise(run, measurement, progress)


def is_due(status: Mapping[tuple[str, int], str], key: str, repetition: int, retry: Collection[str]) -> bool:
    """Whether a cell is to be measured: not done, or to be retried, and ok in every earlier process.

    Args:
        status: of each line of the journal, by the cell's key and the repetition.
        key: of the cell.
        repetition: which process is due, from 1.
        retry: statuses to measure again.
    """
    known = status.get((key, repetition))
    earlier = (status.get((key, other)) for other in range(1, repetition))
    return (known is None or known in retry) and all(one is Status.OK for one in earlier)


def _write_off_left_cell(run: Run, journal: JournalWriter, progress: Progress) -> None:
    """Give the cell that ended the process before this one the row that it lacks."""
    left = left_cell(run.path)
    cell = next((cell for cell in run.plan() if left and cell.key == left.key), None)
    if left and cell and cell.key not in run.finished():
        reason = f"the process that measured it ended in {left.stage}, without a row"
        journal.write(Measurement(cell, Status.ERROR, reason))
        progress.note(f"{cell.key}: {reason}")
    forget_left_cell(run.path)


def _advise_at_start(run: Run, progress: Progress) -> bool:
    """Say what helps where other programs use the CPU before the first cell; whether it was said."""
    environment = run.environment
    helps = way_out(environment)
    load = ((environment.get("cpu") or {}).get("load_average") or [0.0])[0]
    if not helps or load < BUSY_LOAD:  # idle for a minute: not worth a look
        return False
    share = others_now()
    if share is None or share <= OTHER_LOAD:
        return False
    progress.note(f"other programs use {share:.0%} of all cores: {helps}")
    return True


def _advise(run: Run, measurement: Measurement, progress: Progress) -> bool:
    """Say what helps where this cell's samples scatter or others used the CPU; whether it was said."""
    samples, step = measurement.latencies_ms, measurement.resolution_ms
    width = relative_half_width(samples, step) if samples else None
    if text := cells_advice([(width, measurement.warnings)], run.environment):
        progress.note(text)
    return bool(text)


def _write_ceilings(run: Run, conduct: Conduct, workers: Workers, progress: Progress) -> None:
    """Take along what is kept about the device, measured now where it is not, and say what is notable."""
    environment = run.environment
    budget_s = conduct.ceilings_budget_s
    found = ceilings_for(
        environment,
        workers,
        default_budget_s(environment["device"]) if budget_s is None else budget_s,
        progress=progress,
    )
    run.write_ceilings(found)
    if isinstance(found, Ceilings):
        planned = {str(cell.case.dtype) for cell in run.plan()}
        for note in [*emulated_dtypes(found, planned), *missing_notes(found)]:
            progress.note(note)
    else:
        progress.note(f"no ceilings, so rows have no limits: {found}")


@contextmanager
def _executor(run: Run, operators: Mapping[str, Operator], conduct: Conduct, workers: Workers) -> Iterator[Executor]:
    """Where the cells run, until the end of the sweep."""
    if conduct.isolation is Isolation.PROCESS:
        providers = {cell.provider for cell in run.plan()}
        with closing(worker_executor(run.command, providers, operators, workers, conduct.cell_timeout_s)) as isolated:
            yield isolated
        return
    with _in_process(run, operators) as here:
        yield here


def worker_executor(
    command: Mapping[str, Any],
    providers: Collection[str],
    operators: Mapping[str, Operator],
    workers: Workers,
    cell_timeout_s: float | None = None,
) -> WorkerExecutor:
    """Runs a run's cells in worker processes.

    Args:
        command: of the run.
        providers: of its cells.
        operators: by name.
        workers: where they come from.
        cell_timeout_s: as Conduct has it.
    """
    from opbench.sweeps.request import RunOptions

    options = RunOptions.of(command)
    workers.preload = tuple(name for name in PRELOADED if name in providers and find_spec(name))
    limit_s = cell_timeout_s or cell_limit_s(options.time_budget_s, energy=options.energy)
    told = {**options.to_json(), "sources": list(command.get("sources", ()))}
    return WorkerExecutor(told, limit_s, workers, _alone(operators))


def _alone(operators: Mapping[str, Operator]) -> set[tuple[str, str]]:
    """Operator and provider of those that share no process with others."""
    return {
        (name, provider.name)
        for name, operator in operators.items()
        for provider in operator.providers
        if provider.own_process
    }


@contextmanager
def _in_process(run: Run, operators: Mapping[str, Operator]) -> Iterator[InProcessExecutor]:
    """Runs cells here; a cell that ends this process leaves its name in the run's folder."""
    from opbench.sweeps.process_limits import memory_limit, torch_threads
    from opbench.sweeps.request import RunOptions
    from opbench.sweeps.runner import CellRunner

    options = RunOptions.of(run.command)
    runner = CellRunner(options, operators.__getitem__)
    alone = _alone(operators)
    with short_collections() as set_aside_imports:

        def run_cell(cell: Cell, on_stage: OnStage) -> Measurement:
            if runner.device_broken:  # the cell before this one has its row; the others must not look measured
                raise DeviceLostError(
                    f"{options.device} no longer answers this process since the last cell; what is left was not "
                    f"measured: start again to go on (sweep: --resume --out {run.path}), or take --isolation process"
                )
            place = (cell.case.operator, cell.provider)
            if place in alone and not operators[place[0]].provider(place[1]).unavailable(options.device_type):
                needed = "its cells need a process of their own: --isolation process"
                return Measurement(cell, Status.UNAVAILABLE, needed)
            with (
                noted(run.path, cell) as note,
                torch_threads(options.threads),
                memory_limit(options.memory_limit_gib, options.device),
            ):

                def enter(stage: str) -> None:
                    note(stage)
                    on_stage(stage)

                measurement = runner.run(cell, enter)
            set_aside_imports()
            return measurement

        yield InProcessExecutor(run_cell)
