"""Rows to draw from, with the device's name and limits: of a run's folder or of a results frame."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opbench.device.ceilings import Ceilings
from opbench.errors import UsageError
from opbench.results.row import COLUMN_NAMES, Row
from opbench.results.run import Run

if TYPE_CHECKING:
    import pandas

__all__ = ["Source", "source_of_run", "sources_of_frame"]


@dataclass(frozen=True)
class Source:
    """What a figure draws from.

    Attributes:
        device_name: of every row.
        rows: as Run.rows gives them.
        ceilings: measured limits of the device, if known.
    """

    device_name: str
    rows: tuple[Row, ...]
    ceilings: Ceilings | None = None


def source_of_run(run: Run, *others: Run) -> Source:
    """The rows of one run, and of others on the same device after them."""
    same = [other for other in others if other.device_name == run.device_name]
    return Source(run.device_name, tuple(row for one in (run, *same) for row in one.rows()), run.ceilings)


def sources_of_frame(
    frame: "pandas.DataFrame", *, ceilings: Mapping[str, Any] | None = None, by: str = "run_id"
) -> dict[str, Source]:
    """The parts of a frame by run or by device.

    Args:
        frame: as opbench.load_results gives it; filtered or put together as one likes.
        ceilings: by run_id, as frame.attrs["ceilings"], which is the default; pandas.concat loses it.
        by: "run_id" or "device".

    Raises:
        UsageError: the frame lacks columns of a results frame.
    """
    missing = [column for column in COLUMN_NAMES if column not in frame.columns]
    if missing:
        raise UsageError(f"not a results frame: it lacks the columns {', '.join(missing)}")
    known = ceilings if ceilings is not None else frame.attrs.get("ceilings", {})
    plain = frame.astype(object).where(frame.notna(), None)
    sources = {}
    for name, part in plain.groupby(by, sort=False):
        rows = tuple(
            Row(**dict(zip(COLUMN_NAMES, values, strict=True)))
            for values in part[list(COLUMN_NAMES)].itertuples(index=False)
        )
        limits = known.get(rows[0].run_id)
        sources[str(name)] = Source(
            rows[0].device, rows, Ceilings.from_json(limits) if isinstance(limits, Mapping) else limits
        )
    return sources
