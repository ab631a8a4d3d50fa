"""Fields of a dataclass that are options of a sweep: each says how it is given, read and checked."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from operator import index
from typing import Any

from opbench.errors import UsageError

__all__ = [
    "Option",
    "Options",
    "as_given",
    "choice",
    "choices",
    "integer",
    "items",
    "option",
    "options_of",
    "parts",
    "positive",
    "read_options",
    "repeated",
    "switch",
]

Options = Mapping[str, Any]
"""Keyword arguments as `opbench.sweep` takes them; None and missing mean the default."""
Read = Callable[[str, Any], Any]
"""From the flag, for messages, and what was given, to the field's value; raises UsageError."""


@dataclass(frozen=True, slots=True)
class Option:
    """How a field is given.

    Attributes:
        keyword: of `opbench.sweep`.
        flag: on the command line.
        read: takes what `opbench.sweep` is given and also what run.json keeps of the field.
        by_device: what stands where nothing is given, by device type, in place of the field's own default.
        added_later: the commands of older runs lack it; they have the field's own default.
    """

    keyword: str
    flag: str
    read: Read
    by_device: Mapping[str, Any]
    added_later: bool


def option(
    keyword: str,
    read: Read,
    *,
    flag: str | None = None,
    by_device: Mapping[str, Any] | None = None,
    added_later: bool = False,
) -> dict[str, Option]:
    """Metadata of a field that is an option; arguments as the attributes of Option."""
    flag = flag or f"--{keyword.replace('_', '-')}"
    return {"option": Option(keyword, flag, read, by_device or {}, added_later)}


def options_of(kind: type[Any]) -> dict[str, Option]:
    """The options of a dataclass by the names of their fields."""
    return {field.name: field.metadata["option"] for field in fields(kind) if "option" in field.metadata}


def read_options(kind: type[Any], options: Options) -> dict[str, Any]:
    """The values of a dataclass's fields that options give, by the fields' names.

    Raises:
        UsageError: an option that cannot be followed; the message names it.
    """
    return {
        name: option.read(option.flag, options[option.keyword])
        for name, option in options_of(kind).items()
        if options.get(option.keyword) is not None
    }


def as_given(flag: str, given: Any) -> Any:  # noqa: ANN401
    """What was given, for who reads it together with something else."""
    return given


def items(flag: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """Texts from a list, or from one text with commas between them."""
    return tuple(item.strip() for item in given.split(",")) if isinstance(given, str) else tuple(given)


def repeated(flag: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """Texts from a list, or one text as it is."""
    return (given,) if isinstance(given, str) else tuple(given)


def choices(known: Iterable[StrEnum], *, none: bool = False) -> Read:
    """Reads members of an enumeration by name, each once; `none` allows an empty list."""
    members = {str(member): member for member in known}

    def read(flag: str, given: str | Sequence[str]) -> tuple[StrEnum, ...]:
        names = items(flag, given)
        for name in names:
            if name not in members:
                raise UsageError(f"{flag} must be of {', '.join(members)}, got {name!r}")
        if not names and not none:
            raise UsageError(f"{flag} must name at least one of {', '.join(members)}")
        return tuple(dict.fromkeys(members[name] for name in names))

    return read


def choice(known: Iterable[StrEnum]) -> Read:
    """Reads one member of an enumeration by name."""
    several = choices(known)

    def read(flag: str, given: str) -> StrEnum:
        [member] = several(flag, [given])
        return member  # type: ignore[no-any-return]

    return read


def positive(flag: str, given: float) -> float:
    """A finite number above 0."""
    try:
        value = float(given)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{flag} must be a positive number, got {given!r:.60}") from None
    if not 0 < value < float("inf"):
        raise UsageError(f"{flag} must be a positive number, got {value:g}")
    return value


def integer(least: int, most: int) -> Read:
    """Reads an integer within bounds."""

    def read(flag: str, given: int) -> int:
        try:
            value = None if isinstance(given, bool) else index(given)
        except TypeError:
            value = None
        if value is None or not least <= value <= most:
            raise UsageError(f"{flag} must be an integer from {least} to {most}, got {given!r:.60}")
        return value

    return read


def switch(flag: str, given: object) -> bool:
    """A reader of what is on or off."""
    if not isinstance(given, bool):
        raise UsageError(f"{flag} must be True or False, got {given!r:.60}")
    return given


def parts(form: str, pattern: str, listed: Callable[[str, Any], tuple[Any, ...]]) -> Read:
    """Reads texts of a form such as op=provider to tuples of their parts; such tuples are taken as they are.

    Args:
        form: as a message shows it.
        pattern: a regular expression with one group for each part.
        listed: items or repeated.
    """
    compiled = re.compile(pattern, re.DOTALL)

    def read(flag: str, given: Any) -> tuple[tuple[str, ...], ...]:  # noqa: ANN401
        return tuple(_parts(flag, item) for item in listed(flag, given))

    def _parts(flag: str, item: str | Sequence[str]) -> tuple[str, ...]:
        found = compiled.fullmatch(item) if isinstance(item, str) else None
        if found:
            return found.groups()
        if isinstance(item, str) or len(item) != compiled.groups or not all(isinstance(part, str) for part in item):
            raise UsageError(f"{flag} must be {form}, got {item!r:.60}")
        return tuple(item)

    return read
