"""Every way in which a TIFF's pixels can lie in the file: decoded as meant, or refused by name.

The files are written here, so that the right pixels are known.
"""

import io
import itertools
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow.images.decode import ImageError, open_image

RNG = np.random.Generator(np.random.PCG64(3))
HEIGHT, WIDTH = 19, 21  # more than a tile, no multiple of 8


def reversed_bits(data: bytes) -> bytes:
    bits = np.unpackbits(np.frombuffer(data, np.uint8).reshape(-1, 1), axis=1)
    return np.packbits(bits[:, ::-1], axis=1).tobytes()


def packed(block: np.ndarray, bits: int, number: int, order: str, predictor: int) -> bytes:
    """The bytes of a strip or tile of (height, width, samples)."""
    height, _, samples = block.shape
    if bits % 8 or bits == 24:
        shifts = np.arange(bits - 1, -1, -1).astype(np.uint64)
        each = (block.astype(np.uint64)[..., None] >> shifts) & 1
        return np.packbits(each.astype(np.uint8).reshape(height, -1), axis=1).tobytes()
    size = bits // 8
    array = block.astype(f"{'.uif'[number]}{size}")
    if predictor == 2:  # differences within a row
        array = array.view(f"u{size}")
        array[:, 1:] -= array[:, :-1].copy()
    if predictor == 3:  # first bytes of all numbers, second bytes, ...; then differences
        flat = array.astype(f">f{size}").reshape(height, -1).view(np.uint8)
        planes = flat.reshape(height, -1, size).swapaxes(1, 2).reshape(height, -1)
        planes[:, samples:] -= planes[:, :-samples].copy()
        return planes.tobytes()
    return array.astype(array.dtype.newbyteorder(order)).tobytes()


def written(
    pixels: np.ndarray,
    bits: int,
    colours: int | None,
    *,
    number: int = 1,
    order: str = "<",
    planes: int = 1,
    compression: int = 1,
    predictor: int = 1,
    tile: int = 0,
    rows: int = HEIGHT,
    fill_order: int = 1,
    extra: tuple[int, ...] = (),
    tags: dict | None = None,
    data: bytes | None = None,
) -> bytes:
    """A TIFF of `pixels` (height, width, samples); `data`: of its one strip, as it is."""
    height, width, samples = pixels.shape
    blocks = []
    for plane in [pixels] if planes == 1 else np.split(pixels, samples, axis=2):
        down, across = (tile, tile) if tile else (rows, width)
        for y, x in itertools.product(range(0, height, down), range(0, width, across)):
            block = plane[y : y + down, x : x + across]
            if tile:
                rest = (0, tile - block.shape[0]), (0, tile - block.shape[1]), (0, 0)
                block = np.pad(block, rest)
            blocks.append(packed(block, bits, number, order, predictor))
    if data is not None:
        blocks = [data]
    if compression == 8:
        blocks = [zlib.compress(block, 1) for block in blocks]
    if fill_order == 2:
        blocks = [reversed_bits(block) for block in blocks]
    places, sizes = (324, 325) if tile else (273, 279)
    entries = {256: [width], 257: [height], 258: [bits] * samples, 259: [compression]}
    entries |= {277: [samples], places: [0] * len(blocks), sizes: [len(b) for b in blocks]}
    entries |= {322: [tile], 323: [tile]} if tile else {278: [rows]}
    given = {262: colours, 266: fill_order, 284: planes, 317: predictor}
    entries |= {tag: [value] for tag, value in given.items() if value is not None}
    entries |= {338: list(extra)} if extra else {}
    entries |= {339: [number] * samples} | (tags or {})
    long = {256, 257, 278, 322, 323, places, sizes}
    kinds = {tag: "L" if tag in long else "H" for tag in entries}
    after = 8 + 2 + 12 * len(entries) + 4
    sizes_of = {t: struct.calcsize(f"<{len(v)}{kinds[t]}") for t, v in entries.items()}
    start = after + sum(size + size % 2 for size in sizes_of.values() if size > 4)
    entries[places] = [start + sum(map(len, blocks[:i])) for i in range(len(blocks))]
    table, beside = struct.pack(order + "H", len(entries)), b""
    for tag in sorted(entries):
        values = struct.pack(f"{order}{len(entries[tag])}{kinds[tag]}", *entries[tag])
        table += struct.pack(order + "HHL", tag, 4 if tag in long else 3, len(entries[tag]))
        if len(values) > 4:
            table += struct.pack(order + "L", after + len(beside))
            beside += values + bytes(len(values) % 2)
        else:
            table += values.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    return head + table + bytes(4) + beside + b"".join(blocks)


def numbers(bits: int, number: int, samples: int) -> np.ndarray:
    share = RNG.random((HEIGHT, WIDTH, samples))
    if number == 3:
        return share
    if number == 2:
        return np.floor(share * 2**bits).astype(np.int64) - 2 ** (bits - 1)
    return np.floor(share * 2**bits).astype(np.int64 if bits < 64 else np.uint64)


def eight(array: np.ndarray, bits: int, number: int) -> np.ndarray:
    """0 to 255: floats from 0 to 1; signed or 32 bits stretched; 12 and 16 bits the upper 8."""
    array = array.astype(float)
    if number == 3:
        return array * 255
    if number == 2 or bits == 32:
        return (array - array.min()) * 255 / np.ptp(array)
    return array * 255 / (2**bits - 1) if bits <= 8 else array // 2 ** (bits - 8)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return colour * alpha / 255 + 255 - alpha


def layouts():
    """(name, bits, kind of number, pixels, 8 bits of them, colours, extra samples, other tags)."""
    widths = [(bits, 1) for bits in (1, 2, 4, 6, 8, 12, 16, 24, 32)]
    widths += [(8, 2), (16, 2), (32, 2), (16, 3), (32, 3), (64, 3)]
    for (bits, number), colours in itertools.product(widths, (0, 1)):
        pixels = numbers(bits, number, 1)
        found = eight(pixels, bits, number)
        yield "grey", bits, number, pixels, found if colours else 255 - found, colours, (), {}
    kinds = (8, 1), (12, 1), (16, 1), (32, 1), (32, 3)
    for (bits, number), extra in itertools.product(kinds, (0, 1, 2)):
        pixels = numbers(bits, number, 2)
        found = eight(pixels, bits, number)
        grey, alpha = found[..., :1], found[..., 1:]
        if extra == 1:
            pixels[..., 0] = pixels.min(axis=2)
            grey = eight(pixels, bits, number)[..., :1] + 255 - alpha
        seen = on_white(grey, alpha) if extra == 2 else grey
        yield f"grey+{extra}", bits, number, pixels, seen, 1, (extra,), {}
    for bits, number in [(4, 1), (8, 1), (8, 2), (12, 1), (16, 1), (16, 2), (32, 1), (32, 3)]:
        for extra in ((), (0,), (1,), (2,), (0, 0), (2, 0), (1, 2)):
            pixels = numbers(bits, number, 3 + len(extra))
            if extra[:1] == (1,):
                pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:4])
            found = eight(pixels, bits, number)
            colour, alpha = found[..., :3], found[..., 3:4]
            if extra[:1] == (1,):
                colour = colour + 255 - alpha
            elif extra[:1] == (2,):
                colour = on_white(colour, alpha)
            yield f"RGB{extra}", bits, number, pixels, colour, 2, extra, {}
    for bits, of_a_byte, extra in itertools.product((1, 2, 4, 8, 16), (False, True), ((), (2,))):
        palette = RNG.integers(0, 1 << 16, (3, 2**bits))
        pixels = numbers(bits, 1, 1 + len(extra))
        colour = palette[:, pixels[..., 0]].transpose(1, 2, 0) >> 8
        colour = on_white(colour, pixels[..., 1:]) if extra else colour
        tags = {320: (palette >> 8 if of_a_byte else palette).ravel().tolist()}
        yield f"palette{extra}", bits, 1, pixels, colour, 3, extra, tags
    for bits, extra in itertools.product((8, 16), ((), (0,))):
        pixels = numbers(bits, 1, 4 + len(extra))
        inks = 255 - eight(pixels, bits, 1)
        yield f"CMYK{extra}", bits, 1, pixels, inks[..., :3] * inks[..., 3:4] / 255, 5, extra, {}
    pixels = numbers(8, 1, 3)
    luma, blue, red = (pixels[..., i] - (i and 128) for i in range(3))
    colour = [luma + 1.402 * red, luma - 0.3441 * blue - 0.7141 * red, luma + 1.772 * blue]
    yield "YCbCr", 8, 1, pixels, np.dstack(colour).clip(0, 255), 6, (), {530: [1, 1]}
    pixels = numbers(8, 1, 3) * [1, 0, 0]  # lightness alone
    light = (pixels[..., :1] * 100 / 255 + 16) / 116
    linear = np.where(light > 0.2069, light**3, (light - 16 / 116) / 7.787)
    grey = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, linear * 12.92)
    yield "CIELab", 8, 1, pixels, grey * 255, 8, (), {}


def variants(bits: int, number: int):
    """Ways to write the same pixels."""
    for order, planes, compression, shape, fill_order in itertools.product(
        "<>", (1, 2), (1, 8), ({}, {"rows": 5}, {"tile": 16}), (1, 2)
    ):
        predictors = [1]
        if compression == 8 and bits % 8 == 0 and bits < 64 and bits != 24:
            predictors += [3] if number == 3 else [2]
        for predictor in predictors:
            yield shape | {
                "order": order,
                "planes": planes,
                "compression": compression,
                "predictor": predictor,
                "fill_order": fill_order,
            }


# Whatever the order of bytes and bits, planes, compression, predictor, strips or tiles.
ALWAYS = {("grey", bits, 1) for bits in (1, 2, 4, 8)} | {("palette()", b, 1) for b in (1, 2, 4, 8)}
ALWAYS |= {("RGB()", 8, 1)}
# The same with bits in the usual order.
OFTEN = ALWAYS | {("RGB()", 16, 1), ("RGB(0,)", 8, 1), ("RGB(0,)", 16, 1), ("RGB(1,)", 8, 1)}
OFTEN |= {("RGB(1,)", 16, 1), ("RGB(2,)", 8, 1), ("RGB(2,)", 16, 1), ("RGB(0, 0)", 8, 1)}
OFTEN |= {("CMYK()", 8, 1), ("CMYK()", 16, 1), ("YCbCr", 8, 1), ("grey", 32, 3)}


def read(data: bytes) -> np.ndarray | str:
    try:
        return np.asarray(open_image(data)).astype(float)
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_every_layout_is_decoded_as_meant_or_refused_by_name(every):
    count: Counter[bool] = Counter()
    for i, (name, bits, number, pixels, expected, colours, extra, tags) in enumerate(layouts()):
        for variant in itertools.islice(variants(bits, number), i % every, None, every):
            what = f"{name}, {bits} bits of kind {number}, colours {colours}: {variant}"
            options = {"number": number, "extra": extra, "tags": tags}
            data = written(pixels, bits, colours, **options, **variant)
            found = read(data)
            if isinstance(found, str):
                assert f"bytes: TIFF, {name[:3]}" in found, what
                assert f"of {bits} bits" in found, what
                assert "damaged" not in found, what
                assert (name, bits, number) not in ALWAYS, what
                assert (name, bits, number) not in OFTEN or variant["fill_order"] == 2, what
            else:
                difference = np.abs(found.reshape(HEIGHT, WIDTH, -1) - expected).max()
                assert difference <= (2.01 if 1 in extra or colours in (6, 8) else 1.01), what
            count[not isinstance(found, str)] += 1
    assert min(count[True], count[False]) > 1_500 // every


COLOUR = numbers(8, 1, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"colours": None}, "no colours, .*: it does not say which colours its numbers mean; save"),
        ({"predictor": 2}, "a predictor where the compression has none"),
        ({"colours": 5, "tags": {332: [2]}}, "CMYK, .*inks that are not CMYK"),
        ({"colours": 32803}, "camera raw, 3 samples of 8 bits, uncompressed: not a layout"),
        ({"tags": {259: [34712]}}, "RGB, 3 samples of 8 bits, JPEG 2000: not a layout"),
        ({"bits": 32, "number": 3}, "RGB, 3 samples of 32 bits .float., uncompressed: not a"),
        ({"tags": {258: [5, 6, 5]}}, "RGB, 3 samples of 5/6 bits, uncompressed: not a layout"),
        ({"tags": {277: [40]}}, "RGB, 40 samples of 8 bits, uncompressed: not a layout"),
        ({"tags": {339: [4] * 3}}, "bits .untyped., uncompressed: not a layout"),
    ],
)
def test_others_are_refused_by_name(options, says):
    options = {"bits": 8, "colours": 2} | options
    with pytest.raises(ImageError, match=says):
        open_image(written(COLOUR, **options))


def test_many_bands_are_named():
    with pytest.raises(ImageError, match="grey, 13 samples of 16 bits, uncompressed: not a layout"):
        open_image(written(numbers(16, 1, 13), 16, 1, extra=(0,) * 12))


def test_a_tag_that_is_there_twice():
    data = bytearray(written(COLOUR, 8, 2))
    at = data.index(struct.pack("<HHL", 277, 3, 1))  # instead of the samples: the colours again
    data[at : at + 2] = struct.pack("<H", 262)
    with pytest.raises(ImageError, match="TIFF, damaged: its tag 262 is there twice"):
        open_image(bytes(data))


def test_subsampled_colours_that_are_not_compressed():
    # Units of 2 x 2: four times luma, then the two colours.
    units = bytes([10, 200, 90, 60, 128, 128]) * 4
    data = written(np.zeros((4, 4, 3)), 8, 6, tags={530: [2, 2]}, data=units + bytes(48))
    found = np.asarray(open_image(data))
    assert found[..., 0].tolist() == [[10, 200] * 2, [90, 60] * 2] * 2


def test_a_picture_that_the_caller_opened():
    wide = numbers(16, 1, 3)
    file = io.BytesIO(written(wide, 16, 2, planes=2))
    image = Image.open(file)
    assert (np.asarray(open_image(image)) == wide >> 8).all()
    assert (np.asarray(open_image(image)) == wide >> 8).all()
    assert image.tile  # still not decoded
    grey = numbers(16, 1, 1)
    image = Image.open(io.BytesIO(written(grey, 16, 0)))
    assert (np.asarray(open_image(image)) == 255 - (grey[..., 0] >> 8)).all()
