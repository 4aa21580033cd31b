"""A mask over its picture: which pixels are changed, names, legend, any size."""

import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow.segment import drawing
from van_classification_tensorflow.segment.drawing import (
    Entry,
    overlay_of,
    reduced_size,
    with_legend,
)

PALETTE = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)


def halves(height, width):
    """The left half of class 0, the right one of class 1."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    return mask


def entries(*shares):
    return [
        Entry(i % 2, f"thing {i}", share, tuple(PALETTE[i % 2].tolist()))
        for i, share in enumerate(shares)
    ]


def test_colours_over_grey():
    picture = Image.new("RGB", (100, 60), (200, 100, 50))
    grey = picture.convert("L").getpixel((0, 0))
    found = np.asarray(overlay_of(picture, halves(60, 100), PALETTE, opacity=0.5))
    assert found.shape == (60, 100, 3)
    for pixel, colour in ((found[5, 5], PALETTE[0]), (found[50, 90], PALETTE[1])):
        assert np.abs(pixel.astype(int) - (colour.astype(int) + grey) / 2).max() <= 1
    for opacity, expected in ((0, [grey] * 3), (1, [255, 0, 0])):
        shown = overlay_of(picture, halves(60, 100), PALETTE, opacity)
        assert np.asarray(shown)[0, 0].tolist() == expected


def test_a_line_between_classes_of_larger_pictures(monkeypatch):
    picture = Image.new("L", (600, 500), 10)
    mask = halves(500, 600)
    mask[250:] = 0
    expected = np.asarray(overlay_of(picture, mask, PALETTE))
    assert (expected[100, 299] == 255).all()
    assert (expected[249, 400] == 255).all()
    assert not (expected[400] == 255).all(axis=-1).any()
    monkeypatch.setattr(drawing, "_STRIP", 600 * 7)
    np.testing.assert_array_equal(np.asarray(overlay_of(picture, mask, PALETTE)), expected)


def test_a_huge_picture_is_drawn_smaller(monkeypatch):
    assert reduced_size((4000, 4000)) == (4000, 4000)
    assert reduced_size((40_000, 4000)) == (12_649, 1264)
    monkeypatch.setattr(drawing, "MAX_DRAWN", 600)
    found = overlay_of(Image.new("RGB", (100, 60)), halves(60, 100), PALETTE, opacity=1)
    assert found.size == (31, 18)
    assert found.getpixel((0, 0)) == (255, 0, 0)
    assert found.getpixel((30, 17)) == (0, 0, 255)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (40, 30), (700, 500)])
def test_legend(size):
    width, height = size
    mask = halves(height, width)
    picture = overlay_of(Image.new("RGB", size, (90, 90, 90)), mask, PALETTE)
    named = entries(0.5, 0.4996, 0.0004)
    found = with_legend(picture, mask, named, "x.jpg", ["a line"])
    scale = max(1, -(-480 // max(size)))
    assert found.width == max(300, scale * width)
    assert scale * height < found.height < scale * height + 350
    below = np.asarray(found)[scale * height :].astype(int)
    for colour in PALETTE:  # the legend has a field of each
        assert (np.abs(below - colour).max(axis=-1) == 0).sum() > 100


def test_names_stand_on_their_classes():
    """Letters of the first name are left of the border, those of the second right of it."""
    mask = halves(400, 800)
    plain = overlay_of(Image.new("RGB", (800, 400)), mask, PALETTE)
    named = entries(0.5, 0.5)
    found = with_legend(plain, mask, named, "x")
    changed = (np.asarray(found)[:400] != np.asarray(plain)).any(axis=-1)
    columns = np.nonzero(changed.any(axis=0))[0]
    assert changed[:, :400].any()
    assert changed[:, 400:].any()
    assert not changed[:, 380:420].any()
    assert columns.min() > 100
    # A class that is scattered has no place for its name.
    scattered = np.zeros((400, 800), np.uint8)
    scattered[::7, ::5] = 1
    plain = overlay_of(Image.new("RGB", (800, 400)), scattered, PALETTE)
    found = with_legend(plain, scattered, [entries(0.5, 0.5)[1]], "x")
    np.testing.assert_array_equal(np.asarray(found)[:400], np.asarray(plain))


def test_many_classes_and_strange_names():
    mask = halves(300, 600)
    many = [Entry(0, f"{'long name ' * 9}{i}", 0.01, (1, 2, 3)) for i in range(150)]
    many[0] = Entry(0, "Straße\n\x1b[31m 漢字", 0.5, (1, 2, 3))
    picture = overlay_of(Image.new("RGB", (600, 300)), mask, PALETTE)
    found = with_legend(picture, mask, many, "x" * 500)
    assert found.width == 600
    assert found.height < 1500


def test_what_is_refused():
    picture = Image.new("RGB", (100, 60))
    with pytest.raises(ValueError, match=r"`mask` must be of .* 100 x 60. Received: 60 x 100"):
        overlay_of(picture, np.zeros((100, 60), np.uint8), PALETTE)
    with pytest.raises(ValueError, match=r"`opacity` must be from 0 to 1. Received: opacity=2"):
        overlay_of(picture, halves(60, 100), PALETTE, 2)
