"""`opbench noise`."""

from contextlib import closing
from typing import Annotated

import typer

from opbench.cli.shared import NoColor, stdout

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(noise)


def noise(
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
    processes: Annotated[int, typer.Option(metavar="N", help="Fresh processes for each cell, at least 2.")] = 8,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Of PyTorch on the CPU. [default: PyTorch's own choice]")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure even if the figure is kept from before.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print what is kept, each process's medians included.")] = False,
    no_color: NoColor = False,
) -> None:
    """Measure how far processes of the same code differ on this device, which bounds what compare calls slower.

    Nine small cells, each in eight fresh processes, all of them in turns. Kept per device, versions and threads.
    """
    import json

    from opbench.compare.noise import keep_noise, known_noise
    from opbench.device.environment import collect_environment
    from opbench.errors import UsageError
    from opbench.host.system import require_unix
    from opbench.host.user_cache import say_if_nothing_is_kept
    from opbench.report import print_tables
    from opbench.report.noise_table import noise_table
    from opbench.sweeps.console_progress import ConsoleProgress
    from opbench.sweeps.isolation.executor import WorkerExecutor, cell_limit_s
    from opbench.sweeps.noise_step import measure_noise, noise_request
    from opbench.sweeps.request import RunOptions

    require_unix("opbench noise")
    if processes < 2:
        raise UsageError(f"--processes must be at least 2, got {processes}")
    request = noise_request(device, threads, processes)
    environment = collect_environment(request.device, threads)
    found = None if again else known_noise(environment)
    if found is None:
        options = RunOptions.of(request.to_json()).to_json()
        with (
            closing(WorkerExecutor(options, cell_limit_s(request.time_budget_s))) as executor,
            ConsoleProgress(quiet=json_, no_color=no_color) as progress,
        ):
            found = measure_noise(request, environment, executor, progress)
        keep_noise(found, environment)
        say_if_nothing_is_kept()
    if json_:
        print(json.dumps(found.to_json()))
    else:
        print_tables([noise_table(found)], "terminal", stdout(no_color))
