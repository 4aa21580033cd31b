"""The resize in the graph makes Pillow's pixels, on every backend, saved and exported."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow import PreprocessingLayer, preprocess_input
from van_classification_tensorflow.spec.preprocessing import INTERPOLATIONS, Preprocessing

ROOT = Path(__file__).parents[2]
# Height and width: enlarged, reduced, both at once, left alone, and lines.
SIZES = [
    (300, 401),
    (513, 97),
    (61, 83),
    (248, 331),
    (224, 224),
    (500, 375),
    (700, 1000),
    (333, 1000),
    (331, 500),
    (50, 50),
    (17, 3),
    (1, 7),
    (2, 900),
    (1200, 500),
]


def pictures(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Noise; gradients; black and white edges, where filters overshoot."""
    rng = np.random.Generator(np.random.PCG64(height * 1000 + width))
    noise = rng.integers(0, 256, (height, width, channels))
    rows, columns = np.mgrid[:height, :width]
    slope = (rows * 255 // height + columns * 255 // width) // 2
    edges = 255 * ((rows // 5 + columns // 7) % 2)
    others = [np.stack([one] * channels, axis=-1) for one in (slope, edges)]
    return np.stack([noise, *others]).astype(np.uint8)


def by_pillow(preprocessing: Preprocessing, batch: np.ndarray) -> np.ndarray:
    squeezed = batch[..., 0] if batch.shape[-1] == 1 else batch
    return np.stack([preprocessing(Image.fromarray(one)) for one in squeezed])


def difference(found, preprocessing: Preprocessing, batch: np.ndarray) -> tuple[float, float]:
    """The largest in 1 / 255, and the share of values that differ at all."""
    found = keras.ops.convert_to_numpy(found)
    assert found.dtype == np.float32
    expected = by_pillow(preprocessing, batch)
    assert found.shape == expected.shape
    steps = np.abs(found - expected) * np.float32(preprocessing.std) * 255
    return float(steps.max()), float((steps > 0.01).mean())


@pytest.mark.parametrize(
    "interpolation",
    [
        name if name == "bicubic" else pytest.param(name, marks=pytest.mark.slow)
        for name in INTERPOLATIONS
    ],
)
def test_as_pillow(interpolation):
    preprocessing = Preprocessing(interpolation=interpolation)
    layer = PreprocessingLayer(preprocessing)
    worst = [difference(layer(x), preprocessing, x) for x in (pictures(*size) for size in SIZES)]
    print(interpolation, *worst)  # `pytest -s` shows them; here all are 0, and elsewhere
    assert max(steps for steps, _ in worst) < 1.01  # a library may round a sine otherwise
    assert max(share for _, share in worst) < 1e-4


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_other_crops_and_numbers(interpolation):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for size, share in ((33, 0.61), (64, 1.0), (160, 0.875)):
        preprocessing = Preprocessing(size, share, interpolation, mean, std)
        batch = pictures(90, 71)
        found = PreprocessingLayer(preprocessing)(batch)
        assert difference(found, preprocessing, batch) == (pytest.approx(0, abs=1e-3), 0)


def test_a_tall_picture_made_a_square():
    preprocessing = Preprocessing(48, 0.8, resize="both sides")
    batch = pictures(400, 130)
    assert difference(PreprocessingLayer(preprocessing)(batch), preprocessing, batch)[1] == 0


def test_grey():
    one, three = Preprocessing(40, mean=(0.5,), std=(0.5,)), Preprocessing(40)
    for preprocessing in (one, three):
        for channels in (1, 3):
            batch = pictures(80, 60, channels)
            found = PreprocessingLayer(preprocessing)(batch)
            assert difference(found, preprocessing, batch)[1] == 0


def test_in_a_model_saved_and_loaded(tmp_path):
    preprocessing = Preprocessing(48, 0.8, "hamming", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    inputs = keras.Input((90, 71, 3), dtype="uint8")
    layer = PreprocessingLayer(preprocessing, name="as_pillow")
    outputs = keras.layers.Conv2D(4, 3)(layer(inputs))
    model = keras.Model(inputs, outputs)
    assert model.get_layer("as_pillow").output.shape == (None, 48, 48, 3)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    again = loaded.get_layer("as_pillow")
    assert again.preprocessing == preprocessing
    assert again.get_config()["preprocessing"] == preprocessing.to_dict()
    batch = pictures(90, 71)
    expected = model.predict(batch, verbose=0)
    np.testing.assert_array_equal(loaded.predict(batch, verbose=0), expected)
    by_hand = model.layers[-1](by_pillow(preprocessing, batch))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(by_hand), expected, atol=1e-5)


def test_the_default_is_the_published_one_and_half_precision_only_at_the_end():
    assert PreprocessingLayer().preprocessing == Preprocessing()
    batch = pictures(30, 40)
    half = PreprocessingLayer(Preprocessing(20), dtype="mixed_float16")(batch)
    full = by_pillow(Preprocessing(20), batch)
    assert keras.backend.standardize_dtype(half.dtype) == "float16"
    assert np.array_equal(keras.ops.convert_to_numpy(half), full.astype(np.float16))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.zeros((1, 9, 9, 3), "float32"), "uint8, 0 to 255, not yet scaled. Received: float32"),
        (np.zeros((1, 9, 9, 4), "uint8"), r"1 or 3 channels. Received: shape \(1, 9, 9, 4\)"),
        (np.zeros((9, 9, 3), "uint8"), r"Received: shape \(9, 9, 3\)"),
        (np.zeros((1, 0, 9, 3), "uint8"), r"not be empty. Received: shape \(1, 0, 9, 3\)"),
    ],
)
def test_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        PreprocessingLayer()(wrong)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_within_tf_data(known, dtype):
    """On every backend, as the layers of Keras; other threads and graphs of TensorFlow."""
    import tensorflow as tf

    one = Preprocessing(40, 0.8, mean=(0.4,), std=(0.3,))
    for preprocessing, channels in ((Preprocessing(40, 0.8), 3), (one, 3), (one, 1)):
        layer = PreprocessingLayer(preprocessing, dtype=dtype)
        batches = [pictures(70, 61, channels), pictures(33, 90, channels)]
        batches = batches[:1] if known else batches
        height, width = batches[0].shape[1:3] if known else (None, None)
        spec = tf.TensorSpec((3, height, width, channels), "uint8")
        data = tf.data.Dataset.from_generator(lambda b=batches: iter(b), output_signature=spec)
        data = data.map(layer, num_parallel_calls=2)
        assert data.element_spec.shape == (3, 40, 40, preprocessing.channels)
        for found, batch in zip(data, batches, strict=True):
            assert found.dtype == layer.compute_dtype
            if dtype == "float32":
                assert difference(found.numpy(), preprocessing, batch)[1] == 0
    with pytest.raises(ValueError, match="pictures must be uint8"):
        tf.data.Dataset.from_tensors(np.zeros((1, 9, 9, 3), "float32")).map(layer)


def test_preprocess_input_within_tf_data():
    import tensorflow as tf

    batch = pictures(5, 7)
    (found,) = tf.data.Dataset.from_tensors(batch).map(preprocess_input)
    np.testing.assert_array_equal(found, preprocess_input(batch))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="sizes left open")
@pytest.mark.parametrize(
    "interpolation",
    [
        one if one == "nearest" else pytest.param(one, marks=pytest.mark.slow)
        for one in INTERPOLATIONS
    ],
)
def test_saved_model_of_any_size(tmp_path, interpolation):
    import tensorflow as tf

    preprocessing = Preprocessing(interpolation=interpolation)
    inputs = keras.Input((None, None, 3), dtype="uint8")
    model = keras.Model(inputs, PreprocessingLayer(preprocessing)(inputs))
    assert model.output_shape == (None, 224, 224, 3)
    model.export(tmp_path / "saved", verbose=False)
    serve = tf.saved_model.load(tmp_path / "saved").serve
    for size in SIZES:
        batch = pictures(*size)
        found = serve(tf.constant(batch))
        steps, share = difference(found, preprocessing, batch)
        assert steps < 1.01
        assert share < 1e-4


def run_on(backend: str, selection: str) -> None:
    pytest.importorskip(backend)
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", selection]
    done = subprocess.run(
        [*command, __file__], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stdout


STARTS_OTHERS = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="starts the others"
)


@pytest.mark.slow
@STARTS_OTHERS
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends(backend):
    run_on(backend, "saved_and_loaded or (other_crops and bicubic) or within_tf_data")


@STARTS_OTHERS
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_with_every_filter(backend):
    run_on(backend, "not other_backends")
