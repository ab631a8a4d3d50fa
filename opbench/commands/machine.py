"""What this machine is and can do: `opbench env`, `opbench ceilings`."""

from typing import Annotated

import typer

from opbench.commands._shared import NoColor, stdout

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(env)
    app.command()(ceilings)


def env(
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N, with --check. [default: auto]")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Also what only PyTorch knows; imports it. --device does the same.")
    ] = False,
) -> None:
    """Print GPUs, driver, processor, versions and variables, for a bug report; with --check all that a run records."""
    from opbench.environment import collect_environment, collect_machine
    from opbench.environment_lines import environment_lines, machine_lines

    asks_torch = check or device is not None
    for label, value in (
        environment_lines(collect_environment(device)) if asks_torch else machine_lines(collect_machine())
    ):
        print(f"{label}: {value}")


def ceilings(
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
    again: Annotated[bool, typer.Option("--again", help="Measure even if the figures are kept from before.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print what a run keeps in ceilings.json.")] = False,
    no_color: NoColor = False,
) -> None:
    """Measure this device's own limits: matrix throughput, memory and cache bandwidth, shortest launch.

    Kept per device and versions; sweeps take them along.
    """
    import json

    from opbench.ceiling_cache import keep, known_ceilings
    from opbench.environment import collect_environment, resolve_device

    name = resolve_device(device)
    environment = collect_environment(name)
    found = None if again else known_ceilings(environment)
    if found is None:
        from opbench.ceiling_probes import measure_ceilings
        from opbench.progress import probe_progress

        with probe_progress(quiet=json_, no_color=no_color) as on_probe:
            found = measure_ceilings(name, on_probe=on_probe)
        keep(found, environment)
    if json_:
        print(json.dumps(found.to_json()))
    else:
        from opbench.report import ceiling_table, print_tables

        print_tables([ceiling_table(found)], "terminal", stdout(no_color))
