"""A sweep from request to results folder: plan, run every cell, keep each as it ends, write what is derived."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TypeVar

from opbench import registry
from opbench.case import Cell, Direction, Dtype, Level
from opbench.ceiling_cache import ceilings_for
from opbench.environment import (
    collect_environment,
    device_slug,
    environment_differences,
    resolve_device,
)
from opbench.errors import ResultsError, UsageError
from opbench.executor import Executor, InProcessExecutor, WorkerExecutor, cell_limit_s
from opbench.measurement import Measurement
from opbench.operator import Operator
from opbench.plan import DEFAULT_DTYPES, DEFAULT_SHAPES, SweepRequest, plan_cells
from opbench.report import write_plots, write_tables
from opbench.results import RunFolder, free_run_path
from opbench.shapes import load_shape_lists
from opbench.timing import resolve_timer

__all__ = ["Progress", "continue_run", "finish", "make_request", "plan", "run_cells", "start_run", "sweep"]

Options = Mapping[str, Any]
Choice = TypeVar("Choice", bound=StrEnum)
MAX_SEED = 2**62
"""Leaves room below what torch takes for what each case adds."""
RESULTS = Path("results")
"""Where runs without a place of their own go, under the current folder."""


class Progress(Protocol):
    """Hears how a sweep goes on."""

    def started(self, cell: Cell, number: int, total: int) -> None:
        """A cell begins; `number` counts from 1."""

    def stage(self, name: str) -> None:
        """The cell is at set-up, check, build or timing."""

    def ended(self, measurement: Measurement) -> None:
        """The cell's line is in the journal."""


class Silence:
    """Progress that nobody hears."""

    def started(self, cell: Cell, number: int, total: int) -> None:
        """Say nothing."""

    def stage(self, name: str) -> None:
        """Say nothing."""

    def ended(self, measurement: Measurement) -> None:
        """Say nothing."""


def make_request(options: Options, operators: Mapping[str, Operator]) -> SweepRequest:
    """The request that options stand for, each default filled in for the device.

    Args:
        options: keyword arguments as `opbench.sweep` takes them; None and missing mean the default.
        operators: those that can be swept.

    Raises:
        UsageError: an option that cannot be followed; the message names it.
    """
    given = {name: value for name, value in options.items() if value is not None}
    device = resolve_device(given.get("device", "auto"))
    device_type = device.partition(":")[0]
    timer, cache = resolve_timer(given.get("timer", "auto"), given.get("cache"), device_type)
    request = SweepRequest(
        shapes=tuple(given.get("shapes", DEFAULT_SHAPES[device_type])),
        ops=tuple(dict.fromkeys(given.get("ops", operators))),
        dtypes=_choices("--dtypes", Dtype, given.get("dtypes", DEFAULT_DTYPES[device_type])),
        levels=_choices("--level", Level, given.get("level", (Level.MODULE,))),
        directions=_choices("--direction", Direction, given.get("direction", (Direction.FWD,))),
        device=device,
        timer=timer,
        cache=cache,
        providers=tuple(_assignment("--providers", text, "op=provider") for text in given.get("providers", ())),
        settings=tuple(_setting(text) for text in given.get("settings", ())),
        time_budget_s=float(given.get("time_budget", 1.0)),
        memory_limit_gib=given.get("memory_limit"),
        seed=int(given.get("seed", 0)),
    )
    if not 0 <= request.seed <= MAX_SEED:
        raise UsageError(f"--seed must be an integer from 0 to {MAX_SEED}, got {request.seed}")
    for option, value in (
        ("--time-budget", request.time_budget_s),
        ("--memory-limit", request.memory_limit_gib),
    ):
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{option} must be a positive number, got {value:g}")
    return request


def plan(request: SweepRequest, operators: Mapping[str, Operator]) -> list[Cell]:
    """Every cell of a request; raises what load_shape_lists and plan_cells raise."""
    return plan_cells(request, load_shape_lists(request.shapes), operators)


def start_run(request: SweepRequest, operators: Mapping[str, Operator], out: Path | None) -> RunFolder:
    """Make the folder of a new run, with its plan and environment.

    Raises:
        OpbenchError: the request cannot be planned, or the folder holds a run or cannot be written.
    """
    cells = plan(request, operators)
    environment = collect_environment(request.device)
    path = out or free_run_path(RESULTS, device_slug(environment["device_name"], request.device_type))
    return RunFolder.create(path, command=request.to_json(), environment=environment, plan=cells)


def continue_run(path: Path, options: Options, operators: Mapping[str, Operator]) -> RunFolder:
    """Open a run to measure the cells that it lacks.

    Args:
        path: its folder.
        options: those that were given again; they must say what the run's command says.
        operators: those that can be swept.

    Raises:
        ResultsError: no run there, other options, or another device or other versions than it was measured on.
    """
    run = RunFolder.open(path)
    command = run.run["command"]
    again = {name: value for name, value in options.items() if value is not None}
    request = make_request({**_options_of(command), **again}, operators)
    # Through JSON's types, as the stored one went.
    asked = {name: _plain(value) for name, value in request.to_json().items()}
    for name, stored in command.items():
        if asked.get(name) != stored:
            raise ResultsError(f"{path}: cannot resume with another {name}: {stored!r} there, {asked.get(name)!r} now")
    differences = environment_differences(run.run["environment"], collect_environment(request.device))
    if differences:
        raise ResultsError(f"{path}: cannot resume on another set-up: {'; '.join(differences)}")
    return run


def run_cells(run: RunFolder, operators: Mapping[str, Operator], progress: Progress, *, isolated: bool = True) -> None:
    """Measure the cells that the run's journal lacks; each is in the journal before the next begins.

    The device's ceilings come first: kept ones, or measured now.

    Args:
        run: the run.
        operators: by name; used where not isolated.
        progress: hears about every cell.
        isolated: run cells in a worker process, which a crash or a time-out costs one row.
    """
    if not (run.path / "ceilings.json").exists():
        progress.stage("measuring this device's ceilings, once")
        run.write_ceilings(ceilings_for(run.run["environment"]))
    finished = {measurement.cell.key for measurement in run.measurements()}
    cells = run.plan()
    executor = _executor(run.run["command"], operators, isolated)
    try:
        with run.append() as journal:
            for number, cell in enumerate(cells, start=1):
                if cell.key in finished:
                    continue
                progress.started(cell, number, len(cells))
                measurement = executor.run(cell, progress.stage)
                journal.write(measurement)
                progress.ended(measurement)
    finally:
        executor.close()


def finish(run: RunFolder) -> None:
    """Write what is derived from the journal: measurements.csv, tables/ and plots/."""
    run.write_measurements_csv()
    write_tables(run)
    write_plots(run)


def sweep(
    *,
    shapes: Sequence[str] | None = None,
    ops: Sequence[str] | None = None,
    providers: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    level: Sequence[str] | None = None,
    direction: Sequence[str] | None = None,
    device: str | None = None,
    timer: str | None = None,
    cache: str | None = None,
    settings: Sequence[str] | None = None,
    time_budget: float | None = None,
    memory_limit: float | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    operators: Sequence[Operator] = (),
    progress: Progress | None = None,
) -> RunFolder:
    """Check and time operators over shapes, and write a results folder; the command `opbench sweep` as a function.

    Args:
        shapes: shape lists by name or path of a YAML file; standard and high_resolution on CUDA, smoke on the CPU.
        ops: operators by name; all of them, or those of `operators` where that is given.
        providers: "operator=provider" texts; several per operator add up, "operator=all" takes every one.
        dtypes: of fp32, tf32, fp16, bf16.
        level: of module, core.
        direction: of fwd, bwd, fwd_bwd.
        device: auto, cpu, cuda or cuda:N.
        timer: auto, cuda-event, cuda-graph or wall-clock.
        cache: cold or warm.
        settings: "operator.name=value" texts.
        time_budget: sampling time per cell, seconds.
        memory_limit: GiB that a cell may take.
        seed: of inputs and parameters.
        out: folder of the run; results/<date>-<device>-<n> under the current folder by default.
        resume: continue the run in `out`.
        operators: operator objects to sweep beside the registered ones. They cannot be sent to a worker process, so
            with them cells run in this process: a crash or a hang then ends the sweep.
        progress: hears about every cell.

    Returns:
        The run; `opbench.load_results(run.path)` reads it as a pandas frame.

    Raises:
        OpbenchError: what was asked cannot be followed. What goes wrong in a cell is a row instead.
    """
    options = {
        "shapes": shapes, "ops": ops, "providers": providers, "dtypes": dtypes, "level": level,
        "direction": direction, "device": device, "timer": timer, "cache": cache, "settings": settings,
        "time_budget": time_budget, "memory_limit": memory_limit, "seed": seed,
    }  # fmt: skip
    known = registry.collect(
        [(registry.operator_module(operator), operator) for operator in (*registry.registered().values(), *operators)]
    )
    if operators and ops is None:
        options["ops"] = [operator.name for operator in operators]
    if resume:
        if out is None:
            raise UsageError("--resume needs --out: the folder of the run to continue")
        run = continue_run(Path(out), options, known)
    else:
        run = start_run(make_request(options, known), known, Path(out) if out else None)
    try:
        run_cells(run, known, progress or Silence(), isolated=not operators)
    finally:
        finish(run)
    return run


def _executor(command: Mapping[str, Any], operators: Mapping[str, Operator], isolated: bool) -> Executor:
    from opbench.runner import CellRunner, RunOptions, memory_limit

    options = RunOptions.of(command)
    if isolated:
        return WorkerExecutor(options.to_json(), cell_limit_s(options.time_budget_s))
    runner = CellRunner(options, operators.__getitem__)

    def run_cell(cell: Cell, on_stage: Any) -> Measurement:  # noqa: ANN401
        with memory_limit(options.memory_limit_gib, options.device):
            return runner.run(cell, on_stage)

    return InProcessExecutor(run_cell)


def _choices(option: str, kind: type[Choice], given: Sequence[str]) -> tuple[Choice, ...]:
    """Members of an enumeration by name, each once."""
    known = [str(member) for member in kind]
    for text in given:
        if text not in known:
            raise UsageError(f"{option} must be of {', '.join(known)}, got {text!r}")
    if not given:
        raise UsageError(f"{option} must name at least one of {', '.join(known)}")
    return tuple(dict.fromkeys(kind(text) for text in given))


def _assignment(option: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"{option} must be {form}, got {text!r}")
    return name, value


def _setting(text: str) -> tuple[str, str, str]:
    place, value = _assignment("--set", text, "op.param=value")
    operator, dot, name = place.partition(".")
    if not (operator and dot and name):
        raise UsageError(f"--set must be op.param=value, got {text!r}")
    return operator, name, value


def _options_of(command: Mapping[str, Any]) -> dict[str, Any]:
    """The options that make_request turns into this command."""
    options = {name: command[name] for name in ("shapes", "ops", "dtypes", "device", "timer", "cache", "seed")}
    return options | {
        "level": command["levels"],
        "direction": command["directions"],
        "providers": ["=".join(pair) for pair in command["providers"]],
        "settings": [f"{operator}.{name}={text}" for operator, name, text in command["settings"]],
        "time_budget": command["time_budget_s"],
        "memory_limit": command["memory_limit_gib"],
    }


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Tuples as lists and enumerations as texts, as JSON gives them back."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value
