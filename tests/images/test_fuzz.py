"""Mutated pictures: decoded or refused, never a crash, a hang, much memory or a word on stderr.

Every picture is made from its number alone, so that one that fails can be made again:
`mutated(number)`.
"""

import io
import mmap
import os
import signal
import struct
import traceback
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.images.test_decode import chunk, png
from tests.images.test_tiff import written
from van_classification_tensorflow.images.decode import ImageError, open_image

resource = pytest.importorskip("resource")
if not hasattr(os, "fork"):
    pytest.skip("decodes in children", allow_module_level=True)

SECONDS = 10  # for one picture
MEMORY = 1 << 30  # beyond what the tests have already
BATCH = 250  # pictures that share a child

INTERESTING = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
)


@cache
def originals() -> list[bytes]:
    """Small pictures that use much of each format."""
    rng = np.random.Generator(np.random.PCG64(11))
    smooth = np.linspace(0, 255, 24 * 20 * 3).reshape(20, 24, 3)
    colour = Image.fromarray((smooth + rng.integers(0, 60, smooth.shape)).clip(0, 255).astype("u1"))
    alpha = colour.convert("RGBA")
    alpha.putalpha(colour.convert("L"))
    palette, grey = colour.quantize(20), colour.convert("L")
    wide = Image.fromarray(rng.integers(0, 1 << 16, (20, 24), dtype=np.uint16))
    floats = Image.fromarray(rng.standard_normal((20, 24)).astype("f4"))
    bits, inks = grey.convert("1"), colour.convert("CMYK")
    exif = Image.Exif()
    exif[274], exif[306], exif[282] = 6, "2022:02:20 00:00:00", 72.0
    frames = {"save_all": True, "append_images": [palette.rotate(90), palette.rotate(180)]}
    many = {"save_all": True, "append_images": [alpha.rotate(90), alpha.rotate(180)]}
    recipes = [
        *(("JPEG", one, {"exif": exif, "dpi": (72, 72)}) for one in (colour, grey, inks)),
        ("JPEG", colour, {"progressive": True, "restart_marker_blocks": 1}),
        ("JPEG", colour, {"subsampling": 2, "icc_profile": bytes(300), "comment": b"none"}),
        ("MPO", colour, {"save_all": True, "append_images": [colour]}),
        *(("PNG", one, {}) for one in (colour, grey, bits, wide)),
        ("PNG", alpha, {"exif": exif, "dpi": (72, 72)}),
        ("PNG", palette, {"transparency": bytes(range(20))}),
        ("PNG", alpha, many),
        ("WEBP", colour, {"exif": exif, "quality": 60}),
        ("WEBP", alpha, {"lossless": True}),
        ("WEBP", alpha, {"quality": 50}),
        ("WEBP", alpha, many),
        ("GIF", palette, {"transparency": 3, "comment": b"none"}),
        ("GIF", palette, {**frames, "disposal": 2}),
        ("GIF", palette, {**frames, "interlace": 1, "loop": 0}),
        *(("TIFF", one, {"exif": exif}) for one in (colour, grey, wide, floats, bits)),
        *(
            ("TIFF", colour, {"compression": name})
            for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ),
        ("TIFF", bits, {"compression": "group4"}),
        ("TIFF", alpha, {"compression": "tiff_lzw"}),
        ("TIFF", palette, {"save_all": True, "append_images": [palette], "big_tiff": True}),
        *(("BMP", one, {}) for one in (colour, grey, palette, bits, alpha)),
    ]
    made = []
    for kind, image, options in recipes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        made.append(file.getvalue())
    wide = rng.integers(0, 1 << 16, (20, 24, 3))
    options = {"number": 3, "order": ">", "compression": 8, "predictor": 3, "rows": 7}
    clear = chunk(b"tRNS", struct.pack(">3H", *wide[0, 0]))
    rows = [row.tobytes() for row in wide.astype(">u2")]
    return [
        *made,
        written(wide, 16, 2, planes=2, rows=20),
        written(rng.random((20, 24, 1)), 32, 1, **options),
        written(wide >> 8, 8, 6, tile=16, tags={530: [1, 1]}),
        png((24, 20), 16, 2, rows, clear, chunk(b"tEXt", b"Comment\0" + bytes(50))),
    ]


def mutated(number: int) -> bytes:
    rng = np.random.Generator(np.random.PCG64(number))
    every = originals()
    data = bytearray(every[number % len(every)])
    for _ in range(int(rng.choice([1, 1, 2, 3, 8, 30]))):
        if not data:
            break
        # Half of them where the sizes and tables are.
        reach = len(data) if rng.random() < 0.5 else min(len(data), 200)
        at = int(rng.integers(reach))
        length = int(min(rng.integers(1, 40), len(data) - at))
        match rng.integers(9):
            case 0 | 1:
                data[at] ^= 1 << int(rng.integers(8))
            case 2:
                data[at] = int(rng.integers(256))
            case 3:
                value = INTERESTING[rng.integers(len(INTERESTING))]
                data[at : at + len(value)] = value
            case 4:
                value = int(rng.choice([0, 1, 2, 255, 1 << 15, 1 << 16, 30_000, 1 << 31]))
                data[at : at + 4] = struct.pack("<>"[rng.integers(2)] + "L", value)
            case 5:
                del data[at : at + length]
            case 6:
                data[at:at] = data[at : at + length] * int(rng.choice([1, 3, 50]))
            case 7:
                other = every[rng.integers(len(every))]
                start = int(rng.integers(len(other)))
                data[at : at + length] = other[start : start + length]
            case 8 if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


def decode(numbers: range, seen: mmap.mmap) -> None:
    """In a child: says in `seen` how far it is, and how many pictures there were."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    good = 0
    for number in numbers:
        seen[:16] = struct.pack("<2Q", number, good)
        signal.alarm(SECONDS)  # ends the child: nothing handles it
        try:
            image = open_image(mutated(number))
            assert image.mode in ("L", "RGB")
            assert image.width * image.height <= 50_000_000
            good += 1
        except (ImageError, OSError) as error:
            said = str(error)
            if not said.isprintable() or len(said) > 300:
                raise AssertionError(f"mutated({number}): {said!r}") from error
    seen[:16] = struct.pack("<2Q", numbers[-1], good)


def fuzz(count: int, tmp_path) -> int:
    """Returns how many of `count` were pictures still."""
    good = 0
    originals()
    log = tmp_path / "stderr"
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        seen = mmap.mmap(-1, 16)
        child = os.fork()
        if child == 0:
            code = 3
            try:
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                decode(numbers, seen)
                code = 0
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        number, found = struct.unpack("<2Q", seen[:16])
        good += found
        said = log.read_text()
        assert code == 0, f"mutated({number}): ended with {code}: {said}"
        assert said == "", f"mutated({numbers}): {said}"
    return good


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
class TestMutated:
    def test_a_thousand(self, tmp_path):
        # Some stay pictures and some do not, or there is nothing to see here.
        assert 100 < fuzz(1_000, tmp_path) < 900

    @pytest.mark.slow
    def test_thousands(self, tmp_path, thorough):
        count = 10_000 if thorough else 3_000
        assert count / 10 < fuzz(count, tmp_path) < 0.9 * count


def test_the_originals_are_pictures():
    kinds = [Image.open(io.BytesIO(data)).format for data in originals()]
    assert {*kinds} == {"JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP"}
    for data in originals():
        assert sorted(open_image(data).size) == [20, 24]
