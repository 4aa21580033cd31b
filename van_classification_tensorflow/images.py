"""Picture files from strangers -> upright 8-bit pictures, as a viewer would show them.

Decoded by Pillow, within limits that hold before anything is decoded.
"""

from __future__ import annotations

import ctypes
import io
import logging
import math
import os
import stat
import struct
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 50_000_000
MAX_FRAMES = 1_000  # more is a video, and a way to keep a reader busy


class ImageError(ValueError):
    """A picture that cannot be read; the message names it and the reason."""


def open_image(source: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens, checks, decodes and turns a picture upright.

    Args:
        source: A path; the bytes of a picture file; a PIL image; or an array of uint8,
            (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA.
        max_pixels: Largest height x width accepted.

    Returns:
        Mode "RGB", or "L" for a grey picture without transparency; the first frame of an
        animation, transparency on white, 16 bits a channel reduced to the upper 8.

    Raises:
        ImageError: It is no picture of `FORMATS`, damaged, cut short, or too large.
        OSError: The file cannot be opened.
    """
    if isinstance(source, (str, os.PathLike)):
        with _regular_file(source) as file:
            return _decoded(printable(source), lambda: _open(file, max_pixels))
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = io.BytesIO(source)
        return _decoded(f"{len(data.getbuffer()):,} bytes", lambda: _open(data, max_pixels))
    if isinstance(source, Image.Image):
        name = printable(getattr(source, "filename", "") or "the picture")
        return _decoded(name, lambda: _copied(source, max_pixels))
    if isinstance(source, np.ndarray):
        return _decoded("the array", lambda: _checked(_from_array(source), max_pixels))
    raise ImageError(
        "a picture must be a path, bytes, a PIL image or a uint8 array. "
        f"Received: {type(source).__name__}"
    )


def _regular_file(path: str | os.PathLike) -> BinaryIO:
    try:
        # Asked before and after: to open a device or a named pipe already does something.
        info = os.stat(path)
        if stat.S_ISREG(info.st_mode):
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            file = open(os.open(path, flags), "rb")  # noqa: SIM115
            info = os.fstat(file.fileno())
            if stat.S_ISREG(info.st_mode):
                return file
            file.close()
    except ValueError:  # a NUL, or a lone surrogate
        raise ImageError(f"{printable(path)}: not a name that a file can have") from None
    kind = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
    raise ImageError(f"{printable(path)}: {kind}")


def printable(path: Any) -> str:
    """A path as it may be printed: whatever bytes it has, one line, no control characters."""
    text = os.fsdecode(os.fspath(path))
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _decoded(name: str, read: Callable[[], Image.Image]) -> Image.Image:
    _quiet.begin()
    try:
        return _upright_8_bit(read())
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except MemoryError as error:
        raise ImageError(f"{name}: too large for the memory") from error
    except Exception as error:  # Pillow: OSError, SyntaxError, struct.error, EOFError, ...
        reason = " ".join(printable(str(error) or type(error).__name__).split())
        raise ImageError(f"{name}: damaged: {reason[:200]}") from error
    finally:
        _quiet.on = False


def _open(file: BinaryIO, max_pixels: int) -> Image.Image:
    head = file.read(16)
    if not head:
        raise ImageError("empty")
    if head.startswith(b"GIF8"):
        _check_gif(file, max_pixels)
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        _check_length(file, max_pixels)
    elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _check_tiff_pages(file)
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        allowed = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise ImageError(f"more pixels than the {allowed:,} allowed") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"not a picture of {', '.join(FORMATS)}") from error
    # Of the others Pillow would walk through all frames to count them.
    if image.format in ("WEBP", "PNG", "MPO"):
        _check_frames(getattr(image, "n_frames", 1))
    return _checked(image, max_pixels)


# One picture of the caller's may be decoded by several threads; Pillow loads it only once.
_CALLERS = threading.Lock()


def _copied(image: Image.Image, max_pixels: int) -> Image.Image:
    with _CALLERS:
        return _checked(image, max_pixels).copy()


def _checked(image: Image.Image, max_pixels: int) -> Image.Image:
    width, height = image.size
    _check_size(width, height, max_pixels)
    return image


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} pixels; allowed: {max_pixels:,} in all")
    if not width or not height:
        raise ImageError(f"{width} x {height} pixels: empty")


def _check_frames(count: int) -> None:
    if count > MAX_FRAMES:
        raise ImageError(f"{count:,} frames or more; allowed: {MAX_FRAMES:,}")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(f"its numbers must be uint8, 0 to 255. Received: {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not array.size:
        raise ImageError(f"empty: its shape is {array.shape}")
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ImageError(
            f"its shape must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). Received: {array.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _check_gif(file: BinaryIO, max_pixels: int) -> None:
    """The size of the first frame, and how many there are, by their headers.

    Pillow fills the first frame's area before its size can be asked for.
    """
    file.seek(0)
    header = file.read(13)
    width, height = _numbers("<2H", header[6:10]) or (0, 0)
    _skip_colours(file, header[10:11])
    frames = 0
    while (kind := file.read(1)) in (b"!", b","):
        if kind == b"!":
            file.read(1)
        else:
            frames += 1
            _check_frames(frames)
            frame = file.read(9)
            x, y, across, down = _numbers("<4H", frame[:8]) or (0, 0, 0, 0)
            if frames == 1:
                _check_size(max(width, x + across), max(height, y + down), max_pixels)
            _skip_colours(file, frame[8:9])
            file.read(1)
        while length := file.read(1):
            if length == b"\0":
                break
            file.seek(length[0], os.SEEK_CUR)


def _skip_colours(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << ((flags[0] & 7) + 1), os.SEEK_CUR)


def _check_length(file: BinaryIO, max_pixels: int) -> None:
    """Of a WEBP, which Pillow reads whole before it looks at it."""
    length, allowed = file.seek(0, os.SEEK_END), 8 * max_pixels + 65_536
    if length > allowed:
        raise ImageError(f"{length:,} bytes; allowed for a WEBP: {allowed:,}")


def _check_tiff_pages(file: BinaryIO) -> None:
    """Counts pages along the chain of their directories, no further than the limit."""
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    entry = 20 if big else 12
    count, offset = (order + "Q", order + "Q") if big else (order + "H", order + "L")
    following = _numbers(offset, head[8:16] if big else head[4:8])
    seen: set[int] = set()
    while following and following[0] and following[0] not in seen and following[0] < 1 << 62:
        seen.add(following[0])
        _check_frames(len(seen))
        file.seek(following[0])
        entries = _numbers(count, file.read(struct.calcsize(count)))
        if entries is None or entries[0] > 1 << 32:
            return
        file.seek(entry * entries[0], os.SEEK_CUR)
        following = _numbers(offset, file.read(struct.calcsize(offset)))


def _numbers(layout: str, data: bytes) -> tuple[int, ...] | None:
    """What `struct` reads, or None where the file has ended."""
    return struct.unpack(layout, data) if len(data) == struct.calcsize(layout) else None


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright_8_bit(image: Image.Image) -> Image.Image:
    rawmode = str(image.tile[0][3]) if getattr(image, "tile", None) else ""  # before it is loaded
    image.load()
    tags = dict(getattr(image, "tag_v2", {}))
    transparency = _transparency(image.info.get("transparency"), rawmode)
    with suppress(Exception):  # damaged EXIF data: a viewer shows the picture as it lies
        turn = _TURNS.get(image.getexif().get(0x0112))
        image = image if turn is None else image.transpose(turn)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _to_8_bit(image, tags, transparency)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or transparency is not None:
        if transparency is not None:
            image = image if image.mode != "1" else image.convert("L")
            image.info["transparency"] = transparency
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image  # not `convert`, which would copy it
    return image.convert("L" if image.mode == "1" else "RGB")


def _transparency(colour: Any, rawmode: str) -> Any:
    """A PNG's transparent colour in the 8 bits that Pillow makes of its samples, not in its own."""
    if rawmode in ("1", "L;2", "L;4"):
        largest = {"1": 1, "L;2": 3, "L;4": 15}[rawmode]
        return colour if not isinstance(colour, int) else min(colour, largest) * 255 // largest
    if rawmode == "RGB;16B" and isinstance(colour, tuple):
        return tuple(value >> 8 for value in colour)
    return colour


def _to_8_bit(image: Image.Image, tags: dict[int, Any], transparency: Any) -> Image.Image:
    """More than 8 bits a pixel, grey.

    16 bits: the upper 8. Wider whole numbers: as they are up to 255, the upper 8 of 16 up to
    65,535; floats from 0 to 1: of 255. Others have no scale: stretched from theirs.
    """
    array = np.asarray(image)
    inverted = tags.get(262) == 0  # WhiteIsZero
    if image.mode.startswith("I;16"):
        shift = 4 if tags.get(258) == (12,) else 8
        eight = (array >> shift).astype(np.uint8)
        if isinstance(transparency, int):
            eight[array == transparency] = 255
        return Image.fromarray(255 - eight if inverted else eight)
    if tags.get(258) == (32,) and tags.get(339, (1,)) == (1,):
        array = array.view(np.uint32)  # Pillow has no unsigned mode
    low, high = float(np.nanmin(array)), float(np.nanmax(array))
    if not math.isfinite(low) or not math.isfinite(high):
        raise ImageError("its numbers are not finite")
    start, largest = 0.0, (1.0 if image.mode == "F" else 255.0 if high < 256 else 65_280.0)
    if low < 0 or high > (1.0 if image.mode == "F" else 65_535.0):
        start, largest = low, high - low or 1.0
    scaled = array.astype(np.float64)
    scaled -= start
    scaled *= 255 / largest
    np.nan_to_num(scaled, copy=False)
    if largest == 65_280.0:
        np.floor(scaled, out=scaled)
    else:
        np.rint(scaled, out=scaled)
    eight = scaled.astype(np.uint8)
    return Image.fromarray(255 - eight if inverted else eight)


class _Quiet(threading.local):
    """Keeps Python's warnings from being shown in a thread while it decodes, and in no other.

    Pillow warns of every oddity of a file, with its own place in the code and not the file's
    name. `warnings.catch_warnings` would silence all threads, and end in the wrong order.
    """

    on = False

    def begin(self) -> None:
        if not warnings.filters or warnings.filters[0][2] is not _WhileDecoding:
            warnings.simplefilter("ignore", _WhileDecoding)  # first again, if it was there
        self.on = True


class _AnyWhileDecoding(type):
    def __subclasscheck__(cls, subclass: type) -> bool:
        return _quiet.on


class _WhileDecoding(Warning, metaclass=_AnyWhileDecoding):
    """Every category of warning is one of these while `_quiet.on`, otherwise none is."""


_quiet = _Quiet()
# Pillow logs some of them as errors, which Python prints where a program has no logging.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def _hush_libtiff() -> Any:
    """The same for libtiff, which prints its errors on stderr; Pillow raises them as well."""
    kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
    try:
        set_handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError):  # Pillow has none, or has it built in
        return None
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p

    @kind
    def handler(module, text, values):
        if before and not _quiet.on:
            kind(before)(module, text, values)

    before = set_handler(ctypes.cast(handler, ctypes.c_void_p))
    return handler


_handler = _hush_libtiff()  # kept: libtiff calls it from now on
