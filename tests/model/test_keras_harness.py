"""Keras's own tests for layers and optimizers, over all that this package registers.

Backend-agnostic: `scripts/test_backends.sh` runs it again, whole, on JAX and PyTorch.
"""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from keras.src import testing

from tests.model.test_layers import LAYERS
from tests.parity import load_seeded
from van_classification_tensorflow import VAN, PreprocessingLayer
from van_classification_tensorflow.model import fused as fusion
from van_classification_tensorflow.model.layers import PACKAGE, FanOutNormal, gelu
from van_classification_tensorflow.registration import CLASSES
from van_classification_tensorflow.train.optim import AdamW

BACKEND = keras.backend.backend()
POLICIES = ["float32", "mixed_bfloat16", "mixed_float16", "bfloat16", "float16"]
HALF = [policy for policy in POLICIES if policy != "float32"]
SMALL = {"embed_dims": [8, 12], "mlp_ratios": [2, 2], "depths": [1, 1], "include_top": False}
TRAINED = {
    **LAYERS,
    "VAN": (VAN, {**SMALL, "in_chans": 8}),
}
# Inference only, so without Keras's training step.
NOT_TRAINED = {
    "FusedAttention": (fusion.FusedAttention, {"dim": 8}),
    "FusedBlock": (fusion.FusedBlock, {"dim": 8, "hidden_dim": 12}),
    "FusedVAN": (fusion.FusedVAN, {**SMALL, "in_chans": 8}),
    "PreprocessingLayer": (PreprocessingLayer, {"preprocessing": {"input_size": 5}}),
}


def test_nothing_registered_is_left_out():
    registered = keras.saving.get_custom_objects()
    names = {key.split(">")[1] for key in registered if key.startswith(f"{PACKAGE}>")}
    others = {"AdamW", "FanOutNormal", "gelu"}  # tested below
    elsewhere = {  # in tests/keras_hub and tests/segment
        name
        for module, made in CLASSES.items()
        if "keras_hub" in module or "segment" in module
        for name in made
    }
    assert names | elsewhere == {*TRAINED, *NOT_TRAINED, *others, *elsewhere}


@pytest.fixture
def harness():
    case = testing.TestCase()
    yield case
    case.doCleanups()


def _run(harness, name: str, policy: str, trained: bool) -> None:
    kind, arguments = {**TRAINED, **NOT_TRAINED}[name]
    if name == "PreprocessingLayer":
        data = {"input_data": ops.ones((2, 9, 11, 3), "uint8")}
    else:
        data = {"input_shape": (2, 9, 11, 8)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a layer without weights has nothing to train
        harness.run_layer_test(
            kind,
            {**arguments, "dtype": policy},
            **data,
            expected_output_dtype=keras.dtype_policies.get(policy).compute_dtype,
            run_training_check=trained,
            run_mixed_precision_check=policy == "float32",
        )


QUICK = ["BatchNorm", "LayerScale", "OverlapPatchEmbed", "Block", "PreprocessingLayer"]


# What TensorFlow's kernels are particular about; every layer, policy and training below.
@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", QUICK)
def test_layer_in_pure_half_precision(harness, name, policy):
    _run(harness, name, policy, trained=name == "BatchNorm")


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", [*TRAINED, *NOT_TRAINED])
def test_layer(harness, name, policy, thorough):
    if BACKEND == "jax" and policy not in ("float32", "bfloat16") and not thorough:
        pytest.skip("XLA compiles each anew, minutes in all: --thorough")
    _run(harness, name, policy, trained=name in TRAINED)


def test_optimizer_initializer_and_activation(harness):
    scales = {"head": 0.5}
    for one in (
        AdamW(),
        AdamW(0.1, weight_decay=0.2, beta_1=0.8, epsilon=1e-6, learning_rate_scales=scales),
        AdamW(keras.optimizers.schedules.CosineDecay(0.1, 5), gradient_accumulation_steps=2),
        AdamW(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3, clipnorm=1.0),
        FanOutNormal(12, seed=3),
    ):
        harness.run_class_serialization_test(one)
    assert keras.activations.get(keras.activations.serialize(gelu)) is gelu


def _trained(policy: str, images, labels) -> tuple[np.ndarray, list[float], np.ndarray]:
    """Logits of a seeded VAN, the losses of its next steps, and its running statistics."""
    sizes = {**SMALL, "include_top": True, "num_classes": 4}
    model = load_seeded(VAN(**sizes, classifier_activation=None, dtype=policy))
    logits = ops.convert_to_numpy(model(images))
    assert logits.dtype == "float32"
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.trainable_weights} == (
        {keras.dtype_policies.get(policy).variable_dtype, "float32"}  # of the head
    )
    model.compile(
        AdamW(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=BACKEND != "jax",  # quicker than to trace four steps
        jit_compile=BACKEND == "jax",
    )
    losses = [float(model.train_on_batch(images, labels)) for _ in range(4)]
    moved = [w for w in model.non_trainable_weights if "moving_" in w.path]
    statistics = [ops.convert_to_numpy(ops.cast(w, "float32")).ravel() for w in moved]
    return logits, losses, np.concatenate(statistics)


@pytest.mark.parametrize(
    "policy", [pytest.param(p, marks=() if p == "float16" else pytest.mark.slow) for p in HALF]
)
@pytest.mark.usefixtures("eager")
def test_half_precision_computes_and_trains_as_float32(policy):
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((4, 32, 32, 3)).astype("f"), np.arange(4)
    expected, losses, statistics = _trained("float32", images, labels)
    logits, half_losses, half_statistics = _trained(policy, images, labels)
    share = 0.05 if "bfloat16" in policy else 0.01  # 8 and 11 bits of a number
    assert np.abs(logits - expected).max() < share * np.abs(expected).max()
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_allclose(half_losses, losses, atol=4 * share * losses[0])
    np.testing.assert_allclose(half_statistics, statistics, rtol=4 * share, atol=4 * share)
