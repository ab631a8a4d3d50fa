"""What a history needs of one run: when, where, and each cell's median with its interval; without the samples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from opbench.compare.readings import reading_of
from opbench.device.identity import Identity, host_of, measured_revision
from opbench.errors import ResultsError
from opbench.results.run import Run
from opbench.text import one_line
from opbench.workload.case import Cell
from opbench.workload.cell_warning import WarningKind, join_warnings

__all__ = ["Figure", "RunEntry", "RunFigures"]

SHORT_REVISION = 10


@dataclass(frozen=True, slots=True)
class RunEntry:
    """One run of the folder.

    Attributes:
        name: path of its folder, from the folder that was read.
        run_id: as run.json has it.
        started_at: with a time zone.
        revision: git revision of the project whose operators were measured, possibly with `+dirty`; empty where they
            were not in a checkout.
        opbench_revision: likewise of opbench, which may be the same.
        host: what tells its machine from others; empty where the run does not say.
    """

    name: str
    run_id: str
    started_at: datetime
    revision: str
    opbench_revision: str = ""
    host: str = ""

    @property
    def short_revision(self) -> str:
        """The first digits of the revision, `+` after them for a dirty checkout; `no revision` without one."""
        parts = [revision.partition("+") for revision in self.revision.split(", ")]
        return ", ".join(commit[:SHORT_REVISION] + plus for commit, plus, _ in parts) or "no revision"


class Figure(NamedTuple):
    """One cell of a run: its place in the run's cells, median and interval in ms, and the rest by places in tables."""

    cell: int
    median_ms: float
    low_ms: float
    high_ms: float
    set_up: int
    source: int
    warnings: str


@dataclass(frozen=True, slots=True)
class RunFigures:
    """A run and what its cells gave.

    Attributes:
        entry: the run.
        identity: of its environment.
        cells: its plan.
        figures: of the cells that are ok and have a median above 0, in the order of the plan.
        set_ups: timer and cache, by Figure.set_up.
        sources: hashes of operator and kernel source, by Figure.source.
        elsewhere: how many figures are left out because the run went on on another set-up than it began on.
    """

    entry: RunEntry
    identity: Identity
    cells: tuple[Cell, ...]
    figures: Sequence[Figure]
    set_ups: Sequence[Sequence[str]]
    sources: Sequence[str]
    elsewhere: int = 0

    @classmethod
    def of(cls, path: Path, name: str) -> Self:
        """Read a run's folder.

        Raises:
            ResultsError: it is damaged.
        """
        run = Run.open(path)
        identity = Identity.of(run.environment)
        set_ups: dict[tuple[str, str], int] = {}
        sources: dict[str, int] = {}
        figures, elsewhere = [], 0
        finished = run.finished()
        for place, cell in enumerate(run.plan()):
            measurement = finished.get(cell.key)
            if not measurement or not (estimate := reading_of(measurement, identity).estimate):
                continue
            if any(warning.kind == WarningKind.RESUMED_ELSEWHERE for warning in measurement.warnings):
                elsewhere += 1
                continue
            set_up = (measurement.timer or run.command["timer"], measurement.cache or run.command["cache"])
            figures.append(
                Figure(
                    place,
                    estimate.value,
                    estimate.low,
                    estimate.high,
                    set_ups.setdefault(set_up, len(set_ups)),
                    sources.setdefault(measurement.kernel_source_hash, len(sources)),
                    join_warnings(measurement.warnings),
                )
            )
        return cls(_entry(run, name), identity, tuple(run.plan()), figures, [*set_ups], [*sources], elsewhere)

    def to_json(self) -> dict[str, Any]:
        """All but the cells, which many runs share."""
        entry = asdict(self.entry) | {"started_at": self.entry.started_at.isoformat()}
        return {
            "entry": entry,
            "identity": dict(self.identity.parts),
            "figures": self.figures,
            "set_ups": self.set_ups,
            "sources": self.sources,
            "elsewhere": self.elsewhere,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], cells: tuple[Cell, ...]) -> Self:
        """What to_json wrote; any error where it did not."""
        entry = RunEntry(**data["entry"] | {"started_at": datetime.fromisoformat(data["entry"]["started_at"])})
        figures = [Figure._make(figure) for figure in data["figures"]]
        return cls(
            entry, Identity(data["identity"]), cells, figures, data["set_ups"], data["sources"], data["elsewhere"]
        )


def _entry(run: Run, name: str) -> RunEntry:
    try:
        started_at = datetime.fromisoformat(run.started_at)
    except ValueError:
        text = f"{run.started_at!r:.60}"
        raise ResultsError(f"{run.path / 'run.json'}: damaged: started_at must be a date, got {text}") from None
    if started_at.tzinfo is None:
        started_at = started_at.replace(tzinfo=UTC)
    environment = run.environment
    return RunEntry(
        name=one_line(name),
        run_id=run.run_id,
        started_at=started_at,
        revision=one_line(measured_revision(environment), 100),
        opbench_revision=one_line(str(environment.get("git_revision") or ""), 60),
        host=one_line(host_of(environment), 60),
    )
