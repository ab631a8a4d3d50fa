"""Shows long work as it goes on: on a terminal a bar with the current cell and the time left, else plain lines."""

import os
import re
import textwrap
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from opbench.host.standard_streams import plain
from opbench.report.value_text import sparkline, three_digits
from opbench.results.measurement import Measurement, Status
from opbench.stats import median, relative_half_width
from opbench.workload.case import Cell, SettingValue

__all__ = ["CardProgress", "ConsoleBar", "ConsoleProgress"]

OF_CARD = "card"
"""Field of a task whose line is a card's."""

FIRST_SILENCE_S = 0.5
LONGEST_SILENCE_S = 4.0
"""In a pipe, a line says what is being done after so long without one; the first one comes sooner."""

WIDE = 80
"""Columns from which on there is room for a bar beside what is being done."""
BESIDE, BESIDE_NARROW = 38, 6
"""Columns of the count, the bar and the time left; of the time left alone."""


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
        self._patience_s = FIRST_SILENCE_S
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
        """Print a line; on a terminal it is wrapped between words."""
        self._spoke_at, self._patience_s = self._clock(), LONGEST_SILENCE_S
        if self._console.is_terminal:
            text = _wrapped(plain(text, self._console.encoding), self._console.width)
        self._console.print(escape(text))

    def doing(self, what: str, detail: str = "") -> None:
        """What is being done from now on; in a pipe it is printed once that has taken a while."""
        self._now_doing, self._doing_since = ": ".join(filter(None, (what, detail))), self._clock()
        taken = BESIDE if self._console.width >= WIDE else BESIDE_NARROW
        shown = what[: max(0, self._console.width - taken - len(detail) - 2)]  # the detail is worth more
        self._bar.update(self._task, description=escape(": ".join(filter(None, (shown, detail)))))

    def speak_up(self) -> None:
        """Print what is being done, and for how long, where nothing was printed for too long."""
        if self._now_doing and self._clock() - self._spoke_at >= self._patience_s:
            self.note(f"{self._now_doing}, {self._clock() - self._doing_since:.0f} s")

    def _keep_talking(self) -> None:
        while not self._ended.wait(FIRST_SILENCE_S / 2):
            self.speak_up()


class ConsoleProgress(ConsoleBar):
    """Progress of a sweep: what comes before and after the cells, and cell by cell.

    Args:
        tracebacks: print that of each cell that raised.
        outcomes: print a line for each cell that ended.
        options: as ConsoleBar's.
    """

    _heading = ""
    _number = ""

    def __init__(self, *, tracebacks: bool = False, outcomes: bool = True, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self._tracebacks = tracebacks
        self._outcomes = outcomes
        self._numbers: dict[tuple[str, str], str] = {}
        """Of the first cell that ended with a status and a reason."""
        self._settings: dict[str, tuple[tuple[str, SettingValue], ...]] = {}
        """Of each operator's first cell."""

    def started(self, cell: Cell, number: int, total: int) -> None:
        """Name the cell, with settings where they are not those of its operator's first cell."""
        self._number = _number(number, total)
        self._heading = f"{self._number} {self._cell_text(cell)}"
        if self._bar.tasks[0].total is None:  # what an earlier run measured took none of this one's time
            self._bar.reset(self._task, total=total, completed=number - 1)
        self._bar.update(self._task, total=total, completed=number - 1)
        self.doing(self._heading)

    def stage(self, name: str) -> None:
        """Name what the cell is doing, or outside a cell the sweep, which a pipe gets as a line."""
        self.doing(self._heading, name)
        if not self._heading and not self._live:
            self.note(name)

    def ended(self, measurement: Measurement) -> None:
        """Print the cell's line."""
        self._say(self._heading, self._number, measurement)
        self._heading = ""
        self.doing("")
        self._bar.advance(self._task)

    def card(self, name: str) -> "CardProgress":
        """A line of its own for a card of a fleet, below the bar of the sweep."""
        return CardProgress(self, name)

    def _cell_text(self, cell: Cell) -> str:
        case = cell.case
        first = self._settings.setdefault(case.operator, case.settings)
        others = "".join(f" {name}={value}" for name, value in case.settings if (name, value) not in first)
        return f"{case.operator} ({cell.provider}) {case.level} {case.direction} {case.shape} {case.dtype}{others}"

    def _say(self, heading: str, number: str, measurement: Measurement) -> None:
        if self._outcomes:
            self.note(f"{heading}: {self._outcome(number, measurement)}")
        if self._tracebacks and measurement.traceback:
            self._console.print(escape(plain(measurement.traceback, self._console.encoding)))

    def _outcome(self, number: str, measurement: Measurement) -> str:
        """A reason is said once; later cells name the one that said it."""
        first = self._numbers.setdefault((measurement.status, measurement.reason), number)
        if measurement.status is not Status.OK and first != number:
            return f"{measurement.status}, as {first}{''.join(f'; {warning}' for warning in measurement.warnings)}"
        return _outcome(measurement)


class CardProgress:
    """Progress of one card of a fleet: a line on a terminal, and lines that name the card.

    Args:
        sweep: of the whole sweep.
        name: of the card.
    """

    def __init__(self, sweep: ConsoleProgress, name: str) -> None:
        self._sweep = sweep
        self._name = name
        self._line = sweep._bar.add_task(f"{name}: ", total=None, **{OF_CARD: True})
        self._heading = self._number = ""

    def started(self, cell: Cell, number: int, total: int) -> None:
        """Name the cell in the card's line."""
        self._number = _number(number, total)
        self._heading = f"{self._number} {self._name} {self._sweep._cell_text(cell)}"
        bar, task = self._sweep._bar, self._sweep._task
        if bar.tasks[0].total is None:
            bar.reset(task, total=total, completed=0)
        self.stage("")

    def stage(self, name: str) -> None:
        """Say in the card's line what it is doing."""
        heading = self._heading or self._name
        self._sweep._bar.update(self._line, description=escape(": ".join(filter(None, (heading, name)))))
        if self._sweep._now_doing != heading:
            self._sweep._now_doing, self._sweep._doing_since = heading, self._sweep._clock()

    def note(self, text: str) -> None:
        """As of the sweep."""
        self._sweep.note(text)

    def ended(self, measurement: Measurement) -> None:
        """Print the cell's line."""
        self._sweep._say(self._heading, self._number, measurement)
        self._heading = ""
        self._sweep._bar.advance(self._sweep._task)
        self.stage("")


def _number(number: int, total: int) -> str:
    return f"[{number:>{len(str(total))}}/{total}]"


class _OfSweep(ProgressColumn):
    """A column that the line of a card leaves empty."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__(table_column=column.get_table_column())
        self._column = column

    def render(self, task: Task) -> RenderableType:
        return Text() if task.fields.get(OF_CARD) else self._column(task)


def _bar(console: Console, *, shown: bool) -> Progress:
    """Done of total, a bar, the time left and what is being done, in one line."""
    wide = (MofNCompleteColumn(), BarColumn(bar_width=20)) if console.width >= WIDE else ()
    return Progress(
        *map(_OfSweep, (*wide, TimeRemainingColumn(compact=True))),
        # Rich would narrow every column alike; this one alone gives way, and an ellipsis may be three characters.
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="crop")),
        console=console,
        expand=True,
        transient=True,
        disable=not shown,
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
    spread = relative_half_width(samples, measurement.resolution_ms)
    note = (f"; {measurement.reason}" if measurement.reason else "") + warnings
    return (
        f"{three_digits(median(samples))} ms ±{100 * spread:.1f} % {sparkline(samples)} "
        f"({len(samples)} samples, {measurement.stop_reason}){note}"
    )
