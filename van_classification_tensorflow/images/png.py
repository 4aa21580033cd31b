"""PNG files: checked chunk by chunk, and handed on with what the pixels need and no more."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

HEAD = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 200_000
_MOST_EXTRA = 1 << 20  # bytes of a chunk beside the pixels, and of all that is unpacked to look
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by its kind of colour
_PIECE = 1 << 20  # bytes read at once
_UNPACKED = 1 << 16  # bytes unpacked at once
# Where programs note how the picture is turned, beside the chunk eXIf.
_KEYWORDS = (b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp")


def essential(
    file: BinaryIO,
    check_size: Callable[[int, int], None],
    check_frames: Callable[[int], None],
) -> io.BytesIO:
    """The same picture without what its pixels do not need, for a reader that would trip over it.

    Kept are the pixels, palette, transparency and orientation. Text, profiles, comments and
    animation are passed over, whatever their size, and so is a damaged chunk that a reader may
    ignore. A file that ends early is kept up to there.

    Args:
        file: The PNG.
        check_size: Called with width and height before anything else is read; may raise.
        check_frames: Called with the number of frames of an animation; may raise.

    Raises:
        ValueError: A chunk that the pixels need is damaged or unknown; names it.
    """
    kept, left, extra = io.BytesIO(HEAD), 0, _Extra(file)
    seen: set[bytes] = set()
    kept.seek(len(HEAD))
    for at, kind, length in _chunks(file):
        name = f"the chunk {kind.decode('ascii')} at byte {at:,}"
        if kind == b"acTL":
            check_frames(int.from_bytes(file.read(4), "big"))
        if (kind != b"IDAT" and kind in seen) or not extra.is_needed(at, kind, length):
            continue
        if kind == b"IHDR":
            width, height, bits, colour = struct.unpack(">2I2B", file.read(10).ljust(10, b"\0"))
            check_size(width, height)
            left = _most_packed(width, height, min(bits, 16) * _SAMPLES.get(colour, 4))
        elif not seen:
            raise ValueError(f"damaged: it begins with {name} instead of IHDR")
        if kind != b"IDAT" and length > _MOST_EXTRA:
            raise ValueError(f"damaged: {name} has {length:,} bytes")
        if kind == b"IDAT":
            left -= length
            if left < 0:
                raise ValueError(f"{name}: more bytes than its pixels can have")
        seen.add(kind)
        start = kept.tell()
        if not _copy(file, at, length, kept):
            if kind[:1].isupper() or kind == b"tRNS":
                raise ValueError(f"damaged: {name} has another checksum")
            kept.seek(start)
            kept.truncate()
    kept.seek(0)
    return kept


def _chunks(file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """(where it begins, kind, bytes of its content) of each chunk before the last."""
    at, pixels = len(HEAD), False
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(8)
        kind, length = head[4:], int.from_bytes(head[:4], "big")
        if len(head) < 8 or kind == b"IEND":
            return
        if not kind.isalpha() or length >= 1 << 31:
            if pixels:
                return  # whether there are enough, their reader will say
            raise ValueError(f"damaged: at byte {at:,}, where a chunk should begin")
        yield at, kind, length
        pixels = pixels or kind == b"IDAT"
        at += 12 + length
    raise ValueError(f"more than {_MOST_CHUNKS:,} chunks")


def _most_packed(width: int, height: int, bits: int) -> int:
    """A bound on the packed size: more bytes than any writer makes of so many pixels and bits.

    Interlaced, a picture has up to 15 rows for 8, and begins a byte with each of them.
    """
    pixels = (width + 7) * (height + 7) * bits // 8
    return 65_536 + (pixels + 16 * (height + 7)) * 5 // 4


class _Extra:
    """Tells which chunks are needed, unpacking 1 MB of text at most, however many there are.

    Args:
        file: The PNG.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.left = file, _MOST_EXTRA - 1

    def is_needed(self, at: int, kind: bytes, length: int) -> bool:
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"tRNS"):
            return True
        if kind[:1].isupper():
            name = kind.decode("ascii")
            raise ValueError(f"it needs a reader of the chunk {name}, not part of PNG")
        if length > _MOST_EXTRA:
            return False
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            return kind == b"eXIf"
        self.file.seek(at + 8)
        text = self.file.read(length)
        keyword, _, rest = text.partition(b"\0")
        if keyword not in _KEYWORDS or (kind == b"iTXt" and rest[:1] != b"\0"):
            return False
        return kind != b"zTXt" or self._unpacks(rest[1:])

    def _unpacks(self, data: bytes) -> bool:
        """Whether packed text is whole, and not more than Pillow takes."""
        packed = zlib.decompressobj()
        while data:
            some = min(self.left, _UNPACKED)
            if not some:
                return False
            self.left -= some
            try:
                found = packed.decompress(data, some)
            except zlib.error:
                return False
            self.left += some - len(found)
            data = packed.unconsumed_tail
        return True


def _copy(file: BinaryIO, at: int, length: int, kept: io.BytesIO) -> bool:
    """Copies a chunk, and says whether its checksum is right; one cut short has none."""
    file.seek(at)
    kept.write(file.read(4))
    checksum, left = 0, length + 4
    while left and (piece := file.read(min(left, _PIECE))):
        kept.write(piece)
        checksum = zlib.crc32(piece, checksum)
        left -= len(piece)
    written = file.read(4)
    kept.write(written)
    return len(written) < 4 or written == checksum.to_bytes(4, "big")
