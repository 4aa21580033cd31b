"""A segmentation over its picture: classes in their colours, with names and a legend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..images.decode import MAX_PIXELS, open_image
from ..support.checks import is_number
from ..support.lettering import INK, PAPER, QUIET, font_of_size, wrapped
from .labels import ink_on

MAX_DRAWN = 16_000_000  # pixels of a picture that is drawn; a larger one is made smaller
_STRIP = 1 << 20  # pixels at a time
_LEAST = 480  # pixels; smaller pictures are enlarged by a whole number, or words would not fit
_NARROW = 300  # pixels; a legend is no narrower, however narrow the picture
_MOST_NAMED = 24  # classes of a legend
_LONGEST = 200  # letters of a name
_GRID = 72  # cells a side, in which a place for a class's name is looked for
_ENTRY = 15  # times the size of the letters: the least width of an entry of the legend
_NAMED_FROM = 0.01  # of the picture: smaller classes are named in the legend only


@dataclass(frozen=True)
class Entry:
    """One class of a picture.

    Args:
        index: Position of the class in the model's output.
        name: What it is called.
        share: Of the picture, from 0 to 1.
        colour: Red, green, blue.
    """

    index: int
    name: str
    share: float
    colour: tuple[int, int, int]


def reduced_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height in which a picture of (width, height) is drawn."""
    scale = min(1.0, (MAX_DRAWN / (size[0] * size[1])) ** 0.5)
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def overlay_of(
    image: Any,
    mask: np.ndarray,
    palette: np.ndarray,
    opacity: float = 0.6,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """A mask over its picture, in the picture's size, or smaller where that is above `MAX_DRAWN`.

    The picture is shown in grey, so that all colour is that of the classes; in a picture of 480
    pixels or more a line goes between them.

    Args:
        image: As of `images.decode.open_image`.
        mask: (H, W) of the picture, numbers of classes.
        palette: (classes, 3), uint8.
        opacity: Of the colours, from 0 to 1.
        max_pixels: Largest height x width of the picture.

    Returns:
        RGB.

    Raises:
        ValueError: An argument is not allowed, or the mask is not of the picture's size.
        ImageError: The picture cannot be read.
    """
    if not is_number(opacity) or not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must be from 0 to 1. Received: opacity={opacity!r}")
    picture = open_image(image, max_pixels)
    if mask.shape != picture.size[::-1]:
        raise ValueError(
            f"`mask` must be of the picture's size, {picture.width} x {picture.height}. Received: "
            f"{' x '.join(map(str, mask.shape[::-1]))}"
        )
    size = reduced_size(picture.size)
    grey = picture.convert("L")
    if size != picture.size:
        grey = grey.resize(size, Image.Resampling.BOX)
        mask = mask[_nearest(size[1], mask.shape[0])][:, _nearest(size[0], mask.shape[1])]
    made = Image.new("RGB", size)
    for start, stop in _strips(size):
        shade = Image.fromarray(palette[mask[start:stop]])
        strip = grey.crop((0, start, size[0], stop)).convert("RGB")
        made.paste(Image.blend(strip, shade, opacity), (0, start))
    if max(size) >= _LEAST:  # the pixels of smaller ones would hardly be seen any more
        _draw_borders(made, mask)
    return made


def _strips(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    rows = max(1, _STRIP // size[0])
    return ((start, min(start + rows, size[1])) for start in range(0, size[1], rows))


def _nearest(count: int, there: int) -> np.ndarray:
    return (np.arange(count) * there) // count


def _draw_borders(picture: Image.Image, mask: np.ndarray) -> None:
    """A line between classes; the mask is of the picture's size."""
    line = max(1, round(min(picture.size) / 500))
    for start, stop in _strips(picture.size):
        ends = _ends(mask[start : stop + line], line)[: stop - start]
        picture.paste(PAPER, (0, start), Image.fromarray(ends))


def _ends(mask: np.ndarray, width: int) -> np.ndarray:
    """Where another class begins within so many pixels to the right or below."""
    found = np.zeros(mask.shape, bool)
    found[:, :-width] |= mask[:, :-width] != mask[:, width:]
    found[:-width] |= mask[:-width] != mask[width:]
    return found


def with_legend(
    picture: Image.Image,
    mask: np.ndarray,
    entries: Sequence[Entry],
    title: str,
    lines: Sequence[str] = (),
) -> Image.Image:
    """A picture of `overlay_of` with names on its larger classes, and below it a legend.

    Args:
        picture: What `overlay_of` gave; of less than 480 pixels it is enlarged by a whole number.
        mask: (H, W), numbers of classes.
        entries: The classes that are there, the largest first.
        title: What stands above the legend.
        lines: More, each on a line of its own.
    """
    scale = max(1, -(-_LEAST // max(picture.size)))
    if scale > 1:
        size = picture.width * scale, picture.height * scale
        picture = picture.resize(size, Image.Resampling.NEAREST)
        _draw_borders(picture, mask.repeat(scale, axis=0).repeat(scale, axis=1))
    else:
        picture = picture.copy()
    unit = max(14, round(min(picture.width, 2 * picture.height) / 56))
    _write_names(picture, mask, entries, unit)
    width = max(picture.width, _NARROW)
    strip = _legend(entries, title, lines, width, unit)
    made = Image.new("RGB", (width, picture.height + strip.height), PAPER)
    made.paste(picture, (0, 0))
    made.paste(strip, (0, picture.height))
    return made


def _write_names(
    picture: Image.Image, mask: np.ndarray, entries: Sequence[Entry], unit: int
) -> None:
    """Each large class's name where it is widest, if there is room that no other name has."""
    draw = ImageDraw.Draw(picture)
    down, across = (min(_GRID, side) for side in mask.shape)
    grid = mask[_nearest(down, mask.shape[0])][:, _nearest(across, mask.shape[1])]
    taken: list[tuple[float, float, float, float]] = []
    for one in entries:
        if one.share < _NAMED_FROM:
            break
        place = _deepest(grid == one.index)
        if place is None:
            continue
        row, column = place
        ((text, font),) = wrapped(one.name.split(",")[0][:_LONGEST], unit, picture.width)[:1]
        width, height = font.getlength(text), 1.3 * unit
        x = (column + 0.5) / across * picture.width - width / 2
        y = (row + 0.5) / down * picture.height - height / 2
        x = min(max(x, unit / 2), picture.width - width - unit / 2)
        y = min(max(y, unit / 4), picture.height - height - unit / 4)
        box = (x, y, x + width, y + height)
        if x < 0 or any(_overlap(box, other) for other in taken):
            continue
        taken.append(box)
        draw.text((x, y), text, PAPER, font, stroke_width=max(2, unit // 8), stroke_fill=INK)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _deepest(inside: np.ndarray) -> tuple[int, int] | None:
    """A cell of a region that is as far from its border as any: peeled until nothing is left.

    None of one that is scattered, or narrow everywhere: no place stands for it.
    """
    left, depth = inside, 0
    while left.any():
        inside, depth = left, depth + 1
        edge = np.pad(left, 1)
        left = left & edge[:-2, 1:-1] & edge[2:, 1:-1] & edge[1:-1, :-2] & edge[1:-1, 2:]
    if depth < 2:
        return None
    rows, columns = np.nonzero(inside)
    middle = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    return int(rows[middle]), int(columns[middle])


def _percent(share: float) -> str:
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _legend(
    entries: Sequence[Entry], title: str, lines: Sequence[str], width: int, unit: int
) -> Image.Image:
    """Words, and for each class its colour, its name and its share of the picture."""
    margin, step = unit, round(1.6 * unit)
    room = max(width - 2 * margin, 1)
    words = [(*line, INK) for line in wrapped(title[:_LONGEST], round(1.2 * unit), room)]
    words += [(*line, QUIET) for one in lines for line in wrapped(one, unit, room)]
    named = list(entries[:_MOST_NAMED])
    columns = max(1, min(room // (_ENTRY * unit), len(named)))
    rows = -(-len(named) // columns)
    more = entries[_MOST_NAMED:]
    height = margin + step * (len(words) + rows + bool(more)) + margin
    made = Image.new("RGB", (width, height), PAPER)
    draw, y = ImageDraw.Draw(made), margin // 2
    for text, font, colour in words:
        draw.text((margin, y), text, colour, font)
        y += step
    y += margin // 2
    cell, side = room // columns, round(1.15 * unit)
    for i, one in enumerate(named):
        x, top = margin + i // rows * cell, y + i % rows * step
        draw.rectangle((x, top, x + side, top + side), one.colour, ink_on(np.array(one.colour)))
        share = _percent(one.share)
        small = font_of_size(unit)
        space = max(cell - side - margin - small.getlength(share) - unit, 1)
        text, font = wrapped(one.name[:_LONGEST], unit, int(space))[0]
        draw.text((x + side + unit // 2, top), text, INK, font)
        at = x + cell - margin - small.getlength(share)
        draw.text((at, top), share, QUIET, small)
    if more:
        rest = sum(one.share for one in more)
        what = "1 more class" if len(more) == 1 else f"{len(more)} more classes"
        said = f"and {what}, {_percent(rest)}"
        draw.text((margin, y + rows * step), said, QUIET, font_of_size(unit))
    return made
