"""Visual Attention Network (Guo et al., arXiv 2202.09741), in the order of the paper.

Shapes: B images, H x W positions, C channels; everything inside is channels-last.
Layer names are the authors' tensor names, so that `block1.0.attn.proj_1.weight` of a
published checkpoint is `model.get_layer("block1_0").attn.proj_1.kernel` here.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import keras
import numpy as np
from keras import layers

from ..spec.config import (
    DATA_FORMATS,
    POOLINGS,
    VANConfig,
    min_image_size,
    patches,
    resolve,
    stage_kernel_stride,
)
from ..spec.labels import labels_of, texts_of
from ..spec.preprocessing import Preprocessing
from ..support.checks import at_least, is_number
from ..support.text import printable
from ..weights.pretrained import Pretrained, open_pretrained
from .layers import (
    BatchNorm,
    Composite,
    DepthwiseConv,
    DropPath,
    FanOutNormal,
    LayerScale,
    PointwiseConv,
    changed,
    differences,
    gelu,
    register,
)
from .load import load_checkpoint


class _Part(Composite):
    """A layer made of named sub-layers that keeps the shape (B, H, W, C) of its input."""

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)


@register
class LKA(_Part):
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
class Attention(_Part):
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
class Mlp(_Part):
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
        self.drop1 = self._part(layers.Dropout, drop_rate, name="drop1")
        self.drop2 = self._part(layers.Dropout, drop_rate, name="drop2")

    def build(self, input_shape):
        hidden_shape = (*input_shape[:-1], self.hidden_dim)
        self.fc1.build(input_shape)
        self.dwconv.build(hidden_shape)
        self.drop1.build(hidden_shape)
        self.fc2.build(hidden_shape)
        self.drop2.build(input_shape)
        self.built = True

    def call(self, x, training=None):
        x = self.dwconv(self.fc1(x))  # (B, H, W, hidden)
        x = self.drop1(x, training=training)
        return self.drop2(self.fc2(x), training=training)  # (B, H, W, C)


@register
class Block(_Part):
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
        return x + self.drop_path(mlp(self.norm2(x, training=training)), training=training)


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
            layers.Conv2D,
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


def van_layers(
    config: VANConfig,
    num_classes: int,
    drop_rate: float,
    drop_path_rate: float,
    include_top: bool,
    classifier_activation: Any,
    channels_first: bool,
    pooling: str | None,
    dtype: Any,
    trainable: bool = True,
    block: Callable[..., layers.Layer] = Block,
    patch_embed: Callable[..., layers.Layer] = OverlapPatchEmbed,
) -> Iterator[layers.Layer]:
    """The layers of a network, each of which takes what the one before gives.

    Arguments as in `VAN`; `block` and `patch_embed` make the layers, other ones where the model
    is fused. Table 2 of the paper, read downwards.
    """
    # Scores and losses stay in float32 when the model computes in half precision.
    head_dtype = "float32" if dtype.compute_dtype in ("float16", "bfloat16") else dtype
    every: dict[str, Any] = {"dtype": dtype, "trainable": trainable}

    if channels_first:
        yield layers.Permute((2, 3, 1), name="to_channels_last", **every)
    # Stochastic depth grows linearly over all blocks, from 0 to drop_path_rate.
    rate_step = drop_path_rate / max(sum(config.depths) - 1, 1)
    block_index = 0
    stages = zip(config.embed_dims, config.hidden_dims, config.depths, strict=True)
    for i, (dim, hidden_dim, depth) in enumerate(stages, start=1):
        kernel_size, stride = stage_kernel_stride(i)
        yield patch_embed(dim, kernel_size, stride, name=f"patch_embed{i}", **every)
        for j in range(depth):
            rate = rate_step * block_index
            yield block(dim, hidden_dim, drop_rate, rate, name=f"block{i}_{j}", **every)
            block_index += 1
        yield layers.LayerNormalization(epsilon=1e-6, name=f"norm{i}", **every)

    if include_top or pooling == "avg":
        yield layers.GlobalAveragePooling2D("channels_last", name="pool", **every)  # (B, C)
    elif pooling == "max":
        yield layers.GlobalMaxPooling2D("channels_last", name="pool", **every)
    elif channels_first:
        yield layers.Permute((3, 1, 2), name="to_channels_first", **every)
    if include_top:
        every["dtype"] = head_dtype
        # timm's trunc_normal_(std=.02) cuts at +-2 absolute: at 100 sigma, never.
        init = keras.initializers.RandomNormal(stddev=0.02)
        yield layers.Dense(num_classes, kernel_initializer=init, name="head", **every)
        yield layers.Activation(keras.activations.get(classifier_activation), name="pred", **every)


def van(
    images,
    config: VANConfig,
    num_classes: int = 1000,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    include_top: bool = True,
    classifier_activation: Any = "softmax",
    channels_first: bool = False,
    pooling: str | None = "avg",
    dtype: Any = None,
    parts: Mapping[str, Mapping[str, Any]] | None = None,
    **options,
):
    """The functional graph: images -> (outputs, {"P2": stage 1, ..., "P5": stage 4}).

    Arguments as in `VAN` and `van_layers`; `parts`: what else is in the layers' configurations.
    Feature maps that come out are in the format of the images.
    """
    _check_rate("drop_rate", drop_rate)
    _check_rate("drop_path_rate", drop_path_rate)
    check_choice("pooling", pooling, POOLINGS)
    dtype = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    network = van_layers(
        config,
        num_classes,
        drop_rate,
        drop_path_rate,
        include_top,
        _activation(classifier_activation, num_classes),
        channels_first,
        pooling,
        dtype,
        **options,
    )
    x = images
    pyramid_outputs: dict[str, Any] = {}
    for layer in network:
        x = changed(layer, (parts or {}).get(layer.name))(x)
        if layer.name.startswith("norm"):
            pyramid_outputs[f"P{len(pyramid_outputs) + 2}"] = x  # (B, H / 2^(i+1), W / .., C_i)
    if channels_first:
        pyramid_outputs = {
            name: layers.Permute((3, 1, 2), name=f"{name}_channels_first", dtype=dtype)(one)
            for name, one in pyramid_outputs.items()
        }
    return x, pyramid_outputs


@register
class VAN(keras.Model):
    """Visual Attention Network, built through Keras's functional API.

    Every layer is reachable by name (`patch_embed1`, `block1_0`, ..., `norm1`, ..., `head`,
    `pred`), and `pyramid_outputs` holds the stage outputs for dense prediction.

    Args:
        configuration: `"van_b0"` ... `"van_b6"`, or None to give the lists below (their
            defaults are then the authors': 64-128-256-512 channels, 3-4-6-3 blocks, ratio 4).
            Any argument beside it overrides it.
        in_chans: Channels of the images; by default 3, or what the pretrained weights take.
        num_classes: Classes of the head, at least 1 (for no head: `include_top=False`); by
            default 1000, or what the pretrained weights have.
        embed_dims: Channels of each stage.
        mlp_ratios: Hidden channels of each stage's MLP, as a multiple of `embed_dims`.
        drop_rate: Dropout inside the MLPs, in [0, 1).
        drop_path_rate: Stochastic depth of the last block, in [0, 1); grows linearly from 0.
        depths: Blocks of each stage.
        num_stages: Length of the lists; only checked against them.
        include_top: True: class scores (B, num_classes). False: features.
        classifier_activation: Activation of the scores; None or "linear" for logits. Of a single
            class "softmax" means "sigmoid": the softmax of one number is always 1.
        data_format: Format of the images and of the feature maps that come out (`pooling=None`,
            `pyramid_outputs`): "channels_last" (B, H, W, C) or "channels_first" (B, C, H, W).
            None: `keras.config.image_data_format()`. Layers inside are channels-last either way.
        img_resolution: Side, or (height, width), to fix the graph to, for engines that want
            static shapes. None: any size, changing from call to call.
        pooling: Features without the top: "avg" (B, C), "max" (B, C), or None for the feature map.
        name: Name of the model; the configuration's by default.
        dtype: Keras dtype policy; the global one by default.
        trainable: Whether the weights are trained.
        pretrained: True for the published ImageNet-1k weights of `configuration`; "in22k" or
            another name of `van weights list`; or the path of a weight file of any known
            format. Downloaded once, verified on every load. Another `num_classes` starts with
            a fresh head, another `in_chans` with a fitted first convolution; both are said in
            a warning. Without a configuration and lists, the model takes the weights' sizes.
        parts: What was set on single layers (frozen, dtype policy, quantised, LoRA, regularisers),
            as `get_config` gives it: {name of a layer: {entry of its configuration: value}}.

    Attributes that are saved with the model and that `Classifier` and `van predict` use: `labels`
    (a name for each class) and `preprocessing` (a `Preprocessing`); pretrained weights set them.

    Input: float images, normalised (see `preprocess_input`).

    Raises:
        ValueError: An argument is not allowed; names it, what is allowed and what came.
        OSError: The pretrained weights cannot be downloaded, verified or opened.
    """

    _block: Any = Block
    _patch_embed: Any = OverlapPatchEmbed
    _display_shape: tuple | None = None  # class-level: Functional.__init__ calls build(None)

    def __init__(
        self,
        configuration: str | None = None,
        in_chans: int | None = None,
        num_classes: int | None = None,
        embed_dims: Sequence[int] | None = None,
        mlp_ratios: Sequence[float] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        depths: Sequence[int] | None = None,
        num_stages: int | None = None,
        include_top: bool = True,
        classifier_activation: Any = "softmax",
        data_format: str | None = None,
        img_resolution: int | Sequence[int] | None = None,
        pooling: str | None = "avg",
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
        pretrained: bool | str | os.PathLike | Pretrained = False,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        # Long, as each argument is checked on one line and kept on another.
        # What can be told at once is told before anything is downloaded.
        if in_chans is not None:
            in_chans = at_least("in_chans", in_chans, 1)
        if num_classes is not None:
            num_classes = at_least("num_classes", num_classes, 1)
        data_format = keras.config.image_data_format() if data_format is None else data_format
        data_format = check_choice("data_format", data_format, DATA_FORMATS)
        pooling = check_choice("pooling", pooling, POOLINGS)
        include_top = check_flag("include_top", include_top)
        trainable = check_flag("trainable", trainable)
        drop_rate = _check_rate("drop_rate", drop_rate)
        drop_path_rate = _check_rate("drop_path_rate", drop_path_rate)
        name = str(name) if isinstance(name, str) else name  # also NumPy's
        configuration = str(configuration) if isinstance(configuration, str) else configuration
        lists: Any = (embed_dims, mlp_ratios, depths)  # which are read twice
        lists = [list(one) if isinstance(one, Iterator) else one for one in lists]
        embed_dims, mlp_ratios, depths = lists
        _activation(classifier_activation, num_classes)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        img_resolution = _plain_resolution(img_resolution)
        if configuration is not None or not any(one is None for one in lists):
            asked = resolve(configuration, embed_dims, mlp_ratios, depths, num_stages)
            _resolution(img_resolution, asked.num_stages)

        source = open_pretrained(pretrained, configuration)
        sizes = None if source is None else source.weights.architecture
        default = None if sizes is None else sizes.config
        config = resolve(configuration, embed_dims, mlp_ratios, depths, num_stages, default)
        if source is not None and sizes is not None:
            sizes.check_same_sizes(config, f"`pretrained`: {printable(source.name)}")
            configuration = configuration or sizes.configuration
        if in_chans is None:
            in_chans = 3 if sizes is None else sizes.in_chans
        if num_classes is None:
            num_classes = (sizes and sizes.num_classes) or 1000
        height, width = _resolution(img_resolution, config.num_stages)
        channels_first = data_format == "channels_first"
        shape = (in_chans, height, width) if channels_first else (height, width, in_chans)
        images = keras.Input(shape, name="images", dtype=policy.compute_dtype)
        outputs, pyramid_outputs = van(
            images,
            config,
            num_classes=num_classes,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            include_top=include_top,
            classifier_activation=classifier_activation,
            channels_first=channels_first,
            pooling=pooling,
            dtype=policy,
            parts=parts,
            trainable=trainable,
            block=self._block,
            patch_embed=self._patch_embed,
        )
        super().__init__(images, outputs, name=name or configuration or "van")
        self._trainable = bool(trainable)  # the property would set every layer, against `parts`

        # --- Config ---
        self.dtype_policy = policy
        self.configuration = configuration
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.embed_dims = list(config.embed_dims)
        self.mlp_ratios = list(config.mlp_ratios)
        self.drop_rate = drop_rate
        self.drop_path_rate = drop_path_rate
        self.depths = list(config.depths)
        self.num_stages = config.num_stages
        self.include_top = include_top
        sigmoid = _activation(classifier_activation, num_classes) is keras.activations.sigmoid
        self.classifier_activation = "sigmoid" if sigmoid else classifier_activation
        self.data_format = data_format
        self.img_resolution = img_resolution
        self.pooling = pooling
        self.pyramid_outputs = pyramid_outputs

        if source is not None:
            load_checkpoint(self, source.weights.tensors, adapt=True)
            source.describe(self, num_classes if include_top else None, in_chans)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """A name for each class, saved with the model and whatever is made around its layers.

        Set them as a list, or {index: name}, or a key such as "imagenet1k". Without a head they
        are those of the head of one's own.

        Raises:
            ValueError: When set, if their number is not that of the head's classes.
        """
        return self.get_layer("patch_embed1").labels

    @labels.setter
    def labels(self, labels) -> None:
        if labels is not None and self.include_top:
            labels = [label.text for label in labels_of(labels, self.num_classes)]
        self.get_layer("patch_embed1").labels = texts_of(labels)

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How pictures become the model's input; saved as the labels are.

        Raises:
            ValueError: When set, if it is none or makes other channels than the model takes.
        """
        return self.get_layer("patch_embed1").preprocessing

    @preprocessing.setter
    def preprocessing(self, preprocessing) -> None:
        preprocessing = Preprocessing.of(preprocessing)
        if preprocessing is not None and preprocessing.channels != self.in_chans:
            raise ValueError(
                f"`preprocessing` must make in_chans={self.in_chans} channels. "
                f"Received: {preprocessing.channels} channels"
            )
        self.get_layer("patch_embed1").preprocessing = preprocessing

    @property
    def remat(self) -> bool:
        """Whether training recomputes the inside of every block in the backward pass.

        A switch of the run, False at first and not saved with the model; a model that holds this
        one sees a change when it is compiled again. The results stay the same bit for bit, or
        to 1e-6 where TensorFlow fuses an operation in one of the two passes only. van_b0, 32
        images of 224 x 224, TensorFlow on a CPU: a step takes 1.3 GB instead of 3.3 GB, and
        1.3 times as long. On JAX the compiler decides; on a CPU it saves nothing.

        Raises:
            ValueError: When set with a `drop_rate`, as a second pass would draw other masks, or
                on a backend of Keras that does not train.
        """
        return any(block.remat for block in self._blocks)

    @remat.setter
    def remat(self, remat: bool) -> None:
        if remat and self.drop_rate:
            raise ValueError(
                "`remat` must be False for a model with dropout, whose masks would be drawn anew "
                f"in the backward pass. Received: remat={remat}, drop_rate={self.drop_rate}"
            )
        backend = keras.backend.backend()
        if remat and backend not in ("tensorflow", "jax", "torch"):
            raise ValueError(
                "`remat` must be False on a backend that does not train. "
                f"Received: remat={remat}, backend={backend!r}"
            )
        for block in self._blocks:
            block.remat = bool(remat)
        self.train_function = None  # traced with the former setting

    @property
    def _blocks(self) -> list[Block]:
        return [layer for layer in self.layers if isinstance(layer, Block)]

    def __call__(self, inputs, *args, **kwargs):
        self._check_images(getattr(inputs, "shape", None))
        return super().__call__(inputs, *args, **kwargs)

    def build(self, input_shape):
        """Checks `input_shape`, and makes `summary()` show the shapes it leads to."""
        if input_shape is not None:
            if not isinstance(input_shape, Sequence):
                raise ValueError(
                    "`input_shape` must be a shape with four entries, such as "
                    f"(None, 224, 224, 3). Received: {input_shape!r}"
                )
            shape = tuple(input_shape)
            self._check_images(shape, "input_shape")
            if any(
                fixed not in (None, d) for fixed, d in zip(self.input_shape, shape, strict=True)
            ):
                raise ValueError(
                    "`input_shape` must be the size the model is fixed to by `img_resolution`, "
                    f"{self.input_shape}. Received: {shape}"
                )
            self._display_shape = shape
        super().build(input_shape)

    def summary(self, *args, **kwargs):
        """Keras's summary, with concrete output shapes once `build(shape)` was called."""
        if self._display_shape is None:
            return super().summary(*args, **kwargs)
        # A temporary second trace of the same layers; its nodes are taken off them again,
        # or `layer.output` would become ambiguous and old traces would never be freed.
        steps = self.layers
        outbound = [len(layer._outbound_nodes) for layer in steps]
        inbound = [len(layer._inbound_nodes) for layer in steps]
        try:
            batch, *shape = self._display_shape
            inputs = keras.Input(shape, batch, dtype=self.inputs[0].dtype, name="images")
            x = inputs
            for layer in steps[1:]:
                x = layer(x)
            view = keras.Model(inputs, x, name=self.name)
            view.compiled, view.optimizer = self.compiled, getattr(self, "optimizer", None)
            return view.summary(*args, **kwargs)
        finally:
            for layer, n_in, n_out in zip(steps, inbound, outbound, strict=True):
                del layer._inbound_nodes[n_in:]
                del layer._outbound_nodes[n_out:]

    def get_config(self) -> dict:
        """The constructor's arguments; labels and preprocessing, and `parts`, where there are."""
        about: dict[str, Any] = {}
        if self.labels is not None:
            about["labels"] = list(self.labels)
        if self.preprocessing is not None:
            about["preprocessing"] = self.preprocessing.to_dict()
        parts = self._changed_parts()
        return {
            **({"parts": parts} if parts else {}),
            **about,
            "configuration": self.configuration,
            "in_chans": self.in_chans,
            "num_classes": self.num_classes,
            "embed_dims": list(self.embed_dims),
            "mlp_ratios": list(self.mlp_ratios),
            "drop_rate": self.drop_rate,
            "drop_path_rate": self.drop_path_rate,
            "depths": list(self.depths),
            "num_stages": self.num_stages,
            "include_top": self.include_top,
            "classifier_activation": keras.activations.serialize(
                keras.activations.get(self.classifier_activation)
            ),
            "data_format": self.data_format,
            "img_resolution": (
                list(self.img_resolution)
                if isinstance(self.img_resolution, tuple)
                else self.img_resolution
            ),
            "pooling": self.pooling,
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        frozen = config.pop("frozen_layers", ())
        labels, preprocessing = config.pop("labels", None), config.pop("preprocessing", None)
        model = cls(**config)
        model.labels, model.preprocessing = labels, preprocessing
        # Of files before `parts`.
        for i, layer in enumerate(model._flatten_layers(include_self=False)):
            if i in frozen:
                layer.trainable = False
        return model

    def _changed_parts(self) -> dict[str, dict[str, Any]]:
        drawn = random.getstate()  # initialisers draw a seed when they are made
        defaults = {
            layer.name: layer
            for layer in van_layers(
                VANConfig(self.embed_dims, self.mlp_ratios, self.depths),
                self.num_classes,
                self.drop_rate,
                self.drop_path_rate,
                self.include_top,
                self.classifier_activation,
                self.data_format == "channels_first",
                self.pooling,
                self.dtype_policy,
                self.trainable,
                self._block,
                self._patch_embed,
            )
        }
        random.setstate(drawn)
        parts = differences((self.get_layer(name) for name in defaults), defaults.values())
        first = parts.get("patch_embed1", {})
        for said in ("labels", "preprocessing"):  # of the model
            first.pop(said, None)
        return {name: changes for name, changes in parts.items() if changes}

    def _check_images(self, shape, argument: str = "inputs") -> None:
        if shape is not None and hasattr(self, "in_chans"):  # not yet while Keras builds it
            check_images(shape, argument, self.in_chans, self.data_format, self.num_stages)


def check_images(shape, argument: str, in_chans: int, data_format: str, num_stages: int) -> None:
    """Clear words, before Keras's, for a wrong rank, wrong channels and too small images."""
    shape = tuple(shape)
    channels_first = data_format == "channels_first"
    order = "(batch, {})".format(
        "channels, height, width" if channels_first else "height, width, channels"
    )
    if len(shape) != 4:
        raise ValueError(
            f"`{argument}` must have shape {order} for data_format={data_format!r}. "
            f"Received shape: {shape}"
        )
    channels, size = (shape[1], shape[2:]) if channels_first else (shape[3], shape[1:3])
    if channels not in (None, in_chans):
        raise ValueError(
            f"`{argument}` must have in_chans={in_chans} channels, as {order} for "
            f"data_format={data_format!r}. Received shape: {shape}"
        )
    _check_size(argument, size, num_stages, shape)


def check_flag(argument: str, value) -> bool:
    """`value` as a bool (NumPy's counts), or an error that names `argument`."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{argument}` must be True or False. Received: {argument}={value!r}")
    return bool(value)


def _check_rate(argument: str, value) -> float:
    if not is_number(value) or not 0 <= float(value) < 1:
        raise ValueError(f"`{argument}` must be a number in [0, 1). Received: {argument}={value!r}")
    return float(value)


def check_choice(argument: str, value, allowed: tuple) -> Any:
    """`value` as a plain text or None, or an error that names `argument`."""
    if not (value is None or isinstance(value, str)) or value not in allowed:
        raise ValueError(
            f"`{argument}` must be one of {', '.join(map(repr, allowed))}. "
            f"Received: {argument}={value!r}"
        )
    return value if value is None else str(value)


def _check_size(argument: str, size, num_stages: int, received) -> None:
    least = min_image_size(num_stages)
    if any(isinstance(side, int) and side < least for side in size):
        raise ValueError(
            f"`{argument}` is too small for the strides of {num_stages} stages: height and "
            f"width must be at least {least}. Received: {received}"
        )


def _activation(classifier_activation, num_classes: int | None):
    """The function; of a single output, whose softmax is always 1, the sigmoid instead."""
    try:
        found = keras.activations.get(classifier_activation)
        single = num_classes == 1 and found is keras.activations.softmax
        return keras.activations.sigmoid if single else found
    except (ValueError, TypeError) as error:
        raise ValueError(
            "`classifier_activation` must be None, a function, or the name of a Keras "
            f"activation such as 'softmax' or 'sigmoid'. Received: {classifier_activation!r}"
        ) from error


def _plain_resolution(img_resolution) -> int | tuple[int, ...] | None:
    """None, an int or a pair of them, from NumPy's and from anything that has an order."""
    if img_resolution is None:
        return None
    try:
        if isinstance(img_resolution, (str, bytes, Mapping, Set)):
            raise TypeError
        if isinstance(img_resolution, Iterable):
            return tuple(at_least("img_resolution", side, 1) for side in img_resolution)
        return at_least("img_resolution", img_resolution, 1)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`img_resolution` must be None, a positive integer, or a pair (height, width). "
            f"Received: {img_resolution!r}"
        ) from error


def _resolution(img_resolution, num_stages: int) -> tuple[int | None, int | None]:
    if img_resolution is None:
        return None, None
    pair = img_resolution if isinstance(img_resolution, tuple) else (img_resolution,) * 2
    if len(pair) != 2:
        raise ValueError(
            "`img_resolution` must be None, a positive integer, or a pair (height, width). "
            f"Received: {img_resolution!r}"
        )
    _check_size("img_resolution", pair, num_stages, img_resolution)
    return pair
