"""The parts: against plain formulas, and their serialisation."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from van_classification_tensorflow.model import blocks, layers


def _random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


LAYERS = {
    "BatchNorm": (layers.BatchNorm, {}),
    "PointwiseConv": (layers.PointwiseConv, {"units": 5, "activation": layers.gelu}),
    "DepthwiseConv": (layers.DepthwiseConv, {"kernel_size": 7, "dilation": 3, "gelu": True}),
    "Dropout": (layers.Dropout, {"rate": 0.25, "seed": 3}),
    "DropPath": (layers.DropPath, {"rate": 0.25, "seed": 3}),
    "LayerScale": (layers.LayerScale, {"init_value": 0.5}),
    "LKA": (blocks.LKA, {"dim": 8}),
    "Attention": (blocks.Attention, {"dim": 8}),
    "Mlp": (blocks.Mlp, {"dim": 8, "hidden_dim": 12, "drop_rate": 0.1}),
    "Block": (blocks.Block, {"dim": 8, "hidden_dim": 12, "drop_path_rate": 0.1}),
    "OverlapPatchEmbed": (blocks.OverlapPatchEmbed, {"dim": 6, "kernel_size": 3, "stride": 2}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_survives_its_config(name):
    kind, arguments = LAYERS[name]
    layer = kind(**arguments, name="a_name", dtype="mixed_bfloat16")
    config = layer.get_config()
    assert all(config[key] == value for key, value in arguments.items() if not callable(value))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is kind
    assert again.get_config() == config
    assert again.dtype_policy.name == "mixed_bfloat16"
    x = _random(2, 9, 11, 8)
    layer(x)
    again(x)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(x)), ops.convert_to_numpy(again(x)))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", [(9, 11), (None, None)])
def test_symbolic_shape_is_the_real_one(name, size):
    layer = LAYERS[name][0](**LAYERS[name][1])
    unknown = layer.compute_output_shape((None, *size, 8))
    assert unknown[0] is None
    symbolic = layer(keras.KerasTensor((2, *size, 8))).shape
    real = tuple(layer(_random(2, 9, 11, 8)).shape)
    assert len(symbolic) == 4
    assert all(s in (None, r) for s, r in zip(symbolic, real, strict=True))
    assert None not in symbolic if size[0] else symbolic[1:3] == (None, None)


def test_gelu_is_the_exact_one_and_so_is_its_gradient():
    x = np.linspace(-9, 9, 4001, dtype=np.float64)
    phi = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    slope = phi + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(ops.convert_to_numpy(layers.gelu(x.astype("f"))), x * phi, atol=2e-6)
    if layers.tf is None:
        return  # the other backends differentiate their own GELU
    for shape in ((4001,), (1, 80, 4001)):  # above and below the size that is compiled
        value = np.broadcast_to(x.astype("f"), shape)
        for function in (layers.tf_gelu, layers.tf_compiled_gelu):

            @layers.tf.function
            def both(value, function=function):
                with layers.tf.GradientTape() as tape:
                    tape.watch(value)
                    y = function(value)
                return y, tape.gradient(y, value)

            y, gradient = both(layers.tf.constant(value))
            np.testing.assert_allclose(y, np.broadcast_to(x * phi, shape), atol=2e-6)
            np.testing.assert_allclose(gradient, np.broadcast_to(slope, shape), atol=2e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 7), (10, 3), (21, 30)])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (5, 1), (7, 3)])
def test_depthwise_equals_the_full_kernel(size, kernel_size, dilation):
    """Taps that only meet padding are left out; the sum over all of them is the same."""
    layer = layers.DepthwiseConv(kernel_size, dilation)
    layer.build((2, *size, 4))
    layer.bias.assign(_random(4, seed=1))
    x = _random(2, *size, 4).astype(np.float64)
    kernel = ops.convert_to_numpy(layer.kernel).astype(np.float64)[..., 0]
    pad = kernel_size // 2 * dilation
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    expected = np.zeros_like(x) + ops.convert_to_numpy(layer.bias)
    for i in range(kernel_size):
        for j in range(kernel_size):
            top, left = i * dilation, j * dilation
            expected += padded[:, top : top + size[0], left : left + size[1]] * kernel[i, j]
    got = ops.convert_to_numpy(layer(x.astype("float32")))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_batch_norm_keeps_the_unbiased_variance():
    x = 3.0 * _random(4, 3, 5, 8) + 1.0
    layer = layers.BatchNorm()
    y = ops.convert_to_numpy(layer(x, training=True))
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
    n = 4 * 3 * 5
    running = 0.9 + 0.1 * variance * n / (n - 1)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.moving_mean), 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.moving_variance), running, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_batch_norm_in_half_precision_computes_in_float32(dtype):
    x = ops.cast(0.5 * _random(4, 16, 16, 8) + 100.0, dtype)  # a square is beyond float16 soon
    exact = ops.convert_to_numpy(ops.cast(x, "float32"))
    half, full = layers.BatchNorm(dtype=dtype), layers.BatchNorm()
    for training in (True, True, False):
        y = half(x, training=training)
        assert keras.backend.standardize_dtype(y.dtype) == dtype
        y, expected = (
            ops.convert_to_numpy(ops.cast(one, "float32"))
            for one in (y, full(exact, training=training))
        )
        if training:
            np.testing.assert_allclose(y, expected, rtol=2**-8, atol=2**-8)
    rounding = 2 * (2**-8 if dtype == "bfloat16" else 2**-11)  # once for each step
    for ours, theirs in zip(half.weights, full.weights, strict=True):
        assert keras.backend.standardize_dtype(ours.dtype) == dtype
        ours = ops.convert_to_numpy(ops.cast(ours, "float32"))
        np.testing.assert_allclose(ours, ops.convert_to_numpy(theirs), rtol=rounding)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_batch_norm_compiled_and_portable_agree(jit_compile):
    if layers.tf is None:
        pytest.skip("compares the TensorFlow kernel with the portable form")
    x = 3.0 * _random(4, 3, 5, 8) + 1.0
    layer = layers.BatchNorm()
    layer.build(x.shape)
    fused = layers.tf.function(lambda v: layer.normalise_fused(v, True), jit_compile=jit_compile)(x)
    for ours, expected in zip(fused, layer.normalise_portable(x), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_depthwise_refuses_an_even_kernel():
    with pytest.raises(ValueError, match="`kernel_size` must be odd"):
        layers.DepthwiseConv(4)


def test_frozen_batch_norm_does_not_move():
    layer = layers.BatchNorm()
    layer.trainable = False
    layer(5.0 + _random(2, 4, 4, 3), training=True)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.moving_mean), np.zeros(3))


def test_drop_path_is_per_sample_and_keeps_the_mean():
    layer = layers.DropPath(0.25, seed=1)
    y = ops.convert_to_numpy(layer(np.ones((4000, 2, 2, 3), "float32"), training=True))
    per_sample = y.reshape(4000, -1)
    assert (per_sample == per_sample[:, :1]).all()
    np.testing.assert_allclose(np.unique(per_sample), [0.0, 1 / 0.75], rtol=1e-6)
    assert abs(per_sample.mean() - 1.0) < 0.05
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(y, training=False)), y)


def test_initialisation_is_the_authors():
    embed = blocks.OverlapPatchEmbed(64, 3, 2)
    embed.build((None, None, None, 32))
    block = blocks.Block(64, 512)
    block.build((None, None, None, 64))
    for kernel, fan_out in (
        (embed.proj.kernel, 9 * 64),
        (block.attn.proj_1.kernel, 64),
        (block.mlp.fc1.kernel, 512),
        (block.mlp.dwconv.kernel, 9),
        (block.attn.spatial_gating_unit.conv_spatial.kernel, 49),
    ):
        values = ops.convert_to_numpy(kernel)
        expected = math.sqrt(2 / fan_out)
        assert abs(values.std() / expected - 1) < 5 / math.sqrt(2 * values.size), kernel.path
    np.testing.assert_array_equal(
        ops.convert_to_numpy(block.layer_scale_1.gamma), np.full(64, 1e-2, "f")
    )


@pytest.mark.parametrize("max_taps", [7, 21, 25, 48])
@pytest.mark.parametrize("size", [(20, 31), (9, 9), (40, 3)])
def test_rows_in_groups_are_the_same_convolution(size, max_taps):
    layer = layers.DepthwiseConv(7, dilation=3)
    layer.build((None, None, None, 4))
    layer.bias.assign([1.0, 2.0, 3.0, 4.0])
    images = np.random.default_rng(0).standard_normal((2, *size, 4)).astype("float32")
    expected = keras.ops.convert_to_numpy(layer(images))
    layer.max_taps = max_taps
    found = keras.ops.convert_to_numpy(layer(images))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert not np.array_equal(found, expected) or size != (20, 31)  # another order of sums


def test_a_kernel_that_is_small_enough_stays_whole():
    layer = layers.DepthwiseConv(5)
    layer.build((None, None, None, 4))
    layer.max_taps = 25
    images = np.random.default_rng(0).standard_normal((2, 9, 9, 4)).astype("float32")
    whole = keras.ops.convert_to_numpy(layer(images))
    layer.max_taps = None
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(images)), whole)
