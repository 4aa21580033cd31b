"""Pictures of every kind come out as a viewer shows them; others are refused in one line."""

import io
import os
import shutil
import struct
import subprocess
import sys
import textwrap
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from van_classification_tensorflow.images.decode import (
    FORMATS,
    MAX_FRAMES,
    ImageError,
    _quiet,
    open_image,
)
from van_classification_tensorflow.support.text import printable

RNG = np.random.Generator(np.random.PCG64(5))
COLOUR = RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8)
ALPHA = np.array([[0, 255, 128, 7], [255, 255, 0, 0], [64, 200, 255, 1]], np.uint8)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(source, **options) -> np.ndarray:
    image = open_image(source, **options)
    assert image.mode in ("L", "RGB")
    return np.asarray(image).astype(int)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(float)[..., None] / 255
    return colour * share + 255 * (1 - share)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    size: tuple[int, int], bits: int, colour: int, rows: list[bytes], *before: bytes, after=b""
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">2I5B", *size, bits, colour, 0, 0, 0))
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    end = chunk(b"IDAT", data) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + end


def tiff(array: np.ndarray, tags: dict[int, int]) -> bytes:
    """One uncompressed grey strip, little-endian, whatever `tags` say of its numbers."""
    entries = {256: array.shape[1], 257: array.shape[0], 259: 1, 262: 1, 277: 1}
    entries |= {278: array.shape[0], 279: array.nbytes} | tags
    entries[273] = 8 + 2 + 12 * (len(entries) + 1) + 4
    rows = b"".join(struct.pack("<HHLL", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4) + array.tobytes()


# The picture as stored -> as it is to be seen (EXIF 2.3, tag 274).
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_turned_as_exif_says(kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    colour = COLOUR.repeat(16, 0).repeat(16, 1)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    data = saved(Image.fromarray(colour), kind, exif=exif, **options.get(kind, {}))
    expected = TURNS[orientation](colour)
    opened, decoded = (Image.open(io.BytesIO(data)) for _ in range(2))
    if kind != "TIFF":  # which Pillow turns itself
        decoded.load()
    for source in (data, opened, decoded):
        assert shown(source) == pytest.approx(expected, abs=4 if kind == "JPEG" else 0)


def test_an_orientation_in_the_old_png_profile_and_in_xmp():
    exif = Image.Exif()
    exif[274] = 6
    profile = exif.tobytes()
    text = b"Raw profile type exif\0\0" + zlib.compress(
        b"\nexif\n%8d\n%s\n" % (len(profile), profile.hex().encode())
    )
    rows = [row.tobytes() for row in COLOUR]
    data = png((4, 3), 8, 2, rows, chunk(b"zTXt", text))
    assert (shown(data) == TURNS[6](COLOUR)).all()


@pytest.mark.parametrize(
    "damage", [b"Exif\0\0II*\0\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01", b"?"]
)
def test_damaged_exif_leaves_the_picture_as_it_lies(damage):
    data = saved(Image.fromarray(COLOUR), "PNG")
    at = data.index(b"IDAT") - 4
    body = damage.removeprefix(b"Exif\0\0")
    assert (shown(data[:at] + chunk(b"eXIf", body) + data[at:]) == COLOUR).all()
    smooth = Image.new("RGB", (16, 16), (10, 200, 30))
    assert shown(saved(smooth, "JPEG", exif=damage)).shape == (16, 16, 3)


def test_grey_stays_grey():
    grey = COLOUR[..., 0]
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        found = shown(saved(Image.fromarray(grey), kind))
        assert (found.reshape(3, 4, -1) == grey[..., None]).all(), kind
    assert open_image(saved(Image.fromarray(grey), "PNG")).mode == "L"
    assert open_image(saved(Image.fromarray(grey), "JPEG")).mode == "L"


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_one_bit(kind):
    bits = COLOUR[..., 0] > 127
    found = shown(saved(Image.fromarray(bits), kind))
    assert (found.reshape(3, 4, -1) == 255 * bits[..., None]).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette(kind):
    image = Image.fromarray(COLOUR).quantize(12)
    assert (shown(saved(image, kind)) == np.asarray(image.convert("RGB"))).all()


def test_palette_with_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    for kind in ("PNG", "GIF"):  # one index
        assert shown(saved(image, kind, transparency=1))[0].tolist() == [
            [10, 20, 30],
            [255, 255, 255],
            [70, 80, 90],
        ]
    found = shown(saved(image, "PNG", transparency=bytes([255, 0, 51])))  # an alpha for each
    assert found[0].tolist() == [[10, 20, 30], [255, 255, 255], [218, 220, 222]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_on_white(kind):
    image = Image.fromarray(np.dstack([COLOUR, ALPHA]))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert shown(saved(image, kind, **options)) == pytest.approx(on_white(COLOUR, ALPHA), abs=1)


def test_grey_and_palette_with_alpha():
    grey = COLOUR[..., :1].repeat(3, 2)
    image = Image.merge("LA", [Image.fromarray(COLOUR[..., 0]), Image.fromarray(ALPHA)])
    for kind in ("PNG", "TIFF"):
        assert shown(saved(image, kind)) == pytest.approx(on_white(grey, ALPHA), abs=1)
    assert shown(image) == pytest.approx(on_white(grey, ALPHA), abs=1)
    palette = Image.fromarray(COLOUR).quantize(12).convert("PA")
    palette.putalpha(Image.fromarray(ALPHA))
    colour = np.asarray(palette.convert("RGB"))
    assert palette.mode == "PA"
    assert shown(palette) == pytest.approx(on_white(colour, ALPHA), abs=1)


def test_premultiplied_alpha():
    # 51 of 255 opaque, the colour already multiplied: (20, 40) is (100, 200) seen through 20 %.
    pixels = np.array([[[20, 51], [40, 51]]], np.uint8)
    image = Image.frombytes("La", (2, 1), pixels.tobytes())
    expected = [[20 + 204] * 3, [40 + 204] * 3]
    assert shown(image)[0] == pytest.approx(np.array(expected), abs=1)
    image = Image.frombytes("RGBa", (1, 1), bytes([20, 40, 0, 51]))
    assert shown(image)[0, 0] == pytest.approx([224, 244, 204], abs=1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png_grey_with_a_transparent_grey(bits):
    largest = (1 << bits) - 1
    row = struct.pack(">2H", 0, largest) if bits == 16 else bytes([0, largest])
    if bits < 8:
        row = bytes([largest << (8 - 2 * bits)])  # 0, then the largest
    transparent = chunk(b"tRNS", struct.pack(">H", 0))
    data = png((2, 1), bits, 0, [row], transparent)
    assert (shown(data) == 255).all()
    transparent = chunk(b"tRNS", struct.pack(">H", largest))
    data = png((2, 1), bits, 0, [row], transparent)
    assert shown(data).reshape(2, -1)[:, 0].tolist() == [0, 255]
    opaque = png((2, 1), bits, 0, [row])
    assert shown(opaque)[0].tolist() == [0, 255]


def test_png_colour_with_a_transparent_colour():
    rows = [bytes([1, 2, 3, 9, 8, 7])]
    data = png((2, 1), 8, 2, rows, chunk(b"tRNS", struct.pack(">3H", 9, 8, 7)))
    assert shown(data)[0].tolist() == [[1, 2, 3], [255, 255, 255]]
    wide = struct.pack(">6H", 0x0102, 0x0203, 0x0304, 0x0908, 0x0807, 0x0706)
    data = png((2, 1), 16, 2, [wide], chunk(b"tRNS", struct.pack(">3H", 0x0908, 0x0807, 0x0706)))
    assert shown(data)[0].tolist() == [[1, 2, 3], [255, 255, 255]]


def test_sixteen_bits_keep_the_upper_eight():
    wide = RNG.integers(0, 1 << 16, (3, 4, 4), dtype=np.uint16)
    upper = wide >> 8
    grey = Image.fromarray(wide[..., 0])
    for kind in ("PNG", "TIFF"):
        assert (shown(saved(grey, kind)) == upper[..., 0]).all()
    rows = [row.tobytes() for row in wide[..., :3].astype(">u2")]
    assert (shown(png((4, 3), 16, 2, rows)) == upper[..., :3]).all()
    rows = [row.tobytes() for row in wide.astype(">u2")]
    expected = on_white(upper[..., :3], upper[..., 3])
    assert shown(png((4, 3), 16, 6, rows)) == pytest.approx(expected, abs=1)
    rows = [row.tobytes() for row in wide[..., :2].astype(">u2")]
    found = shown(png((4, 3), 16, 4, rows))
    assert found == pytest.approx(on_white(upper[..., :1], upper[..., 1]).repeat(3, 2), abs=1)
    assert (shown(grey.transpose(Image.Transpose.ROTATE_90)) == np.rot90(upper[..., 0])).all()


def test_tiff_of_many_numbers():
    wide = np.array([[0, 256, 65_535, 40_000]], "<u2")
    assert shown(tiff(wide, {258: 16}))[0].tolist() == [0, 1, 255, 156]
    assert shown(tiff(wide, {258: 16, 262: 0}))[0].tolist() == [255, 254, 0, 99]  # white is 0
    twelve = np.frombuffer(bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x1F]), np.uint8)
    found = shown(tiff(twelve.reshape(1, 6), {256: 4, 258: 12}))
    assert found[0].tolist() == [0, 255, 128, 1]
    # Whole numbers of 32 bits: 8 or 16 bits of them where those are enough, else stretched.
    assert shown(tiff(np.array([[0, 7, 255]], "<u4"), {258: 32}))[0].tolist() == [0, 7, 255]
    assert shown(tiff(np.array([[0, 511, 65_535]], "<u4"), {258: 32}))[0].tolist() == [0, 1, 255]
    large = np.array([[1 << 31, (1 << 32) - 1, 3 << 30]], "<u4")
    assert shown(tiff(large, {258: 32}))[0].tolist() == [0, 255, 128]
    signed = np.array([[-1000, 1000, 0]], "<i4")
    assert shown(tiff(signed, {258: 32, 339: 2}))[0].tolist() == [0, 255, 128]
    signed = np.array([[-32_768, 32_767, 0]], "<i2")
    assert shown(tiff(signed, {258: 16, 339: 2}))[0].tolist() == [0, 255, 128]


def test_tiff_of_floats():
    def found(*numbers):
        return shown(tiff(np.array([numbers], "<f4"), {258: 32, 339: 3}))[0].tolist()

    assert found(0.2, 0.4, 1.0) == [51, 102, 255]  # 0 to 1 is a scale, even if not all is used
    assert found(-1.0, 1.0, 0.0) == [0, 255, 128]
    assert found(0.0, 1000.0, 200.0) == [0, 255, 51]
    assert found(float("nan"), 1.0, 0.0) == [0, 255, 0]
    assert found(7.0, 7.0) == [0, 0]
    for numbers in ((float("inf"), 0.0), (float("nan"), float("nan"))):
        with pytest.raises(ImageError, match="not finite"):
            found(*numbers)


def test_cmyk_and_ycck_jpeg():
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0]], [[0, 200, 90, 0], [30, 60, 0, 100]]], float)
    expected = ((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).repeat(16, 0).repeat(16, 1)
    options = {"quality": 100, "subsampling": 0}

    def picture(numbers):
        array = numbers.round().clip(0, 255).astype(np.uint8).repeat(16, 0).repeat(16, 1)
        return Image.frombytes("CMYK", (32, 32), array.tobytes())

    data = saved(picture(inks), "JPEG", **options)
    assert shown(data) == pytest.approx(expected, abs=3)
    assert shown(saved(picture(inks), "TIFF")) == pytest.approx(expected, abs=1)

    c, m, y = (inks[..., i] for i in range(3))
    luma = 0.299 * c + 0.587 * m + 0.114 * y
    blue, red = 128 + (y - luma) / 1.772, 128 + (c - luma) / 1.402
    # Adobe's files hold the inks inverted, and so Pillow writes them.
    stored = np.stack([luma, blue, red, 255 - inks[..., 3]], axis=-1)
    data = saved(picture(255 - stored), "JPEG", **options)
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    assert shown(data[:at] + b"\2" + data[at + 1 :]) == pytest.approx(expected, abs=3)


def test_ycbcr_and_lab_tiff():
    smooth = Image.new("RGB", (16, 16), (200, 100, 50))
    found = shown(saved(smooth.convert("YCbCr"), "TIFF"))
    assert found == pytest.approx(np.broadcast_to([200, 100, 50], found.shape), abs=2)
    white = Image.new("LAB", (2, 2), (255, 128, 128))
    assert shown(saved(white, "TIFF")).min() >= 250


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert (shown(data) == (255, 0, 0)).all()


def test_a_gif_frame_smaller_than_the_canvas_leaves_it_transparent():
    image = Image.new("P", (2, 2), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    data = bytearray(saved(image, "GIF", transparency=1, optimize=False))
    data[6:10] = struct.pack("<2H", 4, 3)
    found = shown(bytes(data))
    assert found.shape == (3, 4, 3)
    assert (found[:2, :2] == (255, 0, 0)).all()
    assert (found[2] == 255).all()


def test_mpo_shows_its_first_picture():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert shown(data) == pytest.approx(np.full((16, 16, 3), (255, 0, 0)), abs=2)


def test_arrays_and_pillow_images():
    assert (shown(COLOUR) == COLOUR).all()
    assert (shown(COLOUR[..., :1]) == COLOUR[..., 0]).all()
    assert (shown(COLOUR[..., 0]) == COLOUR[..., 0]).all()
    assert (shown(COLOUR[:, ::-1, ::-1]) == COLOUR[:, ::-1, ::-1]).all()  # not contiguous
    assert shown(np.dstack([COLOUR, ALPHA])) == pytest.approx(on_white(COLOUR, ALPHA), abs=1)
    assert (shown(memoryview(saved(Image.fromarray(COLOUR), "PNG"))) == COLOUR).all()
    for wrong, says in (
        (COLOUR.astype(float), "uint8, 0 to 255. Received: float64"),
        (COLOUR[None], r"\(H, W, 4\). Received: \(1, 3, 4, 3\)"),
        (COLOUR[:, :0], "empty"),
        (Image.new("RGB", (0, 3)), "^the picture: 0 x 3 pixels: empty"),
        (None, "Received: NoneType"),
        ([1, 2], "Received: list"),
    ):
        with pytest.raises(ImageError, match=says):
            open_image(wrong)


def test_only_the_formats_allowed():
    assert FORMATS == ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
    for kind in ("PPM", "ICO", "TGA", "PCX", "SGI", "EPS", "PDF", "JPEG2000"):
        with pytest.raises(ImageError, match=r"bytes: .*not a picture of JPEG, .*TIFF$"):
            open_image(saved(Image.new("RGB", (16, 16)), kind))


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"\n<!DOCTYPE html><html>", "a web page, not a picture of JPEG"),
        (b"%PDF-1.7", "a PDF file, not a"),
        (b"\0\0\0\x18ftypheic", "a HEIC picture, not a"),
        (b"\0\0\0\x18ftypavif", "an AVIF picture, not a"),
        (b"\0\0\0\x18ftypisom", "a film, not a"),
        (b"\xff\x0a\0", "a JPEG XL picture, not a"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS, not a"),
        (b"BMW is no bitmap, nor is this", "100 bytes: not a picture of JPEG"),
        (b"\xff\xd8\xff", "JPEG: (cut short|damaged)"),
        (b"II*\0\x08\0\0\0", "TIFF, no colours, 1 sample of 1 bits, uncompressed: "),
        (b"BM" + bytes(12) + b"\x28", "BMP: Unsupported BMP pixel depth"),
        (b"RIFF\x0c\0\0\0WEBPVP8 ", "WEBP: damaged"),
    ],
)
def test_it_says_what_it_is(head, says):
    with pytest.raises(ImageError, match=says):
        open_image(head.ljust(100, b"\0"))


def test_a_truncated_picture_is_called_so():
    data = saved(Image.fromarray(COLOUR.repeat(30, 0).repeat(30, 1)), "JPEG")
    with pytest.raises(ImageError, match="bytes: JPEG, 120 x 90, RGB: cut short: image file is tr"):
        open_image(data[:-300])


def bmp(pixels: np.ndarray, bits: int, palette: list[int], masks: tuple[int, ...] = ()) -> bytes:
    """A BMP, bottom row first; `masks`: where red, green, blue and alpha are in 32 bits."""
    height, width = pixels.shape[:2]
    each = (pixels.reshape(height, -1, 1) >> np.arange(bits - 1, -1, -1)) & 1
    rows = pixels.astype("<u4") if masks else np.packbits(each.reshape(height, -1).astype("u1"), 1)
    data = b"".join(row.tobytes() + bytes(-len(row.tobytes()) % 4) for row in rows[::-1])
    colours = b"".join(bytes([grey] * 3 + [0]) for grey in palette)
    head = struct.pack(
        "<LllHHLLllLL", 124, width, height, 1, bits, 3 if masks else 0, 0, 0, 0, 0, 0
    )
    head = head[:32] + struct.pack("<L", len(palette)) + head[36:]
    head = (head + b"".join(struct.pack("<L", mask) for mask in masks)).ljust(124, b"\0")
    start = 14 + len(head) + len(colours)
    return b"BM" + struct.pack("<LHHL", start + len(data), 0, 0, start) + head + colours + data


def test_bmp_of_few_greys():
    # Pillow takes such a palette for none, and each byte for 8 pixels.
    indices = RNG.integers(0, 2, (5, 13))
    for bits in (1, 4, 8):
        assert (
            shown(bmp(indices, bits, [0, 255])).reshape(5, 13, -1) == 255 * indices[..., None]
        ).all()
    dark = RNG.integers(0, 16, (5, 13))
    assert (shown(bmp(dark, 4, list(range(16)))).reshape(5, 13, -1) == dark[..., None]).all()
    assert (shown(bmp(dark, 8, list(range(256)))).reshape(5, 13, -1) == dark[..., None]).all()


def test_bmp_with_an_empty_alpha_is_opaque():
    colour = RNG.integers(0, 1 << 24, (5, 13))
    masks = 0xFF0000, 0xFF00, 0xFF, 0xFF000000
    expected = np.stack([colour >> 16, colour >> 8 & 255, colour & 255], axis=2)
    assert (shown(bmp(colour, 32, [], masks)) == expected).all()
    colour[0, 0] |= 255 << 24  # now it is no longer empty
    assert (shown(bmp(colour, 32, [], masks))[1:] == 255).all()
    with pytest.raises(ImageError, match="BMP: it does not say where its colours are"):
        open_image(bmp(colour, 32, [], (0, 0, 0, 0)))


def test_the_limit_on_pixels():
    white = Image.new("1", (5_000, 10_001), 1)
    data = saved(white, "PNG")
    with pytest.raises(ImageError, match="5000 x 10001 pixels; allowed: 50,000,000 in all"):
        open_image(data)
    with pytest.raises(ImageError, match="4 x 3 pixels; allowed: 11 in all"):
        open_image(COLOUR, max_pixels=11)
    for kind in ("GIF", "WEBP", "TIFF", "BMP", "PNG", "JPEG"):
        data = saved(Image.fromarray(COLOUR), kind)
        with pytest.raises(ImageError, match="4 x 3 pixels; allowed: 11 in all"):
            open_image(data, max_pixels=11)
        assert open_image(data, max_pixels=12).size == (4, 3)
    for lossless in (True, False):
        data = saved(Image.fromarray(np.dstack([COLOUR, ALPHA])), "WEBP", lossless=lossless)
        with pytest.raises(ImageError, match="4 x 3 pixels; allowed: 11 in all"):
            open_image(data, max_pixels=11)
    header = chunk(b"IHDR", struct.pack(">2I5B", 1 << 30, 1 << 30, 8, 2, 0, 0, 0))
    with pytest.raises(ImageError, match="1073741824 pixels; allowed: 50,000,000 in all"):
        open_image(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""))
    with pytest.raises(ImageError, match="1073741824 pixels; allowed: 178,956,970 in all"):
        open_image(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""), max_pixels=1 << 61)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_file_cut_short_is_refused(tmp_path, kind, share):
    image = Image.fromarray(RNG.integers(0, 256, (120, 160, 3), dtype=np.uint8))
    data = saved(image, kind)
    path = tmp_path / "cut.bin"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError) as error:
        open_image(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < len(str(path)) + 300


def many_frames(kind: str, count: int) -> bytes:
    """A picture of 1 x 1 pixels and `count` frames; of a PNG, only what says so."""
    if kind == "GIF":
        one = b"!\xf9\4\0\0\0\0\0" + b",\0\0\0\0\1\0\1\0\0" + b"\2\2D\1\0"
        return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + one * count + b";"
    if kind == "TIFF":
        parts, at = [b"II*\0\x08\0\0\0"], 8
        for i in range(count):
            page = bytearray(tiff(np.zeros((1, 1), np.uint8), {258: 8})[8:])
            entries = page[0]
            for n in range(entries):
                if struct.unpack_from("<H", page, 2 + 12 * n)[0] == 273:
                    struct.pack_into("<L", page, 2 + 12 * n + 8, at + len(page) - 1)
            following = 0 if i == count - 1 else at + len(page)
            struct.pack_into("<L", page, 2 + 12 * entries, following)
            parts.append(bytes(page))
            at += len(page)
        return b"".join(parts)
    if kind == "PNG":
        control = chunk(b"fcTL", struct.pack(">5I2H2B", 0, 1, 1, 0, 0, 1, 10, 0, 0))
        animation = chunk(b"acTL", struct.pack(">2I", count, 0))
        return png((1, 1), 8, 0, [b"\0"], animation, control)
    one = saved(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    frame = bytes(12) + bytes(4) + one
    frame = b"ANMF" + struct.pack("<I", len(frame)) + frame
    body = b"VP8X" + struct.pack("<IB", 10, 2) + bytes(9)
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame * count
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_a_video_is_refused(kind):
    assert open_image(many_frames(kind, MAX_FRAMES)).size == (1, 1)
    with pytest.raises(ImageError, match=r"frames or more; allowed: 1,000$"):
        open_image(many_frames(kind, MAX_FRAMES + 1))


def test_pages_that_lead_back_to_the_first_are_few():
    data = bytearray(many_frames("TIFF", 2))
    end = 8 + 2 + 12 * data[8]
    struct.pack_into("<L", data, end, 8)
    assert open_image(bytes(data)).size == (1, 1)


def large_png(side: int) -> bytes:
    """A white square, all of it there, and small: the same rows over and over."""
    packer = zlib.compressobj()
    rows = 30 * (b"\0" + b"\xff" * side)
    first, again = (packer.compress(rows) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    data = first + again * (side // 30 - 1) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


IN_A_CHILD = """
    import re, sys, time
    from pathlib import Path
    from van_classification_tensorflow.images import decode

    def peak():
        return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    small = sys.argv[1]
    decode.open_image(small)
    before = peak()
    for path in sys.argv[2:]:
        start = time.perf_counter()
        try:
            decode.open_image(path)
        except decode.ImageError as error:
            print(f"{peak() - before:.1f}|{time.perf_counter() - start:.3f}|{error}")
"""


def in_a_child(*arguments, flags=()):
    code = textwrap.dedent(IN_A_CHILD)
    command = [sys.executable, *flags, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_refusing_takes_little_memory_and_time(tmp_path):
    bombs = {
        "frames.gif": many_frames("GIF", 10_000),
        "frames.webp": many_frames("WEBP", 10_000),
        "frames.tif": many_frames("TIFF", 10_000),
        "frames.png": many_frames("PNG", 10_000),
        "large.png": large_png(30_000),
        "canvas.webp": many_frames("WEBP", 2)[:24]
        + b"\xfe\x3f\0\xff\x1f\0"
        + many_frames("WEBP", 2)[30:],
        "canvas.gif": b"GIF89a\1\0\1\0\0\0\0!\xf9\4\x08\0\0\0\0,\0\0\0\0"
        + struct.pack("<2H", 13_000, 13_000)
        + b"\0\2\2D\1\0;",
    }
    paths = []
    for name, data in bombs.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
        assert len(data) < 2_000_000
    endless = tmp_path / "endless.webp"  # 4 GiB of zeros, which take no room
    endless.write_bytes(b"RIFF\xff\xff\xff\xffWEBPVP8L\xff\xff\xff\x7f\x2f\0\0\0\0")
    os.truncate(endless, 1 << 32)
    small = tmp_path / "small.png"
    small.write_bytes(saved(Image.fromarray(COLOUR), "PNG"))
    lines = in_a_child(small, *paths, endless)
    assert len(lines) == len(bombs) + 1
    for line, path in zip(lines, [*paths, endless], strict=True):
        memory, _, error = line.split("|", 2)
        assert float(memory) < 64, line
        assert error.startswith(f"{path}: "), line


HOSTILE = ["a\nb", "\x1b[31mred\x1b[0m", "-rf", "a b", "'q\"", "[bold]x[x]", "😀", "x" * 240]


@pytest.mark.parametrize("name", [*HOSTILE, os.fsdecode(b"\xff\xfe\x80")])
def test_hostile_names(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(saved(Image.fromarray(COLOUR), "PNG"))
    assert (shown(path) == COLOUR).all()
    assert (shown(str(path)) == COLOUR).all()
    path.write_bytes(b"no picture")
    with pytest.raises(ImageError) as error:
        open_image(path)
    text = str(error.value)
    assert text.startswith(f"{printable(path)}: not a picture of ")
    assert text.isprintable()
    text.encode()  # it can be printed


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, says in (
        ("pipe", "not a regular file"),
        ("zero", "not a regular file"),
        (".", "a folder"),
        ("empty.png", "empty"),
    ):
        with pytest.raises(ImageError, match=f"{says}$") as error:
            open_image(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ")
    for name, kind in (
        ("dangling", FileNotFoundError),
        ("nowhere", FileNotFoundError),
        ("loop", OSError),
        ("x" * 300, OSError),
    ):
        with pytest.raises(kind) as error:
            open_image(tmp_path / name)
        assert error.value.filename == str(tmp_path / name)
        assert error.value.strerror
    for name in ("a\0b", "a\ud800b"):
        with pytest.raises(ImageError, match=r"^a\\.*b: not a name that a file can have$"):
            open_image(name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="becomes another user in a child")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(saved(Image.fromarray(COLOUR), "PNG"))
    path.chmod(0)
    folder = tmp_path
    while os.geteuid() == 0 and not folder.stat().st_mode & 1:
        folder.chmod(0o755)
        folder = folder.parent
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65_534)
            open_image(path)
        except PermissionError as error:
            os._exit(7 if error.filename == str(path) else 8)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def odd_files() -> dict[str, bytes]:
    """Good or bad, each makes Pillow warn or log."""
    jpeg = saved(Image.new("RGB", (32, 32), "red"), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0")
    picture = saved(Image.fromarray(COLOUR), "PNG")
    at = picture.index(b"IDAT") - 4
    apng = picture[:at] + chunk(b"acTL", bytes(8)) + picture[at:]
    page = bytearray(tiff(np.zeros((1, 1), np.uint8), {258: 8, 700: 1 << 30}))
    long_tag = bytes(page).replace(
        struct.pack("<HHLL", 700, 4, 1, 1 << 30), struct.pack("<HHLL", 700, 4, 1 << 28, 1)
    )
    samples = tiff(np.zeros((1, 1), np.uint8), {258: 8, 277: 1 << 30})
    mpo = saved(Image.new("RGB", (9, 9)), "JPEG")
    marker = b"MPF\0" + b"II*\0\x08\0\0\0\xff\xff"
    mpo = mpo[:2] + b"\xff\xe2" + struct.pack(">H", len(marker) + 2) + marker + mpo[2:]
    return {
        "exif.jpg": jpeg,
        "apng.png": apng,
        "tag.tif": long_tag,
        "samples.tif": samples,
        "mpo.jpg": mpo,
        "bomb.png": png((9_500, 9_500), 8, 0, []),
        "cut.tif": tiff(np.zeros((1, 1), np.uint8), {258: 8})[:40],
        "nan.tif": tiff(np.full((1, 1), np.nan, "<f4"), {258: 32, 339: 3}),
    }


def test_nothing_is_printed_and_no_setting_changes(tmp_path):
    files = odd_files()
    talk = 0
    for data in files.values():  # otherwise the test shows nothing
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                image = Image.open(io.BytesIO(data))
                image.getexif()
            except (OSError, ValueError):
                pass
        talk += bool(caught)
    assert talk >= 5
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    small = tmp_path / "exif.jpg"
    in_a_child(small, *(tmp_path / name for name in files), flags=("-W", "always"))

    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK
    show = warnings.showwarning, warnings.warn
    for action in ("error", "always"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(action)
            for name in ("exif.jpg", "apng.png", "tag.tif", "mpo.jpg"):
                assert open_image(tmp_path / name).size
        assert not caught
    assert not _quiet.on
    assert show == (warnings.showwarning, warnings.warn)
    after = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK
    assert before == after


def test_other_threads_keep_their_warnings():
    data = odd_files()["exif.jpg"]
    stop = threading.Event()

    def decode():
        while not stop.is_set():
            open_image(data)

    threads = [threading.Thread(target=decode) for _ in range(3)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_image(data)
        for thread in threads:
            thread.start()
        for i in range(200):
            warnings.warn(f"mine {i}", stacklevel=1)
        stop.set()
        for thread in threads:
            thread.join()
    assert [str(one.message) for one in caught] == [f"mine {i}" for i in range(200)]


def test_the_source_is_not_changed(tmp_path):
    image = Image.new("RGBA", (4, 4), (1, 2, 3, 4))
    exif = image.getexif()
    exif[274] = 6
    open_image(image)
    assert image.mode == "RGBA"
    assert image.getexif()[274] == 6
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.fromarray(COLOUR), "PNG"))
    copy = shutil.copy(path, tmp_path / "b.png")
    open_image(path)
    assert path.read_bytes() == Path(copy).read_bytes()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_an_upright_picture_is_not_turned_again(tmp_path, turn, suffix):
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"picture.{suffix}"
    Image.linear_gradient("L").resize((30, 20)).save(path, exif=exif)
    once = open_image(path)
    twice = open_image(once)
    assert once.size == twice.size == ((30, 20) if turn < 5 else (20, 30))
    assert np.array_equal(np.asarray(once), np.asarray(twice))
