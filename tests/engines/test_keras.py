"""A Keras model as an engine: which shapes it is given, and that filling up changes nothing."""

import numpy as np
import pytest

from van_classification_tensorflow.engines.keras import KerasEngine, filled


@pytest.mark.parametrize(("count", "given"), [(0, 0), (1, 1), (2, 8), (7, 8), (8, 8), (9, 9)])
def test_few_are_filled_up_so_that_nothing_is_traced_again(count, given):
    images = np.ones((count, 2, 3, 1), np.float32)
    found = filled(images, 8)
    assert found.shape == (given, 2, 3, 1)
    assert (found[:count] == 1).all()
    assert not found[count:].any()


def test_only_the_images_that_were_given_come_back():
    class Model:
        def predict_on_batch(self, images):
            seen.append(images.shape)
            return images.sum(axis=(1, 2, 3))[:, None]

    seen = []
    engine = KerasEngine(Model(), 4)
    images = np.arange(3, dtype=np.float32)[:, None, None, None]
    np.testing.assert_array_equal(engine(images), [[0], [1], [2]])
    assert seen == [(4, 1, 1, 1)]
    assert (engine.format, engine.dtype) == ("keras", np.float32)
