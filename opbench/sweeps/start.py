"""The folder of a run: made for a new one, or opened to go on with one that was stopped."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from opbench.device.environment import collect_environment
from opbench.device.identity import PARTS, Identity, device_slug, plain_key
from opbench.errors import ResultsError, UnknownNameError, UsageError
from opbench.registry import registry
from opbench.results.run import Run
from opbench.results.run_json import free_run_path
from opbench.results.shards import own_places
from opbench.sweeps.conduct import DEFAULT_CONDUCT, Conduct, Isolation
from opbench.sweeps.native_dtypes import default_dtypes
from opbench.sweeps.option_fields import Options
from opbench.sweeps.plan import plan_cells, plan_differences
from opbench.sweeps.request import SweepRequest, make_request, request_differences, request_of_command
from opbench.text import one_line
from opbench.workload.case import Cell
from opbench.workload.operator import Operator
from opbench.workload.shapes import load_shape_lists

__all__ = [
    "RESULTS",
    "Prepared",
    "accepted_differences",
    "continue_run",
    "create_run",
    "dtypes_note",
    "new_folder",
    "open_to_continue",
    "plan",
    "prepare",
    "refused_differences",
    "require_processes",
    "start_run",
]

RESULTS = Path("results")
"""Where runs without a place of their own go, under the current folder."""


def plan(request: SweepRequest, operators: Mapping[str, Operator]) -> list[Cell]:
    """The cells that a request measures, of a shard only its own; raises what load_shape_lists and plan_cells raise."""
    cells = _whole_plan(request, operators)
    return [cells[place] for place in own_places(cells, request.shard)]


def _whole_plan(request: SweepRequest, operators: Mapping[str, Operator]) -> list[Cell]:
    return plan_cells(request, load_shape_lists(request.shapes), operators)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the options of a sweep stand for where it is to run.

    Attributes:
        command: the request, as run.json keeps it.
        plan: every cell, of a shard with those of the other shards.
        environment: of the device.
        others: of a run to go on with, one line for each part of the request that it has otherwise.
        note: what to say of the dtypes of a new run.
    """

    command: Mapping[str, Any]
    plan: Sequence[Cell]
    environment: Mapping[str, Any]
    others: Sequence[str] = ()
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """A dictionary that from_json reads back."""
        return {
            "command": dict(self.command),
            "plan": [cell.to_json() for cell in self.plan],
            "environment": dict(self.environment),
            "others": list(self.others),
            "note": self.note,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What to_json wrote."""
        plan = tuple(map(Cell.from_json, data["plan"]))
        return cls(data["command"], plan, data["environment"], tuple(data["others"]), data["note"])


def prepare(options: Options, operators: Mapping[str, Operator], command: Mapping[str, Any] | None = None) -> Prepared:
    """What options stand for on this machine.

    Args:
        options: keyword arguments as `opbench.sweep` takes them.
        operators: those that can be swept.
        command: of the run to go on with; the options are those that were given again.

    Raises:
        OpbenchError: they cannot be followed, or planned.
        KeyError, TypeError, ValueError, AttributeError: the command is damaged.
    """
    request = make_request(options, operators) if command is None else request_of_command(command, options, operators)
    prepared = _prepared(request, operators)
    if command is None:
        return replace(prepared, note=dtypes_note(options, prepared.environment))
    return replace(prepared, others=request_differences(request, command))


def _prepared(request: SweepRequest, operators: Mapping[str, Operator]) -> Prepared:
    return Prepared(request.to_json(), _whole_plan(request, operators), _environment(request, operators))


def start_run(
    request: SweepRequest, operators: Mapping[str, Operator], out: Path | None, conduct: Conduct = DEFAULT_CONDUCT
) -> Run:
    """Make the folder of a new run, with its plan and environment.

    Raises:
        OpbenchError: the request cannot be planned, or the folder holds a run or cannot be written.
    """
    require_processes(request.repeat, conduct)
    return create_run(_prepared(request, operators), out, conduct)


def create_run(prepared: Prepared, out: Path | None, conduct: Conduct) -> Run:
    """Make the folder of a new run of what was prepared.

    Raises:
        OpbenchError: the folder holds a run or cannot be written.
    """
    path = out or new_folder(prepared.environment)
    command = {**prepared.command, **conduct.to_json()}
    return Run.create(path, command=command, environment=prepared.environment, plan=[*prepared.plan])


def new_folder(environment: Mapping[str, Any]) -> Path:
    """Make a folder in RESULTS that is named by the date and the device.

    Raises:
        StorageError: it cannot be made.
    """
    device_type = str(environment["device"]).partition(":")[0]
    return free_run_path(RESULTS, device_slug(environment["device_name"], device_type))


def continue_run(
    path: Path,
    options: Options,
    operators: Mapping[str, Operator],
    *,
    accept_differences: bool | Collection[str] = False,
) -> Run:
    """Open a run to measure the cells that it lacks.

    Args:
        path: its folder.
        options: those that were given again; they must say what the run's command says.
        operators: those that can be swept.
        accept_differences: go on although the plan or the environment is not what it was, or only where these parts of
            the environment differ, such as `driver` or `gpu uuid`. The run keeps its plan; run.json and every row
            measured from now on say what differs.

    Raises:
        ResultsError: no run there, other options, or a plan or an environment that differs and was not accepted.
        UsageError: it measured operators of a file, which the options do not name, or what is accepted is no part.
    """
    run = open_to_continue(path, options)
    try:
        prepared = prepare(options, operators, run.command)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultsError(f"{path / 'run.json'}: damaged command: {one_line(repr(error))}") from None
    there = Identity.of(run.environment, code=True)
    run.differences = accepted_differences(run, prepared, there, accept_differences)
    return run


def open_to_continue(path: Path, options: Options) -> Run:
    """Open a run whose operators the options name.

    Raises:
        ResultsError: no run there.
        UsageError: it measured operators of a file, which the options do not name.
    """
    run = Run.open(path)
    if missing := [place for place in run.command.get("sources", ()) if place not in (options.get("sources") or ())]:
        # What a results folder names is not run before the user has named it.
        raise UsageError(
            f"{path}: its operators are not registered; name them again: --ops {one_line(str(missing[0]))}"
        )
    return run


def accepted_differences(
    run: Run, prepared: Prepared, there: Identity, accepted: bool | Collection[str]
) -> tuple[str, ...]:
    """How a run that goes on differs from what it was, in lines.

    Args:
        run: which.
        prepared: what its command stands for here.
        there: where it was measured before.
        accepted: as continue_run takes it.

    Raises:
        ResultsError: other options, or a plan or an environment that differs and was not accepted.
        UsageError: what is accepted is no part.
    """
    if prepared.others:
        raise ResultsError(f"{run.path}: cannot resume with another {one_line('; '.join(prepared.others))}")
    here = Identity.of(prepared.environment, code=True)
    of_plan = plan_differences(run.whole_plan, prepared.plan)
    if refused := refused_differences(there, here, accepted, of_plan):
        raise ResultsError(
            f"{run.path}: cannot resume on another set-up: {one_line('; '.join(refused), 1000)} "
            "(--accept-differences goes on all the same)"
        )
    return tuple(map(one_line, [*there.differences(here).values(), *of_plan]))


def refused_differences(
    there: Identity, here: Identity, accepted: bool | Collection[str], of_plan: list[str]
) -> list[str]:
    """The lines of what differs and is not accepted."""
    if isinstance(accepted, bool):
        return [] if accepted else [*there.differences(here).values(), *of_plan]
    for name in accepted:
        if plain_key(name) not in map(plain_key, PARTS):
            raise UnknownNameError("part of the environment", name, PARTS)
    return [*there.differences(here, allowed=accepted).values(), *of_plan]


def _environment(request: SweepRequest, operators: Mapping[str, Operator]) -> dict[str, Any]:
    """Where a request is carried out, and the revisions of the operators' own repositories."""
    environment = collect_environment(request.device, request.threads)
    chosen = [operators[name] for name in request.ops]
    return environment | {"operator_revisions": registry.revisions(chosen, environment.get("git_revision"))}


def require_processes(repeat: int, conduct: Conduct) -> None:
    """Refuse repetitions that would share a process.

    Raises:
        UsageError: they would.
    """
    if repeat > 1 and conduct.isolation is not Isolation.PROCESS:
        raise UsageError("--repeat needs --isolation process: each repetition is a fresh process")


def dtypes_note(options: Options, environment: Mapping[str, Any]) -> str:
    """Why a run of these options has the dtypes that it has, where none were named and one might be expected."""
    device_type = str(environment["device"]).partition(":")[0]
    return default_dtypes(device_type).note if options.get("dtypes") is None else ""
