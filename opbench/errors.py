"""Everything opbench raises on purpose.

OpbenchError                 one line for a person; the command line prints it and exits with 2, or as stated
├── UsageError               a command, option or argument that cannot be followed
│   └── UnknownNameError     a name that is not known; the message lists the known ones
├── ShapeFileError           a shape file that cannot be read, with file, line and field
├── ResultsError             a run folder that is missing, damaged, taken or not comparable
├── StorageError             a file that cannot be written: exit code 3; 74 where 3 is a verdict (compare, gate)
├── DeviceLostError          a GPU that no longer answers the process that sweeps
├── RegistryError            an operator that cannot be registered
├── FleetError               cards that a sweep cannot run on: no Ray, no cluster, nodes that differ
├── OperatorError            a function of an operator that raises or gives what it may not
└── GateError                a gate that cannot be run: a revision that does not install, an arm that does not start
    └── NotComparableError   a revision that this gate cannot drive: exit code 4

What goes wrong inside one cell of a sweep is not raised: it is a row with a status and a reason.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "DeviceLostError",
    "FleetError",
    "GateError",
    "NotComparableError",
    "OpbenchError",
    "OperatorError",
    "RegistryError",
    "ResultsError",
    "ShapeFileError",
    "StorageError",
    "UnknownNameError",
    "UsageError",
]


class OpbenchError(Exception):
    """Base of every error that opbench raises on purpose; its text is one line."""


class UsageError(OpbenchError):
    """A command, option or argument that cannot be followed."""


class UnknownNameError(UsageError):
    """A name that is not known; lists the known ones, and names one that is spelt alike."""

    def __init__(self, kind: str, got: str, known: Iterable[str]) -> None:
        known = list(known)
        alike = get_close_matches(got, known, 1)
        meant = f"; did you mean {alike[0]!r}?" if alike else ""
        super().__init__(f"unknown {kind} {got!r}; known: {', '.join(known)}{meant}")


class ShapeFileError(OpbenchError):
    """A shape file that cannot be used, as `file:line: what, got, allowed`."""


class ResultsError(OpbenchError):
    """A run folder that is missing, damaged, already taken or not comparable."""


class StorageError(OpbenchError):
    """A file that cannot be written: the disk is full, read-only or gone."""


class DeviceLostError(OpbenchError):
    """The GPU no longer answers the process that sweeps, where cells have none of their own."""


class RegistryError(OpbenchError):
    """An operator that cannot be registered."""


class FleetError(OpbenchError):
    """Cards that a sweep cannot run on: Ray is not installed, no cluster answers, or its nodes differ."""


class OperatorError(OpbenchError):
    """A function of an operator that raises, or gives what it may not."""


class GateError(OpbenchError):
    """A gate that cannot be run: a revision that does not exist or install, or an arm that does not start."""


class NotComparableError(GateError):
    """A revision whose opbench and this one have no protocol of the gate in common."""
