"""Micro-benchmarks of vision operators: sweep them, check every value, and read the results as tidy data.

Everything is loaded when first used, so that reading results never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opbench import models, plots
    from opbench.notebook import Run
    from opbench.results.frames import load_results, load_samples
    from opbench.sweeps.sweep import sweep
    from opbench.workload.case import Case, Dtype, Level, Shape
    from opbench.workload.offset_file import save_offsets
    from opbench.workload.operator import Operator, Provider, Setting, by_direction, compiled
    from opbench.workload.tolerance import rounding_budget

    __version__: str

_PLACES = {
    "Case": "opbench.workload.case",
    "Dtype": "opbench.workload.case",
    "Level": "opbench.workload.case",
    "Operator": "opbench.workload.operator",
    "Provider": "opbench.workload.operator",
    "Run": "opbench.notebook",
    "Setting": "opbench.workload.operator",
    "Shape": "opbench.workload.case",
    "by_direction": "opbench.workload.operator",
    "compiled": "opbench.workload.operator",
    "load_results": "opbench.results.frames",
    "load_samples": "opbench.results.frames",
    "rounding_budget": "opbench.workload.tolerance",
    "save_offsets": "opbench.workload.offset_file",
    "sweep": "opbench.sweeps.sweep",
}

__all__ = [
    "Case",
    "Dtype",
    "Level",
    "Operator",
    "Provider",
    "Run",
    "Setting",
    "Shape",
    "by_direction",
    "compiled",
    "load_results",
    "load_samples",
    "models",
    "plots",
    "rounding_budget",
    "save_offsets",
    "sweep",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type of whatever is asked for
    if name == "__version__":
        from importlib.metadata import version

        return version("opbench")
    if name in ("models", "plots"):
        return import_module(f"opbench.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """The public names, whatever has been imported below."""
    return [*__all__, "__all__", "__doc__", "__file__", "__name__", "__path__", "__version__"]
