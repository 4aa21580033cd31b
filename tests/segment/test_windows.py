"""Whole and sliding inference beside mmsegmentation's, and what it holds in memory."""

import numpy as np
import pytest

from van_classification_tensorflow.segment import strips, windows
from van_classification_tensorflow.segment.pixels import (
    resized,
    scaled_size,
    size_within,
    up_to_multiple,
)
from van_classification_tensorflow.segment.strips import Held, Resized, best_of, strips_of
from van_classification_tensorflow.segment.windows import (
    Picture,
    Slid,
    Way,
    in_one_piece,
    windows_of,
)
from van_classification_tensorflow.weights.catalogue import OF_SEGMENTERS

from .micro import golden, numbers, picture, run

# Of logits, relative to the largest: torch itself differs so much between one and two threads.
TOLERANCE = 2e-5
NORMALISE = OF_SEGMENTERS.normalise


def whole(maps):
    return np.concatenate([part for _, part in strips_of(maps)], axis=maps.along)


def assert_close(found, expected):
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def small_strips(monkeypatch, bytes_=20_000):
    monkeypatch.setattr(strips, "STRIP_BYTES", bytes_)


# --- Beside mmsegmentation ---


def test_pixels_are_opencvs():
    g = golden()
    given = g["resize_to_multiple_in"]
    size = up_to_multiple(given.shape[:2], 32)
    assert size == (32, 64)
    np.testing.assert_array_equal(resized(given, size), g["resize_to_multiple_out"])
    np.testing.assert_array_equal(resized(given, (26, 48)), g["imrescale_out"])
    rgb = g["predict_image_bgr"]
    for ratio, shape, flip, crop in zip(
        np.repeat(g["tta_ratios"], 2),
        g["tta_view_shapes"],
        g["tta_view_flip"],
        g["tta_view_crop"],
        strict=True,
    ):
        size = scaled_size(rgb.shape[:2], ratio)
        assert size == tuple(shape)
        view = resized(rgb, size)[:, :: -1 if flip else 1]
        np.testing.assert_array_equal(view[:8, :8], crop)


def test_pixels_in_strips_are_the_same(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 33, 3), np.uint8)
    at_once = [resized(pixels, size) for size in ((20, 90), (131, 7))]
    monkeypatch.setattr("van_classification_tensorflow.segment.pixels._STRIP", 1)
    for size, expected in zip(((20, 90), (131, 7)), at_once, strict=True):
        np.testing.assert_array_equal(resized(pixels, size), expected)


def test_sizes():
    known = numbers()["rescale_size (w,h) at scale (2048,512)"]
    assert len(known) == 8
    for size, (width, height) in known.items():
        across, down = map(int, size.split("x"))
        assert size_within((down, across), 512, 2048) == (height, width)
    assert size_within((1, 50_000), 512, 2048) == (1, 2048)
    assert Way(size=512).size_of((75, 131), 0.5) == size_within((75, 131), 256, 1024)


def test_whole():
    np.testing.assert_array_equal(
        best_of(in_one_piece(run, Picture(picture()))), golden()["whole_pred"][0]
    )


@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize(("name", "step"), [("slide", 3), ("slide_tall", 8)])
def test_slide(name, step, along, monkeypatch):
    g = golden()
    crop, stride = (tuple(map(int, g[f"{name}_{what}"])) for what in ("crop", "stride"))
    np.testing.assert_array_equal(windows_of((75, 131), crop, stride), g[f"{name}_windows"])
    small_strips(monkeypatch)
    slid = Slid(run, Picture(picture()), crop, stride, along, batch_size=2)
    found = whole(slid)
    assert_close(found[::step, ::step], g[f"{name}_logits_sub"][0].transpose(1, 2, 0))
    np.testing.assert_array_equal(found.argmax(axis=-1), g[f"{name}_pred"][0])


def test_predict_pads_crops_and_resizes(monkeypatch):
    g = golden()
    rgb = g["predict_image_bgr"][:, :, ::-1]
    padded = Picture(rgb, NORMALISE, (96, 160)).window((0, 96, 0, 160))
    corner = padded[:4, :4].transpose(2, 0, 1)
    assert np.abs(corner - g["predict_input_crop"][0]).max() < 1e-6
    assert not padded[75:].any()
    assert not padded[:, 131:].any()
    small_strips(monkeypatch)
    maps = Way(fit="pad").logits(run, rgb, NORMALISE, (90, 157))
    found = whole(maps)
    assert_close(found[::4, ::4], g["predict_logits_sub"].transpose(1, 2, 0))
    np.testing.assert_array_equal(best_of(maps), g["predict_pred"])


def test_test_time_augmentation():
    g = golden()
    rgb = g["predict_image_bgr"][:, :, ::-1]
    way = Way(fit="pad", scales=(0.75, 1.0, 1.25), flip=True)
    maps = way.logits(run, rgb, NORMALISE)
    found = whole(maps)
    assert_close(found[::3, ::3], g["tta_prob_sub"].transpose(1, 2, 0))
    np.testing.assert_array_equal(best_of(maps), g["tta_pred"][0])
    assert abs(found.sum(axis=-1) - 1).max() < 1e-5


def test_flipped_back():
    g = golden()
    rgb = g["predict_image_bgr"][:, ::-1, ::-1]  # mmsegmentation is given the mirrored picture
    mirrored = Way(fit="pad").logits(run, rgb, NORMALISE)
    back = Resized(strips.Mirrored(mirrored), (90, 157))
    np.testing.assert_array_equal(best_of(back), g["predict_flip_pred"])


# --- Memory ---


class Watched:
    """A model of few operations that counts what it is asked."""

    def __init__(self, classes=5):
        self.weights = np.random.default_rng(0).standard_normal((3, classes)).astype(np.float32)
        self.windows = []

    def __call__(self, images):
        self.windows += [one.shape[:2] for one in images]
        return images[:, 2::4, 2::4] @ self.weights


@pytest.mark.parametrize("size", [(400, 90), (90, 400), (33, 33)])
@pytest.mark.parametrize("flip", [False, True])
def test_strips_are_the_whole(size, flip, monkeypatch):
    """However the picture is cut, each window is asked once and the mask is the same."""
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    way = Way(mode="slide", crop=(64, 64), stride=(40, 40), flip=flip, fit="pad")
    at_once = Watched()
    expected = whole(way.logits(at_once, pixels, NORMALISE, (size[0] + 7, size[1])))
    small_strips(monkeypatch, 3_000)
    model = Watched()
    maps = way.logits(model, pixels, NORMALISE, (size[0] + 7, size[1]))
    parts = list(strips_of(maps))
    assert len(parts) > 5
    found = np.concatenate([part for _, part in parts], axis=maps.along)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(model.windows) == len(at_once.windows)
    padded = up_to_multiple(size, 32)
    assert len(model.windows) == len(windows_of(padded, (64, 64), (40, 40))) * (1 + flip)


def test_a_large_picture_holds_few_windows(monkeypatch):
    """Of a picture of 96 windows no more than two or three lines are held, on its short side."""
    for size in ((3000, 400), (400, 3000)):
        model = Watched(50)
        along = int(size[1] > size[0])
        picture = Picture(np.zeros((*size, 3), np.float32))
        slid = Slid(model, picture, (128, 128), (96, 96), along)
        small_strips(monkeypatch, 1 << 18)
        most = 0
        for _ in strips_of(slid):
            most = max(most, sum(one.nbytes for line in slid._held.values() for one in line))
        one = 32 * 32 * 50 * 4
        assert len(model.windows) == 31 * 4
        assert 4 * one <= most <= 3 * 4 * one


def test_what_needs_too_much_memory_is_refused(monkeypatch):
    picture = Picture(np.zeros((400, 400, 3), np.float32))
    slid = Slid(Watched(50), picture, (128, 128), (8, 8), max_held=1 << 20)
    with pytest.raises(ValueError, match=r"need .* GB for 400 x 400 pixels.*larger `stride`"):
        best_of(slid)
    monkeypatch.setattr(windows, "MAX_WHOLE", 1000)
    with pytest.raises(ValueError, match=r"400 x 50 pixels are too many .* 1,000.*`mode` slide"):
        in_one_piece(Watched(), Picture(np.zeros((50, 400, 3), np.float32)))
    # What may be held is shared by all views.
    way = Way(mode="slide", crop=(128, 128), stride=(96, 96), fit="none", flip=True)
    maps = way.logits(Watched(50), np.zeros((400, 400, 3), np.uint8))
    held = 4 * 4 * 32 * 32 * 50 * 4  # of all 16 windows
    monkeypatch.setattr(windows, "MAX_HELD", 2 * held)
    best_of(maps)
    monkeypatch.setattr(windows, "MAX_HELD", held)  # of which each view has half
    with pytest.raises(ValueError, match="allowed for each view"):
        best_of(way.logits(Watched(50), np.zeros((400, 400, 3), np.uint8)))


def test_resized_maps_of_one_row():
    maps = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    for along in (0, 1):
        found = whole(Resized(Held(maps, along), (4, 6)))
        assert found.shape == (4, 6, 2)
        np.testing.assert_allclose(found[0, :, 0], [0, 0.5, 1.5, 2.5, 3.5, 4], atol=1e-6)
        np.testing.assert_array_equal(found[0], found[3])


def test_more_than_256_classes_take_two_bytes():
    maps = np.zeros((2, 2, 300), np.float32)
    maps[1, 0, 299] = 1
    mask = best_of(Held(maps))
    assert mask.dtype == np.uint16
    assert mask.tolist() == [[0, 0], [299, 0]]
