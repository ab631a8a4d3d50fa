"""Shows long work as it goes on: on a terminal a bar with the current cell and the time left, else plain lines."""

import os
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from opbench.case import Cell
from opbench.measurement import Measurement, Status
from opbench.report.layout import sparkline, three_digits
from opbench.stats import median, relative_half_width
from opbench.streams import plain

__all__ = ["ConsoleBar", "ConsoleProgress", "probe_progress"]

WIDE = 80
"""Columns from which on there is room for a bar beside what is being done."""
BESIDE, BESIDE_NARROW = 38, 6
"""Columns of the count, the bar and the time left; of the time left alone."""


class ConsoleBar:
    """A bar and lines on standard error; nothing but lines where it is no terminal.

    Args:
        quiet: say nothing.
        no_color: no colours, on a terminal either.
        console: replaces standard error; for tests.
    """

    def __init__(self, *, quiet: bool = False, no_color: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(
            stderr=True, quiet=quiet, highlight=False, soft_wrap=True, no_color=no_color or None
        )
        self._bar = _bar(self._console, quiet=quiet)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class ConsoleProgress(ConsoleBar):
    """Progress of a sweep, cell by cell."""

    _heading = ""

    def started(self, cell: Cell, number: int, total: int) -> None:
        """Name the cell."""
        case = cell.case
        self._heading = (
            f"[{number:>{len(str(total))}}/{total}] {case.operator} ({cell.provider}) {case.level} {case.direction} "
            f"{case.shape} {case.dtype}"
        )
        if self._bar.tasks[0].total is None:  # what an earlier run measured took none of this one's time
            self._bar.reset(self._task, total=total, completed=number - 1)
        self._bar.update(self._task, total=total, completed=number - 1, description=escape(self._heading))

    def stage(self, name: str) -> None:
        """Name what the cell is doing."""
        taken = BESIDE if self._console.width >= WIDE else BESIDE_NARROW
        heading = self._heading[: max(0, self._console.width - taken - len(name) - 2)]  # what it does is worth more
        self._bar.update(self._task, description=escape(": ".join(filter(None, (heading, name)))))

    def ended(self, measurement: Measurement) -> None:
        """Print the cell's line; on a terminal it is wrapped between words."""
        line = f"{self._heading}: {_outcome(measurement)}"
        if self._console.is_terminal:
            line = _wrapped(plain(line, self._console.encoding), self._console.width)
        self._console.print(escape(line))
        self._bar.advance(self._task)


@contextmanager
def probe_progress(*, quiet: bool = False, no_color: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Progress of `opbench ceilings` on standard error: a function that hears each probe's name, number and total."""
    console = Console(stderr=True, quiet=quiet, highlight=False, no_color=no_color or None)
    if not console.is_terminal:
        console.print("measuring this device; some seconds, kept for later runs")
    with _bar(console, quiet=quiet) as bar:
        task = bar.add_task("", total=None)
        yield lambda name, number, total: bar.update(
            task, total=total, completed=number - 1, description=escape(f"measuring {name}")
        )


def _bar(console: Console, *, quiet: bool) -> Progress:
    """Done of total, a bar, the time left and what is being done, in one line; nothing in a pipe, or in CI though it
    may look like a terminal.
    """
    wide = (MofNCompleteColumn(), BarColumn(bar_width=20)) if console.width >= WIDE else ()
    return Progress(
        *wide,
        TimeRemainingColumn(compact=True),
        # Rich would narrow every column alike; this one alone gives way, and an ellipsis may be three characters.
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="crop")),
        console=console,
        expand=True,
        transient=True,
        disable=quiet or not console.is_terminal or "CI" in os.environ,
    )


def _wrapped(line: str, width: int) -> str:
    """A line in several, broken between words; the blanks of a histogram are not between words."""
    histogram = re.search(r"% ([ 1-8▁-█]+) \(", line)
    if histogram:
        start, end = histogram.span(1)
        line = line[:start] + histogram[1].replace(" ", "\0") + line[end:]
    return textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False).replace("\0", " ")


def _outcome(measurement: Measurement) -> str:
    warnings = "".join(f"; {warning}" for warning in measurement.warnings)
    if measurement.status is not Status.OK:
        return f"{measurement.status}: {measurement.reason}{warnings}"
    samples = measurement.latencies_ms
    note = (f"; {measurement.reason}" if measurement.reason else "") + warnings
    return (
        f"{three_digits(median(samples))} ms ±{100 * relative_half_width(samples):.1f} % {sparkline(samples)} "
        f"({len(samples)} samples, {measurement.stop_reason}){note}"
    )
