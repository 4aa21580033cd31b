"""The blocks of the Visual Attention Network (Guo et al., arXiv 2202.09741), as in the paper.

Shapes: B images, H x W positions, C channels; everything inside is channels-last.
Layer names are the authors' tensor names, so that `block1.0.attn.proj_1.weight` of a
published checkpoint is `model.get_layer("block1_0").attn.proj_1.kernel` here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers

from ..spec.config import patches
from ..spec.labels import texts_of
from ..spec.preprocessing import Preprocessing
from . import shifted
from .layers import (
    BatchNorm,
    DepthwiseConv,
    Dropout,
    DropPath,
    FanOutNormal,
    LayerScale,
    PatchConv,
    PointwiseConv,
    gelu,
    register,
)
from .parts import Composite


class Part(Composite):
    """A layer made of named sub-layers that keeps the shape (B, H, W, C) of its input."""

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)


@register
class LKA(Part):
    """Large kernel attention (paper, Section 3.1, Equations 1 and 2).

    Attention = Conv1x1(DW-D-Conv(DW-Conv(F))), Output = Attention * F: a 21 x 21 kernel
    decomposed into a 5 x 5 depthwise, a 7 x 7 depthwise dilated by 3, and a 1 x 1 convolution.
    """

    arguments = ("dim",)

    def __init__(self, dim: int, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim
        self.conv0 = self._part(DepthwiseConv, 5, name="conv0")
        self.conv_spatial = self._part(DepthwiseConv, 7, dilation=3, name="conv_spatial")
        self.conv1 = self._part(PointwiseConv, dim, name="conv1")

    def build(self, input_shape):
        for layer in (self.conv0, self.conv_spatial, self.conv1):
            layer.build(input_shape)
        self.built = True

    def call(self, x, training=None):
        attention = self.conv1(self.conv_spatial(self.conv0(x)), training=training)  # (B, H, W, C)
        return attention * x


@register
class Attention(Part):
    """proj_2(LKA(GELU(proj_1(x)))) + x (paper, Figure 2d)."""

    arguments = ("dim",)

    def __init__(self, dim: int, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim
        self.proj_1 = self._part(PointwiseConv, dim, gelu, name="proj_1")
        self.spatial_gating_unit = self._part(LKA, dim, name="spatial_gating_unit")
        self.proj_2 = self._part(PointwiseConv, dim, name="proj_2")

    def build(self, input_shape):
        for layer in (self.proj_1, self.spatial_gating_unit, self.proj_2):
            layer.build(input_shape)
        self.built = True

    def call(self, x, training=None):
        u = self.spatial_gating_unit(self.proj_1(x, training=training), training=training)
        return self.proj_2(u, training=training) + x


@register
class Mlp(Part):
    """Convolutional feed-forward: 1 x 1, 3 x 3 depthwise, GELU, 1 x 1 (paper, Figure 2a)."""

    arguments = ("dim", "hidden_dim", "drop_rate")

    def __init__(self, dim: int, hidden_dim: int, drop_rate: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.drop_rate = drop_rate
        self.fc1 = self._part(PointwiseConv, hidden_dim, name="fc1")
        self.dwconv = self._part(DepthwiseConv, 3, gelu=True, name="dwconv")
        self.fc2 = self._part(PointwiseConv, dim, name="fc2")
        self.drop1 = self._part(Dropout, drop_rate, name="drop1")
        self.drop2 = self._part(Dropout, drop_rate, name="drop2")

    def build(self, input_shape):
        hidden_shape = (*input_shape[:-1], self.hidden_dim)
        self.fc1.build(input_shape)
        self.dwconv.build(hidden_shape)
        self.drop1.build(hidden_shape)
        self.fc2.build(hidden_shape)
        self.drop2.build(input_shape)
        self.built = True

    def call(self, x, training=None):
        if not training and shifted.runs_on("cpu") and shifted.is_known(x):
            return shifted.in_parts(self._infer, x, x.shape[1] * x.shape[2] * self.hidden_dim)
        x = self.dwconv(self.fc1(x))  # (B, H, W, hidden)
        x = self.drop1(x, training=training)
        return self.drop2(self.fc2(x), training=training)  # (B, H, W, C)

    def _infer(self, x):
        return self.fc2(self.dwconv(self.fc1(x)))


@register
class Block(Part):
    """One VAN block: attention, then MLP, each on a scaled residual branch (Figure 2a).

    The attention's own shortcut starts at the output of `norm1`, not at `x`, as in the
    authors' code.

    Args:
        dim: Channels C.
        hidden_dim: Channels inside the MLP.
        drop_rate: Dropout inside the MLP, in [0, 1).
        drop_path_rate: Probability in [0, 1) of dropping either branch for a sample.
    """

    arguments = ("dim", "hidden_dim", "drop_rate", "drop_path_rate")
    remat = False  # see `VAN.remat`

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.drop_rate = drop_rate
        self.drop_path_rate = drop_path_rate
        self.norm1 = self._part(BatchNorm, name="norm1")
        self.attn = self._part(Attention, dim, name="attn")
        self.layer_scale_1 = self._part(LayerScale, name="layer_scale_1")
        self.norm2 = self._part(BatchNorm, name="norm2")
        self.mlp = self._part(Mlp, dim, hidden_dim, drop_rate, name="mlp")
        self.layer_scale_2 = self._part(LayerScale, name="layer_scale_2")
        self.drop_path = self._part(DropPath, drop_path_rate, name="drop_path")

    def build(self, input_shape):
        for layer in (self.norm1, self.attn, self.layer_scale_1, self.drop_path):
            layer.build(input_shape)
        for layer in (self.norm2, self.mlp, self.layer_scale_2):
            layer.build(input_shape)
        self.built = True

    def call(self, x, training=None):
        # In the backward pass, where remat calls them again, no Keras call is under way that
        # `training` could be taken from.
        def attention(n):
            return self.layer_scale_1(self.attn(n, training=training))

        def mlp(n):
            return self.layer_scale_2(self.mlp(n, training=training))

        if self.remat and training:
            # Without the parts that have state, the running statistics and the random seeds: a
            # second run would advance it again.
            attention, mlp = keras.remat(attention), keras.remat(mlp)
        x = x + self.drop_path(attention(self.norm1(x, training=training)), training=training)
        x = self._kept(x, training)
        x = x + self.drop_path(mlp(self.norm2(x, training=training)), training=training)
        return self._kept(x, training)

    @staticmethod
    def _kept(x, training):
        return shifted.written(x) if training and shifted.runs_on("cpu") else x


@register
class OverlapPatchEmbed(Composite):
    """Overlapping patch embedding: strided convolution, then batch norm (paper, Section 3.2).

    (B, H, W, C_in) -> (B, ceil(H / stride), ceil(W / stride), dim). Zeros are added on each
    side (kernel_size // 2), which is not TensorFlow's "same" for an even size.

    Args:
        dim: Channels that come out.
        kernel_size: Side of the kernel.
        stride: Distance between its positions.
        batch_norm: False where it is folded into the convolution (`fuse`).
        labels: Of the first one of a `VAN`, the model's. Here they are saved with every model
            that is made around it, and copied with it.
        preprocessing: The same: how pictures become the model's input, or its `to_dict`.
    """

    arguments = ("dim", "kernel_size", "stride", "batch_norm")

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        stride: int = 4,
        batch_norm: bool = True,
        labels: Sequence[str] | None = None,
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.dim = dim
        self.kernel_size = kernel_size
        self.stride = stride
        self.batch_norm = batch_norm
        self.labels = texts_of(labels)
        self.preprocessing = Preprocessing.of(preprocessing)
        self.pad = self._part(
            layers.ZeroPadding2D, kernel_size // 2, data_format="channels_last", name="pad"
        )
        self.proj = self._part(
            PatchConv,
            dim,
            kernel_size,
            stride,
            data_format="channels_last",
            kernel_initializer=FanOutNormal(kernel_size * kernel_size * dim),
            name="proj",
        )
        self.norm = self._part(BatchNorm, name="norm") if batch_norm else None

    def build(self, input_shape):
        self.pad.build(input_shape)
        batch, _, _, channels = input_shape
        self.proj.build((batch, None, None, channels))  # of the padded image
        if self.norm is not None:
            self.norm.build((batch, None, None, self.dim))
        self.built = True

    def call(self, x, training=None):
        x = self.proj(self.pad(x))
        return x if self.norm is None else self.norm(x, training=training)

    def compute_output_shape(self, input_shape):
        def strided(size):
            return None if size is None else patches(size, self.kernel_size, self.stride)

        batch, height, width, _ = input_shape
        return batch, strided(height), strided(width), self.dim

    def plain_config(self) -> dict:
        config = super().plain_config()
        if self.labels is not None:
            config["labels"] = list(self.labels)
        if self.preprocessing is not None:
            config["preprocessing"] = self.preprocessing.to_dict()
        return config
