"""Shows a sweep as it goes on: a line per cell, and on a terminal the stage of the current one."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status as Spinner

from opbench.case import Cell
from opbench.measurement import Measurement, Status
from opbench.report.layout import three_digits
from opbench.stats import median, relative_half_width

__all__ = ["ConsoleProgress"]


class ConsoleProgress:
    """Progress on standard error.

    Args:
        quiet: say nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._spinner = Spinner("", console=self._console)
        self._heading = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._spinner.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spinner.stop()

    def started(self, cell: Cell, number: int, total: int) -> None:
        """Name the cell."""
        case = cell.case
        self._heading = (
            f"[{number:>{len(str(total))}}/{total}] {case.operator} ({cell.provider}) {case.level} {case.direction} "
            f"{case.shape} {case.dtype}"
        )

    def stage(self, name: str) -> None:
        """Name what the cell is doing."""
        self._spinner.update(escape(f"{self._heading}: {name}"))

    def ended(self, measurement: Measurement) -> None:
        """Print the cell's line."""
        self._console.print(escape(f"{self._heading}: {_outcome(measurement)}"))


def _outcome(measurement: Measurement) -> str:
    warnings = "".join(f"; {warning}" for warning in measurement.warnings)
    if measurement.status is not Status.OK:
        return f"{measurement.status}: {measurement.reason}{warnings}"
    samples = measurement.latencies_ms
    note = (f"; {measurement.reason}" if measurement.reason else "") + warnings
    return (
        f"{three_digits(median(samples))} ms ±{100 * relative_half_width(samples):.1f} % ({len(samples)} samples, "
        f"{measurement.stop_reason}){note}"
    )
