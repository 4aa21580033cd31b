"""The NumPy network is the same function as the Keras one, and needs no framework."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.parity import GOLDEN, INPUTS, seeded_images, seeded_tensor
from van_classification_tensorflow import VAN
from van_classification_tensorflow.engines.numpy_forward import forward
from van_classification_tensorflow.model.load import to_official
from van_classification_tensorflow.spec.architecture import Architecture
from van_classification_tensorflow.spec.config import CONFIGURATIONS
from van_classification_tensorflow.weights.checkpoint import read_weights

# The accepted differences of the Keras model from the authors' code.
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", ["van_b0", pytest.param("van_b1", marks=pytest.mark.slow)])
def test_equal_to_the_authors_code(name):
    config = CONFIGURATIONS[name]
    sizes = Architecture(config.embed_dims, config.hidden_dims, config.depths, 3, 1000)
    tensors = {n: seeded_tensor(n, s.shape) for n, s in sizes.tensors().items()}
    with np.load(GOLDEN / f"{name}.npz") as golden:
        for key, shape in INPUTS.items():
            features, logits = forward(tensors, sizes, seeded_images(7, shape))
            assert np.abs(features - golden[f"{key}_features"]).max() <= TOLERANCE
            assert np.abs(logits - golden[f"{key}_logits"]).max() <= TOLERANCE


def test_equal_to_micro_and_without_a_head():
    weights = read_weights(GOLDEN / "micro.safetensors")
    with np.load(GOLDEN / "micro.npz") as golden:
        _, logits = forward(weights.tensors, weights.architecture, golden["x"])
        assert np.abs(logits - golden["eval_logits"]).max() <= 1e-5
    headless = Architecture((8, 16, 24, 32), (32, 64, 48, 64), (1, 1, 2, 1), 3, None)
    assert forward(weights.tensors, headless, np.zeros((1, 32, 32, 3), "f4"))[1] is None


@pytest.mark.parametrize("shape", [(2, 17, 40, 4), (1, 33, 20, 4)])
def test_equal_to_keras_at_odd_sizes(shape):
    model = VAN(
        in_chans=4,
        num_classes=3,
        embed_dims=[8, 12, 16, 20],
        mlp_ratios=[2, 2.5, 3, 1],
        depths=[1, 2, 1, 1],
        classifier_activation=None,
    )
    tensors = {n: seeded_tensor(n, a.shape) for n, a in to_official(model).items()}
    from van_classification_tensorflow import load_checkpoint
    from van_classification_tensorflow.model.load import architecture

    load_checkpoint(model, tensors)
    x = seeded_images(3, shape)
    _, logits = forward(tensors, architecture(model), x)
    np.testing.assert_allclose(logits, model.predict_on_batch(x), atol=2e-5)


def test_gelu_to_float32_precision():
    from math import erf

    from van_classification_tensorflow.engines.numpy_forward import gelu

    x = np.linspace(-10, 10, 200_001, dtype=np.float32)
    exact = np.array([v * (1 + erf(v / 2**0.5)) / 2 for v in x.astype(float)])
    assert (np.abs(gelu(x.copy()) - exact) <= 4e-7 * np.maximum(1, np.abs(x))).all()


def test_the_first_answer_needs_no_framework(tmp_path):
    """`van predict` for a picture imports neither Keras nor a backend."""
    from PIL import Image

    Image.new("L", (8, 8), 128).save(tmp_path / "x.png")
    code = (
        "import sys; from van_classification_tensorflow.cli import main\n"
        f"try: main(['predict', {str(tmp_path / 'x.png')!r}, '--weights', 'digits'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ},
    )
    record, modules = result.stdout.splitlines()
    assert json.loads(record)["error"] is None
    assert modules == "set()"
