"""The map lies where the model looked, in colours that are as bright as the number is large."""

import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow import Preprocessing, overlay
from van_classification_tensorflow.explanation.overlay import (
    Caption,
    colours,
    scale_of,
    sheet,
    with_caption,
)

GREY = np.full((60, 100, 3), 128, np.uint8)


def luminance(colour: np.ndarray) -> np.ndarray:
    """CIE lightness of sRGB colours, from 0 to 100."""
    linear = colour / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * 24389 / 27)


def test_colours_are_even_and_readable_in_grey():
    made = colours(np.linspace(0, 1, 101))
    assert made.dtype == np.uint8
    steps = np.diff(luminance(made.astype(float)))
    assert steps.min() > 0.3  # never darker for more
    assert steps.max() < 3 * steps.mean()
    assert tuple(made[0]) == (68, 1, 84)
    assert tuple(made[-1]) == (253, 231, 37)


def test_the_frame_is_what_the_model_saw():
    """A picture with a mark in the corner of the crop: it is in the corner of the model's input."""
    preprocessing = Preprocessing(32, 0.8, interpolation="box")
    left, top, right, bottom = preprocessing.box(300, 200)
    assert right - left == pytest.approx(bottom - top, abs=0.5)
    assert (left + right) / 2 == pytest.approx(150, abs=5)
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[round(top) : round(bottom), round(left) : round(right)] = 255
    seen = preprocessing.crop(Image.fromarray(pixels))
    assert seen.mean() > 245  # all of it, but for half a pixel at the edges
    pixels[:] = 255
    pixels[round(top) : round(bottom), round(left) : round(right)] = 0
    assert preprocessing.crop(Image.fromarray(pixels)).mean() < 10
    assert Preprocessing(32, 1.0, resize="both sides").box(300, 200) == (0, 0, 300, 200)


def test_inside_is_coloured_and_outside_is_not():
    preprocessing = Preprocessing(32, 0.8)
    made = np.asarray(overlay(GREY, np.ones((2, 2)), preprocessing, opacity=1.0)).astype(int)
    left, top, right, bottom = (round(one) for one in preprocessing.box(100, 60))
    assert made.shape == GREY.shape
    inside = made[top + 1 : bottom - 1, left + 1 : right - 1]
    assert (inside == [253, 231, 37]).all()
    made[top:bottom, left:right] = 0
    outside = made[made.any(axis=2)]
    assert (np.ptp(outside, axis=1) == 0).all()
    assert len(outside) == 100 * 60 - (bottom - top) * (right - left)
    assert (made[top, left] == 0).all()


def test_the_map_is_laid_on_bilinearly():
    ramp = np.linspace(0, 1, 5)[None]
    made = np.asarray(overlay(GREY, ramp, opacity=1.0))
    assert (made == made[0]).all()  # the same in every row
    assert (np.diff(luminance(made[0].astype(float))) >= -0.5).all()
    # Half-pixel centres: the middle of the first of five is 10 pixels in.
    assert tuple(made[0, 5]) == (68, 1, 84)
    assert abs(made[0, 50].astype(int) - colours(np.array(0.5)).astype(int)).max() <= 3


def test_upright_and_in_its_own_size(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(path, exif=exif)
    assert overlay(path, np.ones((1, 1))).size == (40, 60)
    assert overlay(Image.new("L", (3, 5)), np.zeros((7, 7))).size == (3, 5)
    assert overlay(Image.new("RGB", (1, 900)), np.ones((7, 7)), Preprocessing(32)).size == (1, 900)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GREY, np.ones((1, 2, 2))), r"`map` must be \(h, w\)"),
        ((GREY, np.full((2, 2), np.nan)), "finite"),
        ((GREY, np.full((2, 2), 1.5)), "from 0 to 1, as `explain` gives it. Received: 1.5 to 1.5"),
        ((GREY, np.ones((2, 2)), None, 2), "`opacity` must be from 0 to 1"),
        ((b"no picture", np.ones((2, 2))), "not a picture"),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(ValueError, match=message):
        overlay(*arguments)


def test_captions_and_sheets_hold_any_words():
    small = overlay(np.zeros((20, 32), np.uint8), np.ones((1, 1)))
    assert scale_of(small.size) == 8
    caption = Caption("中文 Wörter \x1b[31m" + "x" * 400, 0.5, ["", "a b " * 100])
    made = with_caption(small, caption)
    assert made.width == 256
    assert made.height > 8 * 20 + 100
    # The picture is there as it is, each pixel eight times.
    assert np.array_equal(np.asarray(made)[:160:8, ::8], np.asarray(small))
    large = with_caption(Image.new("RGB", (700, 300)), Caption("a", lines=["b"], colours=None))
    assert large.width == 700
    page = sheet([("one", [("a" * 300, small), ("b", None)]), ("two", [("中", large)])])
    assert page.width > 2 * 240
