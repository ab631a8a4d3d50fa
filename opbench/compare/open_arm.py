"""Opens what can be compared: a run's folder, or a file of pytest-benchmark's."""

from pathlib import Path

from opbench.compare.benchmark_json import read_benchmark_json
from opbench.compare.readings import Arm
from opbench.errors import ResultsError
from opbench.results.published import open_run

__all__ = ["open_arm"]


def open_arm(path: Path) -> Arm:
    """The arm in a run's folder or in a file of pytest-benchmark's.

    Raises:
        ResultsError: neither is there, or it is damaged.
    """
    if path.suffix == ".csv":
        raise ResultsError(f"{path}: tables are derived and not read; give the folder of the run")
    return read_benchmark_json(path) if path.is_file() else Arm.of_run(open_run(path), str(path))
