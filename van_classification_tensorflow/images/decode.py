"""Picture files from strangers -> upright 8-bit pictures, as a viewer would show them.

Decoded by Pillow, within limits that hold before anything is decoded.
"""

from __future__ import annotations

import ctypes
import io
import logging
import math
import os
import struct
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    ImagePalette,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from ..support.files import open_regular
from ..support.text import printable
from . import png as png_file
from . import tiff as tiff_file

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
)
# TIFFs by their first bytes, with a thumbnail as the first page.
_CAMERA_RAW = (
    *(".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".nef"),
    *(".nrw", ".pef", ".sr2", ".srf", ".srw"),
)
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
            return _decoded(printable(source), lambda: _upright_8_bit(_open(file, max_pixels)))
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = io.BytesIO(source)
        name = f"{len(data.getbuffer()):,} bytes"
        return _decoded(name, lambda: _upright_8_bit(_open(data, max_pixels)))
    if isinstance(source, Image.Image):
        name = printable(getattr(source, "filename", "") or "the picture")
        return _decoded(name, lambda: _copied(source, max_pixels))
    if isinstance(source, np.ndarray):
        return _decoded(
            "the array", lambda: _upright_8_bit(_checked(_from_array(source), max_pixels))
        )
    raise ImageError(
        "a picture must be a path, bytes, a PIL image or a uint8 array. "
        f"Received: {type(source).__name__}"
    )


def is_one(images: Any) -> bool:
    """Whether it is one picture, as `open_image` takes them, and not several.

    A stack (N, H, W) of grey ones is several.
    """
    if isinstance(images, np.ndarray):
        return images.ndim < 3 or (images.ndim == 3 and images.shape[2] in (1, 3, 4))
    return isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image))


def _regular_file(path: str | os.PathLike) -> BinaryIO:
    try:
        return open_regular(path)
    except ValueError as error:
        raise ImageError(f"{printable(path)}: {error}") from None


def _decoded(name: str, read: Callable[[], Image.Image]) -> Image.Image:
    _quiet.begin()
    try:
        return read()
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except MemoryError as error:
        raise ImageError(f"{name}: too large for the memory") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: more pixels than allowed") from error
    except Exception as error:  # Pillow: OSError, SyntaxError, struct.error, EOFError, ...
        raise ImageError(f"{name}: {_what_is_wrong(error)}") from error
    finally:
        _quiet.on = False


def kind_of(head: bytes) -> str | None:
    """Which of `FORMATS` a file is by its first `HEAD_BYTES`, or None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(png_file.HEAD):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:4] in tiff_file.HEADS:
        return "TIFF"
    # Two letters begin many a text: the size of the header that follows must be one there is.
    if head[:2] == b"BM" and _numbers("<L", head[14:18]) in _BMP_HEADERS:
        return "BMP"
    return None


HEAD_BYTES = 70
_BMP_HEADERS = {(size,) for size in (12, 16, 40, 52, 56, 64, 108, 124)}
_OTHER_KINDS = {  # what is met under a picture's name
    b"<!doc": "a web page",
    b"<html": "a web page",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file",
    b"{": "a JSON file",
    b"%PDF": "a PDF file",
    b"8BPS": "a Photoshop file",
    b"\0\0\1\0": "an icon",
    b"PK\3\4": "a zip archive",
    b"\x93NUMPY": "a NumPy array",
    b"version https://git-lfs": "a pointer of Git LFS",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 picture",
    b"\xffO\xffQ": "a JPEG 2000 picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture",
    b"\xff\x0a": "a JPEG XL picture",
}


def is_picture(path: str) -> bool:
    """Whether a file begins as one of `FORMATS` does, whatever its name.

    False of one that cannot be read, of what is no file, and of a camera's raw data.
    """
    if path.lower().endswith(_CAMERA_RAW):
        return False
    try:
        with _regular_file(path) as file:
            return kind_of(file.read(HEAD_BYTES)) is not None
    except (ImageError, OSError):
        return False


def other_kind(head: bytes) -> str:
    """What a file is that is none of `FORMATS`, with a comma; "" where that is not known."""
    if head[4:8] == b"ftyp":
        named = {b"avif": "an AVIF picture", b"avis": "an AVIF picture"}
        heif = head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc")
        return ("a HEIC picture" if heif else named.get(head[8:12], "a film")) + ", "
    begins = head.lstrip().lower()
    kinds = (kind for start, kind in _OTHER_KINDS.items() if begins.startswith(start.lower()))
    return next((f"{kind}, " for kind in kinds), "")


def _open(file: BinaryIO, max_pixels: int) -> Image.Image:
    head = file.read(HEAD_BYTES)
    if not head:
        raise ImageError("empty")
    kind = kind_of(head)
    if kind is None:
        raise ImageError(f"{other_kind(head)}not a picture of {', '.join(FORMATS)}")
    max_pixels = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
    about = kind
    if kind == "GIF":
        _check_gif(file, max_pixels)
    elif kind == "WEBP":
        _check_length(file, max_pixels)
    elif kind == "PNG":
        file = _png(file, max_pixels)
    elif kind == "TIFF":
        about = str(_layout(file))
    elif kind == "BMP" and head[30:34] == b"\3\0\0\0" and head[54:66] == bytes(12):
        raise ImageError("BMP: it does not say where its colours are")  # Pillow would guess
    file.seek(0)
    try:
        image = _READERS[kind](file, "")
    except (MemoryError, Image.DecompressionBombError):
        raise
    except Exception as error:
        raise ImageError(f"{about}: {_what_is_wrong(error)}") from error
    # Of the others Pillow would walk through all frames to count them.
    if image.format in ("WEBP", "MPO"):
        _check_frames(getattr(image, "n_frames", 1))
    _checked(image, max_pixels)
    if kind == "PNG":
        _see_through(image, file)
    elif kind == "BMP":
        _amend_bmp(image, head)
    return image


# Not `Image.open`, which has one sentence for everything that is wrong.
_READERS: dict[str, Callable[..., Image.Image]] = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": tiff_file.TiffFile,
}


def _png(file: BinaryIO, max_pixels: int) -> BinaryIO:
    def check_size(width: int, height: int) -> None:
        _check_size(width, height, max_pixels)

    try:
        return png_file.essential(file, check_size, _check_frames)
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(f"PNG, {error}") from error


def _see_through(image: Any, file: Any) -> None:
    """A PNG's transparent colour of 3 x 16 bits, of which Pillow would compare the upper 8 only.

    It has no mode for such numbers: the lower 8 are decoded as a picture of their own.
    """
    colour = image.info.get("transparency")
    if image.tile[0].args != "RGB;16B" or not isinstance(colour, tuple):
        return
    lower: Any = PngImagePlugin.PngImageFile(io.BytesIO(file.getvalue()))
    lower.tile = [lower.tile[0]._replace(args="RGB;16L")]
    _load(lower)
    _load(image)
    meant = np.array(colour)
    is_it = (np.asarray(image) == meant >> 8) & (np.asarray(lower) == meant & 255)
    image.putalpha(Image.fromarray(np.where(is_it.all(axis=2), 0, 255).astype(np.uint8)))
    del image.info["transparency"]


def _amend_bmp(image: Any, head: bytes) -> None:
    """Mends a BMP of 4 or 8 bits whose palette is black and white or the darkest greys.

    Pillow takes such a picture for one of 1 or 8 bits a pixel, without a palette.
    """
    bits = _numbers("<H", head[24:26] if head[14] == 12 else head[28:30])
    if (image.mode, bits) not in (("1", (4,)), ("1", (8,)), ("L", (4,))) or not image.tile:
        return
    greys = (0, 255) if image.mode == "1" else range(16)
    image._mode = "P"
    image.palette = ImagePalette.raw("RGB", bytes(grey for grey in greys for _ in range(3)))
    tile = image.tile[0]
    rawmode = "P;4" if bits == (4,) and tile.codec_name == "raw" else "P"
    image.tile = [tile._replace(args=(rawmode, *tile.args[1:]))]


def _layout(file: BinaryIO) -> tiff_file.Layout:
    """The layout of a TIFF's first page, if Pillow can decode it rightly."""
    try:
        layout, pages = tiff_file.read_layout(file, MAX_FRAMES)
    except ValueError as error:
        raise ImageError(f"TIFF, damaged: {error}") from error
    _check_frames(pages)
    if reason := layout.misread():
        raise ImageError(f"{layout}: {reason}; {_SAVE_AGAIN}")
    return layout


_NO_LAYOUT = ("unknown pixel mode", "unknown data organization", "samples per pixel")
_SAVE_AGAIN = "save it as grey or RGB with 8 or 16 bits"


def _what_is_wrong(error: Exception) -> str:
    """Pillow's words for what it cannot read, one line."""
    reason = " ".join(printable(str(error) or type(error).__name__).split())[:150]
    if reason.isdigit() or any(words in reason for words in _NO_LAYOUT):  # a compression's number
        return f"not a layout that can be read; {_SAVE_AGAIN}"
    if "nsupported" in reason:
        return reason
    if "truncated" in reason or isinstance(error, EOFError):
        return f"cut short: {reason}"
    return f"damaged: {reason}"


# One picture of the caller's may be decoded by several threads; Pillow loads it only once.
_CALLERS = threading.Lock()


def _copied(image: Any, max_pixels: int) -> Image.Image:
    with _CALLERS:
        _checked(image, max_pixels)
        is_whole_file = isinstance(image, ImageFile.ImageFile) and image.format in FORMATS
        if not (is_whole_file and image.tile and image.fp and image.tell() == 0):
            return _upright_8_bit(image.copy())
        # Not decoded yet: by the same way as a file, which knows what Pillow reads wrong.
        before = image.fp.tell()
        image.fp.seek(0)
        try:
            return _upright_8_bit(_open(image.fp, max_pixels))
        finally:
            image.fp.seek(before)


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
    """Refuses a WEBP file that is too long: Pillow reads it whole before it looks at it."""
    length, allowed = file.seek(0, os.SEEK_END), 8 * max_pixels + 65_536
    if length > allowed:
        raise ImageError(f"{length:,} bytes; allowed for a WEBP: {allowed:,}")


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


# Where Pillow looks for a picture's orientation.
_SAY_HOW_IT_LIES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


def _upright_8_bit(image: Image.Image) -> Image.Image:
    rawmode = str(image.tile[0][3]) if getattr(image, "tile", None) else ""  # before it is loaded
    kind = image.format
    _load(image)
    tags = dict(getattr(image, "tag_v2", {}))
    if image.mode in ("P", "PA"):
        tiff_file.amend_palette(image, tags.get(320, ()))
    transparency = _transparency(image.info.get("transparency"), rawmode)
    with suppress(Exception):  # damaged EXIF data: a viewer shows the picture as it lies
        turn = _TURNS.get(image.getexif().get(0x0112))
        if turn is not None:
            image = image.transpose(turn)
            for name in _SAY_HOW_IT_LIES:  # no more: who is given it would turn it again
                image.info.pop(name, None)
    is_signed = image.mode == "L" and tags.get(339) == (2,)
    if is_signed or image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _to_8_bit(image, tags, transparency)
    if image.mode == "La":
        image = image.convert("LA")
    if kind == "BMP" and image.mode == "RGBA" and image.getextrema()[3] == (0, 0):
        return image.convert("RGB")  # as viewers do: its writer left the fourth byte empty
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


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except (MemoryError, Image.DecompressionBombError):
        raise
    except Exception as error:
        kind = "JPEG" if image.format == "MPO" else image.format or "picture"
        about = f"{kind}, {image.width} x {image.height}, {image.mode}"
        raise ImageError(f"{about}: {_what_is_wrong(error)}") from error


def _transparency(colour: Any, rawmode: str) -> Any:
    """A PNG's transparent colour in the 8 bits that Pillow makes of its samples, not in its own."""
    if rawmode in ("1", "L;2", "L;4"):
        largest = {"1": 1, "L;2": 3, "L;4": 15}[rawmode]
        return colour if not isinstance(colour, int) else min(colour, largest) * 255 // largest
    if rawmode == "RGB;16B" and isinstance(colour, tuple):
        return tuple(value >> 8 for value in colour)
    return colour


def _to_8_bit(image: Image.Image, tags: dict[int, Any], transparency: Any) -> Image.Image:
    """The 8-bit picture of a grey one with more than 8 bits a pixel, or with signed ones.

    16 bits: the upper 8. Wider whole numbers: as they are up to 255, the upper 8 of 16 up to
    65,535; floats from 0 to 1: of 255. Others have no scale: stretched from theirs.
    """
    array = np.asarray(image)
    if image.mode == "L":
        array = array.view(np.int8)  # Pillow takes -1 for 255
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
    """Keeps libtiff from printing its errors on stderr; Pillow raises them as well."""
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
