"""The generic parts of the model: what the paper takes from elsewhere.

Every layer is channels-last, serialisable, and the same code on the TensorFlow, JAX and
PyTorch backends of Keras. Where TensorFlow has a faster or more exact kernel than the one
Keras picks, it is used here and nowhere else.
"""

from __future__ import annotations

import math
import sys

import keras
from keras import ops

from . import shifted

PACKAGE = "van_classification_tensorflow"
register = keras.saving.register_keras_serializable(package=PACKAGE)

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None


def foreign_tensorflow(x):
    """The module `tensorflow` if `x` is a tensor of a TensorFlow graph while Keras computes with
    another backend, as within `tf.data.Dataset.map`; else None.
    """
    module = sys.modules.get("tensorflow") if tf is None else None
    symbolic = module is not None and module.is_symbolic_tensor(x)
    return module if symbolic else None


# A compiled kernel costs about 0.2 ms to launch on a CPU; below this many elements TensorFlow's
# own operations are as fast (benchmarks/LOG.md, step 3).
_COMPILE_FROM = 2**18
_FEW_CHANNELS = 8  # of an image
_SQRT_HALF = math.sqrt(0.5)


@register
def gelu(x):
    """GELU, x * Phi(x), with the exact normal distribution function (erf), as torch's `nn.GELU`.

    TensorFlow evaluates it, and its gradient, as five to ten passes over memory, which cost
    more than the convolutions around them in stage 1. Here the forward pass is in the form
    that oneDNN fuses behind a matrix product, and the gradient, which keeps only `x`, is one
    kernel compiled by XLA where the shape is known and large. `DepthwiseConv`, which has no
    product to fuse behind, compiles the forward pass as well.
    """
    if tf is not None:
        return tf_gelu(x)
    if keras.backend.backend() == "jax":
        # JAX's own takes erfc, which XLA computes at more than twice the cost.
        return _jax_gelu(x) if shifted.runs_on("cpu") else _erf_gelu(x)
    return keras.activations.gelu(x, approximate=False)


def _erf_gelu(x):
    # Not tf.nn.gelu: its erfc is twice as slow, and ONNX has no Erfc.
    return 0.5 * x * (1.0 + ops.erf(x * _SQRT_HALF))


def _erf_gelu_gradient(x, upstream):
    # d/dx [x Phi(x)] = Phi(x) + x phi(x). With erf of -v, JAX's compiler does not see that the
    # forward pass had erf of v, which it would keep until now.
    v = x * -_SQRT_HALF
    density = v * (math.sqrt(1.0 / math.pi) * ops.exp(-ops.square(v)))
    return upstream * (0.5 * (1.0 - ops.erf(v)) - density)


if shifted.jax is not None:
    _jax_gelu = shifted.jax.custom_vjp(_erf_gelu)
    _jax_gelu.defvjp(
        lambda x: (_erf_gelu(x), x), lambda x, upstream: (_erf_gelu_gradient(x, upstream),)
    )

if tf is not None:
    _compiled_gelu = tf.function(_erf_gelu, jit_compile=True)
    _compiled_gelu_gradient = tf.function(_erf_gelu_gradient, jit_compile=True)
    _xla = tf.test.is_built_with_xla()

    def _compiles(x) -> bool:
        # A new shape costs a compilation, so a model traced for any size does without.
        return _xla and x.shape.is_fully_defined() and x.shape.num_elements() >= _COMPILE_FROM

    def _gradient_of(x):
        def gradient(upstream):
            function = _compiled_gelu_gradient if _compiles(x) else _erf_gelu_gradient
            return function(x, upstream)

        return gradient

    # Plain graph code: AutoGraph, which a user's tf.function applies, cannot rewrite it.
    @tf.autograph.experimental.do_not_convert
    @tf.custom_gradient
    def tf_gelu(x):
        """Plain operations: the form that oneDNN fuses behind MatMul + BiasAdd."""
        return _erf_gelu(x), _gradient_of(x)

    @tf.autograph.experimental.do_not_convert
    @tf.custom_gradient
    def tf_compiled_gelu(x):
        function = _compiled_gelu if _compiles(x) else _erf_gelu
        return function(x), _gradient_of(x)


def replicas() -> int:
    """Devices that take this step together: more than 1 inside `tf.distribute`'s `run`."""
    context = None if tf is None else tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def replica_number():
    """Which of them this one is, from 0; only inside."""
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def _moments_of_all_replicas(x, count):
    """(mean, biased variance, count) over the shares `x` (b, H, W, C) of all replicas.

    In two stages, as a mean of squares would lose the variance of a channel with a large mean.
    An all-reduce is differentiable, and leaves the same bits on every replica.
    """

    def total(value):
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)

    total_sum, count = total([tf.reduce_sum(x, (0, 1, 2)), count])
    mean = total_sum / count
    variance = total(tf.reduce_sum(tf.math.squared_difference(x, mean), (0, 1, 2))) / count
    return mean, variance, count


@register
class FanOutNormal(keras.initializers.RandomNormal):
    """N(0, sqrt(2 / fan_out)) with fan_out = k * k * C_out / groups: the authors' `_init_weights`.

    Keras's `VarianceScaling(mode="fan_out")` ignores groups, and would draw a depthwise
    kernel sqrt(C) too small.

    Args:
        fan_out: Connections that leave one input channel.
        seed: Seed of the draw.
    """

    def __init__(self, fan_out: int, seed: int | None = None):
        super().__init__(mean=0.0, stddev=math.sqrt(2.0 / fan_out), seed=seed)
        self.fan_out = fan_out

    def get_config(self) -> dict:
        return {"fan_out": self.fan_out, "seed": self._init_seed}


@register
class BatchNorm(keras.layers.BatchNormalization):
    """Batch normalisation as PyTorch does it: eps 1e-5, momentum 0.1 (Keras's 0.9).

    It normalises with the biased batch variance but keeps the *unbiased* one, n / (n - 1),
    in its running statistics; Keras keeps the biased one and drifts from the original in
    training. Input and output: (B, H, W, C).

    Under a `tf.distribute` strategy the batch is that of all replicas together, whatever the
    share of each: several devices compute what one does with the whole batch. (The authors'
    128 images per GPU were not synchronised; at such shares it makes no difference.)
    """

    def __init__(
        self,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        name: str | None = None,
        dtype=None,
        trainable: bool = True,
        **kwargs,
    ):
        super().__init__(
            epsilon=epsilon,
            momentum=momentum,
            name=name,
            dtype=dtype,
            trainable=trainable,
            **kwargs,
        )

    def call(self, inputs, training=None):
        training = bool(training and self.trainable)
        # TensorFlow's kernel: one pass forward, two back. It knows no float64.
        fused = tf is not None and self.compute_dtype in ("float32", "bfloat16", "float16")
        if not training:
            if fused:
                return self.normalise_fused(inputs, False)[0]
            return super().call(inputs, training=False)
        fused = fused and replicas() == 1
        outputs, mean, variance = (
            self.normalise_fused(inputs, True) if fused else self.normalise_portable(inputs)
        )
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            # Computed in the value's type, float32 or more, whatever the average is kept in.
            kept = ops.cast(average, value.dtype) * self.momentum
            average.assign(ops.cast(kept + value * (1.0 - self.momentum), average.dtype))
        return outputs

    def normalise_fused(self, inputs, training: bool):
        """(outputs, mean, unbiased variance), as TensorFlow's own kernel computes them.

        It wants the parameters in float32, whatever `inputs` are.
        """
        none = tf.zeros([0])
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.cast(self.gamma, "float32"),
            offset=ops.cast(self.beta, "float32"),
            mean=none if training else ops.cast(self.moving_mean, "float32"),
            variance=none if training else ops.cast(self.moving_variance, "float32"),
            epsilon=self.epsilon,
            is_training=training,
        )
        return outputs, mean, variance

    def normalise_portable(self, inputs):
        """The same from Keras operations, in at least float32."""
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        count = ops.cast(math.prod(ops.shape(x)[:3]), x.dtype)
        if replicas() == 1:
            mean, variance = ops.moments(x, (0, 1, 2))
        else:
            mean, variance, count = _moments_of_all_replicas(x, count)
        offset, scale = (ops.cast(parameter, x.dtype) for parameter in (self.beta, self.gamma))
        outputs = ops.batch_normalization(
            x, mean, variance, -1, offset=offset, scale=scale, epsilon=self.epsilon
        )
        variance = variance * (count / ops.maximum(count - 1.0, 1.0))
        return ops.cast(outputs, self.compute_dtype), mean, variance

    def get_config(self) -> dict:
        config = super().get_config()
        for fixed in ("axis", "center", "scale", "synchronized"):
            del config[fixed]
        return config


@register
class PointwiseConv(keras.layers.Dense):
    """A 1 x 1 convolution over channels: (B, H, W, C_in) -> (B, H, W, units).

    It is a `Dense`, so that Keras's LoRA applies. As one matrix product over
    all positions its gradients are faster, and oneDNN runs product, bias and GELU as a single
    kernel; without either, TensorFlow's convolution kernel is.
    """

    def __init__(self, units: int, activation=None, **kwargs):
        kwargs.setdefault("kernel_initializer", FanOutNormal(units))
        super().__init__(units, activation=activation, **kwargs)

    def call(self, inputs, training=None):
        if tf is not None and not training and self.activation is keras.activations.linear:
            x = ops.conv(inputs, self.kernel[None, None], data_format="channels_last")
            return x if self.bias is None else ops.add(x, self.bias)
        shape = ops.shape(inputs)
        x = ops.reshape(inputs, (-1, inputs.shape[-1]))  # (B*H*W, C_in)
        if training and shifted.runs_on("cpu"):  # as Dense does, but for the sum over positions
            x = ops.matmul(x, self.kernel)
            x = x if self.bias is None else shifted.add_bias(x, self.bias)
            x = x if self.activation is None else self.activation(x)
        else:
            x = super().call(x, training=training)
        return ops.reshape(x, (*shape[:-1], self.units))


class PatchConv(keras.layers.Conv2D):
    """A strided convolution without padding."""

    def convolution_op(self, inputs, kernel):
        # Of few channels XLA's own leaves one core idle: 11 ms for 8 images, by blocks 3.
        few = inputs.shape[-1] <= _FEW_CHANNELS
        if few and shifted.runs_on("cpu") and shifted.is_known(inputs):
            return shifted.strided(inputs, ops.convert_to_tensor(kernel), self.strides[0])
        return super().convolution_op(inputs, kernel)


@register
class DepthwiseConv(keras.layers.DepthwiseConv2D):
    """Stride-1 depthwise convolution, zero-padded to keep H x W: never a grouped one.

    Args:
        kernel_size: Odd side of the kernel.
        dilation: Distance between its taps.
        gelu: Whether GELU follows.

    `max_taps`, not saved: where a kernel has more, its rows are run in groups that have not, and
    summed. LiteRT's 8-bit kernels end at 25; 49 taps at once take it 50 times as long.
    """

    max_taps: int | None = None

    def __init__(
        self,
        kernel_size: int,
        dilation: int = 1,
        gelu: bool = False,
        name: str | None = None,
        dtype=None,
        trainable: bool = True,
        **kwargs,
    ):
        if kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd. Received: kernel_size={kernel_size}")
        # With stride 1 and an odd extent, "same" is torch's symmetric zero padding.
        super().__init__(
            kernel_size,
            padding="same",
            dilation_rate=dilation,
            data_format="channels_last",
            depthwise_initializer=FanOutNormal(kernel_size * kernel_size),
            name=name,
            dtype=dtype,
            trainable=trainable,
            **kwargs,
        )
        self.dilation = dilation
        self.gelu = gelu

    def call(self, inputs):
        rows, columns = (self._reaching_taps(size) for size in inputs.shape[1:3])
        kernel = self.kernel[rows, columns]
        # Several backends slow down for a dilation even where there is nothing to dilate.
        dilation = 1 if kernel.shape[:2] == (1, 1) else self.dilation
        # On a GPU XLA has good kernels for those without a dilation; with one 3.1 -> 0.7 ms, and
        # its gradients 54 -> 1.4 (benchmarks/LOG.md, "On a GPU").
        platforms = ("cpu", "gpu") if dilation > 1 else ("cpu",)
        if self.max_taps is not None and math.prod(kernel.shape[:2]) > self.max_taps:
            x = self._in_groups_of_rows(inputs, kernel, dilation)
        elif shifted.runs_on(*platforms) and shifted.is_known(inputs):
            x = shifted.depthwise(inputs, kernel, dilation)
        else:
            x = ops.depthwise_conv(inputs, kernel, 1, "same", "channels_last", dilation)
        x = shifted.add_bias(x, self.bias)
        if not self.gelu:
            return x
        return shifted.fence(gelu(x)) if tf is None else tf_compiled_gelu(x)

    def _in_groups_of_rows(self, inputs, kernel, dilation: int):
        height, width = kernel.shape[:2]
        down, across = (side // 2 * dilation for side in (height, width))
        padded = ops.pad(inputs, ((0, 0), (down, down), (across, across), (0, 0)))
        rows = max(self.max_taps // width, 1)
        total = None
        for first in range(0, height, rows):
            part = kernel[first : first + rows]
            start = first * dilation  # what the rows of this group see
            seen = padded[:, start : start + inputs.shape[1] + (part.shape[0] - 1) * dilation]
            x = ops.depthwise_conv(seen, part, 1, "valid", "channels_last", dilation)
            total = x if total is None else total + x
        return total

    def _reaching_taps(self, size: int | None) -> slice:
        """The taps that can meet an input of this size; the others only ever see padding.

        At 7 positions (stage 4 of a 224 image) a 7-tap kernel dilated by 3 has 5 of them.
        """
        half = self.kernel_size[0] // 2
        reach = half if size is None else min(half, (size - 1) // self.dilation)
        return slice(half - reach, half + reach + 1)

    def get_config(self) -> dict:
        inherited = super().get_config()
        kept = [key for key in inherited if key.endswith(("_regularizer", "_constraint"))]
        own = {
            "kernel_size": self.kernel_size[0],
            "dilation": self.dilation,
            "gelu": self.gelu,
        }
        config = keras.layers.Layer.get_config(self)
        return {**config, **{key: inherited[key] for key in kept}, **own}


@register
class Dropout(keras.layers.Dropout):
    """Dropout (Srivastava et al., 2014): zeroes values.

    Under a `tf.distribute` strategy the values of all replicas are drawn independently: as one
    device draws them for the whole batch, where the replicas have equal shares of it. Each replica
    draws all of them for that, and has room for them meanwhile.

    Args:
        rate: Probability in [0, 1) of zeroing; what stays is divided by 1 - rate.
    """

    def call(self, inputs, training=False):
        count = replicas()
        if count == 1 or not training or not self.rate:
            return super().call(inputs, training=training)
        # Seeds are the same on every replica: each draws for all and takes its own.
        share = tf.shape(inputs)[0]
        factors = super().call(self._ones(inputs, count * share), training)
        start = share * replica_number()
        return inputs * factors[start : start + share]

    def _ones(self, inputs, count):
        """What factors for `count` samples are drawn of."""
        return tf.ones(tf.concat([[count], tf.shape(inputs)[1:]], 0), inputs.dtype)


@register
class DropPath(Dropout):
    """Stochastic depth (arXiv 1603.09382): zeroes a residual branch per sample.

    Args:
        rate: Probability in [0, 1) of dropping; what stays is divided by 1 - rate.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(rate, noise_shape=(None, 1, 1, 1), seed=seed, **kwargs)

    def _ones(self, inputs, count):
        return tf.ones((count, 1, 1, 1), inputs.dtype)

    def get_config(self) -> dict:
        config = super().get_config()
        del config["noise_shape"]
        return config


@register
class LayerScale(keras.layers.Layer):
    """A learned factor per channel on a residual branch (arXiv 2103.17239).

    Args:
        init_value: Value of every factor before training; the authors use 1e-2.
    """

    def __init__(self, init_value: float = 1e-2, **kwargs):
        super().__init__(**kwargs)
        self.init_value = init_value

    def build(self, input_shape):
        self.gamma = self.add_weight(
            name="gamma",
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.init_value),
        )
        self.built = True

    def call(self, inputs):
        return inputs * ops.cast(self.gamma, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self) -> dict:
        return {**super().get_config(), "init_value": self.init_value}
