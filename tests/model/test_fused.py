"""A fused model is the same function, for the whole family, and for inference only."""

import functools
import os
import subprocess
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity import (
    GOLDEN,
    MICRO,
    SMALL,
    TOLERANCE,
    computed,
    load_seeded,
    seeded_images,
)
from van_classification_tensorflow import VAN, Preprocessing, fuse, load_checkpoint
from van_classification_tensorflow.benchmark.measure import count_macs
from van_classification_tensorflow.model.fused import FusedBlock, FusedVAN
from van_classification_tensorflow.model.layers import BatchNorm, LayerScale
from van_classification_tensorflow.model.load import to_official
from van_classification_tensorflow.spec.config import CONFIGURATIONS

ALLOWED = 1e-5  # of the largest output


def _difference(a, b):
    return float(abs(a - b).max() / abs(b).max())


def _run(model, images):
    """Without tracing a graph, which takes longer than these small models do."""
    return computed(model, images, traced=False)


@pytest.fixture(scope="module")
def micro():
    """Of which nothing is changed."""
    model = VAN(**MICRO, classifier_activation=None)
    return load_checkpoint(model, load_file(GOLDEN / "micro.safetensors"))


@pytest.fixture
def small():
    return load_seeded(VAN(**SMALL, classifier_activation=None))


@pytest.fixture(scope="module")
def images():
    with np.load(GOLDEN / "micro.npz") as golden:
        return golden["x"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "configuration",
    [
        pytest.param(name, marks=pytest.mark.thorough("as the others, most of a minute"))
        if name in ("van_b2", "van_b4")
        else name
        for name in CONFIGURATIONS
    ],
)
def test_logits_of_the_family(configuration):
    model = load_seeded(VAN(configuration, classifier_activation=None))
    fused = fuse(model)
    with np.load(GOLDEN / f"{configuration}.npz") as golden:
        for key, shape in (("a", (2, 224, 224, 3)), ("b", (1, 160, 225, 3))):
            x = seeded_images(7, shape)
            logits = computed(fused, x, traced=key == "a")
            if configuration < "van_b4":  # of the larger ones the authors' figures will do
                assert _difference(logits, computed(model, x, traced=key == "a")) <= ALLOWED
            assert abs(logits - golden[f"{key}_logits"]).max() <= TOLERANCE[configuration]


@pytest.mark.usefixtures("eager")
def test_every_stage_and_every_block(micro, images):
    fused = fuse(micro)
    names = [layer.name for layer in micro.layers if layer.name.startswith(("block", "patch"))]
    assert len(names) == 9

    def inside(model):
        outputs = {name: model.get_layer(name).output for name in names}
        return keras.Model(model.input, {**outputs, **model.pyramid_outputs})

    ours, theirs = (inside(model).predict_on_batch(images) for model in (fused, micro))
    for name, expected in theirs.items():
        assert _difference(ours[name], expected) <= ALLOWED, name


def test_there_is_nothing_left_to_fold(micro):
    fused = fuse(micro)
    kinds = {type(layer) for layer in fused._flatten_layers()}
    assert not kinds & {BatchNorm, LayerScale, keras.layers.BatchNormalization}
    assert {type(layer) for layer in micro._flatten_layers()} >= {BatchNorm, LayerScale}
    names = {v.name for v in fused.weights}
    assert not names & {"moving_mean", "moving_variance"}
    # Of each block: 2 x (4 of the norm + 1 scale) less, 1 shortcut more.
    channels = np.dot(MICRO["embed_dims"], MICRO["depths"])
    less = 9 * channels + 4 * sum(MICRO["embed_dims"])
    assert micro.count_params() - fused.count_params() == less
    assert count_macs(fused, 64) == count_macs(micro, 64)


@pytest.mark.parametrize("scale", [1e-3, pytest.param(1.0, marks=pytest.mark.slow), 1e3])
def test_statistics_of_any_size(images, scale):
    """Negative and zero factors, tiny and large variances: nothing may be divided by."""
    model = VAN(**SMALL, classifier_activation=None)
    rng = np.random.default_rng(1)
    tensors = to_official(load_seeded(model))
    for name, array in tensors.items():
        if name.endswith("running_var"):
            tensors[name] = (scale * rng.uniform(1e-3, 1, array.shape)).astype(np.float32)
        elif ".norm" in name and name.endswith(".weight"):
            values = rng.normal(0, np.sqrt(scale), array.shape)
            values[0] = 0
            tensors[name] = values.astype(np.float32)
        elif ".layer_scale_1" in name:
            # 1 + l1 s1 = 0: the shortcut itself vanishes for a channel.
            norm = name.replace("layer_scale_1", "norm1")
            weight, variance = (tensors[f"{norm}.{leaf}"] for leaf in ("weight", "running_var"))
            array[1] = -np.sqrt(variance[1] + 1e-5) / weight[1]
            tensors[name] = array
    load_checkpoint(model, tensors)
    expected = _run(model, images)
    assert _difference(_run(fuse(model), images), expected) <= ALLOWED


@pytest.mark.parametrize(
    "options",
    [
        {"include_top": False},
        {"include_top": False, "pooling": None},
        pytest.param({"include_top": False, "pooling": "max"}, marks=pytest.mark.slow),
        {"data_format": "channels_first"},
        {"classifier_activation": "softmax"},
        pytest.param({"img_resolution": (64, 96)}, marks=pytest.mark.slow),
        pytest.param({"drop_rate": 0.1, "drop_path_rate": 0.2}, marks=pytest.mark.slow),
        {"in_chans": 1},
    ],
    ids=str,
)
def test_any_way_a_model_is_built(images, options):
    model = load_seeded(VAN(**{**SMALL, "classifier_activation": None, **options}))
    x = images[..., : options.get("in_chans", 3)]
    if "data_format" in options:
        x = x.transpose(0, 3, 1, 2)
    fused = fuse(model)
    assert _difference(_run(fused, x), _run(model, x)) <= ALLOWED
    assert fused.output_shape == model.output_shape
    assert fused.input_shape == model.input_shape
    assert fused.output_names == model.output_names


def test_half_precision_computes_in_half_precision(images):
    model = load_seeded(VAN(**MICRO, classifier_activation=None, dtype="mixed_bfloat16"))
    fused = fuse(model)
    assert fused.get_layer("block1_0").compute_dtype == "bfloat16"
    assert fused.get_layer("block1_0").attn.shortcut.dtype == "float32"
    expected = _run(model, images).astype(np.float32)
    assert _difference(_run(fused, images).astype(np.float32), expected) <= 0.05


def test_it_is_saved_and_loaded(small, images, tmp_path):
    small.labels = tuple("abcdefghij")
    small.preprocessing = Preprocessing(64)
    fused = fuse(small)
    fused.save(tmp_path / "fused.keras")
    loaded = keras.saving.load_model(tmp_path / "fused.keras")
    assert type(loaded) is FusedVAN
    assert loaded.labels == small.labels
    assert loaded.preprocessing == small.preprocessing
    np.testing.assert_array_equal(_run(loaded, images), _run(fused, images))
    assert set(loaded.pyramid_outputs) == {"P2", "P3"}


def test_the_model_is_left_as_it_was(small, images):
    before = _run(small, images)
    fused = fuse(small)
    for variable in fused.weights:
        variable.assign(np.zeros(variable.shape, "float32"))
    np.testing.assert_array_equal(_run(small, images), before)


def test_a_head_of_ones_own(images):
    backbone = _backbone()
    outputs = keras.layers.Dense(3, name="mine")(backbone.output)
    model = keras.Model(backbone.input, {"mine": outputs, **backbone.pyramid_outputs})
    fused = fuse(model)
    assert not any(isinstance(layer, BatchNorm) for layer in fused._flatten_layers())
    ours, theirs = _run(fused, images), _run(model, images)
    for name, expected in theirs.items():
        assert _difference(ours[name], expected) <= ALLOWED, name


@pytest.mark.parametrize(
    "head",
    [
        lambda x: keras.layers.Dense(3, name="head")(keras.layers.Dense(16)(x)),
        lambda x: keras.layers.Dense(3, use_bias=False, name="head")(x),
        lambda x: keras.Sequential([keras.layers.Dense(3)], name="head")(x),
    ],
)
def test_a_layer_of_ones_own_may_be_called_head(images, head):
    backbone = _backbone()
    model = keras.Model(backbone.input, head(backbone.output))
    assert _difference(_run(fuse(model), images), _run(model, images)) <= ALLOWED


@pytest.mark.parametrize("last", ["block1_0", "patch_embed2"])
def test_a_part_of_a_van(images, last):
    whole = load_seeded(VAN(**SMALL))
    model = keras.Model(whole.input, whole.get_layer(last).output)
    fused = fuse(model)
    assert not any(isinstance(layer, BatchNorm) for layer in fused._flatten_layers())
    assert _difference(_run(fused, images), _run(model, images)) <= ALLOWED


def test_layers_that_compute_with_more_than_their_weights(images):
    backbone = _backbone()
    scaled = keras.layers.Normalization()
    scaled.adapt(images * 7 + 3)
    inputs = keras.Input(images.shape[1:])
    model = keras.Model(inputs, backbone(scaled(inputs)))
    fused = fuse(model)
    assert _difference(_run(fused, images), _run(model, images)) <= ALLOWED


def test_a_backbone_inside_a_model_inside_a_model(images):
    backbone = _backbone()
    other = load_seeded(VAN(**{**SMALL, "include_top": False}, name="other"), 1)
    inner = keras.Sequential([keras.Input(images.shape[1:]), other, keras.layers.Dense(3)])
    inputs = keras.Input(images.shape[1:])
    outputs = keras.layers.Dense(3)(backbone(inputs)) + inner(inputs)
    model = keras.Model(inputs, outputs)
    fused = fuse(model)
    assert not any(isinstance(layer, BatchNorm) for layer in fused._flatten_layers())
    assert _difference(_run(fused, images), _run(model, images)) <= ALLOWED


def test_a_backbone_as_a_layer(images, tmp_path):
    backbone = _backbone()
    inputs = keras.Input((64, 96, 3))
    model = keras.Model(inputs, keras.layers.Dense(3)(backbone(inputs)))
    fused = fuse(model)
    assert [type(layer) for layer in fused.layers][1] is FusedVAN
    assert _difference(_run(fused, images), _run(model, images)) <= ALLOWED
    fused.save(tmp_path / "fused.keras")
    loaded = keras.saving.load_model(tmp_path / "fused.keras")
    np.testing.assert_array_equal(_run(loaded, images), _run(fused, images))


def test_with_lora_it_computes_what_the_model_does(small, images):
    before = _run(small, images)
    fc1 = small.get_layer("block1_0").mlp.fc1
    fc1.enable_lora(2)
    fc1.lora_kernel_b.assign(np.ones(fc1.lora_kernel_b.shape, "float32"))
    expected = _run(keras.Model(small.input, small.output), images)
    assert _difference(expected, before) > 1e-3
    assert _difference(_run(fuse(small), images), expected) <= ALLOWED


def test_it_refuses_to_be_trained(micro, images):
    fused = fuse(micro)
    with pytest.raises(ValueError, match="for inference only"):
        fused(images, training=True)
    fused.compile("sgd", "mse")
    with pytest.raises(ValueError, match="for inference only"):
        fused.fit(images, np.zeros((len(images), 10)))
    with pytest.raises(ValueError, match="for inference only"):
        fused.train_on_batch(images, np.zeros((len(images), 10)))
    with pytest.raises(ValueError, match="must not be fused"):
        load_checkpoint(fused, GOLDEN / "micro.safetensors")
    with pytest.raises(ValueError, match="must not be fused"):
        to_official(fused)


def test_what_cannot_be_fused_is_refused(small):
    with pytest.raises(ValueError, match="must not be fused already"):
        fuse(fuse(small))
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="must be a VAN, or be made of one"):
        fuse(keras.Model(inputs, keras.layers.Dense(2)(inputs)))
    with pytest.raises(ValueError, match=r"`model` must be a Keras model. Received: str"):
        fuse("van_b0")
    with pytest.raises(ValueError, match="must not be fused already"):
        fuse(keras.Model(inputs := keras.Input((64, 64, 3)), fuse(small)(inputs)))
    small.quantize("int8")
    with pytest.raises(ValueError, match="must not be quantised"):
        fuse(small)


def test_blocks_take_part_in_any_functional_model(images):
    inputs = keras.Input((None, None, 8))
    model = keras.Model(inputs, FusedBlock(8, 16)(inputs))
    assert model.output_shape == (None, None, None, 8)
    assert FusedBlock.from_config(model.layers[1].get_config()).hidden_dim == 16


@pytest.mark.slow
def test_on_openvino():
    """An inference backend of Keras, on which blocks run channels-first."""
    pytest.importorskip("openvino")
    code = """
import numpy as np
from tests.parity import GOLDEN, MICRO, load_seeded
from van_classification_tensorflow import VAN, fuse
golden = np.load(GOLDEN / "micro.npz")
fused = fuse(load_seeded(VAN(**MICRO, classifier_activation=None)))
expected = golden["eval_logits"]
print(abs(fused.predict_on_batch(golden["x"]) - expected).max() / abs(expected).max())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "KERAS_BACKEND": "openvino"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # OpenVINO computes in bfloat16 where the processor has it, and Keras cannot ask for more.
    assert float(done.stdout.split()[-1]) <= 0.02


# --- At any depth ---


@keras.saving.register_keras_serializable(package="tests")
class Holding(keras.layers.Layer):
    """A layer of someone's that holds a model, in an attribute, a list and a dictionary."""

    def __init__(self, model, others=(), **kwargs):
        super().__init__(**kwargs)
        self.model, self.scale = model, keras.layers.Dense(4)
        self.others, self.named = list(others), {"first": model}

    def build(self, input_shape):
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")
        self.built = True

    def call(self, x):
        total = sum((other(x) for other in self.others), self.named["first"](x))
        return self.scale(total + self.model(x)) * self.factor

    def get_config(self):
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "others": keras.saving.serialize_keras_object(self.others),
        }

    @classmethod
    def from_config(cls, config):
        inner = {k: keras.saving.deserialize_keras_object(config[k]) for k in ("model", "others")}
        return cls(**{**config, **inner})


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, backbone, **kwargs):
        super().__init__(**kwargs)
        self.backbone, self.top = backbone, keras.layers.Dense(3)

    def call(self, x, training=None):
        return self.top(self.backbone(x, training=training))

    def get_config(self):
        return {"backbone": keras.saving.serialize_keras_object(self.backbone)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["backbone"]))


@functools.cache
def _backbone(seed=0, **options):
    """Of which nothing is changed: `fuse` leaves a model as it is."""
    return load_seeded(VAN(**{**SMALL, "include_top": False}, **options), seed)


def _holders():
    def functional(layer, *shape):
        inputs = keras.Input(shape)
        return keras.Model(inputs, layer(inputs))

    def subclassed(*of):
        model = Subclassed(*of)
        model(np.zeros((1, 64, 96, 3), "float32"))
        return model

    yield (
        "wrapper",
        lambda: functional(keras.layers.TimeDistributed(_backbone()), 2, 64, 96, 3),
    )
    yield "layer", lambda: functional(Holding(_backbone()), 64, 96, 3)
    yield (
        "several",
        lambda: functional(Holding(_backbone(), [_backbone(1), _backbone(2)]), 64, 96, 3),
    )
    yield "containers in containers", lambda: functional(Nested(_small()), 64, 96, 3)
    yield "subclass", lambda: subclassed(_backbone())
    yield "subclass of a functional", lambda: subclassed(functional(_backbone(), 64, 96, 3))
    yield (
        "sequential without a shape",
        lambda: keras.Sequential([_backbone(), keras.layers.Dense(3)]),
    )


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            make, id=name, marks=[pytest.mark.slow] if name in ("several", "subclass") else []
        )
        for name, make in _holders()
    ],
)
def test_a_van_at_any_depth(images, make):
    model = make()
    x = (
        images
        if len(getattr(model, "input_shape", (0,))) < 5
        else np.stack([images, images[::-1]], 1)
    )
    expected = _run(model, x)
    fused = fuse(model)
    kinds = {type(layer) for layer in fused._flatten_layers()}
    assert FusedBlock in kinds
    assert not kinds & {BatchNorm, LayerScale}
    assert _difference(_run(fused, x), expected) <= ALLOWED
    np.testing.assert_array_equal(_run(model, x), expected)


@keras.saving.register_keras_serializable(package="tests")
class Nested(Holding):
    """A VAN in containers in containers."""

    Pair = namedtuple("Pair", ["first", "rest"])

    def __init__(self, model, others=(), **kwargs):
        super().__init__(model, **kwargs)
        del self.model, self.named
        self.held = OrderedDict(a=[{"b": (model, keras.layers.Dense(2))}], c=self.Pair(1, [model]))

    def call(self, x):
        return self.scale(self.held["a"][0]["b"][0](x) + self.held["c"].rest[0](x)) * self.factor

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.held["c"].rest[0])
        return {**keras.layers.Layer.get_config(self), "model": inner, "others": []}


@keras.saving.register_keras_serializable(package="tests")
class Closing(Holding):
    """Calls its VAN by a function that was made around it."""

    def __init__(self, model, others=(), **kwargs):
        super().__init__(model, **kwargs)
        self.by_function = lambda x: model(x)

    def call(self, x):
        return self.by_function(x)


@keras.saving.register_keras_serializable(package="tests")
class Lying(Holding):
    """What it computes with is not in its configuration."""

    def call(self, x):
        return super().call(x) * getattr(self, "times", 1)


@keras.saving.register_keras_serializable(package="tests")
class Unheld(Holding):
    """Keras knows of the VAN in it; no attribute does."""

    def __init__(self, model, others=(), **kwargs):
        super().__init__(model, **kwargs)
        del self.model, self.named
        self._tracker.track(model)

    def call(self, x):
        return self._layers[-1](x)

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self._layers[-1])
        return {**keras.layers.Layer.get_config(self), "model": inner, "others": []}


@functools.cache
def _small():
    return load_seeded(VAN(embed_dims=[8], mlp_ratios=[2], depths=[1], include_top=False))


def _around(layer):
    inputs = keras.Input((64, 96, 3))
    return keras.Model(inputs, layer(inputs))


@pytest.mark.parametrize("holder", [Closing, Unheld])
def test_a_van_that_cannot_be_swapped_is_refused(holder):
    says = rf"a VAN cannot be reached: held \({holder.__name__}\) must hold it, and call it"
    with pytest.raises(ValueError, match=says):
        fuse(_around(holder(_small(), name="held")))


def test_a_van_in_a_function_is_never_called_unfused(images):
    fused = fuse(Subclassed(Closing(_small(), name="held")))  # of no known input
    with pytest.raises(ValueError, match=r"a VAN cannot be reached: [\w/]*held"):
        fused(images)


def test_another_function_than_the_models_is_refused():
    layer = Lying(_small(), name="held")
    model = _around(layer)
    layer.times = 2
    with pytest.raises(ValueError, match=r"a VAN cannot be reached: held \(Lying\)"):
        fuse(model)


def test_what_cannot_be_reached_is_named(images):
    class Closed(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.model = VAN(**{**SMALL, "include_top": False})

        def call(self, x):
            return self.model(x)

        def get_config(self):
            raise NotImplementedError("no config")

    inputs = keras.Input(images.shape[1:])
    with pytest.raises(ValueError, match=r"cannot be made again: closed \(Closed\) needs"):
        fuse(keras.Model(inputs, Closed(name="closed")(inputs)))
    loose = keras.Model(inputs, BatchNorm(name="loose")(_backbone(pooling=None)(inputs)))
    with pytest.raises(ValueError, match="batch norm that cannot be reached: loose"):
        fuse(loose)


def test_other_numbers_than_it_folds_are_refused(small):
    small.get_layer("block2_0").norm2.epsilon = 1e-3
    with pytest.raises(ValueError, match=r"epsilon 1e-5\. Received: block2_0/norm2 has 0\.001"):
        fuse(small)
    with pytest.raises(ValueError, match=r"epsilon 1e-5"):
        to_official(small)


def test_what_was_set_on_layers_is_kept(small, images):
    small.get_layer("block1_0").trainable = False
    for layer in small.get_layer("block1_0")._flatten_layers():
        layer.dtype_policy = "mixed_bfloat16"
    small.get_layer("block1_0").mlp.fc1.kernel_regularizer = "l2"
    small.get_layer("norm2").epsilon = 0.1
    fused = fuse(small)
    assert fused.get_layer("block1_0").attn.dtype_policy.name == "mixed_bfloat16"
    assert fused.get_layer("norm2").epsilon == 0.1
    assert _difference(_run(fused, images), _run(small, images)) <= 1e-2
