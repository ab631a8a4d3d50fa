"""Says how a gate goes on: a bar on a terminal, a line per stage and round elsewhere."""

from opbench.gate.process import ProcessRecord
from opbench.sweeps.console_progress import ConsoleBar

__all__ = ["GateProgress"]


class GateProgress(ConsoleBar):
    """Progress of a gate, stage by stage; `heading` stands before every line."""

    heading = ""

    def say(self, text: str) -> None:
        """Print a line."""
        self.note(f"{self.heading}{text}")

    def stage(self, name: str, processes: int, seconds: float) -> None:
        """A stage begins."""
        self._bar.reset(self._task, total=processes)
        self.doing(f"{self.heading}{name}")
        self.say(f"{name}: {processes} processes, about {_duration(seconds)}")

    def process_ended(self, record: ProcessRecord) -> None:
        """One process more; a failure is said at once."""
        self._bar.advance(self._task)
        if record.process.failure:
            self.say(f"{record.stage} {record.round}, {record.arm}: {record.process.failure}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
