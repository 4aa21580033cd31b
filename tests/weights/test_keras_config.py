"""`.keras` files with a VAN in them, in every way Keras has to put a head on it, read as data."""

import functools
import inspect
import json

import keras
import numpy as np
import pytest

from tests.parity import SMALL, load_seeded
from van_classification_tensorflow import VAN, VANB0, Classifier, Preprocessing, fuse
from van_classification_tensorflow.model.load import load_checkpoint, to_official
from van_classification_tensorflow.weights.checkpoint import CheckpointError, read_weights
from van_classification_tensorflow.weights.keras_config import ONLY_IN_TRAINING, describe

SHAPE = (64, 64, 3)
LABELS = tuple(f"thing {i}" for i in range(4))
layers = keras.layers
pytestmark = pytest.mark.usefixtures("eager")


@functools.cache
def _headless(**options):
    """One for all who leave its layers as they are: to build it takes the most of the time."""
    return _headless_alone(**options)


def _headless_alone(**options):
    model = load_seeded(VAN(**SMALL, include_top=False, **options))
    model.labels, model.preprocessing = LABELS, Preprocessing(64, 1.0, "box")
    return model


def _on_its_layers(*head, **options):
    backbone = _headless(**options)
    x = backbone.output
    for layer in head:
        x = layer(x)
    return keras.Model(backbone.input, x)


def _as_a_layer(*head, **options):
    backbone = _headless(**options)
    x = inputs = keras.Input(SHAPE)
    for layer in (backbone, *head):
        x = layer(x)
    return keras.Model(inputs, x)


def _sequential(*head, **options):
    return keras.Sequential([keras.Input(SHAPE), _headless(**options), *head])


def _cloned(*head, **options):
    model = _on_its_layers(*head, **options)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def _inside_another(*head, **options):
    inner = _cloned(*head, **options)
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, inner(inputs))


def _softmax():
    return [layers.Dropout(0.2), layers.Dense(4, activation="softmax", name="mine")]


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)


def _answers(classifier, model, picture):
    """The model's own probabilities of the same picture."""
    from PIL import Image

    x = classifier.preprocessing(Image.fromarray(picture))[None]
    found = {p.index: p.probability for p in classifier(picture, top=4)}
    expected = keras.ops.convert_to_numpy(model(x, training=False))[0]
    np.testing.assert_allclose([found[i] for i in range(4)], expected, atol=1e-6)


@pytest.mark.parametrize(
    "around",
    [_on_its_layers, _as_a_layer, _sequential, _cloned, _inside_another],
    ids=lambda f: f.__name__,
)
def test_a_head_of_ones_own(tmp_path, picture, around):
    model = around(*_softmax())
    model.save(tmp_path / "m.keras")
    classifier = Classifier(tmp_path / "m.keras")
    assert [label.name for label in classifier.labels] == list(LABELS)
    assert classifier.preprocessing == Preprocessing(64, 1.0, "box")
    _answers(classifier, model, picture)


@pytest.mark.parametrize(
    "head",
    [
        lambda: [layers.Dense(4), layers.Activation("softmax")],
        lambda: [layers.Dense(4, use_bias=False), layers.Softmax()],
        lambda: [layers.Dense(4, activation="softmax"), _linear()],
        lambda: [layers.Dense(4), _linear(), layers.Softmax()],
        lambda: [layers.Flatten(), layers.Dense(4, activation="softmax", kernel_regularizer="l2")],
    ],
)
def test_other_ways_to_write_it(tmp_path, picture, head):
    model = _on_its_layers(*head())
    model.save(tmp_path / "m.keras")
    _answers(Classifier(tmp_path / "m.keras"), model, picture)


def test_ones_own_pooling(tmp_path, picture):
    model = _as_a_layer(layers.GlobalAveragePooling2D(), *_softmax(), pooling=None)
    model.save(tmp_path / "m.keras")
    _answers(Classifier(tmp_path / "m.keras"), model, picture)


def test_a_clone_of_a_whole_van(tmp_path, picture):
    model = load_seeded(VAN(**{**SMALL, "num_classes": 4}))
    model.labels, model.preprocessing = LABELS, Preprocessing(64)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    clone.save(tmp_path / "m.keras")
    classifier = Classifier(tmp_path / "m.keras")
    assert [label.name for label in classifier.labels] == list(LABELS)
    _answers(classifier, model, picture)


def test_names_of_other_classes_are_left_out_and_said(tmp_path):
    _on_its_layers(layers.Dense(5, activation="softmax")).save(tmp_path / "m.keras")
    classifier = Classifier(tmp_path / "m.keras")
    assert classifier.labels[4].name == "class 4"
    assert classifier.notes == (
        "The VAN in it names 4 classes, its head has 5: the names are left out. No names of its "
        "classes are known: 'class 0', 'class 1', ... are used."
    )


def test_what_the_head_computes_is_kept(tmp_path):
    for activation in ("sigmoid", "linear"):
        _as_a_layer(layers.Dense(4, activation=activation)).save(tmp_path / "m.keras")
        about = read_weights(tmp_path / "m.keras").source.metadata["config"]
        assert about["classifier_activation"] == activation


def test_lora_is_in_the_kernels(tmp_path, picture):
    backbone = _headless_alone()
    x = backbone.output
    for layer in _softmax():
        x = layer(x)
    model = keras.Model(backbone.input, x)
    for layer in (model.get_layer("mine"), model.get_layer("block1_0").mlp.fc1):
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    model.save(tmp_path / "m.keras")
    _answers(Classifier(tmp_path / "m.keras"), keras.Model(model.input, model.output), picture)


def _branched():
    backbone = _headless()
    a, b = (layers.Dense(4)(backbone.output) for _ in range(2))
    return keras.Model(backbone.input, [a, b])


def _scaled():
    inputs = keras.Input(SHAPE)
    features = _headless()(layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, layers.Dense(4)(features))


def _changed(name, **attributes):
    model = load_seeded(VAN(**SMALL))
    layer = model.get_layer(name.split(".")[0])
    for part in name.split(".")[1:]:
        layer = getattr(layer, part)
    for key, value in attributes.items():
        setattr(layer, key, value)
    return model


def _quantised():
    model = load_seeded(VAN(**SMALL))
    model.quantize("int8")
    return model


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: _on_its_layers(layers.Dense(8), layers.Dense(4)), r"layer 'dense\w*' \('Dense'\)"),
        (lambda: _on_its_layers(layers.Dense(8), layers.LayerNormalization()), "LayerNormalizatio"),
        (lambda: _as_a_layer(layers.Dense(4), pooling="max"), "not the mean over all positions"),
        (lambda: _as_a_layer(layers.Dense(4), pooling=None), "not the mean over all positions"),
        (_branched, "no chain of layers from one input to one output"),
        (_scaled, "the class 'keras.layers.Rescaling' in its config.json"),
        (lambda: _changed("norm2", epsilon=0.1), r"norm2 was changed: 'epsilon'='0\.1'"),
        (lambda: _changed("block1_0.norm1", epsilon=0.1), "block1_0/norm1 was changed"),
        (
            lambda: keras.models.clone_model(_changed("block1_0.norm1", epsilon=0.1)),
            "block1_0/norm1 was changed",
        ),
        (lambda: keras.models.clone_model(_changed("norm2", epsilon=0.1)), "Found: 'norm2'"),
        (_quantised, "layers that Keras has quantised"),
        (lambda: _headless() and keras.Sequential([keras.Input((4,)), layers.Dense(2)]), "Found"),
    ],
)
def test_what_it_cannot_be_is_refused_by_name(tmp_path, make, says):
    make().save(tmp_path / "m.keras")
    with pytest.raises(CheckpointError, match=rf"{says}.*[`.]") as raised:
        read_weights(tmp_path / "m.keras")
    instead = "load it with `keras.saving.load_model` and give `Classifier` the model"
    assert instead in str(raised.value)


class Functional(keras.Model):
    """A stranger's, of the name of Keras's own: its `call` may do anything."""


def test_a_strangers_class_of_the_same_name_is_refused(tmp_path):
    inputs = keras.Input(SHAPE)
    Functional(inputs, layers.Dense(4)(_headless()(inputs))).save(tmp_path / "m.keras")
    with pytest.raises(CheckpointError, match=r"a model of class '[\w.]+test_keras_config\.Functi"):
        read_weights(tmp_path / "m.keras")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(_sequential(*_softmax()))))
    assert describe(config).head == "mine"
    head = config["config"]["layers"][-1]
    for strange in ({"module": "mylib"}, {"module": None}, {"registered_name": "mylib>Dense"}):
        entries = [*config["config"]["layers"][:-1], {**head, **strange}]
        changed = {**config, "config": {**config["config"], "layers": entries}}
        with pytest.raises(ValueError, match=r"its layer 'mine' \('[\w.]+\.Dense'\) is none of"):
            describe(changed)


@pytest.mark.parametrize("dims", [(2, 3, 1), (3, 2, 1)])
def test_only_the_usual_permutation_is_read(tmp_path, picture, dims):
    inputs = keras.Input((3, 64, 64))
    backbone = _headless()
    model = keras.Sequential([inputs, layers.Permute(dims), *backbone.layers[1:], *_softmax()])
    model.save(tmp_path / "m.keras")
    if dims == (2, 3, 1):
        assert read_weights(tmp_path / "m.keras").architecture.num_classes == 4
    else:
        with pytest.raises(CheckpointError, match=r"Found: 'permute\w*' \('Permute'\)"):
            read_weights(tmp_path / "m.keras")


# --- The same in memory ---


def _whole(**options):
    model = load_seeded(VAN(**{**SMALL, "num_classes": 4, **options}))
    model.labels, model.preprocessing = LABELS, Preprocessing(64, 1.0, "box")
    return model


def _quantised_whole():
    model = _whole()
    model.quantize("int8", type_check=False)
    return model


@pytest.mark.parametrize(
    "make",
    [
        _whole,
        lambda: fuse(_whole()),
        pytest.param(
            _quantised_whole,
            marks=[pytest.mark.slow, pytest.mark.thorough("half a minute of int8")],
        ),
        lambda: _whole(data_format="channels_first"),
        lambda: _whole(img_resolution=64),
        lambda: _on_its_layers(*_softmax()),
        lambda: _as_a_layer(*_softmax()),
        lambda: _sequential(layers.Dense(4), layers.Softmax()),
        lambda: _inside_another(layers.Dense(8, activation="relu"), *_softmax()),
    ],
)
def test_a_model_in_memory(picture, make):
    from PIL import Image

    model = make()
    classifier = Classifier(model)
    assert [label.name for label in classifier.labels] == list(LABELS)
    assert not classifier.notes
    x = classifier.preprocessing(Image.fromarray(picture))[None]
    if model.input_shape[1] == 3:
        x = x.transpose(0, 3, 1, 2)
    expected = keras.ops.convert_to_numpy(model(x))[0]
    found = {p.index: p.probability for p in classifier(picture, top=4)}
    np.testing.assert_allclose([found[i] for i in range(4)], expected, atol=1e-5)


def _own(x):
    return keras.ops.tanh(x)


def _linear():
    return layers.Activation("linear", dtype="float32")


@pytest.mark.parametrize(
    ("scores", "rest"),
    [
        ("softmax", lambda x: _linear()(x)),
        ("softmax", lambda x: layers.Dropout(0.5)(layers.Identity()(x))),
        ("sigmoid", lambda x: keras.ops.cast(_linear()(x), "float32")),
        ("linear", lambda x: layers.Dropout(0.5)(keras.ops.softmax(x))),
        ("linear", lambda x: keras.ops.sigmoid(layers.GaussianNoise(0.1)(x))),
        ("linear", lambda x: _linear()(layers.Softmax()(layers.Flatten()(x)))),
        ("linear", lambda x: _inner()(x)),
    ],
)
def test_what_changes_nothing_at_the_end_is_passed_over(picture, scores, rest):
    backbone = _headless()
    model = keras.Model(
        backbone.input, rest(layers.Dense(4, activation=scores, name="mine")(backbone.output))
    )
    # Scores far from the middle, so that taking probabilities for logits is seen.
    model.get_layer("mine").kernel.assign(40 * model.get_layer("mine").kernel)
    classifier = Classifier(model)
    assert not classifier.notes
    _answers(classifier, model, picture)
    assert classifier.features(picture).shape == (16,)


def _inner():
    inputs = keras.Input((4,))
    return keras.Model(inputs, _linear()(keras.ops.softmax(inputs)))


def test_one_output_and_features_are_passed_through_as_well(picture):
    model = _as_a_layer(layers.Dense(1, activation="sigmoid"), _linear())
    classifier = Classifier(model, labels=("no", "yes"))
    from PIL import Image

    x = classifier.preprocessing(Image.fromarray(picture))[None]
    expected = float(keras.ops.convert_to_numpy(model(x))[0, 0])
    assert {p.label: p.probability for p in classifier(picture)}["yes"] == pytest.approx(expected)
    features = Classifier(_as_a_layer(layers.Dropout(0.5), _linear()))
    with pytest.raises(ValueError, match="has no head"):
        features(picture)


@pytest.mark.parametrize("last", [layers.BatchNormalization, layers.ReLU, lambda: keras.ops.exp])
def test_an_end_that_is_not_known_is_said(last):
    backbone = _headless()
    model = keras.Model(backbone.input, last()(layers.Dense(4)(backbone.output)))
    says = "What it ends with is not known: its outputs are taken for logits."
    assert says in Classifier(model).notes
    notes = Classifier(model, labels=[*"abcd"], preprocessing=Preprocessing(64)).notes
    assert notes == says


def _augmented(*before, inputs=None):
    augmentation = keras.Sequential([*before], name="augmentation")
    return keras.Sequential([inputs or keras.Input(SHAPE), augmentation, _headless(), *_softmax()])


def test_augmentation_before_it_does_nothing_in_inference(tmp_path, picture):
    model = _augmented(layers.RandomFlip(), layers.RandAugment(), layers.GaussianNoise(1.0))
    classifier = Classifier(model)
    assert not classifier.notes
    _answers(classifier, model, picture)
    model.save(tmp_path / "m.keras")
    _answers(Classifier(tmp_path / "m.keras"), model, picture)


class _Noise(layers.GaussianNoise):
    def call(self, x, training=None):
        return super().call(x, training=True)


@pytest.mark.parametrize("layer", [_Noise(1.0), layers.RandomFlip(dtype="uint8", name="_noise")])
def test_what_may_do_something_before_it_is_named(tmp_path, layer):
    model = _augmented(layers.RandomFlip(), layer)
    with pytest.raises(ValueError, match=f"layer {layer.name} may change the pictures"):
        Classifier(model)
    model.save(tmp_path / "m.keras")
    with pytest.raises(CheckpointError):
        Classifier(tmp_path / "m.keras")


@pytest.mark.parametrize("name", sorted(ONLY_IN_TRAINING - {"SpatialDropout1D"}))
def test_layers_that_do_nothing_in_inference(name):
    kind = getattr(layers, name)
    needed = {"RandomPosterization": (4,), "RandomTranslation": (0.2, 0.2)}.get(name)
    names = "rate", "stddev", "factor", "height_factor"
    first = next(iter(inspect.signature(kind).parameters))
    layer = kind(*(needed or ((0.3,) if first in names else ())))
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(x, training=False)), x)


def test_other_scores_and_features_in_memory(picture):
    model = _as_a_layer(layers.Dense(4, activation="sigmoid"))
    classifier = Classifier(model)
    assert classifier.activation == "sigmoid"
    _answers(classifier, model, picture)
    assert classifier.features(picture).shape == (16,)
    features = Classifier(_headless()).features(picture)
    np.testing.assert_allclose(classifier.features(picture), features, atol=1e-5)
    with pytest.raises(ValueError, match="has no head"):
        Classifier(_headless())(picture)


def test_what_a_model_in_memory_does_not_say_is_said(picture):
    backbone = load_seeded(VAN(**SMALL, include_top=False))
    model = keras.Model(backbone.input, layers.Dense(3)(backbone.output))
    notes = Classifier(model).notes
    assert "No names of its classes are known" in notes
    assert "does not say how its pictures are prepared" in notes
    backbone.labels = LABELS
    assert "Its 4 labels are left out: it has 3 classes" in Classifier(model).notes
    given = Classifier(model, labels={0: "a", 1: "b", 2: "c"}, preprocessing=Preprocessing(64))
    assert not given.notes
    with pytest.raises(ValueError, match=r"name each of 3 classes\. Received: 0 names"):
        Classifier(model, labels=[])
    assert [p.label for p in given(picture, top=3)] != []
    with pytest.raises(ValueError, match=r"`labels` must name each of 3 classes\. Received: 0"):
        Classifier(model, labels=[])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_scaled, "`preprocessing` must be given .* layer rescaling"),
        (lambda: _as_a_layer(layers.Dense(1, activation="softmax")), "softmax of one output"),
        (lambda: _as_a_layer(layers.Dense(4, activation="relu")), "scores are no probabilities"),
        (
            lambda: _as_a_layer(layers.Dense(4, activation=_own)),
            r"='tests\.weights\.test_keras_config\._own': its scores are no",
        ),
        (_branched, "one output of 2 axes"),
        (lambda: _headless(pooling=None), "one output of 2 axes"),
        (lambda: _whole(img_resolution=96), "must be a size that 'van' takes"),
        (lambda: keras.Sequential([keras.Input((4,)), layers.Dense(2)]), "with a VAN in it"),
    ],
)
def test_a_model_in_memory_that_cannot_be_used(make, says):
    with pytest.raises(ValueError, match=says):
        Classifier(make())


@pytest.mark.slow
def test_a_model_on_an_input_of_ones_own(tmp_path):
    inputs = keras.Input((64, 64, 3))
    source = load_seeded(VAN("van_b0", num_classes=4))
    model = VANB0(weights=None, input_tensor=inputs, classes=4)
    load_checkpoint(model, to_official(source))
    model.save(tmp_path / "m.keras")
    tensors = read_weights(tmp_path / "m.keras").tensors
    for name, array in to_official(source).items():
        np.testing.assert_array_equal(tensors[name], array)
