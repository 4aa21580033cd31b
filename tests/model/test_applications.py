"""`keras.applications` users find what they know."""

import inspect

import keras
import numpy as np
import pytest

import van_classification_tensorflow as package
from tests.parity import seeded_tensor
from van_classification_tensorflow import (
    VAN,
    VANB0,
    decode_predictions,
    load_checkpoint,
    preprocess_input,
)
from van_classification_tensorflow.model.load import to_official
from van_classification_tensorflow.spec.labels import imagenet_classes


def test_signature_is_that_of_keras_applications():
    names = "include_top weights input_tensor input_shape pooling classes"
    names += " classifier_activation name"
    for i in range(7):
        function = getattr(package, f"VANB{i}")
        assert list(inspect.signature(function).parameters) == names.split()
        assert function.__name__ == f"VANB{i}"
        assert f"VAN-B{i}" in function.__doc__


@pytest.mark.parametrize(
    ("pooling", "shape"),
    [(None, (None, None, None, 256)), ("avg", (None, 256)), ("max", (None, 256))],
)
def test_headless(pooling, shape):
    assert VANB0(weights=None, include_top=False, pooling=pooling).output_shape == shape


def test_input_shape_classes_and_name():
    model = VANB0(
        weights=None, input_shape=(64, 96, 1), classes=5, classifier_activation=None, name="five"
    )
    assert isinstance(model, VAN)
    assert (model.input_shape, model.output_shape) == ((None, 64, 96, 1), (None, 5))
    assert model.name == "five"


@pytest.mark.usefixtures("eager")
def test_input_tensor_builds_on_the_callers_graph():
    images = keras.Input((64, 64, 3))
    model = VANB0(
        weights=None, input_tensor=keras.layers.Rescaling(1 / 127.5, -1)(images), classes=3
    )
    assert [layer.name for layer in model.layers][-2:] == ["head", "pred"]
    assert model.pyramid_outputs["P3"].shape == (None, 8, 8, 64)
    tensors = {n: seeded_tensor(n, a.shape) for n, a in to_official(model).items()}
    load_checkpoint(model, tensors)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("float32")
    plain = VANB0(classes=3, weights=tensors)
    np.testing.assert_allclose(
        model.predict_on_batch(pixels),
        plain.predict_on_batch(preprocess_input(pixels)),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"input_shape": (64, 64)}, "`input_shape` must be"),
        ({"input_shape": (64, 64, None)}, "must name the number of channels"),
        ({"input_shape": (8, 8, 3)}, "`input_shape` is too small"),
        ({"input_shape": (64, None, 3)}, "`input_shape` must give both H and W"),
        ({"input_tensor": np.zeros((1, 64, 64, 3))}, "`input_tensor` must be a `keras.Input`"),
        ({"classes": 0}, "`classes` must be an integer >= 1"),
        ({"pooling": "mean"}, "`pooling` must be one of"),
        ({"weights": 3}, "`weights` must be 'imagenet', another name"),
        ({"weights": "van_b1.in1k"}, "belongs to van_b1"),
        ({"weights": "nothing"}, "no such weights .* van_b0.in1k"),
    ],
)
def test_wrong_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        VANB0(**arguments)


def test_what_is_not_published_is_listed():
    with pytest.raises(ValueError, match=r"van_b5\.in22k"):
        package.VANB5()  # the default, "imagenet", as in keras.applications


def test_input_shape_and_tensor_must_agree():
    with pytest.raises(ValueError, match="must agree"):
        VANB0(weights=None, input_tensor=keras.Input((64, 64, 3)), input_shape=(32, 32, 3))


@pytest.mark.slow
def test_image_data_format_of_keras():
    pixels = np.random.default_rng(0).standard_normal((1, 64, 64, 3)).astype("float32")
    last = VANB0(weights=None, classes=3)
    tensors = {n: seeded_tensor(n, a.shape) for n, a in to_official(last).items()}
    expected = load_checkpoint(last, tensors).predict_on_batch(pixels)
    keras.config.set_image_data_format("channels_first")
    first = VANB0(classes=3, weights=tensors, input_shape=(3, 64, 64))
    assert first.pyramid_outputs["P5"].shape == (None, 256, 2, 2)
    got = first.predict_on_batch(pixels.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    inputs = keras.Input((3, 64, 64))
    on_tensor = VANB0(include_top=False, weights=None, input_tensor=inputs)
    assert on_tensor.output_shape == (None, 256, 2, 2)
    assert on_tensor.pyramid_outputs["P2"].shape == (None, 32, 16, 16)


def test_preprocess_input():
    pixels = np.array([0, 127.5, 255], "float32")
    np.testing.assert_array_equal(preprocess_input(pixels), np.array([-1, 0, 1], "float32"))
    assert preprocess_input(np.uint8([[255]])).dtype == np.float32
    tensor = preprocess_input(keras.ops.convert_to_tensor(pixels))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(tensor), [-1, 0, 1], atol=1e-7)
    # The same arithmetic as (x / 255 - 0.5) / 0.5 to float32 rounding.
    every = np.arange(256, dtype="float64")
    np.testing.assert_allclose(preprocess_input(every), (every / 255 - 0.5) / 0.5, atol=1e-7)
    with pytest.raises(ValueError, match="`data_format` must be"):
        preprocess_input(pixels, data_format="NHWC")


def test_class_list():
    classes = imagenet_classes()
    assert [c.index for c in classes] == list(range(1000))
    assert len({c.wnid for c in classes}) == 1000
    assert classes[2].name == "great_white_shark"
    assert (classes[0].wnid, classes[0].lemmas) == ("n01440764", "tench, Tinca tinca")


def test_decode_predictions():
    scores = np.zeros((2, 1000), "float32")
    scores[0, [7, 3]] = 0.6, 0.4
    scores[1, 999] = 1.0
    first, second = decode_predictions(scores, top=2)
    assert [(w, s) for w, _, s in first] == [
        (imagenet_classes()[7].wnid, pytest.approx(0.6)),
        (imagenet_classes()[3].wnid, pytest.approx(0.4)),
    ]
    assert second[0][1] == "toilet_tissue"
    assert len(decode_predictions(scores)[0]) == 5
    with pytest.raises(ValueError, match=r"`preds` must have shape \(batch, 1000\)"):
        decode_predictions(scores[:, :10])
    with pytest.raises(ValueError, match="`top` must be an integer from 1 to 1000"):
        decode_predictions(scores, top=0)
