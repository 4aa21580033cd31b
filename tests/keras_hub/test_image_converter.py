"""`VANImageConverter` makes Pillow's pixels wherever KerasHub takes pictures from."""

import keras
import numpy as np
import pytest
from keras import ops

from tests.model.test_preprocessing_layer import by_pillow, difference, pictures
from van_classification_tensorflow.spec.preprocessing import INTERPOLATIONS, Preprocessing

pytestmark = pytest.mark.slow
RECORD = Preprocessing(48, 0.8, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.fixture
def make(hub):
    return hub.VANImageConverter.of


def test_kerashubs_own_test(hub, harness):
    images = pictures(61, 83).astype("float32")
    for record, kwargs in ((RECORD, {}), (RECORD, {"image_size": None})):
        config = hub.VANImageConverter.of(record).get_config() | kwargs
        expected = by_pillow(record, images.astype("uint8"))
        if not config["image_size"]:
            expected = record.normalise(images)
        harness.run_preprocessing_layer_test(
            cls=hub.VANImageConverter,
            init_kwargs=config,
            input_data=images,
            expected_output=expected.tolist(),
        )


@pytest.mark.parametrize("size", [(300, 401), (513, 97), (61, 83), (700, 1000), (1, 7)])
@pytest.mark.parametrize("kind", ["array", "tensor", "tf.data"])
def test_as_pillow(make, size, kind):
    import tensorflow as tf

    for record in (Preprocessing(), RECORD):
        batch = pictures(*size)
        converter = make(record)
        if kind == "array":
            found = converter(batch)
        elif kind == "tensor":
            found = converter(ops.convert_to_tensor(batch))
        else:
            data = tf.data.Dataset.from_tensors(batch).map(converter)
            found = next(iter(data)).numpy()
        assert difference(found, record, batch) == (0, 0)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_filter(make, interpolation):
    for record in (
        Preprocessing(40, 0.9, interpolation, crop_rounding="down"),
        Preprocessing(40, 0.9, interpolation, resize="both sides"),
    ):
        converter = make(record)
        assert converter.preprocessing == record
        again = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(converter)
        )
        assert again.preprocessing == record
        batch = pictures(90, 71)
        assert difference(again(batch), record, batch) == (0, 0)


def test_numbers_formats_ranks_and_lists(make):
    batch = pictures(90, 71)
    expected = by_pillow(RECORD, batch)
    last, first = make(RECORD), make(RECORD, data_format="channels_first")

    def same(found, wanted):
        found = ops.convert_to_numpy(found)
        assert found.dtype == "float32"
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)

    for images in (batch.astype("int64"), batch + 0.3, batch.tolist(), tuple(batch)):
        same(last(images), expected)
    same(last(batch[0]), expected[0])
    same(first(batch.transpose(0, 3, 1, 2)), expected.transpose(0, 3, 1, 2))
    same(first(batch[0].transpose(2, 0, 1)), expected[0].transpose(2, 0, 1))
    several = [batch[0], pictures(40, 60)[1]]
    found = last(several)
    assert isinstance(found, list)
    same(found[0], expected[0])
    same(found[1], by_pillow(RECORD, several[1][None])[0])
    for one in (last, first):
        same(one(np.full((90, 71, 3) if one is last else (3, 90, 71), 300.0))[0, 0, 0], 3.0)
    grey = make(Preprocessing(40, mean=(0.5,), std=(0.5,)))
    assert difference(grey(batch), grey.preprocessing, batch)[1] == 0
    assert make(RECORD, dtype="bfloat16")(batch).dtype == keras.ops.ones(1, "bfloat16").dtype


def test_what_kerashub_changes_of_it(hub, make):
    converter = make(RECORD)
    converter.image_size = (32, 32)
    batch = pictures(90, 71)
    assert difference(converter(batch), converter.preprocessing, batch)[1] == 0
    assert converter.preprocessing.input_size == 32
    assert converter.preprocessing.crop_pct == RECORD.crop_pct
    preprocessor = hub.VANImageClassifierPreprocessor(converter)
    preprocessor.image_size = (64, 64)
    assert preprocessor(batch).shape == (3, 64, 64, 3)
    converter.image_size = None
    images = ops.convert_to_numpy(converter(batch))
    np.testing.assert_allclose(images, RECORD.normalise(batch), rtol=0, atol=1e-6)
    # As KerasHub's own converter normalises with these numbers.
    scaled = batch * np.float32(converter.scale) + np.float32(converter.offset)
    np.testing.assert_allclose(images, scaled, rtol=0, atol=2e-6)
    boxes = {"boxes": np.zeros((3, 1, 4)), "labels": np.zeros((3, 1))}
    both = converter({"images": batch, "bounding_boxes": boxes})
    np.testing.assert_array_equal(ops.convert_to_numpy(both["images"]), images)
    assert both["bounding_boxes"] is boxes
    converter.image_size = (32, 32)
    with pytest.raises(ValueError, match="`image_size` must be None for pictures with bounding"):
        converter({"images": batch, "bounding_boxes": boxes})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"image_size": (32, 48)}, r"the same.*image_size=\(32, 48\)"),
        ({"image_size": 32}, "image_size=32"),
        ({"image_size": (0, 0)}, r"image_size=\(0, 0\)"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"interpolation": "lanczos3"}, "lanczos3"),
        ({"mean": (0.5,)}, "same length"),
    ],
)
def test_refuses_arguments(hub, wrong, says):
    with pytest.raises(ValueError, match=says):
        hub.VANImageConverter(**wrong)


def test_refuses_pictures(make):
    converter = make(RECORD)
    with pytest.raises(ValueError, match="rank 4"):
        converter(np.zeros((9, 9), "uint8"))
    with pytest.raises(ValueError, match=r"1 or 3 channels.*Received: 4 channels"):
        converter(np.zeros((1, 9, 9, 4), "uint8"))
    with pytest.raises(ValueError, match=r"image_size=\(32, 48\)"):
        converter.image_size = (32, 48)
    assert converter.image_size == (48, 48)
