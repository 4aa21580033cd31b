"""The layers that the decoders share, as mmcv has them: `ConvModule`, `Dropout2d`."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from ..model.layers import BatchNorm, Dropout, FanOutNormal, PointwiseConv, register
from ..model.parts import Composite
from ..spec.decoders import GROUPS, ConvSpec, Norm


@register
class ConvNormAct(Composite):
    """Convolution, normalisation, ReLU: mmcv's `ConvModule`, (B, H, W, C) -> (B, H, W, filters).

    Zeros around the maps keep their size. A convolution that a normalisation follows has no bias.
    Weights begin as mmcv's do: N(0, sqrt(2 / fan_out)) or `glorot`; biases 0.

    Args:
        filters: Channels that come out.
        kernel_size: 1 or 3.
        norm: "bn": batch normalisation as in the backbone; "gn": group normalisation with 32
            groups and epsilon 1e-5; None.
        relu: Whether ReLU follows.
        glorot: Whether weights begin as Glorot and Bengio's uniform ones.
    """

    arguments = ("filters", "kernel_size", "norm", "relu", "glorot")

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        norm: Norm | None = "bn",
        relu: bool = True,
        glorot: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.norm = norm
        self.relu = relu
        self.glorot = glorot
        options: dict[str, Any] = {"use_bias": norm is None, "name": "conv"}
        options["kernel_initializer"] = (
            keras.initializers.GlorotUniform() if glorot else FanOutNormal(kernel_size**2 * filters)
        )
        if kernel_size == 1:
            self.conv = self._part(PointwiseConv, filters, **options)
        else:
            options |= {"padding": "same", "data_format": "channels_last"}
            self.conv = self._part(layers.Conv2D, filters, kernel_size, **options)
        self.bn = self._part(BatchNorm, name="bn") if norm == "bn" else None
        self.gn = None
        if norm == "gn":
            self.gn = self._part(layers.GroupNormalization, GROUPS, epsilon=1e-5, name="gn")

    @classmethod
    def of(cls, spec: ConvSpec, **kwargs) -> ConvNormAct:
        """The layer that `spec` describes."""
        arguments = spec.outputs, spec.kernel_size, spec.norm, spec.relu, spec.glorot
        return cls(*arguments, name=spec.layer, **kwargs)

    def build(self, input_shape):
        self.conv.build(input_shape)
        for norm in (self.bn, self.gn):
            if norm is not None:
                norm.build((*input_shape[:-1], self.filters))
        self.built = True

    def call(self, x, training=None):
        x = self.conv(x, training=training) if self.kernel_size == 1 else self.conv(x)
        if self.bn is not None:
            x = self.bn(x, training=training)
        elif self.gn is not None:
            x = self.gn(x)
        return ops.relu(x) if self.relu else x

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)


@register
class ChannelDropout(Dropout):
    """Dropout of whole channels, for each sample on its own: torch's `Dropout2d`.

    Args:
        rate: Probability in [0, 1) of zeroing; what stays is divided by 1 - rate.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(rate, noise_shape=(None, 1, 1, None), seed=seed, **kwargs)

    def _ones(self, inputs, count):
        return ops.ones((count, 1, 1, inputs.shape[-1]), inputs.dtype)

    def get_config(self) -> dict:
        config = super().get_config()
        del config["noise_shape"]
        return config


def classifier(num_classes: int, dtype, **kwargs) -> PointwiseConv:
    """The 1 x 1 convolution that gives the logits, in float32 at least.

    Begins as mmsegmentation's does: N(0, 0.01), bias 0.
    """
    # Scores and losses stay in float32 when the model computes in half precision.
    policy = keras.dtype_policies.get(dtype)
    if policy.compute_dtype in ("float16", "bfloat16"):
        dtype = "float32"
    initializer = keras.initializers.RandomNormal(stddev=0.01)
    return PointwiseConv(num_classes, kernel_initializer=initializer, dtype=dtype, **kwargs)
