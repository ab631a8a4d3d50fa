"""Sizes given as an integer or as (height, width)."""

__all__ = ["Size", "pair"]

Size = int | tuple[int, int]
"""Of a kernel, a stride, a padding or a dilation."""


def pair(value: Size, name: str, minimum: int) -> tuple[int, int]:
    """`value` as (height, width).

    Raises:
        ValueError: not one or two integers of at least `minimum`; names the argument.
    """
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or any(not isinstance(v, int) or isinstance(v, bool) or v < minimum for v in both):
        raise ValueError(f"{name} must be an integer of at least {minimum} or a pair of them, got {value!r}")
    return both[0], both[1]
