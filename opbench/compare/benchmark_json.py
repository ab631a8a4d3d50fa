"""pytest-benchmark's JSON: reading anybody's as an Arm, writing a run as one that `pytest-benchmark compare` reads.

What pytest-benchmark has no place for is in `extra_info.opbench` of each benchmark (its cell and its circumstances) and
in `opbench` at the top (cells without a measurement). Times there are seconds.
"""

import json
import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opbench.compare.readings import Arm, Reading, reading_of
from opbench.compare.verdicts import Benchmark
from opbench.device.identity import Identity, measured_revision
from opbench.errors import ResultsError
from opbench.results.measurement import Measurement, Status, known_name
from opbench.results.run import Run
from opbench.stats import median, median_interval
from opbench.text import one_line
from opbench.workload.case import Cell
from opbench.workload.cell_warning import CellWarning

__all__ = ["EXTRA_KEY", "extra_info", "identity_info", "read_benchmark_json", "run_as_benchmark_json"]

EXTRA_KEY = "opbench"
EXTRA_VERSION = 1
NOTCH = 1.57
"""Half width of a box plot's notch, in interquartile ranges over the root of the number of samples."""
LONGEST_S = 1e9
"""Thirty years."""


def read_benchmark_json(path: Path) -> Arm:
    """What pytest-benchmark saved, `--benchmark-save-data` or not.

    With the samples, the median's interval is that of opbench.stats; without, the notch median ± 1.57 IQR / sqrt(n).

    Raises:
        ResultsError: not readable, not JSON, not of pytest-benchmark, or with latencies that none can be.

    Source: McGill, Tukey and Larsen, Variations of box plots, The American Statistician 32 (1978), 12, for the notch.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document.get(EXTRA_KEY, {}).get("schema_version", EXTRA_VERSION)
        if version != EXTRA_VERSION:
            raise ResultsError(
                f"{path}: schema_version must be {EXTRA_VERSION}, got {one_line(repr(version), 60)}; "
                "another version of opbench wrote it"
            )
        machine = _machine(document.get("machine_info"))
        readings = [_reading(entry, machine) for entry in document["benchmarks"]]
        readings += [_not_measured(entry) for entry in document.get(EXTRA_KEY, {}).get("not_measured", ())]
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ResultsError(f"{path}: must be JSON of pytest-benchmark, is not text") from None
    except json.JSONDecodeError as error:
        raise ResultsError(f"{path}:{error.lineno}: must be JSON of pytest-benchmark: {error.msg}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ResultsError(f"{path}: must be JSON of pytest-benchmark: {one_line(repr(error))}") from None
    arm = Arm(str(path), {reading.cell.key: reading for reading in readings})
    if len(arm.readings) < len(readings):
        keys = [reading.cell.key for reading in readings]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ResultsError(f"{path}: holds {one_line(twice)} twice")
    return arm


def run_as_benchmark_json(run: Run) -> dict[str, Any]:
    """A run as pytest-benchmark would have saved it, samples included.

    Raises:
        ResultsError: the journal is missing or damaged.
    """
    identity = Identity.of(run.environment)
    finished = run.finished()
    measured = [m for cell in run.plan() if (m := finished.get(cell.key)) and m.status is Status.OK]
    environment = run.environment
    return {
        "machine_info": {
            "node": "",
            "machine": environment.get("platform", ""),
            "python_version": environment.get("python_version", ""),
            "cpu": {"brand_raw": (environment.get("cpu") or {}).get("model", "")},
        },
        "commit_info": {"id": measured_revision(environment) or "unknown", "dirty": None},
        "benchmarks": [_entry(measurement, identity) for measurement in measured],
        "datetime": run.started_at,
        "version": "5.0.0",
        EXTRA_KEY: {
            "schema_version": EXTRA_VERSION,
            "run_id": run.run_id,
            "opbench_revision": environment.get("git_revision"),
            "not_measured": [
                {"cell": cell.to_json(), "status": str(reading.status), "reason": reading.reason}
                for cell in run.plan()
                if (reading := finished.get(cell.key) or _not_run(cell)).status is not Status.OK
            ],
        },
    }


def extra_info(measurement: Measurement, identity: Identity) -> dict[str, Any]:
    """What a benchmark keeps under EXTRA_KEY of its extra_info, so that `opbench compare` knows its cell."""
    return {
        "cell": measurement.cell.to_json(),
        **identity_info(identity, measurement.timer, measurement.cache),
        "source": measurement.kernel_source_hash,
        "warnings": [*map(str, measurement.warnings)],
        **({"process_ms": list(measurement.latencies_ms)} if measurement.processes > 1 else {}),
    }


def identity_info(identity: Identity, timer: str, cache: str) -> dict[str, Any]:
    """The part of extra_info that says what must be equal in both arms of a comparison."""
    return {"circumstances": dict(identity.having({"timer": timer, "cache": cache}).parts)}


def _entry(measurement: Measurement, identity: Identity) -> dict[str, Any]:
    cell = measurement.cell
    return {
        "group": f"{cell.case.operator} {cell.case.level} {cell.case.direction}",
        "name": cell.key,
        "fullname": cell.key,
        "params": None,
        "param": None,
        "extra_info": {EXTRA_KEY: extra_info(measurement, identity)},
        "options": {"timer": measurement.timer},
        "stats": _statistics(
            [1e-3 * value for value in measurement.latencies_ms], measurement.launches_per_sample or 1
        ),
    }


def _statistics(samples: Sequence[float], iterations: int) -> dict[str, Any]:
    """What pytest-benchmark computes of samples in seconds, with its own quartiles."""
    ordered = sorted(samples)
    q1, q3 = _quartiles(ordered)
    mean, deviation = statistics.mean(samples), statistics.stdev(samples) if len(samples) > 1 else 0
    far = sum(not mean - deviation <= value <= mean + deviation for value in samples)
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    outside = sum(not low <= value <= high for value in samples)
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": deviation,
        "rounds": len(samples),
        "median": statistics.median(samples),
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": outside,
        "stddev_outliers": far,
        "outliers": f"{far};{outside}",
        "ld15iqr": ordered[bisect_left(ordered, low)],
        "hd15iqr": ordered[bisect_right(ordered, high) - 1],
        "ops": len(samples) / sum(samples) if sum(samples) else 0,
        "total": sum(samples),
        "data": list(samples),
        "iterations": iterations,
    }


def _quartiles(ordered: Sequence[float]) -> tuple[float, float]:
    """Methods 2 and 3 of the usual four, for even and odd counts, as pytest-benchmark takes them."""
    count, half = len(ordered), len(ordered) // 2
    if count == 1:
        return ordered[0], ordered[0]
    if count % 2 == 0:
        return statistics.median(ordered[:half]), statistics.median(ordered[half:])
    n = count // 4
    if count % 4 == 1:
        return 0.25 * ordered[n - 1] + 0.75 * ordered[n], 0.75 * ordered[3 * n] + 0.25 * ordered[3 * n + 1]
    return 0.75 * ordered[n] + 0.25 * ordered[n + 1], 0.25 * ordered[3 * n + 1] + 0.75 * ordered[3 * n + 2]


def _reading(entry: Mapping[str, Any], machine: Mapping[str, str]) -> Reading:
    """One benchmark of the file; KeyError, TypeError or ValueError if it is none."""
    ours = (entry.get("extra_info") or {}).get(EXTRA_KEY)
    name = _text(entry["fullname"])
    cell: Cell | Benchmark = Cell.from_json(ours["cell"]) if ours and "cell" in ours else Benchmark(name)
    middle, low, high, count = _interval(entry["stats"], name)
    timer = _text((entry.get("options") or {}).get("timer", "unknown"))
    return Reading(
        cell=cell,
        status=Status.OK,
        median_ms=1e3 * middle,
        low_ms=1e3 * low,
        high_ms=1e3 * high,
        samples=count,
        identity=Identity(_texts(ours["circumstances"]) if ours else {**machine, "timer": timer}),
        kernel_source_hash=_text(ours.get("source", "")) if ours else "",
        warnings=tuple(CellWarning.parse(_text(text)) for text in ours.get("warnings", ())) if ours else (),
        process_ms=tuple(1e3 * _seconds(ms / 1e3, name) for ms in ours.get("process_ms", ())) if ours else (),
    )


def _interval(stats: Mapping[str, Any], name: str) -> tuple[float, float, float, int]:
    """Median, ends of its interval (seconds) and number of samples."""
    data = stats.get("data")
    if data:
        samples = [_seconds(value, name) for value in data]
        return (median(samples), *median_interval(samples), len(samples))
    middle, spread = _seconds(stats["median"], name), _seconds(stats["iqr"], name)
    count = stats["rounds"]
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{name}: rounds must be a positive integer, got {count!r:.60}")
    notch = NOTCH * spread / math.sqrt(count)
    return middle, max(0.0, middle - notch), middle + notch, count


def _seconds(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, float | int) or not 0 <= value <= LONGEST_S:
        raise ValueError(f"{name}: a time must be a number of seconds, not negative, got {value!r:.60}")
    return float(value)


def _not_measured(entry: Mapping[str, Any]) -> Reading:
    status = known_name(Status, entry["status"])
    if status is Status.OK:
        raise ValueError("a cell under not_measured is ok")
    return Reading(Cell.from_json(entry["cell"]), status, _text(entry["reason"]))


def _not_run(cell: Cell) -> Reading:
    return reading_of(Measurement(cell, Status.NOT_RUN, reason="the run ended before this cell"), Identity())


def _machine(info: object) -> dict[str, str]:
    """What must be equal for two files of benchmarks that opbench knows nothing about."""
    if not isinstance(info, Mapping):
        return {}
    cpu = info.get("cpu")
    brand = (cpu.get("brand_raw") or cpu.get("brand")) if isinstance(cpu, Mapping) else cpu
    parts = {
        "device": brand or info.get("processor"),
        "machine": info.get("machine"),
        "python": info.get("python_version"),
    }
    return {name: _text(str(value)) for name, value in parts.items() if value}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in values.items()}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be a text, got {value!r:.60}")
    return one_line(value)
