"""The recipes of docs/keras-hub.md: segmentation and detection on a VAN learn, and come back.

`--thorough` trains as long as the document says, and holds its figures.
"""

import keras
import numpy as np
import pytest

from tests.keras_hub.shapes import shapes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="minutes elsewhere"),
]
SIZES = {
    "embed_dims": [16, 32, 48, 64],
    "mlp_ratios": [4, 4, 2, 2],
    "depths": [1, 1, 1, 1],
}
BATCH = 8


def optimizer(steps: int) -> keras.optimizers.Optimizer:
    """AdamW to 1e-3 and back to 0, as the document has it."""
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 5, warmup_target=1e-3, warmup_steps=steps // 5
    )
    return keras.optimizers.AdamW(schedule, global_clipnorm=1.0)


def test_segmentation(keras_hub, hub, tmp_path, thorough):
    pictures, masks, _, _ = shapes(512 if thorough else 256)
    unseen, expected, _, _ = shapes(32, seed=1)
    epochs = 6 if thorough else 3
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=hub.VANBackbone(**SIZES),
        spatial_pyramid_pooling_key="P4",
        low_level_feature_key="P2",
        upsampling_size=4,
        dilation_rates=[1, 2, 3],
    )
    segmenter = keras_hub.models.DeepLabV3ImageSegmenter(
        backbone=backbone,
        num_classes=3,
        preprocessor=keras_hub.models.DeepLabV3ImageSegmenterPreprocessor(
            hub.VANImageConverter(image_size=None)
        ),
    )
    segmenter.compile(
        optimizer(epochs * len(pictures) // BATCH),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[],
        jit_compile=False,
    )

    def mean_iou(model) -> float:
        metric = keras.metrics.MeanIoU(3, sparse_y_pred=False)
        metric.update_state(expected, model.predict(unseen, batch_size=BATCH, verbose=0))
        return float(metric.result())

    before = mean_iou(segmenter)
    segmenter.fit(pictures, masks, batch_size=BATCH, epochs=epochs, verbose=0)
    after = mean_iou(segmenter)
    print(f"segmentation: mean IoU {before:.2f} -> {after:.2f}")
    assert before < 0.35
    assert after > (0.8 if thorough else 0.45)

    segmenter.save_to_preset(tmp_path)
    again = keras_hub.models.ImageSegmenter.from_preset(str(tmp_path))
    assert type(again.backbone.image_encoder) is hub.VANBackbone
    assert again.preprocessor.image_converter.image_size is None
    for found, wanted in zip(again.get_weights(), segmenter.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    found, wanted = (one.predict(unseen[:8], verbose=0) for one in (again, segmenter))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def best_boxes(detector, pictures) -> tuple[np.ndarray, np.ndarray]:
    """The most confident box of each picture, zeros where there is none; and its class."""
    found = detector.predict(pictures, batch_size=BATCH, verbose=0)
    best = found["confidence"].argmax(axis=1)
    each = np.arange(len(pictures))
    some = found["num_detections"] > 0
    boxes = np.where(some[:, None], found["boxes"][each, best], 0)
    return boxes, np.where(some, found["labels"][each, best], -1)


def ious(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of (N, 4) boxes with (N, 4) boxes: left, top, right, bottom."""

    def area(boxes):
        return (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)

    both = np.concatenate(
        [np.maximum(found[:, :2], expected[:, :2]), np.minimum(found[:, 2:], expected[:, 2:])], 1
    )
    return area(both) / (area(found) + area(expected) - area(both))


def test_detection(keras_hub, hub, tmp_path, thorough):
    if not thorough:
        pytest.skip("a minute more: --thorough")
    pictures, _, boxes, labels = shapes(512 if thorough else 256)
    unseen, _, expected, kinds = shapes(32, seed=1)
    epochs = 8 if thorough else 4
    backbone = keras_hub.models.RetinaNetBackbone(
        image_encoder=hub.VANBackbone(**SIZES),
        min_level=3,
        max_level=4,
        use_p5=False,
        image_shape=(64, 64, 3),
    )
    detector = keras_hub.models.RetinaNetObjectDetector(
        backbone=backbone,
        num_classes=2,
        bounding_box_format="xyxy",
        anchor_generator=keras_hub.layers.AnchorGenerator(
            "xyxy", min_level=3, max_level=4, num_scales=1, aspect_ratios=[1.0], anchor_size=4
        ),
        pre_logits_num_conv_layers=1,
        preprocessor=keras_hub.models.RetinaNetObjectDetectorPreprocessor(
            hub.VANImageConverter(image_size=None)
        ),
    )
    detector.compile(
        optimizer(epochs * len(pictures) // BATCH),
        box_loss=keras.losses.MeanAbsoluteError(reduction="sum"),
        jit_compile=False,
    )

    def scores(model) -> tuple[float, float]:
        """Mean IoU of the best boxes; the share of them of the right class and IoU from 0.5."""
        found, classes = best_boxes(model, unseen)
        each = ious(found, expected[:, 0])
        return float(each.mean()), float(((each >= 0.5) & (classes == kinds[:, 0])).mean())

    before = scores(detector)
    targets = {"boxes": boxes, "labels": labels}
    log = detector.fit(pictures, targets, batch_size=BATCH, epochs=epochs, verbose=0).history
    after = scores(detector)
    print(f"detection: mean IoU, found {before} -> {after}")
    assert log["loss"][-1] < 0.2 * log["loss"][0]
    assert before[0] < 0.05
    assert after[0] > (0.5 if thorough else 0.1)
    assert after[1] > (0.5 if thorough else 0)

    detector.save_to_preset(tmp_path)
    again = keras_hub.models.ObjectDetector.from_preset(str(tmp_path))
    assert type(again.backbone.image_encoder) is hub.VANBackbone
    for found, wanted in zip(again.get_weights(), detector.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    for found, wanted in zip(*(best_boxes(one, unseen) for one in (again, detector)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)
