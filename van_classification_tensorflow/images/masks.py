"""Masks of strangers: PNGs whose pixels are numbers of classes, not colours.

A palette is what such a picture looks like; its numbers are what is meant.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from ..support.files import open_regular
from ..support.text import printable
from . import png
from .decode import MAX_PIXELS, ImageError, kind_of

# Pillow makes of few bits of grey brightness up to 255; the number itself is meant.
_STEPS = {1: 255, 2: 85, 4: 17}
_WIDE = ("I", "I;16", "I;16B", "I;16L")


def open_mask(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The numbers of a mask: (H, W), uint8 or uint16.

    Args:
        path: A PNG with a palette, or grey with 1 to 16 bits.
        max_pixels: Largest height x width accepted.

    Raises:
        ImageError: It is something else, damaged or too large; names it and the reason.
        OSError: The file cannot be opened.
    """
    name = printable(path)
    try:
        with open_regular(path) as file:
            return _numbers(file, max_pixels)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except MemoryError as error:
        raise ImageError(f"{name}: too large for the memory") from error
    except OSError as error:
        if error.strerror:  # of the system, which names the file
            raise
        raise ImageError(f"{name}: damaged: {printable(str(error))[:150]}") from error
    except Exception as error:  # of the reader: a folder, SyntaxError, struct.error, EOFError, ...
        raise ImageError(f"{name}: {printable(str(error))[:150]}") from error


def _numbers(file: Any, max_pixels: int) -> np.ndarray:
    head = file.read(29)
    kind = kind_of(head)
    if kind != "PNG":
        raise ImageError(f"a mask must be a PNG, whose numbers are exact. It is {kind or 'none'}")
    bits, colour = head[24:26].ljust(2, b"\0")
    if colour not in (0, 3):
        raise ImageError(
            "a mask must hold numbers of classes: a PNG with a palette, or grey. It has colours"
        )

    def check_size(width: int, height: int) -> None:
        if width * height > max_pixels:
            raise ImageError(f"{width} x {height} pixels; allowed: {max_pixels:,} in all")

    def check_frames(count: int) -> None:
        if count > 1:
            raise ImageError(f"{count:,} frames; a mask has one")

    image = PngImagePlugin.PngImageFile(png.essential(file, check_size, check_frames))
    image.load()
    if image.mode in _WIDE:
        return np.asarray(image).astype(np.uint16)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode not in ("P", "L"):
        raise ImageError(f"a mask must be grey or have a palette. It is {image.mode}")
    found = np.array(image)
    if image.mode == "L" and bits in _STEPS:
        found //= _STEPS[bits]
    return found


def mask_image(mask: np.ndarray, palette: np.ndarray) -> Image.Image:
    """A mask as a picture that is saved as a PNG whose pixels are its numbers.

    Args:
        mask: (H, W), uint8; or uint16, which is grey: a palette has 256 colours.
        palette: (classes, 3), uint8.

    Returns:
        Mode "P" with the palette, or "I;16".
    """
    if mask.dtype == np.uint16:
        return Image.fromarray(mask)
    image = Image.fromarray(mask, "L")
    image.putpalette(np.ascontiguousarray(palette[:256]).tobytes())
    return image
