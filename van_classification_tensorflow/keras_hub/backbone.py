"""`VANBackbone`: a VAN as the backbones of KerasHub are, with presets and a feature pyramid."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
from keras_hub.models import FeaturePyramidBackbone
from keras_hub.src.utils.preset_utils import CONFIG_FILE, get_preset_loader

from ..model.arguments import check_image_shape, check_rate, check_size
from ..model.layers import register
from ..model.network import Network
from ..spec.config import DATA_FORMATS, VANConfig
from ..support.checks import check_choice
from ..support.files import write_atomically
from .weights import load_features, named, opened, sizes_of

# The 1 x 1 convolutions of a block: of the attention, where LoRA begins, and of the MLP.
ATTENTION = ("proj_1", "conv1", "proj_2")


def with_products(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `keras.Model.quantize`: by default for `Dense` and what is made from it."""
    dense = {"type_check": False, "filters": lambda layer: isinstance(layer, keras.layers.Dense)}
    return dense | kwargs


@register
class VANBackbone(FeaturePyramidBackbone):
    """Visual Attention Network (arXiv 2202.09741) as a backbone of KerasHub.

    The output is the feature map of the last stage; `pyramid_outputs` has those of all, `P2` (of
    a quarter of the sides) to `P5` (of a 32nd), in the format of the images. Everything is as
    KerasHub's own backbones have it: `from_preset`, `save_to_preset`, `presets`, `enable_lora`,
    `quantize`, dtype policies. The tensors are those of `VAN`: `load_checkpoint` takes it.

    Args:
        embed_dims: Channels of each stage.
        mlp_ratios: Hidden channels of each stage's MLP, as a multiple of `embed_dims`.
        depths: Blocks of each stage.
        drop_rate: Dropout inside the MLPs, in [0, 1).
        drop_path_rate: Stochastic depth of the last block, in [0, 1); grows linearly from 0.
        image_shape: Of one image in the format below; None for sides that may change.
        data_format: "channels_last" or "channels_first" of the images and of the feature maps;
            None: `keras.config.image_data_format()`. Layers inside are channels-last either way.
        dtype: Dtype policy, or a `DTypePolicyMap`; None: the global one.
        kwargs: `name` and `trainable`, as of any Keras model.

    Input: float images, normalised (`VANImageConverter` does it).

    Raises:
        ValueError: An argument is not allowed; names it, what is allowed and what came.

    Example:
    ```python
    backbone = VANBackbone.from_preset("van_b0_imagenet")
    maps = keras.Model(backbone.inputs, backbone.pyramid_outputs)(images)
    ```
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        mlp_ratios: Sequence[float],
        depths: Sequence[int],
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        image_shape: Sequence[int | None] | None = None,
        data_format: str | None = None,
        dtype: Any = None,
        **kwargs,
    ):
        config = VANConfig(embed_dims, mlp_ratios, depths)
        drop_rate = check_rate("drop_rate", drop_rate)
        drop_path_rate = check_rate("drop_path_rate", drop_path_rate)
        data_format = data_format or keras.config.image_data_format()
        data_format = check_choice("data_format", data_format, DATA_FORMATS)
        channels_first = data_format == "channels_first"
        if image_shape is None:
            image_shape = (3, None, None) if channels_first else (None, None, 3)
        image_shape = check_image_shape("image_shape", image_shape, channels_first)
        sides = image_shape[1:] if channels_first else image_shape[:2]
        check_size("image_shape", sides, config.num_stages, image_shape)

        network = Network(
            config,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            include_top=False,
            channels_first=channels_first,
            pooling=None,
            dtype=dtype,
        )
        images = keras.Input(image_shape, name="images")
        features, pyramid_outputs = network(images)
        super().__init__(inputs=images, outputs=features, dtype=dtype, **kwargs)

        self.embed_dims = list(config.embed_dims)
        self.mlp_ratios = list(config.mlp_ratios)
        self.depths = list(config.depths)
        self.drop_rate = drop_rate
        self.drop_path_rate = drop_path_rate
        self.image_shape = image_shape
        self.data_format = data_format
        self.pyramid_outputs = pyramid_outputs

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "embed_dims": self.embed_dims,
            "mlp_ratios": self.mlp_ratios,
            "depths": self.depths,
            "drop_rate": self.drop_rate,
            "drop_path_rate": self.drop_path_rate,
            "image_shape": list(self.image_shape),
            "data_format": self.data_format,
        }

    def default_lora_layer_names(self) -> list[str]:
        """The 1 x 1 convolutions of the attention; those of the MLPs are "fc1" and "fc2"."""
        return list(ATTENTION)

    def enable_lora(self, rank: int, target_layer_names: Sequence[str] | None = None) -> None:
        """KerasHub's, with frozen biases: what is trained is what `save_lora_weights` keeps.

        Args:
            rank: Of the matrices that are trained in place of the kernels.
            target_layer_names: Names of the layers; by default the 1 x 1 convolutions of the
                attention ("proj_1", "conv1", "proj_2"). The MLPs have "fc1" and "fc2".
        """
        super().enable_lora(rank, target_layer_names)
        for layer in self._flatten_layers(include_self=False):
            if getattr(layer, "lora_enabled", False) and layer.bias is not None:
                layer.bias.trainable = False

    def quantize(self, mode: str | None = None, **kwargs) -> None:
        """As `keras.Model.quantize`, with the 1 x 1 convolutions.

        They are nearly all of the weights, and of a subclass of `Dense`, which Keras passes over
        by default. The other layers it cannot quantise.
        """
        super().quantize(mode, **with_products(kwargs))

    def save_to_preset(self, preset_dir: str, max_shard_size: float | None = 10) -> None:
        """KerasHub's; of a mixed policy the type of the variables, as its loader knows no other."""
        super().save_to_preset(preset_dir, max_shard_size)
        if self.dtype_policy.name in ("mixed_float16", "mixed_bfloat16"):
            path = Path(preset_dir, CONFIG_FILE)
            saved = json.loads(path.read_text("utf-8"))
            kept = keras.DTypePolicy(self.variable_dtype)
            saved["config"]["dtype"] = keras.dtype_policies.serialize(kept)
            text = json.dumps(saved, indent=4)
            write_atomically(path, lambda new: new.write_text(text, "utf-8"))

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs) -> VANBackbone:
        """KerasHub's; what was saved quantised stays so, which its loader of backbones forgets."""
        if kwargs.get("dtype") is None:
            saved = get_preset_loader(preset).config.get("config", {}).get("dtype")
            if isinstance(saved, dict) and saved.get("class_name") == "DTypePolicyMap":
                kwargs["dtype"] = saved
        return super().from_preset(preset, load_weights, **kwargs)

    @classmethod
    def from_weights(
        cls, weights: Any, data_format: str | None = None, dtype: Any = None, **kwargs
    ) -> VANBackbone:
        """A backbone with the weights of a file of any known format, or published ones.

        Args:
            weights: The path of a weight file (`.pth`, `.safetensors`, `.h5`, `.keras`, ...) or of
                a Hugging Face folder; hf://USER/NAME[@REVISION]; or a name of `van weights list`.
                A head is left out.
            data_format: As of the constructor.
            dtype: As of the constructor.
            kwargs: What else the constructor takes.

        Raises:
            ValueError: There are no such weights, or the file is refused.
            OSError: They cannot be downloaded, verified or opened.
        """
        found = opened(weights)
        sizes = found.weights.architecture
        arguments = sizes_of(sizes.config, sizes.in_chans, data_format)
        backbone = cls(**{**arguments, "dtype": dtype, **kwargs})
        load_features(backbone, found)
        return backbone

    def load_weights(self, filepath: str | os.PathLike, *args, **kwargs) -> None:
        """Keras's, and of the presets of published weights these, from the verified cache."""
        weights = named(filepath)
        if weights is None:
            super().load_weights(filepath, *args, **kwargs)
        else:
            load_features(self, weights)
