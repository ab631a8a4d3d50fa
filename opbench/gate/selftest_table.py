"""The self-test's table and advice."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from opbench.gate.selftest import SelfTest, SessionOutcome
from opbench.report.render import print_tables
from opbench.report.table import Table

__all__ = ["selftest_table", "show_selftest"]


def selftest_table(result: SelfTest, outcomes: Sequence[SessionOutcome]) -> Table:
    """For each injected slow-down, how often the gate said what."""
    rows = []
    for fraction, alarms in result.alarms.items():
        seconds = [outcome.seconds for outcome in outcomes if outcome.inject == fraction]
        rows.append(
            (
                f"{fraction:.0%}" if fraction else "none (A/A)",
                str(alarms.total),
                str(alarms),
                str(result.caught[fraction]) if fraction else "",
                str(result.inconclusive[fraction]),
                f"{sum(seconds) / len(seconds) / 60:.1f}",
            )
        )
    return Table(
        name="selftest",
        title="What the gate said of known slow-downs",
        columns=("slow-down", "sessions", "alarm", "alarm names the operator", "inconclusive", "minutes per session"),
        rows=tuple(rows),
        text_columns=1,
    )


def show_selftest(result: SelfTest, outcomes: Sequence[SessionOutcome], out: Path, console: Console) -> None:
    """Print rates with their exact 95 % intervals, and what to ask of the gate on this machine."""
    print_tables([selftest_table(result, outcomes)], "terminal", console)
    typical, worst = result.spread
    console.print(
        f"a round's ratio scatters by {typical:.1%} (standard deviation) in the median cell, {worst:.1%} in the worst\n"
        f"smallest slow-down detected in 80 % of the sessions: {result.detectable[0]:.1%} in the median cell, "
        f"{result.detectable[1]:.1%} in the noisiest one\n"
        f"advice: --tolerance {100 * result.tolerance:g}% and a budget of {result.minutes:.0f} minutes for "
        f"{result.cells} cells ({result.rounds[0]} + {result.rounds[1]} rounds)"
    )
    console.print(f"data: {escape(str(out))}", soft_wrap=True)
