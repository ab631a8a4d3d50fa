"""`opbench gate`: is one revision slower than another, measured in turns on this device."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opbench.cli.shared import (
    ComparisonFormats,
    Inconclusive,
    NoColor,
    accepts_inconclusive,
    chosen_formats,
    conclude,
    interrupt_on_termination,
    passes,
    split,
    stdout,
    verdict_exit_codes,
)
from opbench.cli.sweep_flags import takes_sweep_flags
from opbench.errors import UsageError
from opbench.host.system import require_unix

if TYPE_CHECKING:
    from opbench.compare.rules import Rules

__all__ = ["register"]

DEFAULT_SESSIONS = 10
FEWEST_ROUNDS = 3
"""In each stage: fewer have no spread to speak of."""


def register(app: typer.Typer) -> None:
    """Add to the command line."""
    app.command()(takes_sweep_flags(gate))


def gate(
    *,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="REV|DIR", help="What to compare with: a revision, or a project's folder. [default: none]"
        ),
    ] = None,
    head: Annotated[str, typer.Option(metavar="REV|DIR", help="What to judge.")] = "HEAD",
    tolerance: Annotated[str, typer.Option(metavar="PERCENT", help="Change of a cell that is accepted.")] = "1%",
    budget: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Time that it may take. [default: 22 rounds]")
    ] = None,
    rounds: Annotated[
        str | None, typer.Option(metavar="SCREEN+CONFIRM", help="Of the two stages. [default: 6+16]")
    ] = None,
    inconclusive: Inconclusive = "fail",
    nothing_to_measure: Annotated[
        str,
        typer.Option(
            metavar="fail|pass",
            help="What a change that touches no operator exits with, where both run the same source: 4 or 0.",
        ),
    ] = "fail",
    changed_only: Annotated[
        bool,
        typer.Option("--changed-only", help="Measure only cells whose code differs, or may; none: 0, and no timing."),
    ] = False,
    aa: Annotated[bool, typer.Option("--aa", help="Go on although both arms run the same source.")] = False,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Judge the gate on this machine: A/A and injected slow-downs.")
    ] = False,
    inject: Annotated[str, typer.Option(metavar="LIST", help="Slow-downs of the self-test.")] = "3%,5%,10%",
    sessions: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of each kind, in the self-test.")
    ] = DEFAULT_SESSIONS,
    format_: ComparisonFormats = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the data. [default: a new one in results/]")
    ] = None,
    options: dict[str, Any],
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the comparison alone.")] = False,
    no_color: NoColor = False,
) -> None:
    """Judge a revision against another: both installed, run as fresh processes in turns, in two stages.

    Exit codes: 0 same, faster or unchanged, 1 slower, 2 usage or bad input, 3 inconclusive, 4 not comparable (also
    where both arms ran the same source, unless --nothing-to-measure pass), 5 missing or failed cells, 130 interrupted.
    """
    if selftest == (base is not None):
        raise UsageError("give --base, the revision to compare with, or --selftest")
    if budget is not None and not 0 < budget < float("inf"):
        raise UsageError(f"--budget must be a positive number of minutes, got {budget:g}")
    directions = options.get("direction", ["fwd"])
    if selftest and directions != ["fwd"]:
        raise UsageError(f"--selftest slows the forward pass: --direction must be fwd, got {','.join(directions)!r}")
    if changed_only and (aa or selftest):
        raise UsageError(f"--changed-only leaves out the same code, which {'--aa' if aa else '--selftest'} measures")
    require_unix("opbench gate")
    interrupt_on_termination()
    from opbench.compare.rules import Rules
    from opbench.gate.command import GateRequest, run_gate, run_selftest, with_defaults
    from opbench.gate.selftest_table import show_selftest
    from opbench.gate.session import SessionSettings
    from opbench.text import parse_percent

    accepted = accepts_inconclusive(inconclusive)
    accept_same_source = passes("--nothing-to-measure", nothing_to_measure)
    # --out is the folder of the data first of all: unlike compare's, it needs no format that has a file.
    formats = chosen_formats(format_, None if format_ else out)

    for name in {"shapes", "settings"} & options.keys():
        options[name] = [from_any_folder(text) for text in options[name]]
    rules = replace(_with_rounds(Rules(), rounds), tolerance=parse_percent("--tolerance", tolerance))
    budget_s = None if budget is None else 60 * budget
    session = SessionSettings(rules, budget_s, settle=not accepted, same_source_allowed=aa)
    request = GateRequest(with_defaults(options), session, changed_only, out, quiet=quiet, no_color=no_color)
    with verdict_exit_codes():
        if selftest:
            sizes = [parse_percent("--inject", text) for text in split("--inject", inject) or []]
            settled = replace(request, settings=replace(session, settle=False))
            show_selftest(*run_selftest(sizes, sessions, settled), console=stdout(no_color))
        else:
            comparison, folder = run_gate(str(base), head, request)
            print(f"data: {folder}", file=sys.stderr)
            conclude(
                comparison,
                formats,
                out,
                accept_inconclusive=accepted,
                accept_same_source=accept_same_source,
                no_color=no_color,
            )


def _with_rounds(rules: "Rules", text: str | None) -> "Rules":
    if text is None:
        return rules
    match = re.fullmatch(r"([0-9]{1,4})\+([0-9]{1,4})", text)
    if not match or min(map(int, match.groups())) < FEWEST_ROUNDS:
        raise UsageError(f"--rounds must be two numbers of at least {FEWEST_ROUNDS}, such as 6+16, got {text!r}")
    return replace(rules, screen_rounds=int(match[1]), confirm_rounds=int(match[2]))


def from_any_folder(text: str) -> str:
    """A shape list or a setting; where it is a file or has one, by a path that means the same from any folder."""
    if Path(text).suffix in (".yaml", ".yml"):
        return str(Path(text).resolve())
    return re.sub(r"(?<=[=,])(\w+:)([^,]+)", lambda found: found[1] + str(Path(found[2]).resolve()), text)
