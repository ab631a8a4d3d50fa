"""What completes the values of options: names that a sweep knows, also in a list that is being written."""

from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["caches", "devices", "directions", "dtypes", "levels", "operators", "providers", "shapes", "timers"]


def _listed(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completes the last item of a list separated by commas, by names that it does not hold yet."""

    def complete(incomplete: str) -> list[str]:
        before, comma, _ = incomplete.rpartition(",")
        taken = before.split(",")
        return [f"{before}{comma}{name}" for name in names() if name not in taken]

    return complete


def _operators() -> Iterable[str]:
    from opbench.registry.families import names_for_ops
    from opbench.registry.registry import registered

    return names_for_ops(registered())


def _providers() -> Iterable[str]:
    from opbench.registry.registry import registered

    for operator in registered().values():
        for provider in operator.providers:
            yield f"{operator.name}={provider.name}"
        yield f"{operator.name}=all"


def _members(kind: str) -> Callable[[], Iterable[str]]:
    def members() -> Iterable[str]:
        from opbench.workload import case

        return map(str, getattr(case, kind))

    return members


operators = _listed(_operators)
providers = _listed(_providers)
dtypes = _listed(_members("Dtype"))
levels = _listed(_members("Level"))
directions = _listed(_members("Direction"))


def shapes() -> list[str]:
    """Names of shape lists."""
    from opbench.workload.shapes import builtin_shape_lists

    return list(builtin_shape_lists())


def devices() -> list[str]:
    """Kinds of devices, and each GPU that Linux has a file for."""
    numbers = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return ["auto", "cpu", "cuda", *(f"cuda:{number}" for number in sorted(numbers, key=int))]


def timers() -> list[tuple[str, str]]:
    """Names of timers, and what each measures."""
    from opbench.timing import TIMERS

    return [("auto", "the device's own"), *((timer.name, timer.summary) for timer in TIMERS.values())]


def caches() -> list[str]:
    """What a cache can be before a launch."""
    from opbench.timing import CACHES

    return list(CACHES)
