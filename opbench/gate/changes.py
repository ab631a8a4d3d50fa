"""Which cells `--changed-only` measures: those whose code differs between the arms, or may."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opbench.text import one_line
from opbench.workload.case import Cell

__all__ = ["Choice", "choose", "group_of"]

SAME_FILES = "same source"
LISTED = 3
"""Files that a reason names; the rest are counted."""
TEXT, CODE, HOST = range(3)
"""Of opbench.registry.code.FileDigest."""

Answers = Mapping[str, Mapping[str, Any]]
"""What an arm answered, by arm: base and head."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether a cell is measured, and by what that was decided."""

    measured: bool
    reason: str


def choose(cells: Sequence[Cell], sources: Answers, kernels: Callable[[str], Answers]) -> dict[str, Choice]:
    """The choice of each cell, by its key.

    Args:
        cells: that both arms plan.
        sources: what opbench.gate.own_code.sources gives of either arm; empty where its opbench cannot tell.
        kernels: what opbench.gate.own_code.kernels gives of either arm for a cell's key.
    """
    for arm, answer in sources.items():
        if not answer:
            cannot = Choice(True, f"the {arm} does not tell which files a cell runs")
            return {cell.key: cannot for cell in cells}
    if timed_by := _differing(sources, CODE, *(answer["harness"] for answer in sources.values())):
        # Each arm is timed by its own opbench, so a change of that can look like one of any operator.
        return {cell.key: Choice(True, f"{_listed(timed_by)}, which times every cell") for cell in cells}
    groups: dict[str, Choice | None] = {}
    chosen = {}
    for cell in cells:
        group = group_of(cell)
        if group not in groups:
            groups[group] = _by_files(sources, group)
        chosen[cell.key] = groups[group] or _by_kernels(sources, group, kernels(cell.key))
    return chosen


def group_of(cell: Cell) -> str:
    """Operator and provider, which decide what files a cell runs."""
    return f"{cell.case.operator} {cell.provider}"


def _by_files(sources: Answers, group: str) -> Choice | None:
    """The choice of cells of an operator and a provider; None where the kernels must decide."""
    files = [answer["providers"].get(group, ()) for answer in sources.values()]
    if host := _differing(sources, HOST, *files):
        return Choice(True, _listed(host))
    if _differing(sources, CODE, *files):
        return None
    if texts := _differing(sources, TEXT, *files):
        return Choice(False, f"only comments, docstrings or layout: {_listed(texts)}")
    return Choice(False, SAME_FILES)


def _by_kernels(sources: Answers, group: str, kernels: Answers) -> Choice:
    """The choice of a cell in whose files the bodies of Triton kernels alone differ."""
    files = _listed(_differing(sources, CODE, *(answer["providers"][group] for answer in sources.values())))
    for arm, answer in kernels.items():
        if "kernels" not in answer:
            why = one_line(str(answer.get("unknown", "its opbench does not say")))
            return Choice(True, f"{files} in a kernel; what it compiles to in the {arm} is not known ({why})")
    base, head = ([(name, code) for name, code in kernels[arm]["kernels"]] for arm in ("base", "head"))
    if not base and not head:
        return Choice(False, f"{files} in a kernel, and it launches none")
    if base == head:
        return Choice(False, f"{files} in a kernel, and it launches the same machine code")
    names = sorted({one_line(name) for name, _ in {*base} ^ {*head}})
    return Choice(True, f"{files}, and so does the machine code of {', '.join(names)}")


def _differing(sources: Answers, digest: int, *files: Iterable[str]) -> list[str]:
    """Files of either arm whose digest differs, or that only one has."""
    digests = [
        {name: answer["files"][name][digest] for name in names}
        for names, answer in zip(files, sources.values(), strict=True)
    ]
    base, head = digests
    return sorted(name for name in base.keys() | head.keys() if base.get(name) != head.get(name))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(one_line, names[:LISTED]))
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{shown}{more} {'differs' if len(names) == 1 else 'differ'}"
