"""`explain` on models as users have them: heads of their own, nested, other formats and dtypes."""

import gc
import warnings
import weakref

import keras
import numpy as np
import pytest
from keras import layers

from tests.parity import MICRO, SMALL, load_seeded, seeded_images
from van_classification_tensorflow import VAN, explain, fuse
from van_classification_tensorflow.explanation.explain import Explainer
from van_classification_tensorflow.explanation.receptive import (
    effective_receptive_field,
    lka_kernel,
)
from van_classification_tensorflow.model.load import to_official

TOLERANCE = 1e-4
CLASSES = [3, 0]


def off(found, expected) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))


@pytest.fixture(scope="module")
def model():
    return load_seeded(VAN(**MICRO, classifier_activation=None))


@pytest.fixture(scope="module")
def images():
    return seeded_images(1, (2, 64, 96, 3))


@pytest.fixture(scope="module")
def expected(model, images):
    return explain(model, images, CLASSES, layer="block3_1", raw=True)


def _softmax(model):
    return load_seeded(VAN(**MICRO))


def _own_head(model):
    """A head of its own, a `Dense` with its softmax in it, on the features."""
    inside = keras.Model(model.input, model.get_layer("pool").output)
    found = layers.Dense(10, activation="softmax", name="mine")(inside.output)
    made = keras.Model(inside.input, found)
    made.get_layer("mine").set_weights(model.get_layer("head").get_weights())
    return made


def _nested(model):
    """A backbone inside, behind a layer that does nothing in inference."""
    backbone = load_seeded(VAN(**MICRO, include_top=False))
    inputs = keras.Input((None, None, 3))
    features = backbone(layers.GaussianNoise(0.1)(inputs))
    made = keras.Model(inputs, layers.Softmax()(layers.Dense(10, name="mine")(features)))
    made.get_layer("mine").set_weights(model.get_layer("head").get_weights())
    return made


def _sequential(model):
    return keras.Sequential([keras.Input((None, None, 3)), model])


def _subclassed(model):
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.van = model

        def call(self, x, training=None):
            return self.van(x, training=training)

    return Mine()


def _fused(model):
    return fuse(model)


@pytest.mark.parametrize(
    "make",
    [_softmax, _own_head, _nested, _sequential, _subclassed, _fused],
    ids=lambda f: f.__name__,
)
def test_any_model_with_a_van_in_it(model, images, expected, make):
    found = explain(make(model), images, CLASSES, layer="block3_1", raw=True)
    assert off(found, expected) < TOLERANCE


def test_channels_first(model, images, expected):
    made = load_seeded(VAN(**MICRO, data_format="channels_first"))
    found = explain(made, images.transpose(0, 3, 1, 2), CLASSES, layer="block3_1", raw=True)
    assert off(found, expected) < TOLERANCE
    for method in ("saliency", "score-cam"):
        layer = None if method == "saliency" else "block4_0"
        pair = [
            explain(one, x, CLASSES, method, layer)
            for one, x in ((made, images.transpose(0, 3, 1, 2)), (model, images))
        ]
        assert off(*pair) < TOLERANCE, method


def test_mixed_precision(images, expected):
    made = load_seeded(VAN(**MICRO, dtype="mixed_bfloat16"))
    found = explain(made, images, CLASSES, layer="block3_1", raw=True)
    assert found.dtype == np.float32
    assert off(found, expected) < 0.2  # 8 bits of each number
    with pytest.warns(UserWarning, match="layer norm follows"):
        explain(made, images, CLASSES, "hires-cam", layer="block3_1")


def test_the_gradient_is_the_logits_whatever_stands_behind_it(model, images):
    """That of a probability vanishes where the model is sure."""
    sure = load_seeded(VAN(**MICRO))
    head = sure.get_layer("head")
    kernel, bias = head.get_weights()
    head.set_weights([100 * kernel, 100 * bias])
    found = explain(sure, images, layer="block3_1", raw=True)
    assert off(found, 100 * explain(model, images, layer="block3_1", raw=True)) < TOLERANCE


def test_one_output_has_two_classes(model, images):
    made = load_seeded(VAN(**{**MICRO, "num_classes": 1}, classifier_activation="sigmoid"))
    yes, no = (explain(made, images, index, layer="block3_1", raw=True) for index in (1, 0))
    assert off(no, -yes) < TOLERANCE
    with pytest.raises(ValueError, match="from 0 to 1"):
        explain(made, images, 2)


def test_defaults_compiled(model, images):
    found = Explainer.of(model)(images)
    assert found.layer == "block4_0"
    assert found.maps.shape == (2, 2, 3)
    assert Explainer.of(model)(images, method="hires-cam").layer == "norm4"
    # Where the last stage has but one position, the one before.
    assert Explainer.of(model)(images[:, :32, :32]).layer == "block3_1"
    maps = explain(model, images)
    assert maps.dtype == np.float32
    assert maps.min() == 0
    assert 0.99 < maps.max() <= 1
    own = np.argmax(found.logits, axis=1)
    assert list(found.class_index) == list(own)
    assert off(explain(model, images, own), maps) < 1e-6
    assert off(explain(model, images, batch_size=1), maps) < TOLERANCE


def test_empty_maps_say_why(model, images):
    with pytest.warns(UserWarning, match=r"2 of 2 maps .* layer norm follows.*Take that norm"):
        assert not explain(model, images, method="hires-cam", layer="block4_0").any()
    with pytest.warns(UserWarning, match="a single position"):
        explain(model, images[:, :32, :32], layer="block4_0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(model, images)


def test_noise_is_the_seeds_and_no_other_pictures(images):
    model = load_seeded(VAN(**SMALL))
    options = {"method": "smooth-grad", "samples": 2}
    one, same, other = (explain(model, images, seed=seed, **options) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.shape == images.shape[:3]
    assert off(explain(model, images[1:], **options), one[1:]) < TOLERANCE
    assert off(explain(model, images, batch_size=1, **options), one) < TOLERANCE


def test_new_weights_need_no_new_explainer_compiled(model, images):
    made = load_seeded(VAN(**SMALL))
    before = explain(made, images, 1, layer="block2_0", raw=True)
    load_seeded(made, seed=5)
    after = explain(made, images, 1, layer="block2_0", raw=True)
    assert off(after, before) > 0.01
    # The model runs as before.
    assert made.predict_on_batch(images).sum(axis=1) == pytest.approx(1, abs=1e-4)
    assert "call" not in vars(made.get_layer("block2_0"))


def test_a_model_is_not_kept_compiled(images):
    made = VAN(**SMALL)
    explain(made, images[:1])
    gone = weakref.ref(made)
    del made
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None


def test_a_model_that_is_changed_is_explained_as_it_is_then(images):
    made = keras.Sequential([keras.Input((64, 96, 3)), VAN(**SMALL, include_top=False)])
    made.add(layers.Dense(4))
    explain(made, images, 3)
    made.pop()
    made.add(layers.Dense(9, activation="softmax", name="other"))
    assert Explainer.of(made)(images, 8).logits.shape == (2, 9)
    assert Explainer.of(made)(images, 8).logits.sum(axis=1) != pytest.approx(1, abs=1e-3)
    assert Explainer.of(made) is Explainer.of(made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "cam"}, "`method` must be one of 'grad-cam'"),
        (
            {"layer": "block9_0"},
            r"`layer` must be a layer of .*block1_0.*Received: layer='block9_0'",
        ),
        ({"layer": 3}, "`layer` must be a name, or several. Received: layer=3"),
        ({"layer": []}, "`layer` must be a name"),
        ({"layer": "pool"}, r"must give maps .N, h, w, C.*'pool'"),
        ({"layer": "block1_0", "method": "saliency"}, "`layer` must be left out"),
        ({"layer": "norm1", "method": "lka"}, "`layer` must be a block"),
        ({"layer": ["block1_0", "block2_0"], "raw": True}, "`raw` goes with one layer only"),
        ({"raw": 1}, "`raw` must be True or False"),
        ({"class_index": 10}, "from 0 to 9.*Received: class_index=10"),
        ({"class_index": -1}, "from 0 to 9"),
        ({"class_index": [1, 2, 3]}, "each of the 2 pictures"),
        ({"class_index": "cat"}, "`class_index` must be"),
        ({"class_index": 1.5}, "`class_index` must be"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1"),
        ({"steps": 0}, "`steps` must be"),
        ({"samples": True}, "`samples` must be"),
        ({"noise": -1}, "`noise` must be"),
        ({"noise": float("nan")}, "`noise` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"images": np.zeros((2, 64, 96, 3), np.uint8)}, "must be floats, normalised.*uint8"),
        ({"images": np.zeros((64, 96, 3), np.float32)}, r"`images` must be \(N, H, W, C\)"),
        ({"images": np.zeros((2, 64, 96, 1), np.float32)}, r"takes them: \(N, any, any, 3\)"),
        ({"images": np.zeros((2, 3, 64, 96), np.float32)}, r"Received: \(2, 3, 64, 96\)"),
        ({"images": np.full((2, 64, 96, 3), np.nan)}, "`images` must be finite numbers"),
        ({"noise": 10.1}, "`noise` must be from 0 to 10"),
        ({"images": np.zeros((0, 64, 96, 3), np.float32)}, "`images` must be"),
    ],
    ids=str,
)
def test_messages(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        explain(**{"model": model, "images": images, **options})


def test_models_that_cannot_be_explained(images):
    with pytest.raises(ValueError, match="`model` must be a Keras model"):
        explain("van_b0", images)
    with pytest.raises(ValueError, match="`model` must be a classifier"):
        explain(VAN(**MICRO, include_top=False), images)
    other = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ValueError, match="`model` must be a model with a VAN in it"):
        explain(other, images)
    with pytest.raises(ValueError, match=r"must give logits: .* are probabilities"):
        explain(_subclassed(VAN(**MICRO)), images)


def test_what_the_gate_sees_is_23_positions_wide(model):
    """Put together from the three convolutions, and as their gradient says, one output each."""
    kernel = lka_kernel(to_official(model), "block3_1")
    assert kernel.shape == (23, 23)
    lka = model.get_layer("block3_1").attn.spatial_gating_unit
    spot = np.zeros((24, 23, 23, 24), np.float32)
    spot[np.arange(24), 11, 11, np.arange(24)] = 1  # each channel alone, in the middle
    bias = [np.array(keras.ops.convert_to_numpy(one.bias)) for one in (lka.conv0, lka.conv_spatial)]
    for layer in (lka.conv0, lka.conv_spatial):
        layer.bias.assign(np.zeros(24, np.float32))
    found = keras.ops.convert_to_numpy(lka.conv1(lka.conv_spatial(lka.conv0(spot))))
    found = found - keras.ops.convert_to_numpy(lka.conv1.bias)
    for layer, before in zip((lka.conv0, lka.conv_spatial), bias, strict=True):
        layer.bias.assign(before)
    # The answer to a spot is the kernel turned round.
    expected = np.abs(found).mean(axis=(0, 3))[::-1, ::-1]
    assert off(kernel, expected) < TOLERANCE
    assert kernel[0].any()
    assert kernel[:, 22].any()


def test_effective_receptive_field(model):
    found = effective_receptive_field(model, seeded_images(2, (2, 32, 240, 3)), "block1_0")
    assert found.shape == (32, 240)
    assert found.max() == 1
    # In the middle, position 30, of the 60: 11 positions of the attention and 1 of the MLP to each
    # side, each of 4 pixels, and 3 more of the 7 x 7 embedding.
    columns = np.nonzero(found.any(axis=0))[0]
    assert (columns.min(), columns.max()) == (4 * (30 - 12) - 3, 4 * (30 + 12) + 3)
