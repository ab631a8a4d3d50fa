"""Says how a gate goes on: a bar on a terminal, a line per stage and round elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape

from opbench.gate.session import ProcessRecord
from opbench.progress import progress_bar

__all__ = ["GateProgress"]


class GateProgress:
    """Progress on standard error.

    Args:
        quiet: say nothing.
        no_color: no colours, on a terminal either.
        heading: put before every line.
    """

    def __init__(self, *, quiet: bool = False, no_color: bool = False, heading: str = "") -> None:
        self.heading = heading
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True, no_color=no_color or None)
        self._bar = progress_bar(self._console, quiet=quiet)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(escape(f"{self.heading}{text}"))

    def stage(self, name: str, processes: int, seconds: float) -> None:
        """A stage begins."""
        self._bar.reset(self._task, total=processes, description=escape(f"{self.heading}{name}"))
        self.say(f"{name}: {processes} processes, about {_duration(seconds)}")

    def process_ended(self, record: ProcessRecord) -> None:
        """One process more; a failure is said at once."""
        self._bar.advance(self._task)
        if record.process.failure:
            self.say(f"{record.stage} {record.round}, {record.arm}: {record.process.failure}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
