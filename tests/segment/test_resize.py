"""Resizes against their formulas; that they are torch's, the golden maps of the decoders tell."""

import keras
import numpy as np
import pytest

from van_classification_tensorflow.segment.resize import (
    AdaptiveAveragePooling,
    ResizeLike,
    UpsampleTwice,
    adaptive_average_pool,
    resize_bilinear,
    resize_nearest,
)

SIZES = [((3, 5), (6, 10)), ((3, 5), (5, 9)), ((5, 9), (3, 2)), ((1, 4), (3, 4)), ((7, 3), (1, 1))]


def bilinear(maps, size):
    for axis, out in enumerate(size, start=1):
        into = maps.shape[axis]
        place = np.clip((np.arange(out) + 0.5) * into / out - 0.5, 0, into - 1)
        low = np.floor(place).astype(int)
        high, share = np.minimum(low + 1, into - 1), place - low
        share = share.reshape([-1 if i == axis else 1 for i in range(4)])
        maps = maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
    return maps


def nearest(maps, size):
    rows, columns = (np.arange(n) * i // n for n, i in zip(size, maps.shape[1:3], strict=True))
    return maps[:, rows][:, :, columns]


def pooled(maps, bins):
    made = np.empty((maps.shape[0], bins, bins, maps.shape[3]))
    ends = [
        [(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)] for n in maps.shape[1:3]
    ]
    for i, (top, bottom) in enumerate(ends[0]):
        for j, (left, right) in enumerate(ends[1]):
            made[:, i, j] = maps[:, top:bottom, left:right].mean((1, 2))
    return made


@pytest.fixture
def draw():
    return lambda *size: np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)


@pytest.mark.parametrize("known", [True, False])
def test_every_size(draw, known):
    """Also where height and width are known only when the graph runs."""
    if not known and keras.backend.backend() != "tensorflow":
        pytest.skip("shapes are always known")

    def run(layer, *maps):
        if known:
            found = layer(list(maps) if len(maps) > 1 else maps[0])
        else:
            import tensorflow as tf

            specs = [tf.TensorSpec((None, None, None, 3))] * len(maps)
            call = lambda *maps: layer(list(maps) if len(maps) > 1 else maps[0])  # noqa: E731
            found = tf.function(call, input_signature=specs)(*maps)
        return keras.ops.convert_to_numpy(found)

    for into, out in SIZES if known else SIZES[1:3]:
        maps = draw(*into)
        for interpolation, formula in (("bilinear", bilinear), ("nearest", nearest)):
            ours = run(ResizeLike(interpolation), maps, draw(*out))
            np.testing.assert_allclose(ours, formula(maps, out), rtol=0, atol=2e-6)
        doubled = bilinear(maps, (2 * into[0], 2 * into[1]))
        np.testing.assert_allclose(run(UpsampleTwice(), maps), doubled, rtol=0, atol=2e-6)
        for bins in (1, 2, 3, 6):
            ours = run(AdaptiveAveragePooling(bins), maps)
            np.testing.assert_allclose(ours, pooled(maps, bins), rtol=0, atol=2e-6)


def test_types_stay(draw):
    for dtype in ("float32", "bfloat16", "float16"):
        maps = keras.ops.cast(draw(3, 5), dtype)
        for made in (resize_bilinear(maps, (4, 7)), adaptive_average_pool(maps, 2)):
            assert keras.backend.standardize_dtype(made.dtype) == dtype
        assert resize_nearest(maps, (3, 5)) is maps is resize_bilinear(maps, (3, 5))
    if keras.backend.backend() != "jax":
        maps = draw(3, 5).astype(np.float64)
        for out in ((4, 7), (2, 9)):
            made = keras.ops.convert_to_numpy(resize_bilinear(maps, out))
            np.testing.assert_allclose(made, bilinear(maps, out), rtol=0, atol=1e-14)


def test_only_the_two_are_there():
    with pytest.raises(ValueError, match="`interpolation` must be one of bilinear, nearest"):
        ResizeLike("bicubic")
