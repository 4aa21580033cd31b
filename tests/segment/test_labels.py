"""Names and colours of classes: the known sets, and one's own."""

import numpy as np
import pytest

from van_classification_tensorflow.segment.labels import (
    SETS,
    ink_on,
    labels_of,
    names_of,
    palette_of,
    set_of,
)


def test_known_sets():
    """A few by hand, of mmsegmentation's lists, and the sums of all."""
    ade, cityscapes = names_of("ade20k"), names_of("cityscapes")
    assert {name: len(names_of(name)) for name in SETS} == SETS == {"ade20k": 150, "cityscapes": 19}
    assert (ade[0], ade[7], ade[48], ade[149]) == ("wall", "bed", "skyscraper", "flag")
    assert (cityscapes[0], cityscapes[18]) == ("road", "bicycle")
    assert all(len(set(names)) == len(names) for names in (ade, cityscapes))
    colours = palette_of("ade20k", 150)
    assert colours.dtype == np.uint8
    assert colours[[0, 1, 7, 149]].tolist() == [
        [120, 120, 120],
        [180, 120, 120],
        [204, 5, 255],
        [92, 0, 255],
    ]
    assert len(np.unique(colours, axis=0)) == 149  # road and skyscraper share one
    assert palette_of("cityscapes", 19)[13].tolist() == [0, 0, 142]
    assert (set_of(150), set_of(19), set_of(7)) == ("ade20k", "cityscapes", None)


def test_labels():
    assert [one.name for one in labels_of(None, 2)] == ["class 0", "class 1"]
    assert labels_of("ade20k", 150)[2].name == "sky"
    assert [one.name for one in labels_of(["a", "b"], 2)] == ["a", "b"]
    with pytest.raises(ValueError, match="ade20k or cityscapes, or one name per class"):
        labels_of("imagenet1k", 1000)
    with pytest.raises(ValueError, match=r"`labels` must name each of 3 classes. Received: 150"):
        labels_of("ade20k", 3)


@pytest.mark.parametrize(
    "given",
    [
        [(1, 2, 3), (255, 0, 9)],
        ["#010203", "ff0009"],
        np.array([[1, 2, 3], [255, 0, 9]]),
        ([1, 2, 3], "#FF0009"),
    ],
)
def test_colours_of_ones_own(given):
    assert palette_of(given, 2).tolist() == [[1, 2, 3], [255, 0, 9]]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("voc", "`palette` must be ade20k or cityscapes, or one colour per class. Received: 'voc'"),
        ("ade20k", "a colour for each of 2 classes. Received: 150"),
        ([(1, 2, 3)], "a colour for each of 2 classes. Received: 1"),
        ([(1, 2, 3), (1, 2, 256)], "for class 1: "),
        ([(1, 2, 3), "red"], "for class 1: 'red'"),
        ([(1, 2, 3), (1, 2)], "for class 1: "),
        (7, "`palette`"),
    ],
)
def test_colours_that_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        palette_of(given, 2)


def test_classes_without_colours_get_different_ones():
    for count in (2, 20, 256):
        found = palette_of(None, count)
        assert found.shape == (count, 3)
        assert len(np.unique(found, axis=0)) == count
        if count == 20:
            far = np.abs(found[:, None].astype(int) - found[None]).sum(axis=-1)
            assert far[~np.eye(count, dtype=bool)].min() > 30
    assert palette_of(None, 300).shape == (300, 3)
    np.testing.assert_array_equal(palette_of(None, 150), palette_of("ade20k", 150))


def test_ink_is_readable():
    assert ink_on(np.array([255, 255, 0])) == (0, 0, 0)
    assert ink_on(np.array([0, 0, 142])) == (255, 255, 255)
