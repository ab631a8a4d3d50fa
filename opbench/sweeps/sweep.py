"""`opbench.sweep`: a sweep as a function, from what was asked to the results folder."""

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from opbench.errors import UsageError
from opbench.registry import registry
from opbench.registry.places import resolve_ops
from opbench.report import write_plots, write_tables
from opbench.report.cards import draw_spread, write_spread
from opbench.results.run import Run
from opbench.sweeps.as_paper import as_paper_options
from opbench.sweeps.conduct import Conduct, Isolation, make_conduct
from opbench.sweeps.fleet.sweep import connect_fleet, measure, start_fleet
from opbench.sweeps.option_fields import items, options_of
from opbench.sweeps.progress import NULL_PROGRESS, Progress
from opbench.sweeps.request import SweepRequest, make_request
from opbench.sweeps.run_cells import run_cells
from opbench.sweeps.start import continue_run, dtypes_note, start_run
from opbench.workload.operator import Operator

__all__ = ["finish", "sweep"]


def finish(*runs: Run, plots: bool = True) -> None:
    """Write what is derived from journals: measurements.csv, tables/ and, unless told not to, plots/.

    Beside the runs of several cards also how the cards differ.
    """
    for run in runs:
        run.write_measurements_csv()
        write_tables(run)
    write_spread(runs)
    if plots:
        for run in runs:
            write_plots(run)
        draw_spread(runs)


def _on_fleet(
    options: dict[str, Any],
    conduct: Conduct,
    out: Path | None,
    progress: Progress,
    resume: bool,
    accept_differences: bool | Collection[str],
    plots: bool,
) -> Run:
    with connect_fleet(conduct, options) as cards:
        begun = start_fleet(
            cards, options, conduct, out, progress, resume=resume, accept_differences=accept_differences
        )
        try:
            measure(cards, begun, conduct, progress)
        finally:
            finish(*begun.every_run, plots=plots)
    return begun.every_run[0]


def sweep(
    *,
    as_paper: bool = False,
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
    compile: bool | None = None,  # noqa: A002 - the flag's name
    repeat: int | None = None,
    energy: bool | None = None,
    shard: str | None = None,
    isolation: str | None = None,
    cell_timeout: float | None = None,
    ceilings_budget: float | None = None,
    fleet: str | None = None,
    fleet_mode: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    retry: str | Sequence[str] | None = None,
    accept_differences: bool | Collection[str] = False,
    plots: bool = True,
    operators: Sequence[Operator] = (),
    progress: Progress | None = None,
) -> Run:
    """Check and time operators over shapes, and write a results folder; the command `opbench sweep` as a function.

    A list may also be one text: `ops="dcnv3,dcnv4"` as on the command line, `shapes="standard"` for one shape list.

    Args:
        as_paper: measure as the published scripts do: what opbench.sweeps.as_paper.AS_PAPER has, where the argument of
            that name is not given.
        shapes: shape lists by name or path of a YAML file; standard and high_resolution on CUDA, standard_batch1 on the
            CPU.
        ops: operators by name or family, "all", or as FILE.py or MODULE:OPERATOR; by default those of `operators`, or
            where that is not given, all that have `by_default`.
        providers: "operator=provider" texts; several per operator add up, "operator=all" takes every one.
        dtypes: of fp32, tf32, fp16, bf16; by default fp32, and fp16 on CUDA, or on the CPU what is native there.
        level: of module, core; of a network model, block.
        direction: of fwd, bwd, fwd_bwd; of a network also train.
        device: auto, cpu, cuda or cuda:N.
        timer: auto, cuda-event, cuda-graph, launch-sync or wall-clock.
        cache: cold or warm.
        settings: "operator.name=value" texts; values with commas between them are measured one after the other.
        time_budget: sampling time per cell, seconds; 1 on CUDA, 0.5 on the CPU.
        memory_limit: GiB that a cell may take.
        seed: of inputs and parameters.
        threads: of torch on the CPU; as many as torch chooses by default.
        compile: measure each cell under torch.compile, too: the provider torch_compile, which for an operator without
            one is its provider torch, or its first, compiled.
        repeat: fresh processes for each cell, in turns; `opbench compare` then judges between processes.
        energy: measure the energy of each cell after its timing; the columns energy_mj and gflop_per_joule, and others.
        shard: "K/N", to measure the K-th of N parts of the plan; `opbench merge` makes one run of all.
        isolation: process (a worker for each operator and shape) or none; none is the default with `operators`.
        cell_timeout: seconds after which a cell is a timeout.
        ceilings_budget: seconds for the device's ceilings where none are kept, 0 for none; 15 on the CPU, 30 on CUDA.
        fleet: "ray" or "ray:ADDRESS", to measure on every card of a Ray cluster (pip install 'opbench[fleet]').
        fleet_mode: of a fleet, share (each cell on one card) or replicate (each cell on every card, in a run for each
            in folders `card-1` and so on under `out`; the first of them is given back).
        out: folder of the run; results/<date>-<device>-<n> under the current folder by default.
        resume: continue the run in `out`.
        retry: with resume, statuses of cells to measure again.
        accept_differences: with resume, go on although plan or environment differ, or only where these parts of the
            environment do, such as `driver`.
        plots: draw the files of plots/; `opbench report --write` draws them later, too.
        operators: operator objects to sweep beside the registered ones. They cannot be sent to a worker process, so
            with them cells run in this process: a crash or a hang then ends the sweep.
        progress: hears about every cell.

    Returns:
        The run; `opbench.load_results(run.path)` reads it as a pandas frame.

    Raises:
        OpbenchError: what was asked cannot be followed. What goes wrong in a cell is a row instead.
    """
    given = locals()  # so that an option is named once here, in the signature
    options, conduct_options = (
        {option.keyword: given.get(option.keyword) for option in options_of(kind).values()}
        for kind in (SweepRequest, Conduct)
    )
    if as_paper:
        options |= as_paper_options(options)
    options["ops"] = None if ops is None else items("--ops", ops)
    folder = None if out is None else Path(out)
    if resume and folder is None:
        raise UsageError("--resume needs --out: the folder of the run to continue")
    if operators and fleet:
        raise UsageError("operators that are objects cannot be sent to the cards of a fleet; register them instead")
    progress = progress or NULL_PROGRESS
    if fleet:
        conduct = make_conduct(conduct_options, resume=resume)
        return _on_fleet(options, conduct, folder, progress, resume, accept_differences, plots)
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
    if operators:
        conduct_options["isolation"] = Isolation.NONE
    conduct = make_conduct(conduct_options, resume=resume)
    if resume and folder:
        run = continue_run(folder, options, known, accept_differences=accept_differences)
    else:
        run = start_run(make_request(options, known), known, folder, conduct)
        if note := dtypes_note(options, run.environment):
            progress.note(note)
    try:
        run_cells(run, known, progress, conduct)
    finally:
        finish(run, plots=plots)
    return run
