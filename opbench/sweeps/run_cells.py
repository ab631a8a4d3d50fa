"""Runs the cells of a run that have no row yet, and keeps each as it ends."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec

from opbench.device.ceilings import BUSY_LOAD, Ceilings, emulated_dtypes, missing_notes
from opbench.device.interference import OTHER_LOAD
from opbench.device.snapshots import others_now
from opbench.errors import DeviceLostError
from opbench.report.advice import cells_advice, way_out
from opbench.results.measurement import Measurement, Status
from opbench.results.run import CEILINGS, Run
from opbench.stats import relative_half_width
from opbench.sweeps.ceiling_step import ceilings_for, default_budget_s
from opbench.sweeps.conduct import DEFAULT_CONDUCT, Conduct, Isolation
from opbench.sweeps.isolation.executor import Executor, InProcessExecutor, WorkerExecutor, cell_limit_s
from opbench.sweeps.isolation.worker_process import Workers
from opbench.sweeps.progress import OnStage, Progress
from opbench.sweeps.start import require_processes
from opbench.workload.case import Cell
from opbench.workload.cell_warning import CellWarning, WarningKind
from opbench.workload.operator import Operator

__all__ = ["run_cells"]

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
    all again in new processes, so that what changes slowly hits all alike. A cell that is not ok is not repeated.

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
    executor = _executor(run, operators, conduct, workers)
    try:
        with run.append() as journal:
            advised = _advise_at_start(run, progress)
            if not (run.path / CEILINGS).exists():
                _write_ceilings(run, conduct, workers, progress)
            status = {(line.cell.key, line.repetition): line.status for line in run.measurements()}
            for repetition in range(1, repeat + 1):
                if repetition > 1:
                    executor.renew()
                for number, cell in enumerate(cells, start=1 + (repetition - 1) * len(cells)):
                    known = status.get((cell.key, repetition))
                    done = known is not None and known not in conduct.retry
                    earlier = [status.get((cell.key, other)) for other in range(1, repetition)]
                    if done or any(one is not Status.OK for one in earlier):
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
    finally:
        executor.close()
        workers.close()


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
    width = relative_half_width(measurement.latencies_ms) if measurement.latencies_ms else None
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


def _executor(run: Run, operators: Mapping[str, Operator], conduct: Conduct, workers: Workers) -> Executor:
    from opbench.sweeps.request import RunOptions
    from opbench.sweeps.runner import CellRunner, memory_limit, torch_threads

    options = RunOptions.of(run.command)
    if conduct.isolation is Isolation.PROCESS:
        providers = {cell.provider for cell in run.plan()}
        workers.preload = tuple(name for name in PRELOADED if name in providers and find_spec(name))
        limit_s = conduct.cell_timeout_s or cell_limit_s(options.time_budget_s)
        sources = run.command.get("sources", ())
        return WorkerExecutor({**options.to_json(), "sources": list(sources)}, limit_s, workers)
    runner = CellRunner(options, operators.__getitem__)

    def run_cell(cell: Cell, on_stage: OnStage) -> Measurement:
        if runner.device_broken:  # the cell before this one has its row; the others must not look measured
            raise DeviceLostError(
                f"{options.device} no longer answers this process since the last cell; what is left was not measured: "
                f"start again to go on (sweep: --resume --out {run.path}), or take --isolation process"
            )
        with torch_threads(options.threads), memory_limit(options.memory_limit_gib, options.device):
            return runner.run(cell, on_stage)

    return InProcessExecutor(run_cell)
