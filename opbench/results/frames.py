"""Runs as tidy data frames. Only this module needs pandas, and only when it is called."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opbench.results.columns import SAMPLE_COLUMNS, names
from opbench.results.measurement import Measurement, Status
from opbench.results.published import open_run
from opbench.results.row import COLUMN_NAMES, COLUMNS, Column
from opbench.results.run import Run

if TYPE_CHECKING:
    import pandas

__all__ = ["load_results", "load_samples"]


def load_results(path: str | Path | Iterable[str | Path]) -> "pandas.DataFrame":
    """Read runs into a tidy frame: one row per planned cell, the columns of measurements.csv.

    docs/columns.md says of each column what it is, its unit, and when it is empty. Medians and rates are derived from
    the raw latencies in the journal. A cell without a value is NaN (NA in the integer columns) and its status and
    reason say why; it is never 0.

    Args:
        path: folder of a run, as `opbench sweep` prints it, or several of them, whose rows come one after the other and
            differ in run_id; "published" for the paper's figures.

    Returns:
        pandas.DataFrame with latencies and limit_ms in milliseconds, tflops in 1e12 FLOP/s, gbps in 1e9 byte/s;
        attrs["units"] has the unit of each column that has one, attrs["ceilings"] the limits of the device for
        opbench.plots.

    Raises:
        ResultsError: there is no run at `path`, or it is damaged.
    """
    import pandas as pd

    runs = _open_all(path)
    frame = pd.DataFrame([row.values() for run in runs for row in run.rows()], columns=list(COLUMN_NAMES))
    frame.attrs["units"] = _units(COLUMNS)
    if ceilings := {run.run_id: run.ceilings.to_json() for run in runs if run.ceilings}:
        frame.attrs["ceilings"] = ceilings
    return frame.astype(_types(COLUMNS))


def load_samples(path: str | Path | Iterable[str | Path]) -> "pandas.DataFrame":
    """Read the raw latencies of runs into a long frame: one row per sample of each cell that is ok.

    Args:
        path: as for load_results.

    Returns:
        pandas.DataFrame: what names the cell, as in load_results; `repetition`, which of its processes; `sample`, its
        place there in the order of time; and `latency_ms`, milliseconds per launch, as measured. attrs["units"] as in
        load_results.

    Raises:
        ResultsError: there is no run at `path`, or it is damaged.
    """
    import pandas as pd

    labels: dict[str, list[Any]] = {name: [] for name in names(SAMPLE_COLUMNS)}
    for run in _open_all(path):
        finished: defaultdict[str, dict[int, Measurement]] = defaultdict(dict)
        for measurement in run.measurements():  # of a cell that was tried again, the last line
            finished[measurement.cell.key][measurement.repetition] = measurement
        for cell in run.plan():
            of_cell = {"run_id": run.run_id, "provider": cell.provider, **cell.case.labels()}
            for repetition, measurement in sorted(finished[cell.key].items()):
                latencies = measurement.latencies_ms if measurement.status == Status.OK else ()
                values = of_cell | {"repetition": repetition}
                for name in labels.keys() - {"sample", "latency_ms"}:
                    labels[name] += [values[name]] * len(latencies)
                labels["sample"] += range(len(latencies))
                labels["latency_ms"] += latencies
    frame = pd.DataFrame(labels).astype(_types(SAMPLE_COLUMNS))
    frame.attrs["units"] = _units(SAMPLE_COLUMNS)
    return frame


def _units(columns: Iterable[Column]) -> dict[str, str]:
    return {column.name: column.unit for column in columns if column.unit}


def _open_all(path: str | Path | Iterable[str | Path]) -> list[Run]:
    return [open_run(Path(one)) for one in ([path] if isinstance(path, str | Path) else path)]


def _types(of: tuple[Column, ...]) -> dict[str, str]:
    """pandas' types of the columns that hold numbers: an integer column may lack values."""
    return dict.fromkeys(names(of, int), "Int64") | dict.fromkeys(names(of, float), "float64")
