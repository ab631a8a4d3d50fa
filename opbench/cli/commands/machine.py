"""What this machine is and can do: `opbench env`, `opbench ceilings`."""

from contextlib import closing
from typing import Annotated

import typer

from opbench.cli import completion as complete
from opbench.cli.shared import EXIT_FAILED_CELLS, NoColor, fail, stdout

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(env)
    app.command()(ceilings)


def env(
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            autocompletion=complete.devices,
            help="auto, cpu, cuda or cuda:N, with --check. [default: auto]",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Also what only PyTorch knows; imports it. --device does the same.")
    ] = False,
) -> None:
    """Print GPUs, driver, processor, versions and variables, for a bug report; with --check all that a run records."""
    from opbench.device.environment import collect_environment, collect_machine
    from opbench.report.environment_lines import environment_lines, machine_lines

    asks_torch = check or device is not None
    for label, value in (
        environment_lines(collect_environment(device)) if asks_torch else machine_lines(collect_machine())
    ):
        print(f"{label}: {value}")


def ceilings(
    device: Annotated[
        str, typer.Option(metavar="DEVICE", autocompletion=complete.devices, help="auto, cpu, cuda or cuda:N.")
    ] = "auto",
    again: Annotated[bool, typer.Option("--again", help="Measure even if the figures are kept from before.")] = False,
    budget: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="For all probes. [default: 15 on the CPU, 30 on CUDA]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Of PyTorch on the CPU. [default: PyTorch's own choice]")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print what a run keeps in ceilings.json.")] = False,
    no_color: NoColor = False,
) -> None:
    """Measure this device's own limits: matrix throughput, memory and cache bandwidth, shortest launch.

    Kept per device, versions and threads; sweeps take them along. A probe that failed is tried again after a day, and
    all are when other programs used the device while they ran and have ended.
    """
    import json

    from opbench.device.environment import collect_environment
    from opbench.device.resolve import resolve_device
    from opbench.errors import UsageError
    from opbench.host.user_cache import say_if_nothing_is_kept
    from opbench.sweeps.ceiling_step import ceilings_for, default_budget_s
    from opbench.sweeps.console_progress import ConsoleProgress
    from opbench.sweeps.isolation.worker_process import Workers
    from opbench.sweeps.option_fields import read_options
    from opbench.sweeps.request import RunOptions

    name = resolve_device(device)
    if budget is not None and not 0 < budget < float("inf"):
        raise UsageError(f"--budget must be a positive number, got {budget:g}")
    read_options(RunOptions, {"threads": threads})  # refused as by a sweep
    with closing(Workers()) as workers, ConsoleProgress(quiet=json_, no_color=no_color) as progress:
        found = ceilings_for(
            collect_environment(name, threads),
            workers,
            budget or default_budget_s(name),
            again=again,
            progress=progress,
        )
    say_if_nothing_is_kept()
    if isinstance(found, str):
        fail(found, EXIT_FAILED_CELLS)
    if json_:
        print(json.dumps(found.to_json()))
    else:
        from opbench.report import ceiling_table, print_tables

        print_tables([ceiling_table(found)], "terminal", stdout(no_color))
