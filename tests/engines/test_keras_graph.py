"""The graph of a Keras model: the same numbers as Keras's, or a layer that is named."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.parity import MICRO, SMALL, load_seeded, seeded_images
from van_classification_tensorflow import VAN, fuse
from van_classification_tensorflow.engines.keras_graph import KerasGraph
from van_classification_tensorflow.engines.keras_values import Untranslatable
from van_classification_tensorflow.model.blocks import LKA, Attention, Mlp
from van_classification_tensorflow.model.layers import (
    BatchNorm,
    DepthwiseConv,
    LayerScale,
    PointwiseConv,
)

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def answers(model, images):
    """(the graph, what it gives for the first image, what Keras gives)."""
    written = KerasGraph(model)(images.shape[1:])
    session = onnxruntime.InferenceSession(written.model, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images[:1].astype(np.float32)})
    outputs = keras.tree.flatten(model(images[:1], training=False))
    return written, found, [ops.convert_to_numpy(one) for one in outputs]


def assert_same(model, images, tolerance=1e-5):
    written, found, expected = answers(model, images)
    for one, right in zip(found, expected, strict=True):
        assert one.shape == right.shape
        assert abs(one - right).max() <= tolerance * abs(right).max()
    return written


def noise(*shape):
    return seeded_images(1, (1, *shape))


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (32, 48, 3)),
        ({"classifier_activation": None}, (33, 47, 3)),
        ({"classifier_activation": "sigmoid", "num_classes": 1}, (40, 40, 3)),
        pytest.param({"in_chans": 1}, (32, 32, 1), marks=pytest.mark.slow),
        ({"data_format": "channels_first", "in_chans": 5}, (5, 32, 48)),
        ({"img_resolution": (32, 40)}, (32, 40, 3)),
        pytest.param({"include_top": False}, (32, 32, 3), marks=pytest.mark.slow),
        pytest.param({"include_top": False, "pooling": "max"}, (32, 32, 3), marks=pytest.mark.slow),
        ({"include_top": False, "pooling": None}, (32, 48, 3)),
        ({"include_top": False, "pooling": None, "data_format": "channels_first"}, (3, 32, 48)),
        pytest.param(
            {"drop_rate": 0.5, "drop_path_rate": 0.5}, (32, 32, 3), marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_a_van_and_a_fused_one(arguments, shape):
    one_stage = {"embed_dims": [8], "mlp_ratios": [4], "depths": [1], "num_classes": 10}
    model = load_seeded(VAN(**{**one_stage, **arguments}))
    assert_same(model, noise(*shape))
    assert_same(fuse(model), noise(*shape))


def test_the_whole_depth():
    assert_same(load_seeded(VAN(**MICRO)), noise(64, 96, 3))


def test_several_outputs_in_the_order_of_keras():
    van = load_seeded(VAN(**SMALL, data_format="channels_first"))
    outputs = {"z": van.output, **van.pyramid_outputs}
    written = assert_same(keras.Model(van.input, outputs), noise(3, 32, 48))
    assert written.scores == (None, None, "softmax")


def test_lora_and_frozen_layers():
    model = load_seeded(VAN(**SMALL))
    model.trainable = False
    for name in ("proj_1", "proj_2"):
        layer = getattr(model.get_layer("block1_0").attn, name)
        layer.enable_lora(2)
        for weight in (layer.lora_kernel_a, layer.lora_kernel_b):
            weight.assign(seeded_images(2, tuple(weight.shape)))
    assert_same(model, noise(32, 32, 3))


@functools.cache
def _seeded():
    """Of which nothing is changed."""
    return load_seeded(VAN(**SMALL))


HEADS = {
    "flattened": lambda x: layers.Dense(4, "softmax")(layers.Flatten()(x)),
    "reshaped": lambda x: layers.Reshape((-1, 8))(x),
    "dense of each position": lambda x: layers.Dense(4, "relu")(x),
    "dense of three axes": lambda x: layers.Dense(4)(layers.Reshape((-1, 16))(x)),
    "convolutions": lambda x: layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2)(
        layers.Conv2D(6, (3, 2), 2, "same", activation="tanh", groups=2)(x)
    ),
    "dilated": lambda x: layers.Conv2D(3, 2, dilation_rate=2, use_bias=False)(x),
    "pools": lambda x: layers.AveragePooling2D(3, 2, "same")(layers.MaxPooling2D(2, 1)(x)),
    "upsampled": lambda x: layers.UpSampling2D((2, 3), interpolation="bilinear")(x),
    "nearest": lambda x: layers.UpSampling2D(2)(layers.ZeroPadding2D(((1, 0), (0, 2)))(x)),
    "squeeze and excitation": lambda x: layers.Multiply()(
        [x, layers.Dense(16, "sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))]
    ),
    "joined": lambda x: layers.Concatenate()(
        [layers.GlobalMaxPooling2D()(x), layers.GlobalAveragePooling2D()(x)]
    ),
    "joined maps": lambda x: layers.Concatenate()([layers.Reshape((4, 4, 16))(x), x]),
    "merged": lambda x: layers.Average()(
        [layers.Add()([x, x, x]), layers.Subtract()([x, layers.Maximum()([x, -x])]), x]
    ),
    "norms": lambda x: layers.LayerNormalization(axis=(2, 3))(
        layers.BatchNormalization(scale=False)(BatchNorm()(x))
    ),
    "norm of features": lambda x: layers.LayerNormalization(center=False)(
        layers.GlobalAveragePooling2D()(x)
    ),
    "operations": lambda x: ops.softmax(
        ops.mean(ops.cast(2.0 * x + np.arange(16, dtype="float32"), "float32"), (1, 2)) / 8
    ),
    "operations on maps": lambda x: ops.reshape(
        ops.transpose(ops.concatenate([ops.gelu(x), 1 - ops.silu(x)], axis=1), (0, 3, 1, 2)),
        (-1, 16, 32),
    ),
    "channels first": lambda x: layers.GlobalMaxPooling2D("channels_first")(
        layers.Conv2D(5, 3, data_format="channels_first")(layers.Permute((3, 1, 2))(x))
    ),
    "parts of a VAN": lambda x: LayerScale(0.5)(
        Mlp(16, 8)(Attention(16)(LKA(16)(PointwiseConv(16)(DepthwiseConv(3, gelu=True)(x)))))
    ),
    "a model inside a model": lambda x: keras.Sequential(
        [keras.Input((4, 4, 16)), layers.Dropout(0.5), layers.Flatten(), layers.Dense(3, "sigmoid")]
    )(x),
}


@pytest.mark.parametrize("head", HEADS)
def test_what_stands_behind_a_van(head):
    features = keras.Input((4, 4, 16))
    assert_same(keras.Model(features, HEADS[head](features)), noise(4, 4, 16))


def test_a_head_on_the_layers_of_a_van_or_on_the_whole():
    van = load_seeded(VAN(**SMALL, include_top=False, pooling=None, img_resolution=32))
    head = HEADS["flattened"]
    assert_same(keras.Model(van.input, head(van.output)), noise(32, 32, 3))
    images = keras.Input((32, 32, 3))
    written = assert_same(keras.Model(images, head(van(images, training=False))), noise(32, 32, 3))
    assert written.scores == ("softmax",)
    sequence = keras.Sequential([van, layers.Flatten(), layers.Dense(2)])
    assert_same(sequence, noise(32, 32, 3))


ACTIVATIONS = [
    *("relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "tanh", "exponential"),
    *("softplus", "softsign", "hard_sigmoid", "hard_silu", "sigmoid", "softmax", "log_softmax"),
]


def test_activations_of_maps_and_of_features():
    images = keras.Input((4, 4, 3))
    maps = layers.Conv2D(5, 1)(images)
    made = [layers.Activation(one)(maps) for one in ACTIVATIONS]
    made += [
        layers.ReLU(max_value=1.5)(maps),
        layers.ReLU(negative_slope=0.1)(maps),
        layers.LeakyReLU()(maps),
        layers.ELU(0.5)(maps),
        layers.Softmax(axis=1)(maps),
    ]
    model = keras.Model(images, [*made, *map(layers.GlobalMaxPooling2D(), made)])
    assert_same(model, 3 * noise(4, 4, 3))


@pytest.mark.parametrize(
    "before",
    [
        lambda x: layers.Rescaling([0.1, 0.2, 0.3], offset=-0.5)(layers.RandomFlip()(x)),
        lambda x: layers.Normalization(mean=[1.0, 2, 3], variance=[4.0, 0.5, 1])(x),
        lambda x: layers.GaussianNoise(0.5)(layers.RandomRotation(0.5)(x)),
        lambda x: layers.Resizing(40, 48)(x),
    ],
)
def test_what_stands_before_a_van(before):
    images = keras.Input((32, 32, 3))
    model = keras.Model(images, _seeded()(before(images)))
    assert_same(model, 100 * noise(32, 32, 3))


def test_pixels_as_whole_numbers():
    images = keras.Input((32, 32, 3), dtype="uint8")
    model = keras.Model(images, _seeded()(layers.Rescaling(1 / 255)(images)))
    assert_same(model, np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8))


def test_a_layer_that_is_called_twice():
    images = keras.Input((32, 32, 3))
    van = load_seeded(VAN(**SMALL, include_top=False))
    model = keras.Model(images, van(images) - van(layers.Rescaling(-1)(images)))
    assert_same(model, noise(32, 32, 3))


def test_weights_are_those_of_the_time_it_was_made():
    model = load_seeded(VAN(**SMALL))
    images = noise(32, 32, 3)
    graph = KerasGraph(model)
    before = graph(images.shape[1:]).model
    load_seeded(model, seed=1)
    assert graph(images.shape[1:]).model == before
    assert KerasGraph(model)(images.shape[1:]).model != before


def test_no_transposition_but_of_the_input():
    for arguments, shape, allowed in (
        ({}, (32, 32, 3), 1),
        ({"data_format": "channels_first"}, (3, 32, 32), 0),
        ({"data_format": "channels_first", "include_top": False, "pooling": None}, (3, 32, 32), 0),
    ):
        written = KerasGraph(VAN(**SMALL, **arguments))(shape)
        model = onnx.load_model_from_string(written.model)
        onnx.checker.check_model(model, full_check=True)
        assert sum(node.op_type == "Transpose" for node in model.graph.node) == allowed
        assert not {"BatchNormalization", "Erf"} & {node.op_type for node in model.graph.node}


@keras.saving.register_keras_serializable("tests")
class Doubled(layers.Dense):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


class Called(keras.Model):
    def call(self, inputs, training=None):
        return -super().call(inputs)


class Subclassed(keras.Model):
    def call(self, x):
        return x


def _van(**arguments):
    return VAN(**SMALL, **arguments)


def _quantised():
    model = _van()
    model.quantize("int8")
    return model


def _own_call():
    model = _van()
    block = model.get_layer("block1_0")
    block.attn.proj_1.call = lambda x, training=None: x
    return model


def _other_activation():
    van = _van(classifier_activation=None)
    return keras.Model(van.input, layers.Activation(keras.activations.celu)(van.output))


def _other_epsilon():
    model = _van()
    model.get_layer("block2_0").norm1.epsilon = 1e-3
    return model


def _two_inputs():
    a, b = keras.Input((32, 32, 3)), keras.Input((32, 32, 3))
    return keras.Model([a, b], _van()(a) + _van(name="other")(b))


def _on_van(make):
    van = _van(include_top=False)
    return keras.Model(van.input, make(van.output))


REFUSED = {
    "subclass of a layer": (
        lambda: _on_van(Doubled(3, name="mine")),
        "'mine' .Doubled.* of a kind",
    ),
    "unknown layer": (lambda: _on_van(layers.UnitNormalization(name="unit")), "'unit' .UnitNorm"),
    "unknown operation": (lambda: _on_van(ops.sort), "Sort. is of a kind"),
    "lambda": (lambda: _on_van(layers.Lambda(lambda x: x, name="l")), "'l' .Lambda"),
    "quantised": (_quantised, "'head' .Dense. is quantised"),
    "half": (lambda: _van(dtype="mixed_float16"), "takes float16"),
    "half head": (lambda: _on_van(layers.Dense(2, dtype="bfloat16", name="h")), "'h' .*bfloat16"),
    "own call": (_own_call, "'block1_0' .Block. has a part 'proj_1' that has a `call`"),
    "activation": (_other_activation, "activation that is not translated.*celu"),
    "epsilon": (_other_epsilon, "'block2_0' .Block. has a part 'norm1' that has epsilon=0.001"),
    "two inputs": (_two_inputs, "one tensor of 4 axes"),
    "no pictures": (lambda: keras.Sequential([keras.Input((3,)), layers.Dense(2)]), "4 axes"),
    "subclassed model": (lambda: Subclassed(name="sub"), "'sub' is no functional"),
    "call of a model": (lambda: Called(*_io(), name="c"), "'c' .Called. has a `call` of its own"),
    "not built": (lambda: keras.Sequential([layers.Dense(2)], name="new"), "'new' is not built"),
    "over pictures": (lambda: _on_van(lambda x: ops.mean(x, 0, keepdims=True)), "each other"),
}


def _io():
    van = _van()
    return van.input, van.output


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_translated_is_named(case):
    make, message = REFUSED[case]
    with pytest.raises(Untranslatable, match=message):
        KerasGraph(make())((32, 32, 3))


def test_a_van_inside_refuses_what_it_refuses():
    images = keras.Input((None, None, 3))
    graph = KerasGraph(keras.Model(images, VAN(**MICRO)(images)))
    with pytest.raises(ValueError, match="too small for the strides of 4 stages"):
        graph((16, 16, 3))
