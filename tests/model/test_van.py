"""One contract for the model class: what a Keras user does with it works as written."""

import random
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from tests.parity import MICRO, SMALL, load_seeded
from van_classification_tensorflow import VAN, Preprocessing
from van_classification_tensorflow.model.blocks import Block
from van_classification_tensorflow.model.layers import DepthwiseConv, tf

needs_tensorflow = pytest.mark.skipif(tf is None, reason="a TensorFlow feature")


def _images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def _numpy(x):
    return ops.convert_to_numpy(x)


@pytest.fixture
def micro():
    """Four stages, one of two blocks."""
    return load_seeded(VAN(**MICRO, name="micro"))


@pytest.fixture
def small():
    """Two stages of one block: quick to build and to trace."""
    return load_seeded(VAN(**SMALL, name="small"))


@pytest.fixture(scope="module")
def one_micro():
    """For all who leave it as it is."""
    return load_seeded(VAN(**MICRO, name="micro"))


@pytest.fixture(scope="module")
def one_small():
    """For all who leave it as it is."""
    return load_seeded(VAN(**SMALL, name="small"))


def test_constructor_as_written():
    model = VAN(
        in_chans=3,
        num_classes=1000,
        embed_dims=[64, 128, 256, 512],
        mlp_ratios=[4, 4, 4, 4],
        drop_rate=0.0,
        drop_path_rate=0.0,
        depths=[3, 4, 6, 3],
        num_stages=4,
        include_top=True,
        classifier_activation="softmax",
        data_format="channels_last",
    )
    assert isinstance(model, keras.Model)
    assert model.output_shape == (None, 1000)
    assert [layer.name for layer in model.layers if "block1" in layer.name] == [
        "block1_0",
        "block1_1",
        "block1_2",
    ]


def test_summary_of_b0(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")  # or Keras cuts the table to the terminal
    model = VAN(
        configuration="van_b0", data_format="channels_last", classifier_activation="softmax"
    )
    model.build((None, 224, 224, 3))
    lines = []
    model.summary(print_fn=lambda text, **_: lines.append(text), line_length=100)
    text = "\n".join(lines)
    rows = {
        m[1]: (m[2], int(m[3].replace(",", "")))
        for m in re.finditer(r"^│ (\w+) \(\w+\) +│ (\([\w, ]+\)) +│ +([\d,]+) │$", text, re.M)
    }
    expected = {"patch_embed1": ("(None, 56, 56, 32)", 4_864), "norm1": ("(None, 56, 56, 32)", 64)}
    expected |= {f"block1_{j}": ("(None, 56, 56, 32)", 25_152) for j in range(3)}
    expected |= {"patch_embed2": ("(None, 28, 28, 64)", 18_752)}
    expected |= {f"block2_{j}": ("(None, 28, 28, 64)", 89_216) for j in range(3)}
    expected |= {"norm2": ("(None, 28, 28, 64)", 128)}
    expected |= {"patch_embed3": ("(None, 14, 14, 160)", 92_960)}
    expected |= {f"block3_{j}": ("(None, 14, 14, 160)", 303_040) for j in range(5)}
    expected |= {"norm3": ("(None, 14, 14, 160)", 320)}
    expected |= {"patch_embed4": ("(None, 7, 7, 256)", 369_920)}
    expected |= {f"block4_{j}": ("(None, 7, 7, 256)", 755_200) for j in range(2)}
    expected |= {"norm4": ("(None, 7, 7, 256)", 512)}
    expected |= {"head": ("(None, 1000)", 257_000), "pred": ("(None, 1000)", 0)}
    for name, row in expected.items():
        assert rows[name] == row, name
    assert "Total params: 4,113,224" in text
    assert "Trainable params: 4,105,800" in text
    assert "Non-trainable params: 7,424" in text


def test_summary_leaves_no_trace(micro):
    micro.build((None, 64, 96, 3))
    shapes = []
    for _ in range(3):
        micro.summary(print_fn=lambda text, **_: shapes.append("(None, 16, 24, 8)" in text))
    assert any(shapes)
    for layer in micro.layers:
        assert len(layer._inbound_nodes) == 1, layer.name
        assert len(layer._outbound_nodes) == (0 if layer.name == "pred" else 1), layer.name
        assert layer.output is not None  # ambiguous with a second node
    assert micro.get_layer("norm1").output.shape == (None, None, None, 8)


def test_summary_of_a_compiled_model_counts_the_optimizer(small):
    small.build((None, 64, 64, 3))
    optimizer = keras.optimizers.SGD(momentum=0.9)  # Adam's graph takes five times as long
    small.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=True)
    small.train_on_batch(_images(2, 64, 64, 3), np.array([0, 1]))
    lines = []
    small.summary(print_fn=lambda text, **_: lines.append(text))
    assert "Optimizer params" in "\n".join(lines)


def test_compile_and_fit_as_written(small):
    small.compile(
        optimizer="sgd",
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy", "sparse_top_k_categorical_accuracy"],
    )
    x, y = _images(8, 64, 64, 3), np.arange(8)
    history = small.fit(x, y, batch_size=4, epochs=2, verbose=0).history
    assert {"loss", "accuracy", "sparse_top_k_categorical_accuracy"} <= set(history)
    assert history["loss"][1] < history["loss"][0]


@pytest.mark.usefixtures("eager")
def test_feature_extraction_with_a_head_on_top():
    inputs = keras.layers.Input(shape=(224, 224, 3), dtype="float32")
    features = VAN(configuration="van_b0", include_top=False)(inputs)
    assert features.shape == (None, 256)
    model = keras.Model(inputs, keras.layers.Dense(7, activation="softmax")(features))
    assert model.predict_on_batch(_images(1, 224, 224, 3)).shape == (1, 7)


@needs_tensorflow
def test_tf_keras_input_as_written():
    inputs = tf.keras.layers.Input(shape=(64, 64, 3), dtype="float32")
    features = VAN(**SMALL, include_top=False)(inputs)
    outputs = tf.keras.layers.Dense(3)(features)
    assert tf.keras.Model(inputs, outputs).output_shape == (None, 3)


@pytest.mark.parametrize(
    ("pooling", "shape"), [("avg", (2, 16)), ("max", (2, 16)), (None, (2, 8, 12, 16))]
)
def test_headless_outputs(pooling, shape):
    x = _images(2, 64, 96, 3)
    model = load_seeded(VAN(**SMALL, include_top=False, pooling=pooling))
    features = _numpy(model(x))
    assert features.shape == shape
    last = _numpy(keras.Model(model.input, model.pyramid_outputs["P3"])(x))
    expected = {"avg": last.mean((1, 2)), "max": last.max((1, 2)), None: last}[pooling]
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_configuration_with_overrides():
    model = VAN("van_b0", num_classes=7, drop_path_rate=0.1, name="mine", in_chans=5, drop_rate=0.2)
    assert (model.name, model.num_classes, model.input_shape[-1]) == ("mine", 7, 5)
    rates = [
        layer.drop_path_rate for layer in model.layers if re.fullmatch(r"block\d_\d", layer.name)
    ]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 13))
    assert VAN("van_b0").name == "van_b0"


def test_image_sizes_change_from_call_to_call_also_after_build(small):
    small.build((None, 64, 64, 3))
    one = small.predict_on_batch(_images(2, 64, 96, 3))
    for size in ((64, 64), (33, 47), (96, 32), (64, 96)):
        assert small.predict_on_batch(_images(2, *size, 3)).shape == (2, 10)
    # The graph traced for any size (no compiled kernels) gives what the first one gave.
    np.testing.assert_allclose(small.predict_on_batch(_images(2, 64, 96, 3)), one, atol=1e-6)
    np.testing.assert_allclose(_numpy(small(_images(2, 64, 96, 3))), one, atol=1e-6)


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_any_number_of_stages(stages):
    lists = {"embed_dims": [8, 12, 16, 20, 24], "mlp_ratios": [2] * 5, "depths": [1, 2, 1, 1, 1]}
    model = VAN(**{k: v[:stages] for k, v in lists.items()}, num_stages=stages, num_classes=3)
    side = 4 * 2 ** (stages - 1)
    assert model(_images(1, side, 2 * side, 3)).shape == (1, 3)
    assert list(model.pyramid_outputs) == [f"P{i + 2}" for i in range(stages)]


def test_pyramid_strides(one_micro):
    pyramid = keras.Model(one_micro.input, one_micro.pyramid_outputs)(_images(1, 64, 96, 3))
    assert {k: tuple(v.shape) for k, v in pyramid.items()} == {
        "P2": (1, 16, 24, 8),
        "P3": (1, 8, 12, 16),
        "P4": (1, 4, 6, 24),
        "P5": (1, 2, 3, 32),
    }


@pytest.mark.usefixtures("eager")
def test_every_block_is_reachable(one_micro):
    inside = keras.Model(
        one_micro.input,
        [one_micro.get_layer(n).output for n in ("patch_embed1", "block1_0", "block3_1", "head")],
    )
    assert [tuple(t.shape) for t in inside(_images(1, 32, 32, 3))] == [
        (1, 8, 8, 8),
        (1, 8, 8, 8),
        (1, 2, 2, 24),
        (1, 10),
    ]


def test_channels_first_is_the_same_model(one_small):
    first = load_seeded(VAN(**SMALL, data_format="channels_first"))
    x = _images(2, 64, 96, 3)
    np.testing.assert_allclose(
        _numpy(first(x.transpose(0, 3, 1, 2))), _numpy(one_small(x)), atol=1e-6
    )
    assert not [layer for layer in first._flatten_layers() if getattr(layer, "groups", 1) != 1]


def test_channels_first_gives_feature_maps_channels_first(tmp_path):
    x = _images(2, 64, 96, 3)
    headless = {**SMALL, "include_top": False, "pooling": None}
    last, first = (
        load_seeded(VAN(**headless, data_format=f)) for f in ("channels_last", "channels_first")
    )
    first.save(tmp_path / "first.keras")
    first = keras.saving.load_model(tmp_path / "first.keras")
    assert first.output_shape == (None, 16, None, None)
    maps, expected = (
        keras.Model(one.input, {"out": one.output, **one.pyramid_outputs})(images)
        for one, images in ((first, x.transpose(0, 3, 1, 2)), (last, x))
    )
    assert set(maps) == {"out", "P2", "P3"}
    for name, ours in maps.items():
        theirs = _numpy(expected[name]).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(_numpy(ours), theirs, atol=1e-5, err_msg=name)


def test_data_format_is_kerass_where_it_is_not_named(tmp_path):
    last = VAN(**SMALL)
    assert last.data_format == "channels_last"
    keras.config.set_image_data_format("channels_first")
    first = VAN(**SMALL)
    assert first.get_config()["data_format"] == "channels_first"
    assert first.input_shape == (None, 3, None, None)
    assert VAN(**SMALL, data_format="channels_last").input_shape == last.input_shape
    # A model that exists has its own.
    assert VAN.from_config(last.get_config()).input_shape == last.input_shape


@pytest.mark.parametrize(
    ("resolution", "shape"), [(64, (None, 64, 64, 3)), ((64, 96), (None, 64, 96, 3))]
)
def test_fixed_resolution(resolution, shape):
    model = VAN(**SMALL, img_resolution=resolution)
    assert model.input_shape == shape
    assert model.get_layer("norm1").output.shape[1:3] == (16, shape[2] // 4)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_save_and_load_is_exact(tmp_path, one_small, suffix):
    x = _images(2, 64, 96, 3)
    path = tmp_path / f"model{suffix}"
    if suffix == ".keras":
        one_small.save(path)
        again = keras.saving.load_model(path)
        assert type(again) is VAN
        assert again.get_config() == one_small.get_config()
    else:
        one_small.save_weights(path)
        again = VAN(**SMALL)
        again.load_weights(path)
    for ours, theirs in zip(one_small.weights, again.weights, strict=True):
        assert ours.path == theirs.path
        np.testing.assert_array_equal(_numpy(ours), _numpy(theirs))
    np.testing.assert_array_equal(_numpy(again(x)), _numpy(one_small(x)))


def test_config_round_trip():
    model = VAN(
        "van_b0",
        in_chans=4,
        num_classes=3,
        depths=[1, 1, 1, 1],
        drop_rate=0.1,
        drop_path_rate=0.2,
        classifier_activation="sigmoid",
        data_format="channels_first",
        img_resolution=(64, 32),
        dtype="mixed_bfloat16",
        name="odd",
        trainable=False,
    )
    config = model.get_config()
    again = VAN.from_config(config)
    assert again.get_config() == config
    assert again.dtype_policy.name == "mixed_bfloat16"
    assert not again.trainable
    assert again.input_shape == (None, 4, 64, 32)
    assert [w.shape for w in again.weights] == [w.shape for w in model.weights]


def test_saving_keeps_frozen_layers(tmp_path, small):
    small.get_layer("patch_embed1").trainable = False
    small.get_layer("block2_0").attn.trainable = False
    small.save(tmp_path / "frozen.keras")
    again = keras.saving.load_model(tmp_path / "frozen.keras")
    trainable = [w.path for w in small.trainable_weights]
    assert 0 < len(trainable) < len(load_seeded(VAN(**SMALL)).trainable_weights)
    assert [w.path for w in again.trainable_weights] == trainable


# --- What was set on single layers ---


def _saved(model, tmp_path):
    model.save(tmp_path / "m.keras")
    return keras.saving.load_model(tmp_path / "m.keras")


def _copies(model, tmp_path):
    """Each way to a second model: saved and loaded, cloned, and as a layer of another."""
    yield _saved(model, tmp_path)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    yield clone
    inputs = keras.Input((64, 64, 3))
    yield _saved(keras.Model(inputs, model(inputs)), tmp_path)


def test_frozen_layers_stay_frozen(tmp_path, small):
    small.get_layer("patch_embed1").trainable = False
    small.get_layer("block2_0").trainable = False
    small.get_layer("block2_0").mlp.fc1.trainable = True
    small.get_layer("block1_0").attn.trainable = False
    shapes = [w.shape for w in small.trainable_variables]
    assert 2 < len(shapes) < len(VAN(**SMALL).trainable_variables) - 4
    for copy in _copies(small, tmp_path):
        assert [w.shape for w in copy.trainable_variables] == shapes
    block = Block(8, 16, trainable=False)
    inputs = keras.Input((8, 8, 8))
    assert not keras.Model(inputs, block(inputs)).trainable_variables


def test_a_layer_trained_in_a_frozen_model(tmp_path, small):
    small.trainable = False
    small.get_layer("norm1").trainable = True
    inputs = keras.Input((64, 64, 3))
    for model in (small, _saved(small, tmp_path)):
        assert not model.trainable
        assert len(keras.Model(inputs, model(inputs)).trainable_variables) == 2


@pytest.mark.parametrize(
    "mode",
    [
        "float8",
        pytest.param("int8", marks=pytest.mark.slow),
        pytest.param("int4", marks=[pytest.mark.slow, pytest.mark.thorough("as int8")]),
    ],
)
def test_quantised_layers_stay_quantised(tmp_path, small, mode):
    x = _images(2, 64, 64, 3)
    before = _numpy(small(x))
    small.quantize(mode, type_check=False)  # also the 1 x 1 convolutions
    expected = _numpy(small(x))
    assert np.abs(expected - before).max() > 1e-4
    again = _saved(small, tmp_path)
    assert again.get_layer("block1_0").mlp.fc1.quantization_mode == mode
    np.testing.assert_array_equal(_numpy(again(x)), expected)


def test_low_rank_adaptation_is_saved(tmp_path, small):
    x = _images(1, 64, 64, 3)
    for layer in (small.get_layer("block1_0").mlp.fc1, small.get_layer("head")):
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    expected, shapes = _numpy(small(x)), [w.shape for w in small.trainable_variables]
    again = _saved(small, tmp_path)
    assert [w.shape for w in again.trainable_variables] == shapes
    np.testing.assert_allclose(_numpy(again(x)), expected, atol=1e-6)


def test_regularisers_constraints_and_numbers_are_kept(tmp_path, small):
    for layer in small._flatten_layers():
        for name in ("kernel_regularizer", "depthwise_regularizer", "gamma_regularizer"):
            if hasattr(layer, name):
                setattr(layer, name, keras.regularizers.L2(1e-3))
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    small.get_layer("block1_0").attn.proj_1.kernel_constraint = keras.constraints.MaxNorm(2)
    count = len([w for w in small.trainable_variables if w.path.endswith(("kernel", "gamma"))])
    scales = 2 * sum(SMALL["depths"])  # have no regulariser
    for again in (*_copies(small, tmp_path), VAN.from_config(small.get_config())):
        assert len(again.losses) == count - scales
    assert again.get_layer("block1_0").attn.proj_1.kernel_constraint.max_value == 2
    assert again.get_layer("patch_embed1").norm.momentum == 0.5


def test_dtype_policies_of_single_layers_are_kept(tmp_path, small):
    for layer in small.get_layer("block2_0")._flatten_layers():
        layer.dtype_policy = "mixed_bfloat16"
    x = _images(1, 64, 64, 3)
    for again in _copies(small, tmp_path):
        inner = next(one for one in again._flatten_layers() if one.name == "block2_0")
        assert inner.mlp.fc1.compute_dtype == "bfloat16"
        np.testing.assert_array_equal(_numpy(again(x)), _numpy(small(x)))


def test_a_policy_of_the_model_alone_changes_no_copy(tmp_path, small):
    """Keras gives the policy of a model to none of its layers."""
    small.dtype_policy = "mixed_bfloat16"
    for again in _copies(small, tmp_path):
        inner = {one.name: one.compute_dtype for one in again._flatten_layers(recursive=False)}
        assert "float32" in inner.values()
        for layer in small.layers[1:]:
            assert inner.get(layer.name, layer.compute_dtype) == layer.compute_dtype


def test_saving_draws_nothing_and_says_nothing_of_defaults():
    model = VAN(**SMALL, drop_rate=0.1, drop_path_rate=0.2)
    state = random.getstate()
    assert "parts" not in model.get_config()
    assert "parts" not in model.get_layer("block1_0").get_config()
    assert random.getstate() == state


def test_files_with_numbered_frozen_layers_are_still_read(micro):
    """As they were written before `parts`."""
    flat = list(micro._flatten_layers(include_self=False))
    numbers = [i for i, layer in enumerate(flat) if layer.name in ("patch_embed1", "head")]
    again = VAN.from_config({**micro.get_config(), "frozen_layers": numbers})
    frozen = [layer.name for layer in again.layers if not layer.trainable]
    assert frozen == ["patch_embed1", "head"]


# --- Labels and preprocessing ---


def test_labels_and_preprocessing_go_with_every_copy(tmp_path, small):
    small.labels, small.preprocessing = list("abcdefghij"), Preprocessing(64)
    whole = _saved(small, tmp_path)
    assert (whole.labels, whole.preprocessing) == (tuple("abcdefghij"), Preprocessing(64))
    for again in (whole, *_copies(small, tmp_path)):
        first = next(one for one in again._flatten_layers() if one.name == "patch_embed1")
        assert first.labels == tuple("abcdefghij")
        assert first.preprocessing == Preprocessing(64)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(list("abcdefghij")),
        (letter for letter in "abcdefghij"),
        {str(9 - i): "jihgfedcba"[i] for i in range(10)},
        dict(enumerate("abcdefghij")),
        dict(enumerate("abcdefghij")).values(),
    ],
    ids=["numpy", "generator", "json", "dict", "values"],
)
def test_labels_in_any_order_that_is_one(tmp_path, small, labels):
    small.labels = labels
    assert small.labels == tuple("abcdefghij")
    assert _saved(small, tmp_path).labels == small.labels


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("labels", list("abc"), "`labels` must name each of 10 classes. Received: 3 names"),
        ("labels", dict.fromkeys("abcdefghij"), "{0: name, 1: name, ...}.*keys: 'a', 'b'"),
        ("labels", set("abcdefghij"), "in the order of the classes. Received: .*[sS]et"),
        ("labels", [*"abcdefghi", None], "must be texts. Received for class 9: NoneType"),
        ("labels", 10, "Received: int"),
        ("preprocessing", "imagenet", "`preprocessing` must be a `Preprocessing`"),
        ("preprocessing", Preprocessing(32, mean=[0], std=[1]), "make in_chans=3 channels"),
    ],
)
def test_wrong_ones_are_refused_when_set(small, name, value, says):
    with pytest.raises(ValueError, match=says):
        setattr(small, name, value)
    assert getattr(small, name) is None


def test_numbers_from_numpy_are_numbers(tmp_path):
    model = VAN(
        embed_dims=np.array([8, 16]),
        mlp_ratios=np.array([2.0, 2.0]),
        depths=[np.int64(1), 1],
        num_classes=np.arange(3).max() + 1,
        in_chans=np.int32(1),
        img_resolution=np.int64(32),
        drop_path_rate=np.float32(0.5),
    )
    model.save(tmp_path / "m.keras")
    assert keras.saving.load_model(tmp_path / "m.keras").output_shape == (None, 3)


def test_plain_values_from_numpy_and_generators(tmp_path):
    model = VAN(
        embed_dims=iter([8, 16]),
        mlp_ratios=(2 for _ in range(2)),
        depths=np.ones(2, int),
        num_classes=3,
        img_resolution=np.array([32, 48]),
        pooling=np.str_("avg"),
        include_top=np.True_,
        trainable=np.False_,
        name=np.str_("mine"),
        drop_rate=np.float32(0.5),
    )
    again = _saved(model, tmp_path)
    assert again.get_config() == model.get_config()
    assert again.input_shape == (None, 32, 48, 3)
    assert type(model.name) is type(model.pooling) is str
    assert type(VAN(np.str_("van_b0"), depths=[1] * 4).configuration) is str


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"img_resolution": {64, 96}}, "`img_resolution` must be None, a positive integer"),
        ({"img_resolution": {64: 1, 96: 2}}, "`img_resolution` must be None"),
        ({"img_resolution": np.array(64)}, "`img_resolution` must be None"),
        ({"embed_dims": {8: 1, 16: 1, 24: 1, 32: 1}}, "`embed_dims` must be a list"),
        ({"depths": {1, 2, 3, 4}}, "`depths` must be a list"),
        ({"include_top": np.array([True, False])}, "`include_top` must be True or False"),
        ({"include_top": "no"}, "`include_top` must be True or False"),
        ({"trainable": "no"}, "`trainable` must be True or False"),
        ({"pooling": np.array(["avg"])}, "`pooling` must be one of"),
        ({"data_format": np.array(["a", "b"])}, "`data_format` must be one of"),
        ({"drop_rate": np.array([0.1])}, "`drop_rate` must be a number"),
    ],
)
def test_what_has_no_order_or_is_no_single_value_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        VAN(**{**MICRO, **arguments})


def test_build_checks_its_argument(small):
    with pytest.raises(ValueError, match="`input_shape` must be a shape"):
        small.build(224)
    with pytest.raises(ValueError, match="fixed to by `img_resolution`"):
        VAN(**SMALL, img_resolution=64).build((None, 96, 96, 3))


def test_clone_model_is_independent(one_small):
    x = _images(1, 64, 64, 3)
    clone = keras.models.clone_model(one_small)
    clone.set_weights(one_small.get_weights())
    np.testing.assert_allclose(_numpy(clone(x)), _numpy(one_small(x)), atol=1e-6)
    clone.get_layer("norm1").gamma.assign(np.zeros(8))
    assert np.any(_numpy(one_small.get_layer("norm1").gamma))


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_jit_compile_on_and_off(jit_compile, small):
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("torch.compile needs a C compiler")
    x, y = _images(4, 64, 64, 3), np.arange(4)
    plain = load_seeded(VAN(**SMALL))
    for model, jit in ((plain, False), (small, jit_compile)):
        model.compile(
            keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", jit_compile=jit
        )
    for _ in range(2):
        ours, expected = small.train_on_batch(x, y), plain.train_on_batch(x, y)
        np.testing.assert_allclose(float(ours), float(expected), rtol=1e-4)
    np.testing.assert_allclose(small.predict_on_batch(x), plain.predict_on_batch(x), atol=1e-4)


@needs_tensorflow
def test_own_training_loop_under_autograph(small):
    optimizer = keras.optimizers.SGD(0.01)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            p = small(x, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, p))
        gradients = tape.gradient(loss, small.trainable_variables)
        optimizer.apply_gradients(zip(gradients, small.trainable_variables, strict=True))
        return loss

    # Wide enough that stage 1 compiles its GELU.
    x, y = tf.constant(_images(8, 256, 256, 3)), tf.constant([0, 1, 2, 3, 4, 5, 6, 7])
    assert float(step(x, y)) > float(step(x, y)) > 0


def _trained(remat: bool, depths: tuple[int, ...] = (1, 1), steps: int = 2):
    """(model, losses) of a few steps with drop path; small, as most of the time is tracing."""
    keras.utils.set_random_seed(1)  # of drop path
    sizes = {"embed_dims": [8, 16], "mlp_ratios": [4, 2], "depths": depths}
    sizes = {key: value[: len(depths)] for key, value in sizes.items()}
    model = load_seeded(VAN(**sizes, num_classes=10, drop_path_rate=0.3))
    model.remat = remat
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        "sparse_categorical_crossentropy",
        jit_compile=False,
    )
    x, y = _images(8, 64, 64, 3), np.arange(8)
    return model, [float(model.train_on_batch(x, y)) for _ in range(steps)]


@pytest.mark.slow
def test_remat_saving_memory_changes_no_training():
    """Weights, momenta, running statistics and seeds after two steps, with drop path."""
    plain, expected = _trained(False)
    model, losses = _trained(True)
    # A compiler may fuse what only one of the two passes needs: TensorFlow's a GELU.
    atol = 0 if keras.backend.backend() == "torch" else 2e-6
    np.testing.assert_allclose(losses, expected, rtol=0, atol=atol)
    ours, theirs = (m.variables + m.optimizer.variables for m in (model, plain))
    assert abs(losses[1] - losses[0]) > 1e-2
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(_numpy(a), _numpy(b), rtol=0, atol=atol, err_msg=a.path)


@needs_tensorflow
@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_remat_gradients_are_exact(policy, monkeypatch):
    """Bit for bit where nothing is fused; and recomputed in the backward pass, all of them."""
    calls = []
    depthwise = DepthwiseConv.call
    monkeypatch.setattr(
        DepthwiseConv, "call", lambda self, x: calls.append(self.path) or depthwise(self, x)
    )
    x, y = tf.constant(_images(4, 64, 64, 3)), np.arange(4)
    found = []
    for remat in (False, True):
        keras.utils.set_random_seed(1)
        model = load_seeded(VAN(**MICRO, drop_path_rate=0.3, dtype=policy))
        model.remat = remat
        calls.clear()
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_mean(
                keras.losses.sparse_categorical_crossentropy(y, model(x, training=True))
            )
        forward = list(calls)
        gradients = tape.gradient(loss, [x] + [v.value for v in model.trainable_variables])
        assert len(forward) == 15  # three in each of five blocks
        assert sorted(calls[15:]) == (sorted(forward) if remat else [])
        found.append([loss, *gradients, *model.non_trainable_variables])
    for plain, remat in zip(*found, strict=True):
        np.testing.assert_array_equal(_numpy(plain), _numpy(remat))


def test_remat_saving_activations_is_asked_of_the_backend(monkeypatch):
    """Two functions of each block while it trains, none when it does not."""
    wrapped = []
    monkeypatch.setattr(keras, "remat", lambda f: wrapped.append(f) or f)
    model = VAN(**SMALL)
    x = _images(1, 32, 32, 3)
    model(x, training=True)
    model.remat = True
    model(x, training=False)
    assert not wrapped
    model(x, training=True)
    assert len(wrapped) == 2 * sum(SMALL["depths"])
    model.remat = False
    model(x, training=True)
    assert len(wrapped) == 2 * sum(SMALL["depths"])


def test_remat_is_a_switch_of_the_run(tmp_path, monkeypatch):
    model, _ = _trained(False, depths=(1,), steps=1)
    assert model.remat is False
    model.remat = True
    assert model.remat is True
    assert "remat" not in str(model.get_config())
    model.save(tmp_path / "m.keras")
    assert keras.saving.load_model(tmp_path / "m.keras").remat is False
    wrapped = []
    monkeypatch.setattr(keras, "remat", lambda f: wrapped.append(f) or f)
    model.train_on_batch(_images(8, 64, 64, 3), np.arange(8))  # compiled before it was switched
    assert wrapped


def test_remat_refuses_what_it_would_get_wrong(small, monkeypatch):
    dropping = VAN(**SMALL, drop_rate=0.1)
    dropping.remat = False
    with pytest.raises(ValueError, match=r"`remat` must be False .* drop_rate=0\.1"):
        dropping.remat = True
    monkeypatch.setattr(keras.backend, "backend", lambda: "openvino")
    with pytest.raises(ValueError, match=r"`remat` must be False .* backend='openvino'"):
        small.remat = True
    assert not dropping.remat
    assert not small.remat


_PEAK = r"""
import re, sys
from pathlib import Path
import keras, numpy as np
from van_classification_tensorflow import VAN, Preprocessing

def used():
    # Not `ru_maxrss`, which begins with what the process that started this one had.
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

model = VAN("van_b0", drop_path_rate=0.1)
model.remat = sys.argv[1] == "remat"
model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
images = np.random.default_rng(0).standard_normal((16, 224, 224, 3)).astype("float32")
before = used()
for _ in range(2):
    model.train_on_batch(images, np.arange(16))
print((used() - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.thorough("two training steps of VAN-B0, most of a minute")
@needs_tensorflow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_remat_takes_less_memory():
    """The peak of a training step, in MB; measured 1700 and 750."""
    plain, remat = (
        float(subprocess.check_output([sys.executable, "-c", _PEAK, how], text=True))
        for how in ("plain", "remat")
    )
    assert plain > 1000
    assert remat < 0.6 * plain


@needs_tensorflow
@pytest.mark.parametrize("static", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_saved_model_export_is_exact(tmp_path, one_small, static):
    x = _images(2, 256, 256, 3)
    shape = (2, 256, 256, 3) if static else (None, None, None, 3)
    signature = [keras.InputSpec(dtype="float32", shape=shape)]
    one_small.export(tmp_path / "saved", input_signature=signature, verbose=False)
    artefact = tf.saved_model.load(tmp_path / "saved")  # owns the variables of `serve`
    np.testing.assert_allclose(
        artefact.serve(tf.constant(x)), one_small.predict_on_batch(x), atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains(policy):
    model = load_seeded(VAN(**SMALL, dtype=policy))
    reference = load_seeded(VAN(**SMALL))
    x, y = _images(4, 64, 64, 3), np.arange(4)
    assert model.get_layer("block1_0").compute_dtype == policy.removeprefix("mixed_")
    got = model.predict_on_batch(x)
    assert got.dtype == np.float32  # scores stay in full precision
    np.testing.assert_allclose(got, reference.predict_on_batch(x), atol=2e-2)
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    losses = [float(model.train_on_batch(x, y)) for _ in range(3)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert all(np.isfinite(_numpy(w)).all() for w in model.weights)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("size", [224, 512])
@pytest.mark.parametrize("name", ["van_b0", "van_b1", "van_b2", "van_b3"])
def test_half_precision_has_no_nan(name, size, policy, thorough):
    if policy == "mixed_float16" and size == 512 and name != "van_b0" and not thorough:
        pytest.skip("--thorough: minutes long, as a CPU has no float16")
    model = load_seeded(VAN(name, dtype=policy, classifier_activation=None))
    outputs = {"logits": model.output, **model.pyramid_outputs}
    outputs = keras.Model(model.input, outputs).predict_on_batch(_images(1, size, size, 3))
    for key, value in outputs.items():
        assert np.isfinite(np.asarray(value, dtype="float32")).all(), key
    keras.utils.clear_session()


def test_low_rank_adaptation(micro):
    x = _images(1, 64, 64, 3)
    before = _numpy(micro(x))
    fc1 = micro.get_layer("block1_0").mlp.fc1
    fc1.enable_lora(2)
    np.testing.assert_allclose(_numpy(micro(x)), before, atol=1e-6)
    fc1.lora_kernel_b.assign(np.ones(fc1.lora_kernel_b.shape, "float32"))
    assert np.abs(_numpy(micro(x)) - before).max() > 1e-4


def test_plot_model(one_micro):
    # What `plot_model` hands to Graphviz; drawing itself needs that program.
    graph = keras.utils.model_to_dot(one_micro, show_shapes=True, show_layer_names=True).to_string()
    for words in ("patch_embed1", "block3_1", "(None, None, None, 24)", "pred"):
        assert words in graph


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"configuration": "van_b9"}, "`configuration` must be one of van_b0"),
        ({"in_chans": 0}, "`in_chans` must be an integer >= 1. Received: in_chans=0"),
        ({"num_classes": 0}, "`num_classes` must be an integer >= 1"),
        ({"num_classes": 2.5}, "`num_classes` must be an integer"),
        ({"drop_rate": 1.0}, r"`drop_rate` must be a number in \[0, 1\)"),
        ({"drop_path_rate": -0.1}, r"`drop_path_rate` must be a number in \[0, 1\)"),
        ({"data_format": "NCHW"}, "`data_format` must be one of 'channels_last'"),
        ({"pooling": "mean"}, "`pooling` must be one of 'avg', 'max', None"),
        ({"classifier_activation": "softmaxx"}, "`classifier_activation` must be None"),
        ({"depths": [1, 1]}, "same length"),
        ({"num_stages": 3}, "`num_stages` must equal"),
        ({"img_resolution": 8}, "`img_resolution` is too small .* at least 17"),
        ({"img_resolution": (64, 64, 3)}, r"`img_resolution` must be None, .* \(height, width\)"),
    ],
)
def test_wrong_constructor_arguments(arguments, says):
    with pytest.raises(ValueError, match=re.compile(says, re.DOTALL)):
        VAN(**{**MICRO, **arguments})


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((2, 64, 64, 1), "must have in_chans=3 channels"),
        ((2, 3, 64, 64), "must have in_chans=3 channels"),
        ((64, 64, 3), r"must have shape \(batch, height, width, channels\)"),
        ((2, 16, 64, 3), "at least 17"),
    ],
)
def test_wrong_images(one_micro, shape, says):
    with pytest.raises(ValueError, match=says):
        one_micro(_images(*shape))
    with pytest.raises(ValueError, match=says):
        one_micro.predict_on_batch(_images(*shape))
    with pytest.raises(ValueError, match=says):
        one_micro.build(shape)


def test_misspelt_argument_is_refused():
    with pytest.raises(TypeError, match="num_clases"):
        VAN("van_b0", num_clases=10)


@needs_tensorflow
def test_inference_compiled_by_xla_is_the_same(small):
    """And has none of TensorFlow's depthwise convolutions, which XLA takes 10 times as long for."""
    images = _images(2, 64, 64, 3)
    expected = small.predict_on_batch(images)
    compiled = tf.function(small.predict_step, jit_compile=True, autograph=False)
    # Not by the property: Keras takes it back where another test asked for determinism.
    small._jit_compile = True
    np.testing.assert_allclose(compiled(tf.constant(images)), expected, atol=2e-6)

    def depthwise() -> list[str]:
        step = tf.function(small.predict_step, autograph=False)
        graph = step.get_concrete_function(tf.TensorSpec(images.shape)).graph
        return [one.type for one in graph.get_operations() if "Depthwise" in one.type]

    assert not depthwise()
    small._jit_compile = False
    assert depthwise()
