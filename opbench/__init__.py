"""Micro-benchmarks of vision operators: sweep them, check every value, and read the results as tidy data.

Everything is loaded when first used, so that reading results never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opbench import plots
    from opbench.case import Case, Dtype, Level, Shape
    from opbench.operator import Operator, Provider, Setting, by_direction, compiled
    from opbench.results import Run, load_results, load_samples
    from opbench.run import sweep
    from opbench.tolerance import rounding_budget

    __version__: str

_PLACES = {
    "Case": "opbench.case",
    "Dtype": "opbench.case",
    "Level": "opbench.case",
    "Operator": "opbench.operator",
    "Provider": "opbench.operator",
    "Run": "opbench.results",
    "Setting": "opbench.operator",
    "Shape": "opbench.case",
    "by_direction": "opbench.operator",
    "compiled": "opbench.operator",
    "load_results": "opbench.results",
    "load_samples": "opbench.results",
    "rounding_budget": "opbench.tolerance",
    "sweep": "opbench.run",
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
    "plots",
    "rounding_budget",
    "sweep",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type of whatever is asked for
    if name == "__version__":
        from importlib.metadata import version

        return version("opbench")
    if name == "plots":
        return import_module("opbench.plots")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """The public names, whatever has been imported below."""
    return [*__all__, "__all__", "__doc__", "__file__", "__name__", "__path__", "__version__"]
