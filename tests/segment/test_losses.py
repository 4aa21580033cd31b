"""The loss against mmsegmentation's `CrossEntropyLoss`."""

import keras
import numpy as np
import pytest

from tests.segment.golden import golden
from van_classification_tensorflow.segment.losses import SegmentationCrossEntropy

WEIGHTS = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]


@pytest.fixture(scope="module")
def data():
    found = golden("cross_entropy")
    return np.moveaxis(found.pop("logits"), 1, -1), found.pop("labels"), found


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_means(data, data_format):
    logits, labels, expected = data
    if data_format == "channels_first":
        logits = np.moveaxis(logits, -1, 1)

    def loss(y=labels, **options):
        return float(SegmentationCrossEntropy(data_format=data_format, **options)(y, logits))

    assert loss() == pytest.approx(float(expected["default"]), abs=1e-6)
    assert loss(labels[..., None]) == loss()
    assert loss(avg_non_ignore=True) == pytest.approx(float(expected["avg_non_ignore"]), abs=1e-6)
    seen = np.where(labels == 255, 0, labels)
    weighted = loss(seen, class_weight=WEIGHTS)
    assert weighted == pytest.approx(float(expected["class_weight_no_ignored_pixels"]), abs=1e-6)
    # With ignored pixels mmsegmentation fails; this is torch's own.
    weighted = loss(class_weight=WEIGHTS)
    assert weighted == pytest.approx(float(expected["torch_weighted_mean_ignore"]), abs=1e-6)
    ignored = np.full_like(labels, 255)
    assert loss(ignored) == loss(ignored, avg_non_ignore=True) == 0
    assert loss(ignored, class_weight=WEIGHTS) == 0
    assert loss(seen, ignore_index=7) > loss()


def test_logits_are_resized_and_pixels_weighted(data):
    logits, labels, _ = data
    loss = SegmentationCrossEntropy(data_format="channels_last")
    large = np.repeat(np.repeat(labels, 2, 1), 3, 2)
    assert loss.call(large, logits).shape == large.shape
    one = float(loss(labels[:1], logits[:1]))
    both = float(loss(labels, logits, sample_weight=np.array([1.0, 0.0])[:, None, None]))
    assert both == pytest.approx(one / 2, rel=1e-6)
    half = loss(labels, keras.ops.cast(logits, "float16"))
    assert float(half) == pytest.approx(float(loss(labels, logits)), rel=1e-3)


def test_what_is_asked_for_is_saved():
    loss = SegmentationCrossEntropy(3, True, [1, 2], "channels_first", name="mine")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is SegmentationCrossEntropy
    assert again.get_config() == loss.get_config()
    assert again.class_weight == (1.0, 2.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ignore_index": 2.5}, "`ignore_index` must be a whole number"),
        ({"avg_non_ignore": 1}, "`avg_non_ignore` must be True or False"),
        ({"class_weight": [1, -1]}, "`class_weight` must hold a number >= 0"),
        ({"class_weight": []}, "`class_weight` must hold"),
        ({"data_format": "channel_first"}, "`data_format` must be one of"),
        ({"class_weight": [1, 2], "reduction": "sum"}, "`reduction` must not be 'sum'"),
    ],
)
def test_what_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        SegmentationCrossEntropy(**options)


def test_weights_of_other_classes():
    loss = SegmentationCrossEntropy(class_weight=[1, 2])
    with pytest.raises(ValueError, match=r"a number for each of 3 classes\. Received: 2"):
        loss(np.zeros((1, 4, 4), "int32"), np.zeros((1, 4, 4, 3), "float32"))
