"""Convolutions as sums of shifted products, against their definition in float64."""

import keras
import numpy as np
import pytest
from keras import ops

from tests.parity import SMALL, load_seeded
from van_classification_tensorflow import VAN
from van_classification_tensorflow.model import layers, shifted

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="used on JAX alone")


def _random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def _gradients(function, inputs, upstream):
    """Of sum(function(*inputs) * upstream) by each of the inputs, compiled as in training."""
    inputs = [ops.convert_to_tensor(one, "float32") for one in inputs]
    upstream = ops.convert_to_tensor(upstream, "float32")
    import jax

    every = tuple(range(len(inputs)))
    found = jax.jit(jax.grad(lambda *x: ops.sum(function(*x) * upstream), every))(*inputs)
    return [ops.convert_to_numpy(one) for one in found]


def _definition(x, kernel, dilation, upstream):
    """(the convolution, its gradient by x, by the kernel), position by position."""
    (kh, kw), (height, width) = kernel.shape[:2], x.shape[1:3]
    down, across = kh // 2 * dilation, kw // 2 * dilation
    padding = ((0, 0), (down, down), (across, across), (0, 0))
    padded = np.pad(x, padding)
    out, by_padded, by_kernel = np.zeros_like(x), np.zeros_like(padded), np.zeros_like(kernel)
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dilation, i * dilation + height)
            columns = slice(j * dilation, j * dilation + width)
            out += padded[:, rows, columns] * kernel[i, j, :, 0]
            by_padded[:, rows, columns] += upstream * kernel[i, j, :, 0]
            by_kernel[i, j, :, 0] = (padded[:, rows, columns] * upstream).sum((0, 1, 2))
    return out, by_padded[:, down : down + height, across : across + width], by_kernel


def _close(found, expected, tolerance=2e-6):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


# A kernel of one row, images that are one group, several, and none that go together.
CASES = [
    ((1, 7, 9, 4), (3, 3), 1),
    ((2, 10, 4, 5), (5, 5), 1),
    ((3, 21, 20, 4), (7, 7), 3),
    ((2, 6, 5, 3), (1, 3), 1),
    ((12, 8, 6, 4), (3, 3), 2),
    ((11, 8, 6, 4), (3, 5), 1),
]


@pytest.mark.parametrize(("shape", "sides", "dilation"), CASES)
@pytest.mark.parametrize("tile", [shifted._TILE, 64])
def test_the_depthwise_convolution_and_its_gradients(shape, sides, dilation, tile, monkeypatch):
    monkeypatch.setattr(shifted, "_TILE", tile)
    x, upstream = _random(*shape), _random(*shape, seed=1)
    kernel = _random(*sides, shape[-1], 1, seed=2)
    out, *gradients = _definition(x, kernel, dilation, upstream)
    found = shifted.depthwise(*(ops.convert_to_tensor(a, "float32") for a in (x, kernel)), dilation)
    _close(ops.convert_to_numpy(found), out)
    both = _gradients(lambda *one: shifted.depthwise(*one, dilation), (x, kernel), upstream)
    for ours, theirs in zip(both, gradients, strict=True):
        _close(ours, theirs)


def test_half_precision_is_rounded_once():
    x, kernel = _random(2, 9, 9, 4), _random(7, 7, 4, 1, seed=1)
    x, kernel = (ops.convert_to_numpy(ops.cast(one, "bfloat16")) for one in (x, kernel))
    found = shifted.depthwise(ops.convert_to_tensor(x), ops.convert_to_tensor(kernel), 1)
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    exact = _definition(x.astype("d"), kernel.astype("d"), 1, np.zeros(x.shape))[0]
    np.testing.assert_array_equal(
        ops.convert_to_numpy(found).astype("f"),
        ops.convert_to_numpy(ops.cast(exact.astype("f"), "bfloat16")).astype("f"),
    )


@pytest.mark.parametrize("size", [(7, 7), (10, 9), (16, 18), (33, 12)])
@pytest.mark.parametrize(("side", "stride"), [(7, 4), (3, 2), (4, 4), (1, 3)])
def test_the_strided_convolution_and_its_gradients(size, side, stride):
    x, kernel = _random(2, *size, 3), _random(side, side, 3, 5, seed=1)

    def plain(x, kernel):
        return ops.conv(x, kernel, stride, "valid", "channels_last")

    def ours(x, kernel):
        return shifted.strided(x, kernel, stride)

    inputs = [ops.convert_to_tensor(one, "float32") for one in (x, kernel)]
    out = ops.convert_to_numpy(plain(*inputs))
    _close(ops.convert_to_numpy(ours(*inputs)), out)
    upstream = _random(*out.shape, seed=2)
    pairs = (_gradients(one, inputs, upstream) for one in (ours, plain))
    for found, expected in zip(*pairs, strict=True):
        _close(found, expected)


def test_the_layers_of_jax_have_none_of_its_own_depthwise_convolutions():
    """Forward and backward: XLA's would take 10 to 80 times as long on a CPU."""
    import jax

    layer = layers.DepthwiseConv(7, dilation=3, gelu=True)
    layer.build((2, 12, 12, 4))

    def loss(kernel, x):
        return ops.sum(layer.stateless_call([kernel, layer.bias.value], [], x)[0] ** 2)

    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(layer.kernel.value, _random(2, 12, 12, 4))
    assert "convolution" not in lowered.as_text()


@pytest.mark.slow
def test_as_many_rows_as_a_compiler_has_miscounted():
    """JAX 0.10.2 loses rows above the 32,768th of some products that a sum follows (jax#39103).

    A step on 13 x 56 x 56 positions, compiled as a whole and operation by operation.
    """
    images = _random(13, 224, 224, 3).astype("f")
    trained = []
    for eagerly in (False, True):
        model = load_seeded(VAN(**SMALL))
        alone = np.concatenate([model.predict_on_batch(one[None]) for one in images])
        np.testing.assert_allclose(model.predict_on_batch(images), alone, atol=2e-6)
        optimizer = keras.optimizers.SGD(0.1)
        loss = "sparse_categorical_crossentropy"
        model.compile(optimizer, loss, run_eagerly=eagerly, jit_compile=not eagerly)
        model.train_on_batch(images, np.arange(13) % 3)
        trained.append(model.get_weights())
    for compiled, plain in zip(*trained, strict=True):
        _close(compiled, plain, 5e-5)  # rounding: 6e-6
