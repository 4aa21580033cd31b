"""PNG files by their chunks: what the pixels do not need harms nothing, what they need is named."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.images.test_decode import TURNS, chunk, png, saved, shown
from van_classification_tensorflow.images import png as png_file
from van_classification_tensorflow.images.decode import ImageError, open_image

COLOUR = np.random.Generator(np.random.PCG64(2)).integers(0, 256, (3, 4, 3), dtype=np.uint8)
ROWS = [row.tobytes() for row in COLOUR]
WHOLE = png((4, 3), 8, 2, ROWS)
LONG = 3 << 20  # more than Pillow accepts of text


def broken(kind: bytes, data: bytes) -> bytes:
    made = chunk(kind, data)
    return made[:-1] + bytes([made[-1] ^ 1])


EXTRAS = {
    "text": chunk(b"tEXt", b"Comment\0" + b"x" * LONG),
    "packed text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(LONG))),
    "international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(LONG))),
    "profile": chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(LONG))),
    "packed exif": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(LONG))),
    "exif": chunk(b"eXIf", b"II*\0" + bytes(LONG)),
    "much text": 70 * chunk(b"tEXt", b"Comment\0" + b"x" * 1_000_000),
    "broken text": broken(b"tEXt", b"Comment\0none"),
    "broken exif": broken(b"eXIf", b"II*\0"),
    "broken gamma": broken(b"gAMA", bytes(4)),
    "bad profile": chunk(b"iCCP", b"profile\0\0no zlib"),
    "unknown": chunk(b"noNe", bytes(LONG)),
    "broken animation": broken(b"fdAT", bytes(9)),
    "of no length": chunk(b"pHYs", b"") + chunk(b"gAMA", b"") + chunk(b"cHRM", b""),
}


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_what_the_pixels_do_not_need_is_passed_over(name, place):
    extra = EXTRAS[name]
    before, after = ((extra,), b"") if place == "before" else ((), extra)
    assert (shown(png((4, 3), 8, 2, ROWS, *before, after=after)) == COLOUR).all()


def test_what_lies_beside_it_still_turns_the_picture_and_makes_it_transparent():
    exif = Image.Exif()
    exif[274] = 6
    data = saved(Image.fromarray(COLOUR), "PNG", exif=exif)
    at = data.index(b"IDAT") - 4
    clear = chunk(b"tRNS", struct.pack(">3H", *COLOUR[0, 0]))
    data = data[:at] + clear + EXTRAS["text"] + EXTRAS["broken text"] + data[at:]
    expected = COLOUR.copy()
    expected[0, 0] = 255
    assert (shown(data) == TURNS[6](expected)).all()


@pytest.mark.parametrize("kind", ["IHDR", "PLTE", "tRNS", "IDAT"])
def test_a_broken_chunk_that_the_pixels_need_is_named(kind):
    image = Image.fromarray(COLOUR).quantize(5)
    data = bytearray(saved(image, "PNG", transparency=1))
    at = data.index(kind.encode()) - 4
    (length,) = struct.unpack_from(">I", data, at)
    data[at + 8 + length] ^= 1  # of its checksum
    says = f"bytes: PNG, damaged: the chunk {kind} at byte {at} has another checksum$"
    with pytest.raises(ImageError, match=says):
        open_image(bytes(data))


@pytest.mark.parametrize("step", range(3))
def test_every_flipped_bit_of_the_pixels_is_noticed(step):
    at = WHOLE.index(b"IDAT")
    for place in range(at + 4 + step, len(WHOLE) - 16, 3):
        data = bytearray(WHOLE)
        data[place] ^= 16
        with pytest.raises(ImageError, match="the chunk IDAT at byte 33 has another checksum"):
            open_image(bytes(data))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (WHOLE[:33] + chunk(b"CgBI", bytes(4)) + WHOLE[33:], "a reader of the chunk CgBI, not par"),
        (WHOLE[:33] + b"\0\0\0\x04????" + WHOLE[33:], "damaged: at byte 33, where a chunk should"),
        (
            WHOLE[:8] + WHOLE[33:],
            "damaged: it begins with the chunk IDAT at byte 8 instead of IHDR",
        ),
        (WHOLE[:33], "PNG: damaged|PNG: cut short"),
        (WHOLE[:-30], "PNG, 4 x 3, RGB: cut short"),
        (png((4, 3), 8, 2, ROWS, chunk(b"PLTE", bytes(LONG))), "the chunk PLTE at byte 33 has 3,1"),
        (png((4, 3), 3, 2, ROWS), "PNG: "),
        (WHOLE[:33] + 200_000 * chunk(b"noNe", b""), "PNG, more than 200,000 chunks"),
    ],
)
def test_what_is_wrong_is_said(data, says):
    with pytest.raises(ImageError, match=f"bytes: .*{says}"):
        open_image(data)


def test_no_more_is_kept_than_pixels_can_need():
    data = WHOLE[:33] + 80 * chunk(b"IDAT", bytes(1_000)) + WHOLE[33:]
    with pytest.raises(ImageError, match="more bytes than its pixels can have"):
        open_image(data)


@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (2, 3), (8, 4), (8, 2), (16, 2), (16, 6)])
def test_what_is_kept_is_bound_by_the_bits_of_a_pixel(bits, colour):
    samples = {0: 1, 3: 1, 4: 2, 2: 3, 6: 4}[colour]
    size, bytes_of_pixels = (2_000, 1_000), 2_000 * 1_000 * bits * samples // 8
    rows = [bytes(size[0] * bits * samples // 8)] * size[1]
    whole = png(size, bits, colour, rows, *([chunk(b"PLTE", bytes(3))] if colour == 3 else []))
    more = (bytes_of_pixels + 500_000) * 5 // 4
    data = whole.replace(chunk(b"IEND", b""), chunk(b"IDAT", bytes(more)))
    with pytest.raises(ImageError, match="more bytes than its pixels can have"):
        open_image(data)


@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (2, 3), (8, 4), (8, 2), (16, 2), (16, 6)])
def test_pixels_that_do_not_pack_are_within_the_bound(bits, colour):
    """As badly as zlib can: not at all, each row flushed."""
    samples = {0: 1, 3: 1, 4: 2, 2: 3, 6: 4}[colour]
    for width, height in ((1, 5_000), (5_000, 1), (300, 300)):
        row = bytes((width * bits * samples + 7) // 8)
        packer = zlib.compressobj(0)
        parts = [packer.compress(b"\0" + row) + packer.flush(zlib.Z_SYNC_FLUSH)] * height
        pixels = chunk(b"IDAT", b"".join(parts) + packer.flush())
        head = chunk(b"IHDR", struct.pack(">2I5B", width, height, bits, colour, 0, 0, 0))
        data = WHOLE[:8] + head + pixels + chunk(b"IEND", b"")
        png_file.essential(io.BytesIO(data), lambda *_: None, lambda _: None)


@pytest.mark.parametrize("keyword", [b"Raw profile type exif", b"XML:com.adobe.xmp"])
@pytest.mark.parametrize("broken_off", [True, False])
def test_little_is_unpacked_however_much_there_is(monkeypatch, keyword, broken_off):
    unpacked, real = 0, zlib.decompressobj

    class Counting:
        def __init__(self):
            self.packed = real()

        def decompress(self, data, most):
            nonlocal unpacked
            unpacked += most
            return self.packed.decompress(data, most)

        unconsumed_tail = property(lambda self: self.packed.unconsumed_tail)

    monkeypatch.setattr(png_file.zlib, "decompressobj", Counting)
    packed = zlib.compress(bytes(1 << 20))
    packed = packed[:-20] + b"\xff" * 20 if broken_off else packed
    text = chunk(b"zTXt", keyword + b"\0\0" + packed)
    data = png((4, 3), 8, 2, ROWS, *([text] * 2_000))
    png_file.essential(io.BytesIO(data), lambda *_: None, lambda _: None)
    assert unpacked <= 2 << 20


def test_a_transparent_colour_of_16_bits_is_compared_whole():
    clear = 0x0908, 0x0807, 0x0706
    row = struct.pack(">9H", *clear, 0x0909, *clear[1:], *clear[:2], 0x0806)
    for interlaced in (False, True):
        data = png((3, 1), 16, 2, [row], chunk(b"tRNS", struct.pack(">3H", *clear)))
        if interlaced:  # pass 1 has the first pixel, pass 4 the third, pass 6 the second
            rows = [row[:6], row[12:18], row[6:12]]
            data = png((3, 1), 16, 2, rows, chunk(b"tRNS", struct.pack(">3H", *clear)))
            head = chunk(b"IHDR", struct.pack(">2I5B", 3, 1, 16, 2, 0, 0, 1))
            data = data[:8] + head + data[33:]
        assert shown(data)[0].tolist() == [[255] * 3, [9, 8, 7], [9, 8, 8]]


def test_the_size_is_asked_before_anything_else_is_read():
    head = chunk(b"IHDR", struct.pack(">2I5B", 1 << 20, 1 << 20, 8, 2, 0, 0, 0))
    start = time.process_time()
    with pytest.raises(ImageError, match="1048576 x 1048576 pixels; allowed: 50,000,000"):
        open_image(WHOLE[:8] + head + b"\x7f\xff\xff\xffIDAT")
    assert time.process_time() - start < 1
