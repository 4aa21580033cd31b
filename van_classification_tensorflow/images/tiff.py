"""TIFF files: what the first page says of its pixels, and layouts that Pillow would read wrong.

Pillow has two decoders for them: its own for uncompressed pixels, and libtiff.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin

HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

(
    _BITS,
    _COMPRESSION,
    _PHOTOMETRIC,
    _FILL_ORDER,
    _SAMPLES,
    _PLANES,
    _PREDICTOR,
    _TILE_WIDTH,
    _INKS,
    _EXTRA,
    _FORMAT,
) = _TAGS = (258, 259, 262, 266, 277, 284, 317, 322, 332, 338, 339)
_WHOLE = {1: "B", 3: "H", 4: "L", 16: "Q"}  # types of numbers
_MOST = 64  # values of a tag, and so samples, that are looked at

_COLOURS = {
    0: "grey (white is 0)",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "camera raw",
    34892: "camera raw",
}
_NUMBERS = {1: "bits", 2: "bits (signed)", 3: "bits (float)", 6: "bits (complex)"}
_COMPRESSIONS = {
    1: "uncompressed",
    2: "CCITT",
    3: "CCITT",
    4: "CCITT",
    5: "LZW",
    6: "JPEG",
    7: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_PREDICTED = (5, 8, 32946, 34925, 50000)  # the compressions that a predictor belongs to


@dataclass(frozen=True)
class Layout:
    """How the pixels of a page lie in the file, as far as it says so.

    Args:
        tags: Number of a tag -> its values, of those looked at.
    """

    tags: Mapping[int, tuple[int, ...]]

    def one(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        return (self.tags.get(tag) or (default,))[0]

    @property
    def samples(self) -> int:
        """Numbers in a pixel."""
        return self.one(_SAMPLES, len(self.tags.get(_BITS, (1,))))

    @property
    def in_planes(self) -> bool:
        """Whether the samples of a pixel lie apart."""
        return self.one(_PLANES, 1) == 2 and self.samples > 1

    def __str__(self) -> str:
        colours = self.one(_PHOTOMETRIC, -1)
        bits = self.tags.get(_BITS, (1,))
        count = "1 sample" if self.samples == 1 else f"{self.samples:,} samples"
        numbers = _NUMBERS.get(self.one(_FORMAT, 1), "bits (untyped)")
        compression = self.one(_COMPRESSION, 1)
        parts = [
            _COLOURS.get(colours, f"colours of kind {colours}" if colours >= 0 else "no colours"),
            f"{count} of {'/'.join(map(str, sorted(set(bits))[:3]))} {numbers}",
            "in separate planes" if self.in_planes else "",
            _COMPRESSIONS.get(compression, f"compression {compression}"),
        ]
        return "TIFF, " + ", ".join(filter(None, parts))

    def misread(self) -> str | None:
        """Why Pillow would decode other pixels than those that are meant, or None."""
        colours, extra = self.one(_PHOTOMETRIC, -1), self.tags.get(_EXTRA, ())
        bits = self.one(_BITS, 1)
        if colours < 0:
            return "it does not say which colours its numbers mean"
        if self.one(_PREDICTOR, 1) != 1 and self.one(_COMPRESSION, 1) not in _PREDICTED:
            return "a predictor where the compression has none"
        if colours == 5 and self.one(_INKS, 1) != 1:
            return "inks that are not CMYK"
        if self.one(_COMPRESSION, 1) == 1 and self.one(_TILE_WIDTH, 16) * bits % 8:
            return "tiles that end within a byte"
        if self.in_planes and colours == 8:
            return "CIELab in separate planes"
        # Its alpha would be lost, and the wider numbers be taken for others.
        if self.in_planes and colours in (0, 1, 3) and (any(extra) or bits in (12, 32)):
            return "grey or palette with more samples, in separate planes"
        if self.in_planes and any(extra[:1]) and len(extra) > 1:
            return "alpha and more samples, in separate planes"
        return None


def read_layout(file: BinaryIO, max_pages: int) -> tuple[Layout, int]:
    """The first page's layout, and how many pages there are, counted no further than one too many.

    Pages are followed along the chain of their directories. A file cut short has the pages and
    the tags up to there.

    Raises:
        ValueError: A tag is there twice.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    count, offset = (order + "Q", order + "Q") if big else (order + "H", order + "L")
    entry = 20 if big else 12
    following = _numbers(offset, head[8:16] if big else head[4:8])
    tags: dict[int, tuple[int, ...]] = {}
    seen: set[int] = set()
    while following and following[0] and following[0] not in seen and following[0] < 1 << 62:
        seen.add(following[0])
        if len(seen) > max_pages:
            break
        file.seek(following[0])
        entries = _numbers(count, file.read(struct.calcsize(count)))
        if entries is None or entries[0] > 1 << 32:
            break
        start = file.tell()
        if len(seen) == 1:
            tags = _read_tags(file, min(entries[0], 4096), order, entry)
        file.seek(start + entry * entries[0])
        following = _numbers(offset, file.read(struct.calcsize(offset)))
    return Layout(tags), len(seen)


def _read_tags(file: BinaryIO, count: int, order: str, entry: int) -> dict[int, tuple[int, ...]]:
    table, tags = file.read(count * entry), {}
    size = (entry - 4) // 2  # of a count, and of a value or where it is
    for at in range(0, len(table) - entry + 1, entry):
        tag, kind = struct.unpack_from(order + "HH", table, at)
        if tag not in _TAGS or kind not in _WHOLE:
            continue
        number = order + ("L" if size == 4 else "Q")
        (values,) = struct.unpack_from(number, table, at + 4)
        layout = f"{order}{min(values, _MOST)}{_WHOLE[kind]}"
        place = table[at + 4 + size : at + entry]
        if values * struct.calcsize(order + _WHOLE[kind]) > size:
            where = struct.unpack(number, place)[0]
            file.seek(min(where, 1 << 62))
            place = file.read(struct.calcsize(layout))
        found = _numbers(layout, place[: struct.calcsize(layout)])
        if tag in tags:
            raise ValueError(f"its tag {tag} is there twice")
        if found:
            tags[tag] = found
    return tags


class TiffFile(TiffImagePlugin.TiffImageFile):
    """Pillow's reader, made to decode each layout as it is meant."""

    def _setup(self) -> None:
        _prefer_libtiff(self.tag_v2)
        super()._setup()
        _in_native_order(self)


def _prefer_libtiff(tags: Any) -> None:
    """With any compression noted, Pillow leaves the file to libtiff, which sees there is none.

    Its own decoder takes planes for 8 bits each, YCbCr for not subsampled, and cannot turn the
    bits of every byte.
    """
    planes, order = tags.get(_PLANES, 1) == 2, tags.get(_FILL_ORDER, 1) == 2
    if tags.get(_COMPRESSION, 1) == 1 and (planes or order or tags.get(_PHOTOMETRIC) == 6):
        tags[_COMPRESSION] = 8


def _in_native_order(image: Any) -> None:
    """Libtiff gives numbers in the machine's byte order; Pillow would swap some of them again."""
    for i, tile in enumerate(image.tile):
        if tile.codec_name == "libtiff" and tile.args[0] in _NATIVE:
            image.tile[i] = tile._replace(args=(_NATIVE[tile.args[0]], *tile.args[1:]))


_NATIVE = {
    f"{kind}{order}{sign}": f"{kind}N{sign}"
    for kind, sign in (("I;16", "S"), ("I;32", "S"), ("F;32", "F"))
    for order in ("", "B")
}


def amend_palette(image: Image.Image, colours: tuple[int, ...]) -> None:
    """Mends a loaded picture's palette: some writers fill only 8 of the 16 bits of its colours.

    Args:
        image: Mode "P" or "PA".
        colours: The tag ColorMap: all reds, all greens, all blues.
    """
    if max(colours, default=256) < 256:
        count = len(colours) // 3
        image.putpalette(bytes(v for i in range(count) for v in colours[i : 3 * count : count]))


def _numbers(layout: str, data: bytes) -> tuple[int, ...] | None:
    """What `struct` reads, or None where the file has ended."""
    return struct.unpack(layout, data) if len(data) == struct.calcsize(layout) else None
