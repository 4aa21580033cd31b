"""Masks of strangers: their numbers, not their colours; and what is none."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow.images.decode import ImageError
from van_classification_tensorflow.images.masks import mask_image, open_mask

PALETTE = np.arange(450, dtype=np.uint16).astype(np.uint8).reshape(150, 3)
NUMBERS = np.array([[0, 1, 2, 149], [3, 3, 0, 7]], np.uint8)


def png(bits, colour, width, rows):
    """A PNG, made by hand of packed rows."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">2I5B", width, len(rows), bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_written_and_read_again(tmp_path):
    path = tmp_path / "a.png"
    mask_image(NUMBERS, PALETTE).save(path)
    np.testing.assert_array_equal(open_mask(path), NUMBERS)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.convert("RGB").getpixel((3, 0)) == tuple(PALETTE[149])
    wide = NUMBERS.astype(np.uint16) * 400
    mask_image(wide, PALETTE).save(path)
    found = open_mask(path)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, wide)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_few_bits_keeps_its_numbers(bits, tmp_path):
    """Pillow would make brightness of them, up to 255."""
    numbers = np.arange(8) % 2**bits
    packed = np.packbits(
        (numbers[:, None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(-1)
    ).tobytes()
    (tmp_path / "a.png").write_bytes(png(bits, 0, 8, [packed]))
    found = open_mask(tmp_path / "a.png")
    assert found.dtype == np.uint8
    assert found.tolist() == [numbers.tolist()]


def test_grey_of_16_bits(tmp_path):
    numbers = np.array([0, 1, 255, 256, 65_535], ">u2")
    (tmp_path / "a.png").write_bytes(png(16, 0, 5, [numbers.tobytes()]))
    assert open_mask(tmp_path / "a.png").tolist() == [numbers.tolist()]


def test_what_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(NUMBERS).save(tmp_path / "a.jpg")
    Image.new("RGB", (4, 2)).save(tmp_path / "rgb.png")
    Image.new("LA", (4, 2)).save(tmp_path / "la.png")
    mask_image(NUMBERS, PALETTE).save(path)
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:-30])
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    bomb = bytearray(png(8, 0, 4, [b"\0\1\2\3"]))
    bomb[16:20] = struct.pack(">I", 60_000)
    bomb[20:24] = struct.pack(">I", 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "bomb.png").write_bytes(bomb)
    for name, says in (
        ("a.jpg", "must be a PNG, whose numbers are exact. It is JPEG"),
        ("rgb.png", "numbers of classes.*It has colours"),
        ("la.png", "numbers of classes.*It has colours"),
        ("cut.png", "damaged|truncated|Truncated"),
        ("empty.png", "must be a PNG"),
        ("folder.png", "a folder"),
        ("bomb.png", "60000 x 60000 pixels; allowed: 50,000,000"),
    ):
        with pytest.raises(ImageError, match=f"{name}: .*({says})"):
            open_mask(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_mask(tmp_path / "no.png")
    with pytest.raises(ImageError, match="allowed: 7 in all"):
        open_mask(path, max_pixels=7)


def test_changed_bytes_never_do_more_than_be_refused(tmp_path):
    path = tmp_path / "a.png"
    mask_image(NUMBERS, PALETTE).save(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert open_mask(path).ndim == 2
        except ImageError:
            refused += 1
    assert refused > 100
