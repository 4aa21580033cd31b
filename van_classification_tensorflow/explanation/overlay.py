"""A map over its picture, with what belongs to it: colours, legend, contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..images.decode import open_image
from ..spec.preprocessing import Preprocessing
from ..support.checks import is_number
from ..support.lettering import INK, LINE, PAPER, QUIET, font_of_size, wrapped
from ..support.text import printable
from .methods import enlarged

# Viridis (CC0, Smith and van der Walt), every sixteenth colour: as bright as the number is large,
# for readers of every kind of colour vision and on grey paper.
_VIRIDIS = (
    "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e "
    "21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725"
)
_STOPS: np.ndarray = np.array([tuple(bytes.fromhex(one)) for one in _VIRIDIS.split()], np.float32)
_NOT_SEEN = 0.35  # of the picture's contrast is left outside the crop
CELL = 240  # pixels of a picture in a sheet
_ACROSS = 8  # of them in a line
_STRIP = 1 << 20  # pixels at a time
_LEAST = 256  # pixels; smaller pictures are enlarged by a whole number


def colours(values: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1 as colours: (...,) -> (..., 3), uint8."""
    at = np.multiply(values, len(_COLOURS) - 1, dtype=np.float32)
    return _COLOURS[np.clip(np.rint(at), 0, len(_COLOURS) - 1).astype(np.uint16)]


def _between_stops(count: int) -> np.ndarray:
    at, stops = np.linspace(0, len(_STOPS) - 1, count), np.arange(len(_STOPS))
    made = [np.interp(at, stops, _STOPS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(made, axis=1)).astype(np.uint8)


_COLOURS = _between_stops(1024)


def overlay(
    image: Any,
    map: np.ndarray,
    preprocessing: Preprocessing | None = None,
    opacity: float = 0.55,
) -> Image.Image:
    """A map of `explain` over its picture, in the picture's own size, the right way up.

    The picture is shown in grey, so that all colour is the map's.

    Args:
        image: A path, the bytes of a picture file, a PIL image or a uint8 array (H, W, 3) or
            (H, W).
        map: (h, w), from 0 to 1, of what the model saw.
        preprocessing: What it saw of the picture: outside of that crop it is faint, and the crop
            has a frame. None: all of it.
        opacity: Of the colours, from 0 to 1.

    Returns:
        RGB.

    Raises:
        ValueError: An argument is not allowed.
        ImageError: The picture cannot be read.
    """
    map = np.asarray(map)
    if map.ndim != 2 or not map.size or not np.isfinite(map).all():
        raise ValueError(f"`map` must be (h, w), finite numbers. Received: {map.shape}")
    if map.min() < 0 or map.max() > 1:
        raise ValueError(
            "`map` must be from 0 to 1, as `explain` gives it. Received: "
            f"{map.min():.3g} to {map.max():.3g}"
        )
    if not is_number(opacity) or not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must be from 0 to 1. Received: opacity={opacity!r}")
    grey = open_image(image).convert("L")
    size = grey.size
    box = whole_pixels((0, 0, *size) if preprocessing is None else preprocessing.box(*size), size)
    left, top, right, bottom = box
    faint = 255 - _NOT_SEEN * (255 - np.arange(256))
    made = grey.point([round(one) for one in faint]).convert("RGB")
    inside = grey.crop(box).convert("RGB")
    rows = max(1, _STRIP // (right - left))
    shape = bottom - top, right - left
    for start in range(0, shape[0], rows):  # a large picture needs no more memory than a small one
        part = start, min(start + rows, shape[0])
        shade = Image.fromarray(colours(_rows_of(map, shape, part)))
        strip = inside.crop((0, part[0], shape[1], part[1]))
        made.paste(Image.blend(strip, shade, opacity), (left, top + start))
    if box != (0, 0, *size):
        width = max(1, round(min(size) / 200))
        draw = ImageDraw.Draw(made)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=(255, 255, 255), width=width)
    return made


def _rows_of(map: np.ndarray, shape: tuple[int, int], rows: tuple[int, int]) -> np.ndarray:
    """Some rows of a map that is enlarged to (H, W)."""
    return enlarged(map[None].astype(np.float32), shape, rows)[0]


def whole_pixels(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The pixels of a box, at least one, within a picture of (width, height)."""
    (left, right), (top, bottom) = (
        (
            min(max(round(low), 0), most - 1),
            max(min(round(high), most), min(max(round(low), 0), most - 1) + 1),
        )
        for low, high, most in ((box[0], box[2], size[0]), (box[1], box[3], size[1]))
    )
    return left, top, right, bottom


# --- Words and legends ---


@dataclass(frozen=True)
class Caption:
    """What is said of a map.

    Args:
        title: The class.
        probability: From 0 to 1.
        lines: More, each on a line of its own: method and layer, what was not seen.
        colours: The ends of the colour bar in words; None: there is no bar.
    """

    title: str
    probability: float | None = None
    lines: Sequence[str] = ()
    colours: tuple[str, str] | None = ("nothing for the class", "most")


def with_caption(picture: Image.Image, caption: Caption) -> Image.Image:
    """The picture as it is, and below it the words and the colour bar.

    A picture of less than 256 pixels is enlarged by a whole number first (`scale_of`).
    """
    picture = _readable(picture)
    unit = max(13, round(picture.width / 32))
    strip = _strip(caption, picture.width, unit)
    made = Image.new("RGB", (picture.width, picture.height + strip.height), PAPER)
    made.paste(picture, (0, 0))
    made.paste(strip, (0, picture.height))
    return made


def scale_of(size: tuple[int, int]) -> int:
    """How many pixels a side each one of a picture of (width, height) becomes to be readable."""
    return max(1, -(-_LEAST // max(size)))


def _readable(picture: Image.Image) -> Image.Image:
    scale = scale_of(picture.size)
    size = picture.width * scale, picture.height * scale
    return picture if scale == 1 else picture.resize(size, Image.Resampling.NEAREST)


def _strip(caption: Caption, width: int, unit: int) -> Image.Image:
    margin = unit
    room = max(width - 2 * margin, 1)
    big, small = round(unit * 1.25), font_of_size(unit)
    said = caption.title
    if caption.probability is not None:
        said = f"{said}  {100 * caption.probability:.1f} %"
    # (text, font, colour, height)
    lines = [(*line, INK, round(big * 1.5)) for line in wrapped(said, big, room)]
    for one in caption.lines:
        lines += [(*line, QUIET, round(unit * 1.4)) for line in wrapped(one, unit, room)]
    height = margin + sum(line[-1] for line in lines) + round(unit * 0.35)
    bar = round(unit * 2.6) if caption.colours else round(unit * 0.3)
    made = Image.new("RGB", (width, height + bar), PAPER)
    draw = ImageDraw.Draw(made)
    y = round(margin * 0.7)
    for text, font, colour, step in lines:
        draw.text((margin, y), text, colour, font)
        y += step
    if caption.colours:
        y += round(unit * 0.2)
        shade = colours(np.linspace(0, 1, room))[None].repeat(max(unit // 2, 4), axis=0)
        made.paste(Image.fromarray(shade), (margin, y))
        y += max(unit // 2, 4) + round(unit * 0.25)
        low, high = (printable(one) for one in caption.colours)
        draw.text((margin, y), low, QUIET, small)
        draw.text((margin + room - small.getlength(high), y), high, QUIET, small)
    return made


def sheet(rows: Sequence[tuple[str, Sequence[tuple[str, Image.Image | None]]]]) -> Image.Image:
    """A contact sheet: a row for each method, a column for each class.

    Args:
        rows: (what the row is of, (what stands under a picture, the picture; None: there is none)).
            More than eight pictures take several lines.
    """
    rows = [
        (name if start == 0 else "", cells[start : start + _ACROSS])
        for name, cells in rows
        for start in range(0, len(cells), _ACROSS)
    ]
    cell, margin, unit = CELL, 16, 14
    columns = max(len(cells) for _, cells in rows)
    words = [[wrapped(text, unit, cell)[:3] for text, _ in cells] for _, cells in rows]
    thumbs = [[_thumb(one, cell) for _, one in cells] for _, cells in rows]
    line = round(unit * 1.4)
    heights = [
        line + 6 + max(one.height for one in row) + max(map(len, texts)) * line + margin
        for row, texts in zip(thumbs, words, strict=True)
    ]
    made = Image.new("RGB", (columns * (cell + margin) + margin, sum(heights) + 2 * margin), PAPER)
    draw, y = ImageDraw.Draw(made), margin
    for (name, _), row, texts, height in zip(rows, thumbs, words, heights, strict=True):
        heading, head = wrapped(name, unit + 1, made.width)[0]
        draw.text((margin, y), heading, INK, head)
        draw.line((margin, y + line, made.width - margin, y + line), LINE)
        for i, (thumb, text) in enumerate(zip(row, texts, strict=True)):
            x, top = margin + i * (cell + margin), y + line + 6
            made.paste(thumb, (x, top))
            for n, (one, font) in enumerate(text):
                draw.text((x, top + thumb.height + 3 + n * line), one, QUIET, font)
        y += height
    return made


def _thumb(picture: Image.Image | None, side: int) -> Image.Image:
    if picture is None:
        return Image.new("RGB", (side, 1), PAPER)
    scale = side / max(picture.size)
    size = tuple(max(1, round(n * scale)) for n in picture.size)
    way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return picture.resize((size[0], size[1]), way)
