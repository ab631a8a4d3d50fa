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
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Which device.")] = "auto",
) -> None:
    """Print device, driver, clocks, versions and precision flags, for a bug report."""
    from opbench.environment import collect_environment, environment_lines, resolve_device

    for label, value in environment_lines(collect_environment(resolve_device(device))):
        print(f"{label}: {value}")


def ceilings(
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Which device.")] = "auto",
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
        from opbench.user_cache import say_if_nothing_is_kept

        with probe_progress(quiet=json_, no_color=no_color) as on_probe:
            found = measure_ceilings(name, on_probe=on_probe)
        keep(found, environment)
        say_if_nothing_is_kept()
    if json_:
        print(json.dumps(found.to_json()))
    else:
        from opbench.report import ceiling_table, print_tables

        print_tables([ceiling_table(found)], "terminal", stdout(no_color))
