"""A model in memory: a graph for many pictures, for as long as its weights stay as they are."""

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from tests.parity import SMALL, load_seeded
from van_classification_tensorflow import VAN, Classifier, Preprocessing
from van_classification_tensorflow.inference import followed

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("eager")
PICTURES = list(np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), np.uint8))
LITTLE = Preprocessing(32)


def classifier_of(model, **options):
    return Classifier(model, preprocessing=LITTLE, labels=list("abcdefghij"), **options)


def outputs(classifier, pictures=PICTURES, **options):
    return np.stack([one.output for one in classifier.stream(pictures, **options)])


def assert_near(found, expected):
    assert abs(found - expected).max() <= 1e-5 * abs(expected).max()


@pytest.fixture
def model():
    return load_seeded(VAN(**SMALL, data_format="channels_last"))


def own_head(activation):
    van = load_seeded(VAN(**SMALL, include_top=False, pooling=None))
    x = layers.Dense(7, "relu")(layers.GlobalAveragePooling2D()(van.output))
    return keras.Model(van.input, layers.Dense(10, activation)(x))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: load_seeded(VAN(**SMALL)), {"flip": True, "batch_size": 16}),
        pytest.param(
            lambda: load_seeded(VAN(**SMALL, data_format="channels_first")),
            {},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: load_seeded(VAN(**SMALL, classifier_activation="sigmoid")),
            {},
            marks=pytest.mark.slow,
        ),
        (lambda: own_head("softmax"), {"flip": True, "batch_size": 16}),
    ],
    ids=["plain", "channels_first", "sigmoid", "own_head"],
)
def test_many_pictures_go_through_a_graph(make, options):
    model = make()
    by_keras = classifier_of(model, engine="keras", **options)
    fast = classifier_of(model, engine="auto", **options)
    assert_near(outputs(fast), outputs(by_keras))
    assert fast.engine_used.name in ("onnxruntime", "openvino")
    assert "differs from Keras by" in fast.engine_used.describe()
    assert by_keras.engine_used.describe().endswith("float32: as asked")
    assert_near(outputs(fast, features=True), outputs(by_keras, features=True))


def test_few_pictures_are_left_to_keras(model):
    classifier = classifier_of(model)
    few = PICTURES[:3]
    expected = outputs(classifier, few)
    assert classifier.engine_used.name == "keras"
    assert "few pictures" in classifier.engine_used.describe()
    outputs(classifier)
    assert classifier.engine_used.name != "keras"
    assert_near(outputs(classifier, few), expected)
    assert classifier.engine_used.name == "keras"
    assert_near(outputs(classifier_of(model), iter(few)), expected)  # nobody knows how few


def test_training_is_followed(model):
    classifier, by_keras = classifier_of(model), classifier_of(model, engine="keras")
    before = outputs(classifier)
    load_seeded(model, seed=1)
    after = outputs(classifier)
    assert classifier.engine_used.name != "keras"
    assert_near(after, outputs(by_keras))
    assert abs(after - before).max() > 1e-2
    bias = model.get_layer("block1_0").norm1.moving_mean  # no gradient changes it
    bias.assign(bias + 1.0)
    assert_near(outputs(classifier), outputs(by_keras))


def test_training_between_two_batches_is_followed(model):
    classifier = classifier_of(model, batch_size=35)
    stream = classifier.stream(PICTURES)
    found = [next(stream).output]
    load_seeded(model, seed=1)
    found += [one.output for one in stream]
    assert_near(np.stack(found[35:]), outputs(classifier_of(model, engine="keras"))[35:])


def test_a_quantised_model_is_no_longer_the_one_of_the_graph(model):
    classifier = classifier_of(model)
    outputs(classifier)
    model.get_layer("head").quantize("int8")
    model.make_predict_function(force=True)
    outputs(classifier)
    assert classifier.engine_used.name == "keras"
    assert "its layer 'head' (Dense) is quantised" in classifier.engine_used.describe()


def test_a_layer_of_ones_own_is_named(model):
    own = keras.Model(model.input, layers.UnitNormalization(name="unit")(model.layers[-2].output))
    classifier = classifier_of(own)
    assert_near(outputs(classifier), outputs(classifier_of(own, engine="keras")))
    assert classifier.engine_used.name == "keras"
    assert "its layer 'unit' (UnitNormalization)" in classifier.engine_used.describe()
    with pytest.raises(ValueError, match=r"`engine` cannot run .*its layer 'unit'"):
        outputs(classifier_of(own, engine="onnxruntime"))


def test_an_engine_by_its_name_runs_few_pictures_as_well(model):
    classifier = classifier_of(model, engine="onnxruntime")
    assert_near(outputs(classifier, PICTURES[:2]), outputs(classifier_of(model), PICTURES[:2]))
    assert classifier.engine_used.name == "onnxruntime"


def test_nothing_is_read_from_weights_that_training_holds(model, monkeypatch):
    """Within a step JAX has taken the weights away."""
    classifier = classifier_of(model)
    expected = outputs(classifier)

    def gone(self):
        raise RuntimeError("Array has been deleted")

    engine = classifier.engine_used.engine
    monkeypatch.setattr(followed.Followed, "_now", gone)
    assert_near(engine(LITTLE.views(Image.fromarray(PICTURES[0]), 1, False)), expected[:1])
