"""What a history needs of one run: when, where, and each cell's median with its interval; without the samples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from opbench.compare.readings import reading_of
from opbench.device.identity import HOST, Identity, host_of, measured_revision
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
    """

    name: str
    run_id: str
    started_at: datetime
    revision: str
    opbench_revision: str = ""

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
        cells: its plan.
        figures: of the cells that are ok and have a median above 0, in the order of the plan.
        set_ups: by Figure.set_up the parts of the identity, with timer, cache and, where it is known, the host. A run
            that was merged from several has those of each.
        sources: hashes of operator and kernel source, by Figure.source.
        elsewhere: how many figures are left out because the run went on on another set-up than it began on.
        origins: the run_ids of those that a merged run was made of.
    """

    entry: RunEntry
    cells: tuple[Cell, ...]
    figures: Sequence[Figure]
    set_ups: Sequence[Mapping[str, str]]
    sources: Sequence[str]
    elsewhere: int = 0
    origins: Sequence[str] = ()

    @classmethod
    def of(cls, path: Path, name: str) -> Self:
        """Read a run's folder.

        Raises:
            ResultsError: it is damaged.
        """
        return cls.of_run(Run.open(path), name)

    @classmethod
    def of_run(cls, run: Run, name: str) -> Self:
        """What a run holds, under this name.

        Raises:
            ResultsError: it is damaged.
        """
        set_ups: dict[tuple[str, str, str], int] = {}
        sources: dict[str, int] = {}
        figures, elsewhere = [], 0
        finished = run.finished()
        for place, cell in enumerate(run.plan()):
            measurement = finished.get(cell.key)
            if not measurement or not (estimate := reading_of(measurement, Identity()).estimate):
                continue
            if any(warning.kind == WarningKind.RESUMED_ELSEWHERE for warning in measurement.warnings):
                elsewhere += 1
                continue
            set_up = (
                measurement.timer or run.command["timer"],
                measurement.cache or run.command["cache"],
                measurement.origin,
            )
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
        parts = [_parts(run, *set_up) for set_up in set_ups]
        return cls(_entry(run, name), tuple(run.plan()), figures, parts, [*sources], elsewhere, [*run.origins])

    def to_json(self) -> dict[str, Any]:
        """All but the cells, which many runs share."""
        entry = asdict(self.entry) | {"started_at": self.entry.started_at.isoformat()}
        return {
            "entry": entry,
            "figures": self.figures,
            "set_ups": self.set_ups,
            "sources": self.sources,
            "elsewhere": self.elsewhere,
            "origins": self.origins,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], cells: tuple[Cell, ...]) -> Self:
        """What to_json wrote; any error where it did not."""
        entry = RunEntry(**data["entry"] | {"started_at": datetime.fromisoformat(data["entry"]["started_at"])})
        figures = [Figure._make(figure) for figure in data["figures"]]
        tables = data["set_ups"], data["sources"], data["elsewhere"], data["origins"]
        return cls(entry, cells, figures, *tables)


def _parts(run: Run, timer: str, cache: str, origin: str) -> dict[str, str]:
    environment = run.origins[origin].environment if origin in run.origins else run.environment
    host = {HOST: host} if (host := host_of(environment)) else {}
    parts = Identity.of(environment).having({"timer": timer, "cache": cache, **host}).parts
    return {name: one_line(value, 100) for name, value in parts.items()}


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
    )
