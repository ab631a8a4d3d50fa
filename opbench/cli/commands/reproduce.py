"""`opbench reproduce`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from opbench.cli.shared import (
    EXIT_FAILED_CELLS,
    EXIT_INTERRUPTED,
    AcceptDifference,
    AcceptDifferences,
    interrupt_on_termination,
    known_operators,
    split,
)
from opbench.cli.sweep_flags import takes_sweep_flags
from opbench.host.system import require_unix

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(takes_sweep_flags(reproduce))


def reproduce(
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the parts: made, or gone on with.")],
    parts: Annotated[str | None, typer.Option(metavar="LIST", help="These parts alone. [default: all]")] = None,
    options: dict[str, Any],
    retry: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Measure cells of these statuses again, such as error,timeout. [default: none]"
        ),
    ] = None,
    accept_differences: AcceptDifferences = False,
    accept_difference: AcceptDifference = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the parts and their cells; run nothing.")] = False,
) -> None:
    """Measure the paper's tables, and more, in parts that resume.

    Both published shape lists, the paper's operators, every dtype that the device has, module and core, forward; the
    deformable operators backward too. On a GPU each by CUDA events, with a cold and with a warm cache, and by CUDA
    graphs; before them the part as-paper, timed as the published scripts do, and after them what its figures may depend
    on: offsets, group widths, layouts and cuDNN's algorithms. Each part is a run of its own, DIR/PART, without plots:
    `opbench report DIR/PART --write` draws them, on any machine. DIR/PART/tables has the published figures beside the
    measured; DIR/reproduce.json says how long each part took.

    Cells share one process, because starting one for each operator and shape of every part would take longer than
    measuring. A cell that ends this process, or breaks the GPU's context, ends the command: the same command again goes
    on after that cell, whose row says so. On another machine it goes on where the differences are accepted by name.

    Exit codes: 0 every cell measured (or not applicable, or out of memory), 1 some cell wrong, error, timeout or
    unavailable, 2 usage or bad input, 3 results cannot be written, 130 interrupted; the same command again goes on.
    """
    require_unix("opbench reproduce")
    interrupt_on_termination()
    from opbench.device.resolve import resolve_device
    from opbench.results.measurement import is_failure
    from opbench.sweeps.conduct import make_conduct
    from opbench.sweeps.console_progress import ConsoleProgress
    from opbench.sweeps.reproduction import chosen_parts, run_part
    from opbench.sweeps.request import make_request
    from opbench.sweeps.start import plan

    device = resolve_device(options.get("device", "auto"))
    chosen = chosen_parts(split("--parts", parts), device, options)
    # To a part that begins, --retry says nothing: none of its cells has a status.
    conduct = make_conduct({**options, "retry": split("--retry", retry)}, resume=True)
    operators = known_operators()
    accepted = accept_differences or accept_difference or ()
    failed = False
    try:
        for part in chosen:
            cells = plan(make_request(part.options, operators), operators)
            print(f"{part.name}: {len(cells)} cells", flush=True)
            if not dry_run:
                with ConsoleProgress() as progress:
                    counts = run_part(part, out, operators, progress, conduct, accept_differences=accepted)
                print(f"{part.name}: " + ", ".join(f"{count} {status}" for status, count in counts.items()), flush=True)
                failed = failed or any(map(is_failure, counts))
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(EXIT_FAILED_CELLS if failed else 0)
