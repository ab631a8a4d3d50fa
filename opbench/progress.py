"""Shows long work as it goes on: on a terminal a bar with the current cell and the time left, else plain lines."""

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from opbench.case import Cell
from opbench.measurement import Measurement, Status
from opbench.report.layout import sparkline, three_digits
from opbench.stats import median, relative_half_width

__all__ = ["ConsoleBar", "ConsoleProgress"]

LONGEST_SILENCE_S = 4.0
"""In a pipe, a line says what is being done after so long without one."""


class ConsoleBar:
    """A bar and lines on standard error; lines alone where it is no terminal, or in CI though it may look like one.

    Args:
        quiet: say nothing.
        no_color: no colours, on a terminal either.
        console: replaces standard error; for tests.
        clock: seconds; replaced in tests.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        no_color: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(
            stderr=True, quiet=quiet, highlight=False, soft_wrap=True, no_color=no_color or None
        )
        self._live = self._console.is_terminal and "CI" not in os.environ
        self._bar = _bar(self._console, shown=self._live and not quiet)
        self._task = self._bar.add_task("", total=None)
        self._clock = clock
        self._now_doing, self._doing_since, self._spoke_at = "", clock(), clock()
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._keep_talking, daemon=True)

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._live and not self._console.quiet:
            self._pulse.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line."""
        self._spoke_at = self._clock()
        self._console.print(escape(text))

    def doing(self, text: str) -> None:
        """What is being done from now on; in a pipe it is printed once that has taken a while."""
        self._now_doing, self._doing_since = text, self._clock()
        self._bar.update(self._task, description=escape(text))

    def speak_up(self) -> None:
        """Print what is being done, and for how long, where nothing was printed for LONGEST_SILENCE_S."""
        if self._now_doing and self._clock() - self._spoke_at >= LONGEST_SILENCE_S:
            self.note(f"{self._now_doing}, {self._clock() - self._doing_since:.0f} s")

    def _keep_talking(self) -> None:
        while not self._ended.wait(LONGEST_SILENCE_S / 8):
            self.speak_up()


class ConsoleProgress(ConsoleBar):
    """Progress of a sweep: what comes before and after the cells, and cell by cell."""

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
        self._bar.update(self._task, total=total, completed=number - 1)
        self.doing(self._heading)

    def stage(self, name: str) -> None:
        """Name what the cell is doing, or outside a cell the sweep, which a pipe gets as a line."""
        self.doing(": ".join(filter(None, (self._heading, name))))
        if not self._heading and not self._live:
            self.note(name)

    def ended(self, measurement: Measurement) -> None:
        """Print the cell's line."""
        self.note(f"{self._heading}: {_outcome(measurement)}")
        self._heading = ""
        self.doing("")
        self._bar.advance(self._task)


def _bar(console: Console, *, shown: bool) -> Progress:
    """Done of total, a bar, the time left and what is being done."""
    return Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not shown,
    )


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
