"""Text for messages: short and on one line, whatever a value or a file of a stranger holds."""

from __future__ import annotations

import os
import reprlib
import shlex
from collections.abc import Sequence
from typing import Any


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        many = x.bit_length() > 200  # Python may refuse to write such a number as text
        return f"a number of {x.bit_length():,} bits" if many else repr(x)


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


def shown(value: Any) -> str:
    """A value for a message: short, in ASCII and on one line, whatever it is.

    Only its first few entries are looked at: lists that hold one another can be small and their
    text without end.
    """
    text = _SHORT.repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:80]}..."


def printable(path: Any) -> str:
    """A path as it may be printed: whatever bytes it has, one line, no control characters."""
    text = os.fsdecode(os.fspath(path))
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def excerpt(value: Any) -> str:
    """Something that a file says, in quotes, for a message: short, in ASCII and on one line."""
    return ascii(str(value)[:80])


def in_shell(path: Any) -> str:
    """A path as it may be printed and, of printable characters, be pasted into a command."""
    return shlex.quote(printable(path))


def first_few(names: Sequence[str]) -> str:
    """The first three names, as they may be printed, and how many more there are."""
    shown = ", ".join(printable(name) for name in names[:3])
    return f"{shown} and {len(names) - 3:,} more" if len(names) > 3 else shown


def one_line(error: BaseException) -> str:
    """An error of others in one line of sensible length."""
    text = printable(" ".join(str(error).split()) or type(error).__name__)
    return text if len(text) <= 300 else f"{text[:300]}..."


def reason(error: BaseException) -> str:
    """An error in its own words; the system's without their number, the file first."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{printable(error.filename)}: " if error.filename else ""
        return f"{name}{error.strerror}"
    return str(error)
