"""Convolutions as sums of shifted products, against their definition in float64."""

import keras
import numpy as np
import pytest
from keras import ops

from tests.parity import SMALL, load_seeded
from van_classification_tensorflow import VAN
from van_classification_tensorflow.model import blocks, layers, shifted

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
@pytest.mark.parametrize(("tile", "few"), [(shifted._TILE, shifted._FEW), (64, 0)])
def test_the_depthwise_convolution_and_its_gradients(
    shape, sides, dilation, tile, few, monkeypatch
):
    monkeypatch.setattr(shifted, "_TILE", tile)
    monkeypatch.setattr(shifted, "_FEW", few)
    shifted.depthwise.clear_cache()  # or the gradient would be one that was traced before
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


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (layers.DepthwiseConv(7, dilation=3, gelu=True), 4),
        (layers.PatchConv(5, 7, 4, data_format="channels_last"), 3),
    ],
    ids=["depthwise", "patches"],
)
def test_the_layers_of_jax_have_none_of_its_own_slow_convolutions(layer, channels):
    """Forward and backward: XLA's depthwise ones would take 10 to 80 times as long on a CPU."""
    import jax

    x = _random(2, 12, 12, channels)
    layer.build(x.shape)

    def loss(kernel, x):
        return ops.sum(layer.stateless_call([kernel, layer.bias.value], [], x)[0] ** 2)

    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(layer.kernel.value, x)
    assert "convolution" not in lowered.as_text()


@pytest.mark.parametrize("function", [shifted.fence, shifted.written])
@pytest.mark.parametrize("first", [1.0, np.inf, -np.inf, np.nan])
def test_what_is_written_stays_as_it_is(function, first):
    x, upstream = _random(2, 3, 3, 4), _random(2, 3, 3, 4, seed=1)
    x[0, 0, 0, 0] = upstream[0, 0, 0, 0] = first
    x, upstream = x.astype("f"), upstream.astype("f")
    np.testing.assert_array_equal(function(ops.convert_to_tensor(x)), x)
    import jax

    out, pull = jax.jit(lambda x: jax.vjp(function, x))(x)
    np.testing.assert_array_equal(out, x)
    np.testing.assert_array_equal(jax.jit(pull)(upstream)[0], upstream)


def test_what_goes_through_the_blocks_is_written_in_training_alone():
    import jax

    block = blocks.Block(4, 8)
    block.build((2, 8, 8, 4))
    trainable = [one.value for one in block.trainable_variables]
    state = [one.value for one in block.non_trainable_variables]
    x = _random(2, 8, 8, 4).astype("f")

    def loss(trainable, training):
        return ops.sum(block.stateless_call(trainable, state, x, training=training)[0])

    def conditionals(function):
        compiled = jax.jit(function).lower(trainable).compile().as_text()
        return compiled.count(" conditional(")

    assert conditionals(lambda t: loss(t, False)) == 0
    # What goes from attention to MLP, there and back, and so each of three convolutions.
    assert conditionals(jax.grad(lambda t: loss(t, True))) >= 8


def test_gradient_by_a_bias_of_channels():
    x, bias = _random(3, 7, 16, 5), _random(5, seed=1)
    upstream = _random(*x.shape, seed=2)
    by_x, by_bias = _gradients(shifted.add_bias, (x, bias), upstream)
    _close(by_x, upstream)
    _close(by_bias, upstream.sum((0, 1, 2)))


def test_gradients_of_gelu():
    """Of the first and the second order, as JAX's own."""
    import jax

    x = np.linspace(-6, 6, 241).reshape(1, 1, 1, -1).astype("f")

    def of(gelu):
        once = jax.grad(lambda x: jax.numpy.sum(gelu(x)))
        return once(x), jax.grad(lambda x: jax.numpy.sum(once(x) ** 2))(x)

    pairs = of(layers.gelu), of(lambda x: jax.nn.gelu(x, approximate=False))
    for ours, theirs in zip(*pairs, strict=True):
        _close(ours, theirs)


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
