"""`VAN`: the network as a Keras model that is built, saved, loaded and shown like any other.

The paper is in `blocks` (Figure 2, Equations 1 and 2) and `network` (Table 2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import keras

from ..spec.config import DATA_FORMATS, POOLINGS, resolve
from ..spec.labels import labels_of, texts_of
from ..spec.preprocessing import Preprocessing
from ..support.checks import at_least_or_none, check_choice, check_flag
from ..support.text import printable
from ..weights.hub_name import is_hub_name
from ..weights.pretrained import Pretrained, open_pretrained
from . import shifted
from .arguments import (
    activation_function,
    check_images,
    check_input_shape,
    check_rate,
    check_remat,
    fixed_sides,
    plain_resolution,
    preprocessing_of,
)
from .blocks import Block, OverlapPatchEmbed
from .layers import register
from .load import load_checkpoint
from .network import Network
from .parts import changed_parts

# Of the constructor, and attributes as they are saved.
_ARGUMENTS = (
    "configuration",
    "in_chans",
    "num_classes",
    "drop_rate",
    "drop_path_rate",
    "num_stages",
    "include_top",
    "data_format",
    "img_resolution",
    "pooling",
    "name",
    "trainable",
)


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
            another name of `van weights list`; the path of a weight file of any known format;
            or a folder of a hub, "hf://USER/NAME[@REVISION]", also as the only argument.
            Downloaded once, verified on every load. Another `num_classes` starts with a fresh
            head, another `in_chans` with a fitted first convolution; both are said in a warning.
            Without a configuration and lists, the model takes the weights' sizes.
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
        if is_hub_name(configuration) and pretrained in (False, None):
            configuration, pretrained = None, str(configuration)  # VAN("hf://USER/NAME")
        # What can be told at once is told before anything is downloaded.
        in_chans = at_least_or_none("in_chans", in_chans, 1)
        num_classes = at_least_or_none("num_classes", num_classes, 1)
        data_format = keras.config.image_data_format() if data_format is None else data_format
        data_format = check_choice("data_format", data_format, DATA_FORMATS)
        pooling = check_choice("pooling", pooling, POOLINGS)
        include_top = check_flag("include_top", include_top)
        trainable = check_flag("trainable", trainable)
        drop_rate = check_rate("drop_rate", drop_rate)
        drop_path_rate = check_rate("drop_path_rate", drop_path_rate)
        # NumPy's texts become plain ones.
        name, configuration = (str(t) if isinstance(t, str) else t for t in (name, configuration))
        lists: Any = (embed_dims, mlp_ratios, depths)  # which are read twice
        lists = [list(one) if isinstance(one, Iterator) else one for one in lists]
        embed_dims, mlp_ratios, depths = lists
        activation_function(classifier_activation, num_classes)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        img_resolution = plain_resolution(img_resolution)
        if configuration is not None or not any(one is None for one in lists):
            asked = resolve(configuration, embed_dims, mlp_ratios, depths, num_stages)
            fixed_sides(img_resolution, asked.num_stages)

        source = open_pretrained(pretrained, configuration)
        sizes = None if source is None else source.weights.architecture
        default = None if sizes is None else sizes.config
        config = resolve(configuration, embed_dims, mlp_ratios, depths, num_stages, default)
        if source is not None and sizes is not None:
            sizes.check_same_sizes(config, f"`pretrained`: {printable(source.card.name)}")
            configuration = configuration or sizes.configuration
        if in_chans is None:
            in_chans = 3 if sizes is None else sizes.in_chans
        if num_classes is None:
            num_classes = (sizes and sizes.num_classes) or 1000
        height, width = fixed_sides(img_resolution, config.num_stages)
        channels_first = data_format == "channels_first"
        shape = (in_chans, height, width) if channels_first else (height, width, in_chans)
        images = keras.Input(shape, name="images", dtype=policy.compute_dtype)
        network = Network(
            config,
            num_classes,
            drop_rate,
            drop_path_rate,
            include_top,
            classifier_activation,
            channels_first,
            pooling,
            policy,
            trainable,
            block=self._block,
            patch_embed=self._patch_embed,
        )
        outputs, pyramid_outputs = network(images, parts)
        super().__init__(images, outputs, name=name or configuration or "van")
        self._trainable = bool(trainable)  # the property would set every layer, against `parts`

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
        made = activation_function(classifier_activation, num_classes)
        is_sigmoid = made is keras.activations.sigmoid
        self.classifier_activation = "sigmoid" if is_sigmoid else classifier_activation
        self.data_format = data_format
        self.img_resolution = img_resolution
        self.pooling = pooling
        self.pyramid_outputs = pyramid_outputs
        self._network = network

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
        preprocessing = preprocessing_of(preprocessing, self.in_chans)
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
        if remat:
            check_remat(self.drop_rate)
        for block in self._blocks:
            block.remat = bool(remat)
        self.train_function = None  # traced with the former setting

    @property
    def _blocks(self) -> list[Block]:
        return [layer for layer in self.layers if isinstance(layer, Block)]

    def __call__(self, inputs, *args, **kwargs):
        shape = getattr(inputs, "shape", None)
        if shape is not None and hasattr(self, "in_chans"):  # not yet while Keras builds it
            check_images(shape, "inputs", self.in_chans, self.data_format, self.num_stages)
        return super().__call__(inputs, *args, **kwargs)

    def predict_step(self, *args):
        """Keras's."""
        with shifted.inference_by_xla(self.jit_compile):
            return super().predict_step(*args)

    def test_step(self, *args):
        """Keras's."""
        with shifted.inference_by_xla(self.jit_compile):
            return super().test_step(*args)

    def build(self, input_shape):
        """Checks `input_shape`, and makes `summary()` show the shapes it leads to."""
        if input_shape is not None:
            sizes = self.in_chans, self.data_format, self.num_stages
            self._display_shape = check_input_shape(input_shape, self.input_shape, *sizes)
        super().build(input_shape)

    def summary(self, *args, **kwargs):
        """Keras's summary, with concrete output shapes once `build(shape)` was called."""
        if self._display_shape is None:
            return super().summary(*args, **kwargs)
        with _shown_as(self, self._display_shape) as view:
            return view.summary(*args, **kwargs)

    def get_config(self) -> dict:
        """The constructor's arguments; labels and preprocessing, and `parts`, where there are."""
        config = {name: getattr(self, name) for name in _ARGUMENTS}
        config |= {
            "embed_dims": list(self.embed_dims),
            "mlp_ratios": list(self.mlp_ratios),
            "depths": list(self.depths),
            "classifier_activation": keras.activations.serialize(
                keras.activations.get(self.classifier_activation)
            ),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }
        if isinstance(self.img_resolution, tuple):
            config["img_resolution"] = list(self.img_resolution)
        if self.labels is not None:
            config["labels"] = list(self.labels)
        if self.preprocessing is not None:
            config["preprocessing"] = self.preprocessing.to_dict()
        parts = changed_parts(
            self, replace(self._network, trainable=self.trainable, dtype=self.dtype_policy).layers
        )
        for what in ("labels", "preprocessing"):  # of the model, as above
            parts.get("patch_embed1", {}).pop(what, None)
        parts = {name: changes for name, changes in parts.items() if changes}
        return {"parts": parts, **config} if parts else config

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


@contextmanager
def _shown_as(model: VAN, shape: tuple) -> Iterator[keras.Model]:
    """A model of the same layers for images of `shape`, for a look at it.

    It is a second trace, whose nodes are taken off the layers again afterwards, or `layer.output`
    would become ambiguous and old traces would never be freed.
    """
    steps = model.layers
    outbound = [len(layer._outbound_nodes) for layer in steps]
    inbound = [len(layer._inbound_nodes) for layer in steps]
    try:
        images = keras.Input(shape[1:], shape[0], dtype=model.inputs[0].dtype, name="images")
        x = images
        for layer in steps[1:]:
            x = layer(x)
        view = keras.Model(images, x, name=model.name)
        view.compiled, view.optimizer = model.compiled, getattr(model, "optimizer", None)
        yield view
    finally:
        for layer, n_in, n_out in zip(steps, inbound, outbound, strict=True):
            del layer._inbound_nodes[n_in:]
            del layer._outbound_nodes[n_out:]
