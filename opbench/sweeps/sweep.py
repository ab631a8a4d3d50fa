"""A sweep from request to results folder: plan, run every cell, keep each as it ends, write what is derived."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from opbench.cell_warning import CellWarning, WarningKind
from opbench.device.ceilings import BUSY_LOAD, Ceilings, emulated_dtypes, missing_notes
from opbench.device.environment import collect_environment, device_slug, environment_differences
from opbench.device.interference import OTHER_LOAD
from opbench.device.snapshots import others_now
from opbench.errors import DeviceLostError, ResultsError, UsageError
from opbench.registry import registry
from opbench.registry.places import resolve_ops
from opbench.report import write_plots, write_tables
from opbench.report.advice import cells_advice, way_out
from opbench.results.measurement import Measurement, Status
from opbench.results.run import CEILINGS, RunFolder, free_run_path
from opbench.stats import relative_half_width
from opbench.sweeps.ceiling_step import ceilings_for, default_budget_s
from opbench.sweeps.isolation.executor import Executor, InProcessExecutor, WorkerExecutor, cell_limit_s
from opbench.sweeps.isolation.worker_process import Workers
from opbench.sweeps.native_dtypes import default_dtypes
from opbench.sweeps.options import (
    DEFAULT_CONDUCT,
    Conduct,
    Isolation,
    Options,
    make_conduct,
    make_request,
    request_differences,
    request_of_command,
)
from opbench.sweeps.plan import SweepRequest, plan_cells, plan_differences
from opbench.text import one_line
from opbench.workload.case import Cell
from opbench.workload.operator import Operator
from opbench.workload.shapes import load_shape_lists

__all__ = [
    "Conduct",
    "Isolation",
    "Progress",
    "continue_run",
    "dtypes_note",
    "finish",
    "make_conduct",
    "make_request",
    "plan",
    "run_cells",
    "start_run",
    "sweep",
]

PRELOADED = ("timm",)
"""Providers that take seconds to import and touch no device when they are: imported once for all workers."""
RESULTS = Path("results")
"""Where runs without a place of their own go, under the current folder."""


class Progress(Protocol):
    """Hears how a sweep goes on."""

    def started(self, cell: Cell, number: int, total: int) -> None:
        """A cell begins; `number` counts from 1."""

    def stage(self, name: str) -> None:
        """The cell is at set-up, check, build or timing; outside a cell, what the sweep is doing."""

    def note(self, text: str) -> None:
        """Something to know about the sweep."""

    def ended(self, measurement: Measurement) -> None:
        """The cell's line is in the journal."""


class Silence:
    """Progress that nobody hears."""

    def started(self, cell: Cell, number: int, total: int) -> None:
        """Say nothing."""

    def stage(self, name: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def ended(self, measurement: Measurement) -> None:
        """Say nothing."""


def plan(request: SweepRequest, operators: Mapping[str, Operator]) -> list[Cell]:
    """Every cell of a request; raises what load_shape_lists and plan_cells raise."""
    return plan_cells(request, load_shape_lists(request.shapes), operators)


def start_run(
    request: SweepRequest, operators: Mapping[str, Operator], out: Path | None, conduct: Conduct = DEFAULT_CONDUCT
) -> RunFolder:
    """Make the folder of a new run, with its plan and environment.

    Raises:
        OpbenchError: the request cannot be planned, or the folder holds a run or cannot be written.
    """
    _require_processes(request.repeat, conduct)
    cells = plan(request, operators)
    environment = _environment(request, operators)
    path = out or free_run_path(RESULTS, device_slug(environment["device_name"], request.device_type))
    command = {**request.to_json(), **conduct.to_json()}
    return RunFolder.create(path, command=command, environment=environment, plan=cells)


def continue_run(
    path: Path, options: Options, operators: Mapping[str, Operator], *, accept_differences: bool = False
) -> RunFolder:
    """Open a run to measure the cells that it lacks.

    Args:
        path: its folder.
        options: those that were given again; they must say what the run's command says.
        operators: those that can be swept.
        accept_differences: go on although the plan or the environment is not what it was. The run keeps its plan;
            run.json and every row measured from now on say what differs.

    Raises:
        ResultsError: no run there, other options, or a plan or an environment that differs and was not accepted.
        UsageError: it measured operators of a file, which the options do not name.
    """
    run = RunFolder.open(path)
    command = run.run["command"]
    if missing := [place for place in command.get("sources", ()) if place not in (options.get("sources") or ())]:
        # What a results folder names is not run before the user has named it.
        raise UsageError(
            f"{path}: its operators are not registered; name them again: --ops {one_line(str(missing[0]))}"
        )
    try:
        request = request_of_command(command, options, operators)
        others = request_differences(request, command)
        planned = plan(request, operators)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultsError(f"{path / 'run.json'}: damaged command: {one_line(repr(error))}") from None
    if others:
        raise ResultsError(f"{path}: cannot resume with another {one_line('; '.join(others))}")
    differences = [
        *environment_differences(run.run["environment"], _environment(request, operators), code=True),
        *plan_differences(run.plan(), planned),
    ]
    if differences and not accept_differences:
        raise ResultsError(
            f"{path}: cannot resume on another set-up: {one_line('; '.join(differences), 1000)} "
            "(--accept-differences goes on all the same)"
        )
    run.differences = tuple(map(one_line, differences))
    return run


def _environment(request: SweepRequest, operators: Mapping[str, Operator]) -> dict[str, Any]:
    """Where a request is carried out, and the revisions of the operators' own repositories."""
    environment = collect_environment(request.device, request.threads)
    chosen = [operators[name] for name in request.ops]
    return environment | {"operator_revisions": registry.revisions(chosen, environment.get("git_revision"))}


def _require_processes(repeat: int, conduct: Conduct) -> None:
    if repeat > 1 and conduct.isolation is not Isolation.PROCESS:
        raise UsageError("--repeat needs --isolation process: each repetition is a fresh process")


def dtypes_note(options: Options, run: RunFolder) -> str:
    """Why a run of these options has the dtypes that it has, where none were named and one might be expected."""
    device_type = str(run.run["environment"]["device"]).partition(":")[0]
    return default_dtypes(device_type).note if options.get("dtypes") is None else ""


def run_cells(
    run: RunFolder,
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
    cells, repeat = run.plan(), int(run.run["command"].get("repeat", 1))
    _require_processes(repeat, conduct)
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


def _advise_at_start(run: RunFolder, progress: Progress) -> bool:
    """Say what helps where other programs use the CPU before the first cell; whether it was said."""
    environment = run.run["environment"]
    helps = way_out(environment)
    load = ((environment.get("cpu") or {}).get("load_average") or [0.0])[0]
    if not helps or load < BUSY_LOAD:  # idle for a minute: not worth a look
        return False
    share = others_now()
    if share is None or share <= OTHER_LOAD:
        return False
    progress.note(f"other programs use {share:.0%} of all cores: {helps}")
    return True


def _advise(run: RunFolder, measurement: Measurement, progress: Progress) -> bool:
    """Say what helps where this cell's samples scatter or others used the CPU; whether it was said."""
    width = relative_half_width(measurement.latencies_ms) if measurement.latencies_ms else None
    if text := cells_advice([(width, measurement.warnings)], run.run["environment"]):
        progress.note(text)
    return bool(text)


def _write_ceilings(run: RunFolder, conduct: Conduct, workers: Workers, progress: Progress) -> None:
    """Take along what is kept about the device, measured now where it is not, and say what is notable."""
    environment = run.run["environment"]
    budget_s = conduct.ceilings_budget_s
    found = ceilings_for(
        environment,
        workers,
        default_budget_s(environment["device"]) if budget_s is None else budget_s,
        on_note=progress.note,
        on_stage=progress.stage,
    )
    run.write_ceilings(found)
    if isinstance(found, Ceilings):
        planned = {str(cell.case.dtype) for cell in run.plan()}
        for note in [*emulated_dtypes(found, planned), *missing_notes(found)]:
            progress.note(note)
    else:
        progress.note(f"no ceilings, so rows have no limits: {found}")


def finish(run: RunFolder, *, plots: bool = True) -> None:
    """Write what is derived from the journal: measurements.csv, tables/ and, unless told not to, plots/."""
    run.write_measurements_csv()
    write_tables(run)
    if plots:
        write_plots(run)


def sweep(
    *,
    shapes: str | Sequence[str] | None = None,
    ops: str | Sequence[str] | None = None,
    providers: str | Sequence[str] | None = None,
    dtypes: str | Sequence[str] | None = None,
    level: str | Sequence[str] | None = None,
    direction: str | Sequence[str] | None = None,
    device: str | None = None,
    timer: str | None = None,
    cache: str | None = None,
    settings: str | Sequence[str] | None = None,
    time_budget: float | None = None,
    memory_limit: float | None = None,
    seed: int | None = None,
    threads: int | None = None,
    repeat: int | None = None,
    isolation: str | None = None,
    cell_timeout: float | None = None,
    ceilings_budget: float | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    retry: str | Sequence[str] | None = None,
    accept_differences: bool = False,
    plots: bool = True,
    operators: Sequence[Operator] = (),
    progress: Progress | None = None,
) -> RunFolder:
    """Check and time operators over shapes, and write a results folder; the command `opbench sweep` as a function.

    A list may also be one text: `ops="dcnv3,dcnv4"` as on the command line, `shapes="standard"` for one shape list.

    Args:
        shapes: shape lists by name or path of a YAML file; standard and high_resolution on CUDA, standard_batch1 on the
            CPU.
        ops: operators by name, or as FILE.py or MODULE:OPERATOR; all registered ones, or those of `operators` where
            that is given.
        providers: "operator=provider" texts; several per operator add up, "operator=all" takes every one.
        dtypes: of fp32, tf32, fp16, bf16; by default fp32, and fp16 on CUDA, or on the CPU what is native there.
        level: of module, core.
        direction: of fwd, bwd, fwd_bwd.
        device: auto, cpu, cuda or cuda:N.
        timer: auto, cuda-event, cuda-graph or wall-clock.
        cache: cold or warm.
        settings: "operator.name=value" texts.
        time_budget: sampling time per cell, seconds; 1 on CUDA, 0.5 on the CPU.
        memory_limit: GiB that a cell may take.
        seed: of inputs and parameters.
        threads: of torch on the CPU; as many as torch chooses by default.
        repeat: fresh processes for each cell, in turns; `opbench compare` then judges between processes.
        isolation: process (a worker for each operator and shape) or none; none is the default with `operators`.
        cell_timeout: seconds after which a cell is a timeout.
        ceilings_budget: seconds for the device's ceilings where none are kept, 0 for none; 15 on the CPU, 30 on CUDA.
        out: folder of the run; results/<date>-<device>-<n> under the current folder by default.
        resume: continue the run in `out`.
        retry: with resume, statuses of cells to measure again.
        accept_differences: with resume, go on although plan or environment differ.
        plots: draw the files of plots/; `opbench report --write` draws them later, too.
        operators: operator objects to sweep beside the registered ones. They cannot be sent to a worker process, so
            with them cells run in this process: a crash or a hang then ends the sweep.
        progress: hears about every cell.

    Returns:
        The run; `opbench.load_results(run.path)` reads it as a pandas frame.

    Raises:
        OpbenchError: what was asked cannot be followed. What goes wrong in a cell is a row instead.
    """
    options = {
        "shapes": [shapes] if isinstance(shapes, str) else shapes, "ops": _listed(ops),
        "providers": _listed(providers), "dtypes": _listed(dtypes), "level": _listed(level),
        "direction": _listed(direction), "device": device, "timer": timer, "cache": cache,
        "settings": [settings] if isinstance(settings, str) else settings,
        "time_budget": time_budget, "memory_limit": memory_limit, "seed": seed,
        "threads": threads, "repeat": repeat,
    }  # fmt: skip
    options, registered = resolve_ops(options)
    known = registry.collect(
        [(registry.operator_module(operator), operator) for operator in (*registered.values(), *operators)]
    )
    for line in registry.left_out():
        warnings.warn(f"{line}; its operator is left out", stacklevel=2)
    if operators and ops is None:
        options["ops"] = [operator.name for operator in operators]
    if operators and isolation == Isolation.PROCESS:
        raise UsageError("operators that are objects cannot be sent to a worker process; register them instead")
    ways = {
        "isolation": Isolation.NONE if operators else isolation, "cell_timeout": cell_timeout,
        "retry": _listed(retry), "ceilings_budget": ceilings_budget,
    }  # fmt: skip
    conduct = make_conduct(ways, resume=resume)
    if resume:
        if out is None:
            raise UsageError("--resume needs --out: the folder of the run to continue")
        run = continue_run(Path(out), options, known, accept_differences=accept_differences)
    else:
        run = start_run(make_request(options, known), known, Path(out) if out else None, conduct)
    progress = progress or Silence()
    if not resume and (note := dtypes_note(options, run)):
        progress.note(note)
    try:
        run_cells(run, known, progress, conduct)
    finally:
        finish(run, plots=plots)
    return run


def _listed(given: str | Sequence[str] | None) -> Sequence[str] | None:
    """A list as it is, and of a text the items between its commas, as on the command line."""
    return [item.strip() for item in given.split(",")] if isinstance(given, str) else given


def _executor(run: RunFolder, operators: Mapping[str, Operator], conduct: Conduct, workers: Workers) -> Executor:
    from opbench.sweeps.runner import CellRunner, RunOptions, memory_limit, torch_threads

    options = RunOptions.of(run.run["command"])
    if conduct.isolation is Isolation.PROCESS:
        providers = {cell.provider for cell in run.plan()}
        workers.preload = tuple(name for name in PRELOADED if name in providers and find_spec(name))
        limit_s = conduct.cell_timeout_s or cell_limit_s(options.time_budget_s)
        sources = run.run["command"].get("sources", ())
        return WorkerExecutor({**options.to_json(), "sources": list(sources)}, limit_s, workers)
    runner = CellRunner(options, operators.__getitem__)

    def run_cell(cell: Cell, on_stage: Any) -> Measurement:  # noqa: ANN401
        if runner.device_broken:  # the cell before this one has its row; the others must not look measured
            raise DeviceLostError(
                f"{options.device} no longer answers this process since the last cell; what is left was not measured: "
                f"start again to go on (sweep: --resume --out {run.path}), or take --isolation process"
            )
        with torch_threads(options.threads), memory_limit(options.memory_limit_gib, options.device):
            return runner.run(cell, on_stage)

    return InProcessExecutor(run_cell)
