"""The network: four stages of patch embedding, blocks and norm, then the head (paper, Table 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from ..spec.config import POOLINGS, VANConfig, stage_kernel_stride
from ..support.checks import check_choice
from .arguments import activation_function, check_rate
from .blocks import Block, OverlapPatchEmbed
from .parts import changed


@dataclass(frozen=True)
class Network:
    """A VAN before it has any weights: its layers in order, and the graph that they make.

    Args: as in `VAN`, and

        channels_first: Whether images and the feature maps that come out are (B, C, H, W).
        norm_epsilon: Of the LayerNorm after each stage.
        block: Makes a block; another one where the model is fused.
        patch_embed: Makes a patch embedding, likewise.

    Raises:
        ValueError: A rate, `pooling` or the activation is not allowed.
    """

    config: VANConfig
    num_classes: int = 1000
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    include_top: bool = True
    classifier_activation: Any = "softmax"
    channels_first: bool = False
    pooling: str | None = "avg"
    dtype: Any = None
    trainable: bool = True
    norm_epsilon: float = 1e-6
    block: Callable[..., layers.Layer] = Block
    patch_embed: Callable[..., layers.Layer] = OverlapPatchEmbed

    def __post_init__(self) -> None:
        check_rate("drop_rate", self.drop_rate)
        check_rate("drop_path_rate", self.drop_path_rate)
        check_choice("pooling", self.pooling, POOLINGS)
        activation_function(self.classifier_activation, self.num_classes)

    def layers(self) -> Iterator[layers.Layer]:
        """Makes the layers in order: each takes the output of the one before (paper, Table 2)."""
        # Not `or`: an empty DTypePolicyMap is false, and has a default.
        policy = keras.config.dtype_policy() if self.dtype is None else self.dtype
        policy = keras.dtype_policies.get(policy)
        every: dict[str, Any] = {"dtype": policy, "trainable": self.trainable}

        if self.channels_first:
            yield layers.Permute((2, 3, 1), name="to_channels_last", **every)
        # Stochastic depth grows linearly over all blocks, from 0 to drop_path_rate.
        rate_step = self.drop_path_rate / max(sum(self.config.depths) - 1, 1)
        rates = (rate_step * index for index in range(sum(self.config.depths)))
        sizes = (self.config.embed_dims, self.config.hidden_dims, self.config.depths)
        for i, (dim, hidden_dim, depth) in enumerate(zip(*sizes, strict=True), start=1):
            kernel_size, stride = stage_kernel_stride(i)
            yield self.patch_embed(dim, kernel_size, stride, name=f"patch_embed{i}", **every)
            for j in range(depth):
                args = dim, hidden_dim, self.drop_rate, next(rates)
                yield self.block(*args, name=f"block{i}_{j}", **every)
            yield layers.LayerNormalization(epsilon=self.norm_epsilon, name=f"norm{i}", **every)

        if self.include_top or self.pooling == "avg":
            yield layers.GlobalAveragePooling2D("channels_last", name="pool", **every)  # (B, C)
        elif self.pooling == "max":
            yield layers.GlobalMaxPooling2D("channels_last", name="pool", **every)
        elif self.channels_first:
            yield layers.Permute((3, 1, 2), name="to_channels_first", **every)
        if self.include_top:
            # Scores and losses stay in float32 when the model computes in half precision.
            if policy.compute_dtype in ("float16", "bfloat16"):
                every["dtype"] = "float32"
            # timm's trunc_normal_(std=.02) cuts at +-2 absolute: at 100 sigma, never.
            init = keras.initializers.RandomNormal(stddev=0.02)
            yield layers.Dense(self.num_classes, kernel_initializer=init, name="head", **every)
            activation = activation_function(self.classifier_activation, self.num_classes)
            yield layers.Activation(activation, name="pred", **every)

    def __call__(self, images, parts: Mapping[str, Mapping[str, Any]] | None = None):
        """The functional graph: images -> (outputs, {"P2": stage 1, ..., "P5": stage 4}).

        Feature maps that come out are in the format of the images.

        Args:
            images: A symbolic tensor, (B, H, W, C) or (B, C, H, W).
            parts: What was set on single layers, as in `VAN`.
        """
        x = images
        pyramid: dict[str, Any] = {}
        for layer in self.layers():
            x = changed(layer, (parts or {}).get(layer.name))(x)
            if layer.name.startswith("norm"):
                pyramid[f"P{len(pyramid) + 2}"] = x  # (B, H / 2^(i+1), W / 2^(i+1), C_i)
        if self.channels_first:
            pyramid = {
                name: layers.Permute((3, 1, 2), name=f"{name}_channels_first", dtype=self.dtype)(
                    features
                )
                for name, features in pyramid.items()
            }
        return x, pyramid
