"""A colour for each class, as pictures of segmentations are drawn with."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from ..support.checks import is_whole
from ..support.text import shown
from .config import entries

Colour = tuple[int, int, int]


def colours_of(palette: Any, num_classes: int) -> tuple[Colour, ...]:
    """Checked colours, as plain numbers.

    Args:
        palette: (red, green, blue), each from 0 to 255, for each class, in anything that has an
            order.
        num_classes: How many there must be.

    Raises:
        ValueError: They are something else; says what.
    """
    found = entries(palette)
    if not found or len(found) != num_classes:
        raise ValueError(
            f"`palette` must have a colour for each of {num_classes:,} classes. "
            f"Received: {len(found):,} colours"
        )
    colours = []
    for i, one in enumerate(found):
        colour = () if isinstance(one, (Mapping, Set)) else entries(one)
        if len(colour) != 3 or not all(is_whole(c) and 0 <= c <= 255 for c in colour):
            raise ValueError(
                "`palette` must hold (red, green, blue), whole numbers from 0 to 255. "
                f"Received for class {i}: {shown(one)}"
            )
        red, green, blue = (int(c) for c in colour)
        colours.append((red, green, blue))
    return tuple(colours)
