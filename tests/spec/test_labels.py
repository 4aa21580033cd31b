"""Bundled class names."""

import numpy as np
import pytest

from van_classification_tensorflow.spec.labels import (
    Label,
    imagenet22k_classes,
    imagenet_classes,
    index_of,
    labels_of,
)


def test_imagenet():
    classes = imagenet_classes()
    assert [c.index for c in classes] == list(range(1000))
    assert len({c.wnid for c in classes}) == 1000
    assert (classes[2].wnid, classes[2].name) == ("n01484850", "great_white_shark")


def test_imagenet22k():
    classes = imagenet22k_classes()
    assert [c.index for c in classes] == list(range(21_841))
    wnids = [c.wnid for c in classes]
    assert wnids == sorted(set(wnids))
    # All of ImageNet-1k's classes but one that was renumbered.
    assert len({c.wnid for c in imagenet_classes()} - set(wnids)) == 1


def test_labels_of_a_head():
    assert labels_of("imagenet1k", 1000)[2].wnid == "n01484850"
    assert labels_of("imagenet22k", 21_841)[0].wnid == "n00004475"
    # Nothing is guessed: a thousand classes may be anyone's.
    assert labels_of(None, 1000)[999] == Label("class 999")
    assert [label.name for label in labels_of("digits", 10)] == list("0123456789")
    assert [label.name for label in labels_of(None, 3)] == ["class 0", "class 1", "class 2"]
    assert [label.name for label in labels_of(["no", "yes"], 2)] == ["no", "yes"]
    for label in labels_of("imagenet1k", 1000):
        assert Label.of_text(label.text) == label
    # As `comparable` promises: a name is one name, however a system composes it.
    assert labels_of(["cafe\u0301", "b"], 2)[0] == Label("caf\u00e9")
    assert labels_of(np.array("digits"), 10) == labels_of("digits", 10)
    (hostile,) = labels_of(["\x1b[2Jn\n"], 1)
    assert hostile.name == r"\x1b[2Jn\n"


@pytest.mark.parametrize(
    ("labels", "classes", "says"),
    [
        ("imagenet1k", 10, r"name each of 10 classes\. Received: 1,000"),
        (["a"], 2, "name each of 2 classes"),
        ([], 2, "name each of 2 classes"),
        (np.array(3), 2, "one name per class"),
        ("imagenet", 1000, "`labels` must be imagenet1k, imagenet22k, digits or a list"),
    ],
)
def test_wrong_labels(labels, classes, says):
    with pytest.raises(ValueError, match=says):
        labels_of(labels, classes)


def test_a_class_is_found_by_any_of_its_names():
    labels = [Label("tabby, tabby cat", "n02123045"), Label("Dog"), Label("dog, wolf"), Label("1")]
    for word in ("0", "tabby", "TABBY CAT", "tabby, tabby cat", "n02123045"):
        assert index_of(word, labels, "class") == 0
    assert index_of("dog", labels, "class") == 1
    assert index_of("wolf", labels, "class") == 2
    assert index_of("1", labels, "class") == 3  # a name comes before a position
    assert index_of("3", labels, "class") == 3
    with pytest.raises(ValueError, match=r"`class` must be an index from 0 to 3.*Received: cat"):
        index_of("cat", labels, "class")
    with pytest.raises(ValueError, match=r"a may be 0 \(a\), 1 \(a\)"):
        index_of("a", [Label("a"), Label("a")], "class")
