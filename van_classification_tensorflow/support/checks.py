"""Checks of arguments: an error names the argument, what is allowed and what was received."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def is_whole(value: Any) -> bool:
    """Whether it is an integer; NumPy's count, True and False do not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a real number; NumPy's count, True and False do not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def at_least(argument: str, value: Any, least: int) -> int:
    """`value` as an int.

    Raises:
        ValueError: It is no integer, or less than `least`.
    """
    if not is_whole(value) or value < least:
        raise ValueError(
            f"`{argument}` must be an integer >= {least}. Received: {argument}={value!r}"
        )
    return int(value)
