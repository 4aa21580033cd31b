"""IoU and its kin beside mmsegmentation's `IoUMetric`, to the last digit of float32."""

import numpy as np
import pytest

from van_classification_tensorflow.segment import metrics
from van_classification_tensorflow.segment.metrics import (
    Confusion,
    areas_of,
    ignored_label,
    without_zero,
)
from van_classification_tensorflow.segment.truth import Agreement

from .micro import golden, numbers


def counted(labels, masks=None):
    found = Confusion(7)
    for mask, one in zip(golden()["metric_pred"] if masks is None else masks, labels, strict=True):
        found.add(mask, one)
    return found


def labels_of(name):
    raw = golden()["metric_raw_png"]
    return without_zero(raw) if name == "metric_reduce_zero_label" else np.where(raw == 0, 255, raw)


def float32(values):
    return np.array([np.nan if one is None else one for one in values], np.float32)


@pytest.mark.parametrize("name", ["metric_reduce_zero_label", "metric_no_reduction"])
def test_classes(name):
    found, g = counted(labels_of(name)), numbers()[name]
    for ours, theirs in (
        ("intersection", "intersect"),
        ("predicted", "pred"),
        ("labelled", "label"),
    ):
        np.testing.assert_array_equal(getattr(found, ours), g["areas"][theirs])
    scores = found.scores()
    assert found.pictures == 2
    assert found.outside == 0
    assert np.float32(scores.accuracy) == np.float32(g["mIoU"]["per_class"]["aAcc"][0])
    kinds = {("mIoU", "IoU"): scores.iou, ("mIoU", "Acc"): scores.recall}
    if "mDice" in g:
        kinds |= {
            ("mDice", "Dice"): scores.dice,
            ("mFscore", "Precision"): scores.precision,
            ("mFscore", "Recall"): scores.recall,
        }
        # Which mmsegmentation computes of numbers that were rounded to float32 before.
        theirs = float32(g["mFscore"]["per_class"]["Fscore"])
        np.testing.assert_allclose(scores.f_score, theirs, rtol=2e-7)
        assert np.isnan(scores.f_score[6])
        assert scores.dice[6] == 0
    for (metric, kind), ours in kinds.items():
        np.testing.assert_array_equal(
            ours.astype(np.float32), float32(g[metric]["per_class"][kind])
        )


@pytest.mark.parametrize("name", ["metric_reduce_zero_label", "metric_no_reduction"])
def test_means(name):
    scores, g = counted(labels_of(name)).scores(), numbers()[name]
    for metric in set(g) & {"mIoU", "mDice", "mFscore"}:
        for kind, value in g[metric]["summary"].items():
            assert scores.summary()[kind] == round(value, 2)
        for kind, value in g[metric]["unrounded_mean"].items():
            ours = scores.means()[kind if kind == "aAcc" else f"m{kind}"]
            assert ours == pytest.approx(value, rel=2e-7)


def test_nan_as_a_number():
    g = numbers()["metric_reduce_zero_label_nan_to_num_0"]["mIoU"]
    means = counted(labels_of("metric_reduce_zero_label")).scores().means(missing=0)
    for kind, value in g["unrounded_mean"].items():
        ours = means[kind if kind == "aAcc" else f"m{kind}"]
        assert ours == pytest.approx(value, rel=2e-7)


def test_each_picture():
    labels = labels_of("metric_reduce_zero_label")
    found = [
        counted([one], [mask]).scores().means()["mIoU"]
        for one, mask in zip(labels, golden()["metric_pred"], strict=True)
    ]
    assert found == pytest.approx(numbers()["metric_per_image_mIoU"], rel=2e-7)


def test_zero_is_none_of_the_classes():
    g = golden()
    np.testing.assert_array_equal(
        without_zero(np.arange(256, dtype=np.uint8)), g["reduce_zero_label_table"]
    )
    np.testing.assert_array_equal(without_zero(g["metric_raw_png"]), g["metric_label_reduced"])
    found = without_zero(np.array([0, 1, 300, 255, 65_535], np.uint16), 65_535)
    assert found.tolist() == [65_535, 0, 299, 254, 65_535]
    assert without_zero(np.array([0, 1], np.uint8), 65_535).tolist() == [65_535, 0]


def test_in_strips_and_merged_the_same(monkeypatch):
    labels = labels_of("metric_reduce_zero_label")
    expected = counted(labels)
    monkeypatch.setattr(metrics, "_STRIP", 17)
    found = counted(labels[:1], golden()["metric_pred"][:1])
    found.merge(counted(labels[1:], golden()["metric_pred"][1:]))
    assert found.scores().means() == expected.scores().means()
    assert found.pictures == 2
    mask = golden()["metric_pred"][0]
    np.testing.assert_array_equal(areas_of(mask, 7), np.bincount(mask.reshape(-1), minlength=7))


def test_labels_of_no_class_count_as_errors():
    found = Confusion(2)
    found.add(np.array([[0, 1, 1]]), np.array([[0, 1, 9]]))
    assert found.outside == 1
    assert found.scores().iou.tolist() == [1, 0.5]
    assert found.scores().accuracy == 1  # of the pixels whose label is a class


def test_nothing_counted():
    scores = Confusion(3).scores()
    assert np.isnan(scores.iou).all()
    assert np.isnan(scores.means()["mIoU"])
    everything_ignored = Confusion(3)
    everything_ignored.add(np.zeros((2, 2), int), np.full((2, 2), 255))
    assert np.isnan(everything_ignored.scores().accuracy)


def test_what_is_refused():
    found = Confusion(7)
    mask = np.zeros((3, 4), np.uint8)
    for labels, says in (
        (np.zeros((4, 3), np.uint8), r"`labels` must have .* 4 x 3. Received: 3 x 4"),
        (np.zeros((3, 4)), "`labels` must be whole numbers. Received: float64"),
    ):
        with pytest.raises(ValueError, match=says):
            found.add(mask, labels)
    with pytest.raises(ValueError, match=r"`mask` must be of classes 0 to 6. Received: 7 to 7"):
        found.add(mask + 7, mask)
    assert found.pictures == 0
    assert not found.predicted.any()
    with pytest.raises(ValueError, match="`other` must be of 7 classes and ignore 255"):
        found.merge(Confusion(8))
    with pytest.raises(ValueError, match="`num_classes`"):
        Confusion(0)
    with pytest.raises(ValueError, match="`ignore` must be a label"):
        Confusion(3, -1)
    assert (ignored_label(150), ignored_label(255), ignored_label(256)) == (255, 255, 65_535)


def test_an_ignored_label_that_would_take_a_class():
    """With `reduce_zero_label` all labels move by one; `ignore` must not be among them then."""
    labels = ["wall", "sky"]
    for ignore in (0, 1):
        with pytest.raises(ValueError, match="`ignore` must be at least the number of classes, 2"):
            Agreement({}, labels, reduce_zero_label=True, ignore=ignore)
    assert Agreement({}, labels, reduce_zero_label=True, ignore=2).confusion.ignore == 2
    assert Agreement({}, labels, ignore=0).confusion.ignore == 0
