"""`accelerate`: what a model gives, from an engine that proved itself; or Keras, and why."""

import copy
import functools
import sys
import threading
from importlib import import_module

import keras
import numpy as np
import pytest
from keras import layers

from tests.parity import MICRO, SMALL, load_seeded, seeded_images
from van_classification_tensorflow import VAN, accelerate, fuse
from van_classification_tensorflow.engines import graph_runner

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("eager")
ENGINES = ["onnxruntime", "openvino"]


@pytest.fixture(scope="module")
def model():
    return load_seeded(VAN(**SMALL, classifier_activation=None))


@pytest.fixture(scope="module")
def accelerated(model):
    return accelerate(model, "onnxruntime", threads=2)


def assert_same(found, expected, tolerance=1e-5):
    keras.tree.assert_same_structure(found, expected)
    for one, right in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        right = keras.ops.convert_to_numpy(right)
        assert type(one) is np.ndarray
        assert (one.dtype, one.shape) == (right.dtype, right.shape)
        assert abs(one - right).max() <= tolerance * abs(right).max()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_numbers_of_any_size_and_number(model, engine):
    pytest.importorskip(engine)
    fast = accelerate(model, engine)
    assert fast.engine == engine
    assert fast.model is model
    assert fast.difference <= 1e-5
    assert "float32: as asked; differs from Keras by" in fast.reason
    for shape in ((1, 32, 32, 3), (5, 32, 32, 3), (2, 41, 33, 3)):
        images = seeded_images(1, shape)
        expected = model(images, training=False)
        assert_same(fast.predict_on_batch(images), expected)
        assert_same(fast(images), expected)
        assert_same(fast.predict(images, batch_size=2), expected)
    assert fast.predict(images[:0]).shape == (0, 10)


def test_auto_takes_the_first_that_proves_itself(model):
    assert accelerate(fuse(model)).engine in ENGINES


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_structures_of_outputs(data_format):
    van = load_seeded(VAN(**SMALL, data_format=data_format))
    images = seeded_images(1, (3, 32, 32, 3) if data_format == "channels_last" else (3, 3, 32, 32))
    for outputs in ({**van.pyramid_outputs, "A": van.output}, [van.output], van.output):
        model = keras.Model(van.input, outputs)
        fast = accelerate(model, "onnxruntime")
        expected = model(images, training=False)
        assert_same(fast(images), expected)
        assert_same(fast.predict(images, batch_size=2), expected)


@functools.cache
def _van():
    """Of which nothing is changed."""
    return load_seeded(VAN(**SMALL))


def _in_a_dict():
    images = keras.Input((32, 32, 3), name="picture")
    return keras.Model({"picture": images}, {"a": _van()(images)})


def _in_a_list():
    van = _van()
    return keras.Model([van.input], [van.output])


def _built_later():
    model = keras.Sequential([layers.Rescaling(2.0), _van(), layers.Dense(3)])
    model.build((None, 32, 32, 3))
    return model


def _inside():
    van = _van()
    return keras.Model(van.input, [van.output, van.get_layer("block1_0").output])


MODELS = {
    "dict": (_in_a_dict, lambda x: {"picture": x}),
    "list": (_in_a_list, lambda x: [x]),
    "built later": (_built_later, lambda x: x),
    "inside": (_inside, lambda x: x),
    "cloned, compiled": (lambda: keras.models.clone_model(_in_a_list()), lambda x: x),
    "fused": (lambda: fuse(_built_later()), lambda x: x),
}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("model", MODELS)
def test_models_of_all_kinds(model):
    make, given = MODELS[model]
    made = make()
    fast = accelerate(made, "onnxruntime")
    images = given(seeded_images(1, (2, 32, 32, 3)))
    expected = made.predict_on_batch(images)
    for found in (fast(images), fast.predict_on_batch(images), fast.predict(images)):
        assert_same(found, expected)


def test_what_predict_takes(model, accelerated):
    images = seeded_images(1, (5, 32, 32, 3))
    expected = model(images, training=False)
    labels = np.arange(5)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return images[2 * i : 2 * i + 2], labels[2 * i : 2 * i + 2]

    for given in (
        Batches(),
        (images[i : i + 2] for i in range(0, 5, 2)),
        ((images[i : i + 2], labels[i : i + 2]) for i in range(0, 5, 2)),
        keras.ops.convert_to_tensor(images),
        [images],
        {"images": images},
        images.astype(np.float64),
    ):
        assert_same(accelerated.predict(given), expected)
    with pytest.raises(ValueError, match="`batch_size`"):
        accelerated.predict(images, batch_size=0)


def test_tf_data(model, accelerated):
    tf = pytest.importorskip("tensorflow")
    images = seeded_images(1, (5, 32, 32, 3))
    data = tf.data.Dataset.from_tensor_slices((images, np.arange(5))).batch(2)
    assert_same(accelerated.predict(data), model(images, training=False))


def test_a_progress_bar_is_for_those_who_ask(accelerated, capsys):
    images = seeded_images(1, (5, 32, 32, 3))
    accelerated.predict(images)
    assert capsys.readouterr().out == ""
    accelerated.predict(images, batch_size=2, verbose=1)
    assert "3/3" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(1, 32, 32, 4), (1, 32, 32), (1, 2, 2, 3), (32,)])
def test_the_models_own_messages(model, accelerated, shape):
    images = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=r"^`inputs` ") as expected:
        model(images, training=False)
    with pytest.raises(ValueError, match=r"^`inputs` ") as error:
        accelerated(images)
    assert str(error.value) == str(expected.value)


def test_a_fixed_size(model):
    fixed = load_seeded(VAN(**SMALL, classifier_activation=None, img_resolution=(32, 40)))
    fast = accelerate(fixed, "onnxruntime")
    images = seeded_images(1, (2, 32, 40, 3))
    assert_same(fast(images), model(images, training=False))
    with pytest.raises(ValueError, match="32, 40"):
        fast(seeded_images(1, (2, 40, 40, 3)))


def test_whole_numbers_are_cut_as_keras_cuts_them():
    images = keras.Input((32, 32, 3), dtype="uint8")
    van = load_seeded(VAN(**SMALL))
    model = keras.Model(images, van(layers.Rescaling(1 / 255)(images)))
    fast = accelerate(model, "onnxruntime")
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    assert_same(fast(pixels), model(pixels.astype(np.uint8), training=False))


def test_training_is_refused(accelerated):
    with pytest.raises(ValueError, match=r"inference only.*training=True"):
        accelerated(np.zeros((1, 32, 32, 3), np.float32), training=True)


def test_later_weights_are_not_seen():
    model = load_seeded(VAN(**SMALL))
    images = seeded_images(1, (2, 32, 32, 3))
    fast, before = accelerate(model, "onnxruntime"), model(images, training=False)
    load_seeded(model, seed=1)
    assert_same(fast(images), before)
    assert_same(accelerate(model, "onnxruntime")(images), model(images, training=False))
    assert_same(fast(seeded_images(1, (2, 48, 48, 3))), fast(seeded_images(1, (2, 48, 48, 3))))


def test_a_layer_of_ones_own_is_run_by_keras_and_named(model):
    own = keras.Model(model.input, layers.UnitNormalization(name="unit")(model.output))
    images = seeded_images(1, (3, 32, 32, 3))
    fast = accelerate(own)
    assert (fast.engine, fast.difference) == ("keras", None)
    assert "its layer 'unit' (UnitNormalization) is of a kind that is not translated" in fast.reason
    for found in (fast(images), fast.predict_on_batch(images), fast.predict(images)):
        assert_same(found, own(images, training=False))
    with pytest.raises(ValueError, match=r"`engine` cannot run .*its layer 'unit'"):
        accelerate(own, "onnxruntime")


def _lie(how):
    real = graph_runner.GraphRunner.__call__

    def lying(self, images):
        return how(real(self, images)) if self.runtime == "openvino" else real(self, images)

    return lying


LIES = {
    "shifted": (lambda outputs: [one * 1.001 for one in outputs], "differs by"),
    "nan": (lambda outputs: [one * np.nan for one in outputs], "differs by nan"),
    "only together": (
        lambda outputs: [one + (len(one) > 1) for one in outputs],
        "differs by",
    ),
    "shape": (lambda outputs: [one[..., :-1] for one in outputs], r"gives \(1, 9\)"),
    "fails": (lambda outputs: 1 // 0, "division"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_engine_that_lies_is_passed_over(monkeypatch, lie, model):
    pytest.importorskip("openvino")
    how, message = LIES[lie]
    monkeypatch.setattr(graph_runner.GraphRunner, "__call__", _lie(how))
    fast = accelerate(model, threads=2)
    assert fast.engine == "onnxruntime"
    assert "; not OpenVINO" in fast.reason
    with pytest.raises(ValueError, match=rf"`engine` cannot run .*OpenVINO.*{message}"):
        accelerate(model, "openvino", threads=2)


def test_probabilities_hide_nothing(monkeypatch):
    """All scores a tenth higher or lower leave sure probabilities as they are."""
    pytest.importorskip("openvino")
    van = VAN(**SMALL, classifier_activation=None)
    scores = layers.Rescaling(1.0, offset=np.eye(10)[0] * 60)(van.output)
    model = keras.Model(van.input, layers.Softmax()(scores))

    def hidden(outputs):
        return [one * np.where(np.arange(10) == 1, 1.1, 1).astype(np.float32) for one in outputs]

    monkeypatch.setattr(graph_runner.GraphRunner, "__call__", _lie(hidden))
    assert accelerate(model).engine == "onnxruntime"


def test_where_no_engine_agrees_it_is_keras(monkeypatch, model):
    monkeypatch.setattr(
        graph_runner.GraphRunner, "__call__", lambda self, images: [np.ones((len(images), 10))]
    )
    fast = accelerate(model)
    assert fast.engine == "keras"
    assert "ONNX Runtime" in fast.reason
    assert "differs by" in fast.reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "numpy"}, "`engine` must be .*openvino.*Received: engine='numpy'"),
        ({"precision": "int8"}, "`precision` must be .*Received: precision='int8'"),
        ({"threads": 0}, "`threads`"),
        ({"engine": "keras", "precision": "bfloat16"}, "`precision` must be 'float32'"),
        ({"engine": "onnxruntime", "precision": "bfloat16"}, "bfloat16"),
    ],
)
def test_arguments(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        accelerate(model, **arguments)


def test_other_things_than_models():
    with pytest.raises(ValueError, match=r"`model` must be a Keras model\. Received: str"):
        accelerate("van_b0")


def test_an_accelerator_is_faster_than_a_cpu(monkeypatch, model):
    """There frameworks multiply less exactly, so that the reference is further away as well."""
    module = import_module("van_classification_tensorflow.inference.accelerate")
    monkeypatch.setattr(module, "on_accelerator", lambda: True)
    fast = accelerate(model)
    assert fast.engine == "keras"
    assert fast.reason.endswith("it computes on an accelerator")
    monkeypatch.setattr(
        graph_runner.GraphRunner, "__call__", _lie(lambda outputs: [one * 1.005 for one in outputs])
    )
    pytest.importorskip("openvino")
    assert accelerate(model, "openvino").engine == "openvino"


def test_keras_by_its_name(model):
    fast = accelerate(model, "keras")
    assert fast.engine == "keras"
    assert fast.reason.endswith("float32: as asked")
    images = seeded_images(1, (2, 32, 32, 3))
    assert_same(fast(images), model(images, training=False))


def test_many_threads_get_the_same(model, accelerated):
    images = seeded_images(1, (4, 32, 32, 3))
    expected = accelerated(images)
    found: list = [None] * 8

    def run(i):
        found[i] = [accelerated(images) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        for outputs in one:
            np.testing.assert_array_equal(outputs, expected)


@pytest.mark.slow
def test_every_stage_of_a_deep_one():
    model = load_seeded(VAN(**MICRO, data_format="channels_first"))
    fast = accelerate(keras.Model(model.input, [model.output, *model.pyramid_outputs.values()]))
    images = seeded_images(1, (3, 3, 64, 96))
    assert_same(fast.predict(images), fast.model.predict(images, verbose=0))


def test_without_onnx_it_is_keras(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    fast = accelerate(model)
    assert fast.engine == "keras"
    assert "onnx" in fast.reason
    with pytest.raises(ValueError, match=r"cannot run .*onnx"):
        accelerate(model, "onnxruntime")


def test_no_batches_and_no_copies(accelerated):
    with pytest.raises(ValueError, match="one batch of pictures at least"):
        accelerated.predict(iter([]))
    with pytest.raises(TypeError, match="accelerate"):
        copy.deepcopy(accelerated)


def test_batches_without_labels_go_to_keras_as_well(model):
    images = seeded_images(1, (5, 32, 32, 3))
    fast = accelerate(model, "keras")
    found = fast.predict(one for one in (images[:3], images[3:]))
    assert_same(found, model(images, training=False))
