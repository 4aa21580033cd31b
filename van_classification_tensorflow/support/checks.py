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


def at_least_or_none(argument: str, value: Any, least: int) -> int | None:
    """As `at_least`, or None where `value` is None."""
    return None if value is None else at_least(argument, value, least)


def check_flag(argument: str, value) -> bool:
    """`value` as a bool (NumPy's counts), or an error that names `argument`."""
    import numpy as np  # only now: the records of the command line do without

    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{argument}` must be True or False. Received: {argument}={value!r}")
    return bool(value)


def check_choice(argument: str, value, allowed: tuple) -> Any:
    """`value` as a plain text or None, or an error that names `argument`."""
    if not (value is None or isinstance(value, str)) or value not in allowed:
        raise ValueError(
            f"`{argument}` must be one of {', '.join(map(repr, allowed))}. "
            f"Received: {argument}={value!r}"
        )
    return value if value is None else str(value)
