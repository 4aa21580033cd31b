import numpy as np

from tests.parity import GOLDEN
from van_classification_tensorflow.datasets.digits import load_digits


def test_the_split_is_the_golden_one():
    train, test = load_digits()
    assert train.images.shape == (1437, 32, 32, 1)
    assert test.images.shape == (360, 32, 32, 1)
    with np.load(GOLDEN / "digits.npz") as golden:
        np.testing.assert_array_equal(test.labels, golden["test_labels"])
        order = np.random.Generator(np.random.PCG64(1234)).permutation(1797)
        np.testing.assert_array_equal(order[1437:], golden["test_index"])


def test_pixels_become_patches_in_minus_one_to_one():
    train, _ = load_digits()
    assert train.images.dtype == np.float32
    assert (train.images.min(), train.images.max()) == (-1.0, 1.0)
    patches = train.images[..., 0].reshape(-1, 8, 4, 8, 4)
    np.testing.assert_array_equal(patches.min((2, 4)), patches.max((2, 4)))
    np.testing.assert_array_equal(patches[:, :, 0, :, 0], train.pixels / np.float32(8) - 1)
