"""Words on pictures: in a font that has them, in lines that fit."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import Any

from PIL import ImageFont

from .text import printable

_OTHER_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")
INK, QUIET, PAPER, LINE = (26, 27, 30), (95, 99, 104), (255, 255, 255), (205, 208, 212)


@lru_cache(maxsize=32)
def font_of_size(size: int, other: bool = False) -> Any:
    """Pillow's own font, which has the Latin letters without accents; or another with more."""
    if other:
        for name in _OTHER_FONTS:
            with suppress(OSError):
                return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


@lru_cache(maxsize=4096)
def _has(character: str, other: bool) -> bool:
    """Whether the font has it: what it lacks looks like what no font has."""
    font = font_of_size(16, other)
    return bytes(font.getmask(character)) != bytes(font.getmask("\U0010fffd"))


def _font_of(text: str, size: int) -> Any:
    """One that has all of the text, if there is one."""
    return font_of_size(size, other=not all(_has(one, False) for one in text if one != " "))


def _drawable(text: str) -> str:
    """Names may hold any characters: those that no font here has are shown as escapes."""
    return "".join(
        one
        if one == " " or _has(one, False) or _has(one, True)
        else one.encode("ascii", "backslashreplace").decode()
        for one in printable(text)
    )


def wrapped(text: str, size: int, width: int) -> list[tuple[str, Any]]:
    """Lines of at most so many pixels, broken at spaces where that can be, and their font."""
    text = _drawable(text)
    font, lines, line = _font_of(text, size), [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width and len(word) > 1:
            cut = next(
                (n for n in range(len(word) - 1, 0, -1) if font.getlength(word[:n]) <= width), 1
            )
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    return [(one, font) for one in (*lines, line)]
