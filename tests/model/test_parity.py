"""The port against the authors' PyTorch code, at every stage, in inference and in training.

Backend-agnostic: CI runs it again under `KERAS_BACKEND=jax` and `KERAS_BACKEND=torch`.
"""

import re

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity import GOLDEN, MICRO, TOLERANCE, largest_differences, load_seeded, seeded_images
from van_classification_tensorflow import VAN, load_checkpoint
from van_classification_tensorflow.datasets.digits import MODEL, load_digits
from van_classification_tensorflow.model.load import to_official
from van_classification_tensorflow.train.optim import AdamW

# Every gradient is held to 1e-5 of its tensor's largest value, in float64 and in float32; but
# this one nearly cancels in the BatchNorm behind it, so that the float32 rounding of the golden
# value and of ours add up to 1.2e-5. In float64 it meets 1e-5 as well.
NEARLY_CANCELS = {"norm1.bias": 2e-5}


@pytest.mark.parametrize(
    "configuration",
    [pytest.param(name, marks=pytest.mark.slow) for name in TOLERANCE],
)
def test_logits_features_and_every_stage(configuration):
    differences = largest_differences(configuration)
    assert max(differences.values()) <= TOLERANCE[configuration], differences


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "micro.npz") as data:
        return dict(data)


@pytest.fixture
def micro():
    model = VAN(**MICRO, classifier_activation=None)
    return load_checkpoint(model, load_file(GOLDEN / "micro.safetensors"))


def _compile(model, optimizer):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss, jit_compile=False)


def _losses(model, golden, steps):
    return [float(model.train_on_batch(golden["x"], golden["y"])) for _ in range(steps)]


@pytest.mark.slow
def test_stored_micro_is_the_seeded_micro(golden, micro):
    seeded = load_seeded(VAN(**MICRO, classifier_activation=None))
    for name, array in to_official(micro).items():
        np.testing.assert_array_equal(array, to_official(seeded)[name], err_msg=name)
    np.testing.assert_array_equal(golden["x"], seeded_images(1, golden["x"].shape))


def test_micro_every_stage(golden, micro):
    outputs = {"logits": micro.output, **micro.pyramid_outputs}
    outputs = keras.Model(micro.input, outputs).predict_on_batch(golden["x"])
    np.testing.assert_allclose(outputs["logits"], golden["eval_logits"], rtol=0, atol=1e-5)
    for i in (1, 2, 3, 4):
        expected = golden[f"eval_stage{i}"]
        np.testing.assert_allclose(outputs[f"P{i + 1}"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("eager")
def test_micro_loss_gradients_and_running_statistics(golden, dtype):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float32 unless told otherwise before it starts")
    micro = VAN(**MICRO, classifier_activation=None, dtype=dtype)
    load_checkpoint(micro, load_file(GOLDEN / "micro.safetensors"))
    # Plain SGD with a huge rate reads the gradient on any backend: (before - after) / rate.
    rate = 1e4
    _compile(micro, keras.optimizers.SGD(rate))
    before = to_official(micro)
    (loss,) = _losses(micro, golden, 1)
    after = to_official(micro)
    assert abs(loss - float(golden["train_loss"])) <= 1e-6
    checked = 0
    for name in before:
        if name.endswith((".running_mean", ".running_var")):
            expected, ours = golden[f"stat/{name}"], after[name]
        else:
            expected = golden[f"grad/{name}"]
            ours = (before[name].astype(np.float64) - after[name]) / rate
        error = np.abs(ours - expected).max()
        if re.fullmatch(r"patch_embed\d\.proj\.bias", name):
            # BatchNorm follows: the gradient is zero but for rounding (golden: up to 5e-8).
            assert error <= 3e-7, (name, error)
        else:
            allowed = NEARLY_CANCELS.get(name, 1e-5) if dtype == "float32" else 1e-5
            assert error / np.abs(expected).max() <= allowed, (name, error)
        checked += 1
    assert checked == len([k for k in golden if k.startswith(("grad/", "stat/"))])


def test_micro_eight_sgd_steps(golden, micro):
    _compile(micro, keras.optimizers.SGD(0.05))
    np.testing.assert_allclose(_losses(micro, golden, 8), golden["sgd_losses"], rtol=0, atol=1e-4)
    logits = micro.predict_on_batch(golden["x"])
    np.testing.assert_allclose(logits, golden["sgd_eval_logits"], rtol=0, atol=1e-3)


@pytest.mark.usefixtures("eager")
def test_micro_eight_adamw_steps(golden, micro):
    _compile(micro, AdamW(1e-3, weight_decay=0.05))  # Keras's own is 2e-5 off
    np.testing.assert_allclose(_losses(micro, golden, 8), golden["adamw_losses"], rtol=0, atol=1e-6)


def test_digits_metrics_difference_is_zero():
    model = VAN(**MODEL, classifier_activation=None)
    load_checkpoint(model, load_file(GOLDEN / "digits.safetensors"))
    _, test = load_digits()
    with np.load(GOLDEN / "digits.npz") as golden:
        golden = dict(golden)
    np.testing.assert_array_equal(test.labels, golden["test_labels"])
    logits = model.predict(test.images, batch_size=120, verbose=0)
    np.testing.assert_allclose(logits, golden["test_logits"], rtol=0, atol=1e-4)
    hits = np.argsort(-logits, axis=1)[:, :5] == test.labels[:, None]
    assert hits[:, 0].sum() == round(float(golden["top1"]) * len(test.labels)) == 355
    assert hits.any(axis=1).sum() == round(float(golden["top5"]) * len(test.labels)) == 360
